"""Command line of the training package: `python -m training --help`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .errors import TrainingError
from .options import make_parser
from .output import say

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED, INTERRUPTED = 1, 130
"""Exit codes; argparse adds 2 for wrong usage, 130 is that of a shell after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        # torch takes seconds to import, and --help needs none of it.
        from .commands import run_command  # noqa: PLC0415

        return run_command(options)
    except TrainingError as error:
        say(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        say("interrupted: nothing was kept")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
