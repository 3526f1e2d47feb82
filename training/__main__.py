"""Command line of the training package: `python -m training --help`."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

from .errors import TrainingError, TrainingWarning
from .options import make_parser
from .output import say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FAILED, INTERRUPTED = 1, 130
"""Exit codes; argparse adds 2 for wrong usage, 130 is that of a shell after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        # torch takes seconds to import, and --help needs none of it.
        from .commands import run_command  # noqa: PLC0415

        with warnings.catch_warnings():
            warnings.simplefilter("always", TrainingWarning)
            warnings.showwarning = _make_showwarning(warnings.showwarning)
            return run_command(options)
    except TrainingError as error:
        say(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        say("interrupted: nothing was kept")
        return INTERRUPTED


def _make_showwarning(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Return what prints our warnings as sentences, without the place in the source."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:  # noqa: ANN401 - the library's
        if issubclass(category, TrainingWarning):
            say(f"warning: {message}")
        else:
            otherwise(message, category, *where, **more)

    return show


if __name__ == "__main__":
    sys.exit(main())
