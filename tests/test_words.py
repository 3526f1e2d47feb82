"""The vocabulary: words of a former private dialect do not come back as names.

Each row says where, and which names are not to be used there, since the field has a word for it.
Strings may hold them: labels of metrics and former flags are what others know.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONNECTORS = ("connectors",)
BROKERS = ("connectors/brokers", "tests/brokers")
HARNESS = ("tests/chaos", "tests/bench", "tools")
ROOMS = (*CONNECTORS, "handler", "training", *HARNESS, "tests/brokers")


class Row(NamedTuple):
    """Names that are not used in `rooms`."""

    rooms: tuple[str, ...]
    names: str


ROWS = [
    Row(
        ROOMS,
        "lap laps GLANCE HEARTBEAT PATIENCE patience_for_records patience_for_answers obeyed "
        "watched hurry _hear Seldom JsonLines monitored Tally tally Errand Trials accuse "
        "absolve convict condemn condemned suspects witness WITNESS elders elder dead_row "
        "dead_share Place membership mend _sound _believe _doubt _floor DOUBT Parcel parcel "
        "parcels _remains _Addressing _Post complaint Wire _Extent _Shelf SESSIONS FEW MOST "
        "ROOMY COMING LATELY TROUBLED listed shown replayed told printed examined described "
        "fate letter letters Board Picture Metered written_whole keep_freed judge gather obtain "
        "peak chance Learner victims victim suffer Seat Guest Scene Stage Bench Site Witness "
        "Watch Ledger Fate Pulse Feeder Outlet visit Cable Course heat",
    ),
    Row(CONNECTORS, "Sent Pause History room fail forms shrink"),
    Row(BROKERS, "_Source Source outcomes Outcomes"),
    Row(("training", "handler"), "smoothing shift erase blank ground Plan Form point mirrored"),
    Row(HARNESS, "plan Plan live"),
]

ALLOWED: dict[str, str] = {}
"""Names that stay, by file, each with its reason."""


def names_in(source: str) -> set[str]:
    """Return every name that `source` gives to something of its own."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name) | ast.arg(arg=name) | ast.alias(asname=str(name)):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def unwanted(path: str, source: str) -> set[str]:
    """Return the names in `source`, lying at `path`, that a row forbids there."""
    forbidden = {
        name
        for row in ROWS
        if any(path.startswith(f"{room}/") for room in row.rooms)
        for name in row.names.split()
    }
    return {name for name in names_in(source) & forbidden if f"{path}:{name}" not in ALLOWED}


FILES = [
    str(file.relative_to(ROOT)) for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))
]


@pytest.mark.parametrize("path", FILES)
def test_names_are_words_that_the_field_knows(path: str) -> None:
    assert unwanted(path, (ROOT / path).read_text()) == set()


@pytest.mark.parametrize(
    "line",
    [
        "def judge(): ...",
        "class Tally: ...",
        "def send(letter): ...",
        "self.witness = 1",
        "for lap in range(3): ...",
        "import collections as tally",
    ],
)
def test_a_former_word_is_noticed(line: str) -> None:
    assert unwanted("connectors/relay.py", line)


def test_what_is_allowed_is_there() -> None:
    for entry in ALLOWED:
        path, _, name = entry.partition(":")
        assert name in names_in((ROOT / path).read_text()), entry
