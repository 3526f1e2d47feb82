"""What the tool says of bugs that die, that live, and that cannot be planted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.mutants import MUTANTS, Mutant, MutantError, check, main, order_suite, run
from tools.servers.process import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CODE = """def add(one, other):
    return one + other


def double(one):
    return 2 * one
"""
TEST = """from connectors.sums import add


def test_one_and_one_are_two():
    assert add(1, 1) == 2
"""
DEADLY = Mutant("minus", "connectors/sums.py", "one + other", "one - other", "sums are wrong")
HARMLESS = Mutant("triple", "connectors/sums.py", "2 * one", "3 * one", "doubles are wrong")
SUITE = ("tests/test_sums.py",)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project with one test."""
    files = {
        "pyproject.toml": "",
        "connectors/__init__.py": "",
        "connectors/sums.py": CODE,
        "tests/test_sums.py": TEST,
        "tools/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def contents(tree: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def test_a_bug_that_a_test_notices_is_killed_by_it(
    tree: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = contents(tree)
    found = tmp_path_factory.mktemp("found") / "mutants.json"
    assert run([DEADLY], tree, SUITE, found) == 0
    (row,) = json.loads(found.read_text())
    assert (row["name"], row["killed_by"]) == ("minus", "tests/test_sums.py")
    assert row["test"] == "tests/test_sums.py::test_one_and_one_are_two"
    assert "1 of 1 mutants killed" in capsys.readouterr().out
    assert contents(tree) == before, "the tree itself is only read"


def test_a_bug_that_nobody_notices_fails_the_run(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([HARMLESS, DEADLY], tree, SUITE, None) == 1
    output = capsys.readouterr().out
    assert "SURVIVED: doubles are wrong" in output
    assert "1 of 2 mutants killed" in output


@pytest.mark.parametrize(("old", "times"), [("one * other", 0), ("one", 4)])
def test_a_bug_must_have_exactly_one_place(tree: Path, old: str, times: int) -> None:
    lost = DEADLY._replace(old=old)
    with pytest.raises(MutantError, match=f"the old text of minus is {times} times"):
        run([lost], tree, SUITE, None)


def test_a_bug_that_cannot_be_run_is_no_kill(tree: Path) -> None:
    with pytest.raises(MutantError, match="could not run"):
        run([DEADLY._replace(new="one +")], tree, SUITE, None)


def test_a_test_that_fails_without_any_bug_kills_nothing(tree: Path) -> None:
    (tree / SUITE[0]).write_text(TEST.replace("== 2", "== 3"))
    with pytest.raises(MutantError, match="fails without any bug"):
        run([DEADLY], tree, SUITE, None)


def test_the_test_file_of_the_mutated_file_comes_first() -> None:
    suite = ("tests/test_other.py", "tests/test_sums.py")
    assert order_suite(suite, DEADLY) == ["tests/test_sums.py", "tests/test_other.py"]


def test_every_bug_fits_the_product_and_has_a_name_of_its_own() -> None:
    check(MUTANTS, ROOT)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_the_list_tells_what_each_bug_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    output = capsys.readouterr().out
    assert all(f"{mutant.name} (" in output and mutant.consequence in output for mutant in MUTANTS)


def test_an_unknown_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "no-such-bug"]) == 1
    assert "there is no no-such-bug" in capsys.readouterr().out
