"""A program's own wall clock, which jumps when it is told to; by libfaketime.

Its monotonic clock goes on as ever, as it does where an operator or NTP sets a machine's time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LIBRARIES = Path("/usr/lib").glob
MISSING = "libfaketime is not there: run `apt-get install faketime`"
NO_JUMP = "+0"


def find_library() -> Path | None:
    """Return libfaketime for programs with threads; None: it is not installed."""
    return next(iter(sorted(LIBRARIES("**/faketime/libfaketimeMT.so.1"))), None)


class ShiftedClock:
    """The clock of one program; `file` says how far it is off."""

    def __init__(self, library: Path, file: Path) -> None:
        self._library = library
        self._file = file
        self.shift(NO_JUMP)

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return what runs a command by this clock."""
        variables = {
            "LD_PRELOAD": self._library,
            "FAKETIME_TIMESTAMP_FILE": self._file,
            "FAKETIME_CACHE_DURATION": "1",  # seconds between two looks at the file
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return ["env", *(f"{name}={value}" for name, value in variables.items()), *argv]

    def shift(self, offset: str) -> None:
        """Let it jump, to so far from the true time: `+2h`, `-1d`, NO_JUMP."""
        self._file.write_text(f"{offset}\n")
