"""Goodput: the outcomes of an operation log, counted twenty times a second."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.operation_log import OperationLog

SAMPLE_INTERVAL_S = 0.05
WINDOW_S = 1.0  # over which goodput is averaged
STABLE_S = 10.0  # for which it must last


class Sample(NamedTuple):
    """`at`: monotonic seconds; `total`: of all outcomes until then."""

    at: float
    total: int


def count_at(samples: Sequence[Sample], at: float) -> int:
    """Return how many there were at a moment; before the first sample: none."""
    found = bisect_right(samples, at, key=lambda sample: sample.at)
    return samples[found - 1].total if found else 0


def compute_rate(samples: Sequence[Sample], start: float, end: float) -> float:
    """Return the outcomes a second between two moments."""
    return (count_at(samples, end) - count_at(samples, start)) / (end - start)


def find_recovery(samples: Sequence[Sample], since: float, required: float) -> float | None:
    """Return the seconds from `since` until the goodput is back; None: it does not come back.

    Back: `required` outcomes a second in the last WINDOW_S, and on average in the next STABLE_S,
    all of which must have been sampled.
    """
    for each in samples:
        at = each.at
        if at < since or at + STABLE_S > samples[-1].at:
            continue
        last = compute_rate(samples, at - WINDOW_S, at)
        if min(last, compute_rate(samples, at, at + STABLE_S)) >= required:
            return at - since
    return None


def find_longest_silence(samples: Sequence[Sample], since: float) -> float:
    """Return the longest time without an outcome, in seconds, of what was sampled since a moment.

    One that had begun before counts from its beginning.
    """
    longest, total, progress = 0.0, 0, since
    for each in samples:
        if each.total > total:
            total, progress = each.total, each.at
        elif each.at >= since:
            longest = max(longest, each.at - progress)
    return longest


@contextmanager
def sample_outcomes(log: OperationLog) -> Iterator[list[Sample]]:
    """Yield a list that grows by a sample each SAMPLE_INTERVAL_S until the end of the block."""
    samples: list[Sample] = []
    over = threading.Event()

    def run() -> None:
        while not over.wait(SAMPLE_INTERVAL_S):
            samples.append(Sample(time.monotonic(), log.outcomes))

    thread = threading.Thread(target=run, name="goodput", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join(1)
