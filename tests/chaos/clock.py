"""A program whose wall clock jumps: `python -m tests.chaos.clock FILE MODULE …`.

It runs a module by a clock that is as many seconds off as FILE says. The monotonic clock goes on as
ever, as it does where an operator or NTP sets a machine's time. The clock is replaced in Python,
where kafka-python stamps messages by it. Under libfaketime 0.9.10 with a clock file a transactional
producer of kafka-python does not get ready, even while the clock is right.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class ShiftedClock:
    """The clock of one program; `file` says how many seconds it is off."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.shift(0)

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return what runs `python -m MODULE …` by this clock."""
        python, flag, *module = argv
        return [python, flag, __name__, str(self._file), *module]

    def shift(self, seconds: float) -> None:
        """Let it jump, to so far from the true time."""
        new = self._file.with_suffix(".new")  # or it would be read half written
        new.write_text(str(seconds))
        new.replace(self._file)


def make_clock(file: Path, true: Callable[[], float]) -> Callable[[], float]:
    """Return a clock that is off by what `file` says at the moment."""
    return lambda: true() + float(file.read_text())


def main(file: str, module: str, *arguments: str) -> None:
    """Run a module by the clock of a file."""
    time.time = make_clock(Path(file), time.time)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
