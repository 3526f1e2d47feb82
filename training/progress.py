"""Progress of a training: a bar on a terminal, a line for each epoch anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TextIO

from rich import progress as bars
from rich.console import Console

from .recipe import Epoch, Step

if TYPE_CHECKING:
    from types import TracebackType

INERTIA = 0.95
"""Of the loss and accuracy that are shown: a single batch jumps too much to be read."""

REFRESHES_PER_SECOND = 4
"""Of the bar: drawing takes a millisecond, which the training should hardly miss."""


class Progress:
    """Shows steps and epochs on `stream`; to be used in a `with` statement."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        self._bar = bars.Progress(
            bars.TextColumn("{task.percentage:3.0f} %"),
            bars.BarColumn(bar_width=None),
            bars.TimeRemainingColumn(),
            bars.TextColumn("left{task.description}"),
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            disable=not stream.isatty(),
        )
        self._task = self._bar.add_task("", total=1.0)
        self._images = 0
        self._loss = self._accuracy = float("nan")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, event: Step | Epoch) -> None:
        """Move the bar by a step, or write the line of an epoch."""
        if isinstance(event, Epoch):
            self._console.print(format_epoch(event))
        elif not self._bar.disable:
            self._move(event)

    def refresh(self) -> None:
        """Draw the bar now; it is otherwise drawn REFRESHES_PER_SECOND times a second."""
        self._bar.refresh()

    def _move(self, step: Step) -> None:
        first = step.number == 1
        self._loss = step.loss if first else _smooth(self._loss, step.loss)
        self._accuracy = step.accuracy if first else _smooth(self._accuracy, step.accuracy)
        self._images += step.images
        speed = self._images / max(self._bar.tasks[self._task].elapsed or 0.0, 1e-9)
        self._bar.update(
            self._task,
            completed=step.progress,
            description=f", loss {self._loss:.3f}, accuracy {100 * self._accuracy:.1f} %, "
            f"{speed:,.0f} images/s",
        )


def format_epoch(epoch: Epoch) -> str:
    """Return an epoch as a line for people."""
    held_out = epoch.validation_accuracy
    validation = "" if held_out is None else f"validation {100 * held_out:.2f} %, "
    return (
        f"epoch {epoch.number:2d}, {epoch.seconds:4.0f} s: loss {epoch.loss:.3f}, "
        f"accuracy {100 * epoch.accuracy:.1f} %, {validation}"
        f"{epoch.images_per_second:,.0f} images/s"
    )


def _smooth(before: float, now: float) -> float:
    return INERTIA * before + (1 - INERTIA) * now
