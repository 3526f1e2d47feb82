"""Interruption by SIGINT or SIGTERM: a note that the training reads between two steps."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Within its `with` statement the first signal is noted; a second one acts as ever."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """Return what a shell reports of a program that the signal ended: 130 or 143."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, action in self._before.items():
            signal.signal(number, action)
