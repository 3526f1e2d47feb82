"""The watchdog: a thread that reports, and ends the process when its main loop is stuck."""

from __future__ import annotations

import faulthandler
import logging
import os
import time
from contextlib import contextmanager
from math import inf
from threading import Event, Thread
from typing import TYPE_CHECKING, NoReturn

from .errors import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .status import Report

TICK = 1.0
"""Seconds between two ticks of the watchdog."""

_log = logging.getLogger("connectors")


class Watchdog:
    """Tells whether the main loop is stuck: no iteration during so many of its own ticks.

    It counts ticks, not time: a process that was stopped and resumed is judged by what it does
    next. Iterations and signals come from the main thread, ticks from the watching one.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit / TICK
        self._left = inf
        self._iterations = 0
        self._seen = 0
        self._silent = 0

    def note_iteration(self) -> None:
        """Take note that the loop goes round."""
        self._iterations += 1

    def set_deadline(self, limit: float) -> None:
        """Allow so many seconds more, whatever the loop does."""
        self._left = limit / TICK

    def tick(self) -> bool:
        """Count one more tick; say whether it was one too many."""
        iterations = self._iterations
        self._silent = self._silent + 1 if iterations == self._seen else 0
        self._seen = iterations
        self._left -= 1
        return self._silent >= self._limit or self._left < 0


@contextmanager
def run_watchdog(watchdog: Watchdog, report: Report) -> Iterator[None]:
    """Watch the loop and log reports in a thread, until the end of the block."""
    over = Event()

    def watch() -> None:
        while not over.wait(TICK):
            if watchdog.tick():
                _give_up()
            for line in report.lines(time.monotonic()):
                _log.log(line.level, line.text, extra={"fields": line.fields})

    thread = Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(TICK)


def _give_up() -> NoReturn:
    _log.critical("Stuck: the main loop does not run, or did not end in time; the stacks follow.")
    faulthandler.dump_traceback(all_threads=True)
    os._exit(Exit.UNEXPECTED)
