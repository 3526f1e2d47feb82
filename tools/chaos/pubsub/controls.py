"""Negative controls for Pub/Sub: `python -m tools.chaos.pubsub.controls [BUG …]`.

As those of `tools.chaos.controls`: each known bug must be found to break the promise.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tools.chaos.controls import arguments, say, tell
from tools.chaos.pubsub.run import run
from tools.chaos.pubsub.scene import Case
from tools.chaos.scene import classes
from tools.stack import StackError, TorchServe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.chaos.pubsub.report import CaseReport

UNHURT = Case(name="unhurt", duration=5.0, rate=100.0, counts={}, patience=25.0)
# Each message is held for longer than its lease.
SLOW = replace(UNHURT, name="slow", duration=0.5, relays=1, delay=15.0, once=True)

CONTROLS: Mapping[str, Case] = {
    # The relays are killed while they wait for answers.
    "acknowledged-first": replace(
        UNHURT, name="kills", duration=20.0, rate=150.0, counts={"relay killed": 4}
    ),
    "given-back": SLOW,
    "leases-lapse": SLOW,
    "new-ids": UNHURT,
    "keys-dropped": replace(UNHURT, keys=10),
}


def control(url: str, said: Mapping[bytes, int], seed: int, bug: str) -> CaseReport:
    """Run the relays with a bug; the report should say that the promise was broken."""
    program = ("tools.chaos.pubsub.patched", bug)
    case = replace(CONTROLS[bug], seed=seed, program=program)
    with tempfile.TemporaryDirectory(prefix="fmnist-control-") as folder:
        return run(case, url, said, Path(folder), say)


def main(argv: list[str] | None = None) -> int:
    """Run the controls that are named, or all; return the exit code."""
    bugs, seed = arguments("python -m tools.chaos.pubsub.controls", CONTROLS, argv)
    try:
        with TorchServe() as server:
            one = partial(control, server.url, classes(server), seed)
            return tell({bug: one(bug) for bug in bugs})
    except StackError as error:
        say(str(error))
        return 69


if __name__ == "__main__":
    sys.exit(main())
