"""How much came out, and when: a ledger's outcomes, counted twenty times a second."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TICK = 0.05
WINDOW = 1.0  # seconds over which goodput is looked at
HELD = 10.0  # seconds for which it must last


class Sample(NamedTuple):
    """`at`: monotonic seconds; `total`: of all outcomes until then."""

    at: float
    total: int


def count_at(samples: Sequence[Sample], at: float) -> int:
    """How many there were at a moment; before the first sample: none."""
    found = bisect_right(samples, at, key=lambda sample: sample.at)
    return samples[found - 1].total if found else 0


def rate(samples: Sequence[Sample], start: float, end: float) -> float:
    """Outcomes a second between two moments."""
    return (count_at(samples, end) - count_at(samples, start)) / (end - start)


def back_after(samples: Sequence[Sample], since: float, wanted: float) -> float | None:
    """Seconds from `since` until the goodput is back; None: it does not come back.

    Back: `wanted` outcomes a second in the last WINDOW, and on average in the next HELD seconds,
    all of which must have been sampled.
    """
    for sample in samples:
        at = sample.at
        if at < since or at + HELD > samples[-1].at:
            continue
        if min(rate(samples, at - WINDOW, at), rate(samples, at, at + HELD)) >= wanted:
            return at - since
    return None


@contextmanager
def metered(count: Callable[[], int]) -> Iterator[list[Sample]]:
    """Give a list that grows by a sample each TICK until the end of the block."""
    samples: list[Sample] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(TICK):
            samples.append(Sample(time.monotonic(), count()))

    thread = threading.Thread(target=look, name="meter", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join(1)
