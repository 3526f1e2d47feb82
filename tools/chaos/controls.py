"""Negative controls: `python -m tools.chaos.controls [BUG …]`.

Each starts relays with one known bug, strikes where that bug hurts, and must find the promise
broken. Exit code 1 when a bug stays unnoticed: then the harness is too weak.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tools.chaos.run import run
from tools.chaos.scene import Settings
from tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tools.chaos.report import Report

SHORT = Settings(duration=75.0, rate=150.0, patience=25.0, hasty=True)

# A relay that is stopped while it waits for answers commits, when it goes on, what has become
# somebody else's.
ZOMBIES = replace(SHORT, counts={"zombie": 14})

CONTROLS: Mapping[str, Settings] = {
    # Partitions change hands while their records are still held.
    "late-generation": replace(SHORT, counts={"visit": 4, "zombie": 7}),
    "no-generation": ZOMBIES,
    "offsets-first": replace(SHORT, counts={"relay killed": 5}),
    "letters-outside": replace(ZOMBIES, poison=0.2),
    "abort-ignored": replace(SHORT, counts={"broker killed": 3}),
}


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"controls: {text}", flush=True)


def control(bug: str, seed: int) -> Report:
    """Run the relays with a bug; the report should say that the promise was broken."""
    program = ("tools.chaos.patched", bug)
    with tempfile.TemporaryDirectory(prefix="fmnist-control-") as folder:
        return run(replace(CONTROLS[bug], seed=seed, program=program), Path(folder), say)


def verdict(bug: str, found: Report) -> str:
    """Say in one line how it was noticed, or that it was not."""
    broken = [
        f"{count} {kind} ({found.examples.get(kind, '')})"
        for kind, count in found.findings.items()
        if count
    ]
    how = ", ".join(broken) if broken else "NOT NOTICED"
    return f"{bug}: {how}; {found.records} records, {found.seconds:.0f} s"


def arguments(
    prog: str, known: Collection[str], argv: list[str] | None
) -> tuple[Sequence[str], int]:
    """Read the command line: which controls, all if none is named, and the seed."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("bugs", nargs="*", metavar="BUG", help=", ".join(known))
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(argv)
    if unknown := set(asked.bugs) - set(known):
        parser.error(f"there is no control {', '.join(sorted(unknown))}")
    return asked.bugs or list(known), asked.seed


def tell(found: Mapping[str, Report]) -> int:
    """Say how each bug was noticed; return the exit code."""
    for bug, one in found.items():
        say(verdict(bug, one))
    return int(any(one.kept for one in found.values()))


def main(argv: list[str] | None = None) -> int:
    """Run the controls that are named, or all; return the exit code."""
    bugs, seed = arguments("python -m tools.chaos.controls", CONTROLS, argv)
    try:
        return tell({bug: control(bug, seed) for bug in bugs})
    except StackError as error:
        say(str(error))
        return 69


if __name__ == "__main__":
    sys.exit(main())
