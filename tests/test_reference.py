"""The tables of docs/operating.md are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import get_args

import pytest

from connectors.errors import Exit
from connectors.records import Reason
from connectors.registry import BROKERS, KINDS
from connectors.settings import former_names
from tests import reference
from tests.test_docs import OPERATING, help_of


def test_the_tables_are_those_of_the_code() -> None:
    assert reference.render_page(OPERATING) == OPERATING, "run: python -m tests.reference"


@pytest.mark.parametrize("change", ["`fmnist`", "`connector_commits_total`", "| 78 |"])
def test_a_table_that_differs_is_noticed_and_rewritten(
    change: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "operating.md"  # type: ignore[operator]
    page.write_text(OPERATING.replace(change, "something else"))
    monkeypatch.setattr(reference, "PAGE", page)
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    assert page.read_text() == OPERATING


def table(name: str) -> str:
    return OPERATING.partition(f"<!-- begin {name} -->")[2].partition(f"<!-- end {name} -->")[0]


@pytest.mark.parametrize("broker", BROKERS)
def test_each_flag_stands_in_the_group_in_which_the_help_shows_it(broker: str) -> None:
    shown = re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", table("flags") + "\n", re.MULTILINE)
    groups = {title: re.findall(r"^\| `(--[\w-]+)`", rows, re.MULTILINE) for title, rows in shown}
    parts = re.findall(
        r"^(\S.*):\n((?:  .*\n)+)", help_of("connectors", "run", broker), re.MULTILINE
    )
    helped = {title: re.findall(r"^  (--[\w-]+)", rows, re.MULTILINE) for title, rows in parts}
    helped.pop("options")
    assert helped
    assert {title: groups.get(title) for title in helped} == helped


def test_each_flag_of_another_command_is_listed() -> None:
    listed = set(re.findall(r"^\| `(--[\w-]+)`", table("flags") + table("verbs"), re.MULTILINE))
    for (verb, broker), kind in KINDS.items():
        flags = set(
            re.findall(r"^  (--[\w-]+)", help_of("connectors", *verb.split(), broker), re.MULTILINE)
        )
        assert kind.__doc__
        assert flags <= listed, verb


def test_each_former_name_is_told() -> None:
    old = {name for kind in KINDS.values() for name in former_names(kind)}
    assert old
    assert {
        name for name in old if f"formerly `--{name.replace('_', '-')}`" not in OPERATING
    } == set()


def test_each_exit_code_is_explained() -> None:
    codes = {
        int(code)
        for code in re.findall(
            r"\d+", " ".join(re.findall(r"^\| ([\d, ]+) \|", table("exits"), re.MULTILINE))
        )
    }
    assert codes == {*map(int, Exit), 130, 143}


def test_each_reason_is_explained() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table("reasons"), re.MULTILINE))
    assert tuple(rows) == get_args(Reason)
    assert all(rows.values())


def test_the_generator_does_not_import_torch() -> None:
    program = "import sys, tests.reference; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
