"""`python -m tools.chaos.pubsub`: exit code 0 only when the promise was kept in each case."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from tools.chaos.__main__ import empty, say
from tools.chaos.pubsub.run import run
from tools.chaos.pubsub.scene import Case
from tools.chaos.scene import classes
from tools.stack import ROOT, StackError, TorchServe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.chaos.pubsub.report import CaseReport

CASES = [
    # 20,000 messages, and relays that die while they hold some.
    Case(name="kills", duration=100.0, rate=200.0, counts={"relay killed": 10}),
    # 200 messages of each key, and their order.
    Case(name="keys", duration=100.0, rate=100.0, keys=50, counts={"relay killed": 5}),
    # A service that takes 90 s, and a lease of 10 that must be renewed again and again.
    Case(
        name="slow",
        duration=1.0,
        rate=300.0,
        delay=90.0,
        relays=1,
        flags=("--timeout", "120"),
        patience=200.0,
        silence=200.0,
        once=True,
        counts={},
    ),
    # The stream and all other connections to Pub/Sub break, and stay broken for up to 3 s.
    Case(name="cuts", duration=60.0, rate=200.0, counts={"stream cut": 10}),
]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.chaos.pubsub", description=__doc__)
    names = [case.name for case in CASES]
    made.add_argument(
        "--case", dest="cases", action="append", choices=names, help="repeated; default: all"
    )
    made.add_argument("--seed", type=int, default=None, help="of the faults; default: a random one")
    made.add_argument("--scale", type=float, default=1.0, help="of length and number of faults")
    made.add_argument("--output", type=Path, default=ROOT / "run" / "chaos-pubsub.json")
    return made


def scaled(case: Case, scale: float) -> Case:
    """Return a shorter or longer case, with fewer or more faults."""
    counts = {kind: ceil(count * scale) for kind, count in case.wanted().items()}
    return replace(case, duration=case.duration * scale, counts=counts)


def main(argv: list[str] | None = None) -> int:
    """Do the cases; return the exit code."""
    asked = parser().parse_args(argv)
    folder = empty(asked.output.parent / f"{asked.output.stem}-logs")
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    names = asked.cases or [case.name for case in CASES]
    cases = [replace(scaled(c, asked.scale), seed=seed) for c in CASES if c.name in names]
    try:
        with TorchServe() as server:
            said = classes(server)
            found = [run(case, server.url, said, folder, say) for case in cases]
    except StackError as error:
        say(str(error))
        return 69
    except KeyboardInterrupt:
        say("stopped; nothing is left running")
        return 130
    asked.output.write_text(json.dumps([one.figures() for one in found], indent=2) + "\n")
    tell(found)
    return 0 if all(one.passed for one in found) else 1


def tell(found: Sequence[CaseReport]) -> None:
    """Print everything, for people."""
    for one in found:
        print(one.table(), end="\n\n")


if __name__ == "__main__":
    sys.exit(main())
