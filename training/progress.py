"""How a training looks while it runs: a bar on a terminal, a line an epoch anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TextIO

from tqdm import tqdm

from .recipe import Epoch, Step

if TYPE_CHECKING:
    from types import TracebackType

BAR = "{percentage:3.0f} %|{bar}| {remaining} left{postfix}"

INERTIA = 0.95
"""Of the loss and accuracy that are shown: a single batch jumps too much to be read."""


class Progress:
    """Shows steps and epochs on `stream`; to be used in a `with` statement."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar = tqdm(
            total=1.0, bar_format=BAR, file=stream, leave=False, disable=not stream.isatty()
        )
        self._images = 0
        self._loss = self._accuracy = float("nan")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def show(self, event: Step | Epoch) -> None:
        """Move the bar by a step, or write the line of an epoch."""
        if isinstance(event, Epoch):
            tqdm.write(line(event), file=self._stream)
        elif not self._bar.disable:
            self._move(event)

    def refresh(self) -> None:
        """Draw the bar now; it is otherwise drawn some ten times a second at most."""
        self._bar.refresh()

    def _move(self, step: Step) -> None:
        first = step.number == 1
        self._loss = step.loss if first else _smoothed(self._loss, step.loss)
        self._accuracy = step.accuracy if first else _smoothed(self._accuracy, step.accuracy)
        self._images += step.images
        speed = self._images / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(
            f"loss {self._loss:.3f}, accuracy {100 * self._accuracy:.1f} %, {speed:,.0f} images/s",
            refresh=False,
        )
        self._bar.update(step.progress - self._bar.n)


def line(epoch: Epoch) -> str:
    """Return an epoch as a line for people."""
    held_out = epoch.validation_accuracy
    validation = "" if held_out is None else f"validation {100 * held_out:.2f} %, "
    return (
        f"epoch {epoch.number:2d}, {epoch.seconds:4.0f} s: loss {epoch.loss:.3f}, "
        f"accuracy {100 * epoch.accuracy:.1f} %, {validation}"
        f"{epoch.images_per_second:,.0f} images/s"
    )


def _smoothed(before: float, now: float) -> float:
    return INERTIA * before + (1 - INERTIA) * now
