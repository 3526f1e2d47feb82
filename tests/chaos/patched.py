"""A relay with one known bug, for the controls: `python -m tests.chaos.patched BUG BROKER …`.

The product has no such switch: one part of it is replaced here before it starts.
"""

from __future__ import annotations

import subprocess
import sys

from connectors import __main__ as program
from tests.chaos.brokers import load_bugs
from tests.chaos.patching import PatchError
from tools.servers.process import ROOT, StackError

PATCH_FAILED = 3
"""The exit code when what a bug replaces is not there; no exit code of the connectors."""


def make_program(bug: str) -> tuple[str, ...]:
    """Return what `python -m` starts as a relay with this bug."""
    return ("tests.chaos.patched", bug)


def require_patch(bug: str, broker: str) -> None:
    """Raise StackError when the bug cannot be put into a relay.

    It is asked first, since a relay that never starts loses everything, and a control would take
    that for its bug.
    """
    command = [sys.executable, "-m", *make_program(bug), broker, "--help"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise StackError(f"the bug {bug} is not in the relay: {done.stderr.strip()[-2000:]}")


def main(bug: str, broker: str, *flags: str) -> int:
    """Patch, then run the connectors as ever; return their exit code, or PATCH_FAILED."""
    try:
        load_bugs(broker)[bug]()
    except PatchError as error:
        print(f"patched: {error}", file=sys.stderr)
        return PATCH_FAILED
    return program.main([broker, *flags])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
