"""The observer: sees what goes in and what comes out, in threads of its own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from tests.chaos.operation_log import ProgressTimer

if TYPE_CHECKING:
    from tests.chaos.operation_log import OperationLog


class Topics(NamedTuple):
    """The topics of one relay."""

    images: str
    predictions: str
    dead: str


class Observer(ABC):
    """Fills an operation log, and notes how long nothing came out. Closed by whoever made it."""

    def __init__(self, log: OperationLog) -> None:
        self.log = log
        self.timer = ProgressTimer(time.monotonic())
        self._error: Exception | None = None

    @abstractmethod
    def start(self) -> None:
        """Begin to read."""

    @abstractmethod
    def close(self) -> None:
        """Stop reading."""

    def check(self) -> None:
        """Raise what ended it."""
        if self._error:
            raise self._error

    def idle(self) -> float:
        """Return for how many seconds nothing has come out."""
        return self.timer.idle(time.monotonic())

    def longest_silence(self) -> float:
        """Return the longest time without an outcome, in seconds, while one was missing."""
        return max(self.timer.longest, self.idle() if self.log.missing > 0 else 0.0)
