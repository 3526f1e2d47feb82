"""docs/security.md names files and tests that exist, for each attacker."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ")
][1:]


def list_tests(file: Path) -> set[str]:
    """Return the names of a file's test functions, those in classes too; none without the file."""
    if not file.exists():
        return set()
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")}


def find_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def test_each_test_that_the_page_names_exists() -> None:
    named = find_tests(PAGE)
    assert PAGE.count("::") == len(named)
    assert [one for one in named if one[1] not in list_tests(ROOT / one[0])] == []


def test_each_attacker_has_an_asset_a_defence_a_test_and_what_is_not_defended() -> None:
    assert len(ROWS) == 12
    for attacker, asset, defence, proof, rest in ROWS:
        assert attacker
        assert asset
        assert rest
        assert find_tests(proof), attacker
        places = re.findall(r"`([\w./-]+)`", defence)
        assert places, attacker
        assert [place for place in places if not (ROOT / place).exists()] == []
