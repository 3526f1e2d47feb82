"""`python -m tools.chaos.pubsub`: exit code 0 only when the promise was kept in each case."""

from __future__ import annotations

import argparse
import secrets
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tools.chaos.__main__ import say
from tools.chaos.pubsub.run import run
from tools.chaos.pubsub.scene import Case
from tools.chaos.scene import classes
from tools.chaos.verdict import concluded, logs_of
from tools.stack import ROOT, TorchServe

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


class Reports(NamedTuple):
    """What the cases have shown."""

    cases: Sequence[CaseReport]

    @property
    def passed(self) -> bool:
        """Say whether each of them passed."""
        return all(one.passed for one in self.cases)

    def figures(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"passed": self.passed, "cases": [one.figures() for one in self.cases]}

    def table(self) -> str:
        """Everything, for people."""
        return "\n\n".join(one.table() for one in self.cases)


def main(argv: list[str] | None = None) -> int:
    """Do the cases; return the exit code."""
    asked = parser().parse_args(argv)
    folder = logs_of(asked.output)
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    names = asked.cases or [case.name for case in CASES]
    cases = [replace(scaled(c, asked.scale), seed=seed) for c in CASES if c.name in names]

    def all_of_them() -> Reports:
        with TorchServe() as server:
            said = classes(server)
            return Reports([run(case, server.url, said, folder, say) for case in cases])

    return concluded(all_of_them, asked.output, say)


if __name__ == "__main__":
    sys.exit(main())
