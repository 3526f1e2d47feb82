"""Old names of programs that lie with the tests now: each names its new place and exits with 2."""

from __future__ import annotations

import sys
from typing import NoReturn

MOVED = {
    "tools.bench": "tests.bench",
    "tools.mutants": "tests.mutants",
    "tools.photos": "tests.photos",
    "tools.chaos": "tests.chaos",
    "tools.chaos.controls": "tests.chaos controls",
    "tools.chaos.link": "tests.chaos link",
    "tools.chaos.reload": "tests.chaos reload",
    "tools.chaos.outage": "tests.chaos outage",
    "tools.chaos.killer": "tests.chaos killer",
    "tools.chaos.soak": "tests.chaos soak",
    "tools.chaos.pubsub": "tests.chaos kills --broker pubsub",
    "tools.chaos.pubsub.controls": "tests.chaos controls --broker pubsub",
}


def exit_with_new_name(module: str) -> NoReturn:
    """Name the new place of `module`, or of what `python -m` was asked for below it; exit 2."""
    asked = next((word for word in sys.orig_argv if word in MOVED), module)
    print(f"{asked} has moved: python -m {MOVED[asked]}", file=sys.stderr)
    raise SystemExit(2)
