"""The operation log: what went in, what came out, and the check of the promise. Pure."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLES = 5


class Source(NamedTuple):
    """The coordinates of an input record, which are the id of its outcome."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


class Outcome(NamedTuple):
    """The key of a record, and its answer: a class, or None, which is a dead letter."""

    key: bytes | None
    answer: int | None


class OperationLog:
    """Each input record and each outcome, noted as they are seen; the topics race each other.

    Within one partition of one topic they must be noted in the order of their offsets.
    """

    def __init__(self) -> None:
        self._expected: dict[Source, Outcome] = {}
        self._seen: dict[Source, Outcome] = {}
        self._newest: dict[tuple[int, bool], int] = {}
        self._doubled: Counter[Source] = Counter()
        self._out_of_order: list[Source] = []
        self._misplaced: list[Source] = []

    def note_input(self, source: Source, expected: Outcome) -> None:
        """Note an input record, and the outcome that it must have."""
        self._expected[source] = expected

    def note_outcome(self, source: Source, outcome: Outcome, partition: int) -> None:
        """Note an outcome, as it was found in a partition of its topic."""
        if source in self._seen:
            self._doubled[source] += 1
        self._seen.setdefault(source, outcome)
        lane = (partition, outcome.answer is None)
        if source.offset < self._newest.get(lane, -1):
            self._out_of_order.append(source)
        self._newest[lane] = source.offset
        if source.partition != partition:
            self._misplaced.append(source)

    @property
    def inputs(self) -> int:
        """How many records went in."""
        return len(self._expected)

    @property
    def results(self) -> int:
        """How many different records were answered."""
        return len(self._seen) - self.dead_letters

    @property
    def dead_letters(self) -> int:
        """How many different records became dead letters."""
        return sum(seen.answer is None for seen in tuple(self._seen.values()))

    @property
    def poison(self) -> int:
        """How many records should become dead letters."""
        return sum(expected.answer is None for expected in tuple(self._expected.values()))

    @property
    def outcomes(self) -> int:
        """How many outcomes were seen, repeated ones included."""
        return len(self._seen) + self._doubled.total()

    @property
    def missing(self) -> int:
        """How many outcomes there still are to come, if none is wrong."""
        return len(self._expected) - len(self._seen)

    @property
    def violated(self) -> bool:
        """Whether it is already known that the promise was broken."""
        return bool(self._doubled or self._out_of_order or self._misplaced)

    def end_offsets(self) -> dict[int, int]:
        """Return the offset after the last input record of each partition."""
        return {partition: offset + 1 for partition, offset in sorted(self._expected)}

    def find_violations(self) -> dict[str, list[Source]]:
        """Return each way to break the promise, and the records that it was broken for."""
        known = self._expected.keys() & self._seen.keys()
        dead = [one for one in known if _is_dead_and_alive(self._expected[one], self._seen[one])]
        other = [one for one in known if self._expected[one] != self._seen[one]]
        return {
            "lost": sorted(self._expected.keys() - self._seen.keys()),
            "doubled": sorted(self._doubled),
            "from nowhere": sorted(self._seen.keys() - self._expected.keys()),
            "out of order": self._out_of_order,
            "in another partition": self._misplaced,
            "wrong dead letters": sorted(dead),
            "another's outcome": sorted(set(other) - set(dead)),
        }


def _is_dead_and_alive(expected: Outcome, seen: Outcome) -> bool:
    """Say whether one of them is a dead letter and the other is not."""
    return (expected.answer is None) != (seen.answer is None)


def format_examples(found: Iterable[object]) -> str:
    """Return the first of them, for people."""
    return ", ".join(map(str, islice(found, EXAMPLES)))


def find_uncommitted(ends: Mapping[int, int], committed: Mapping[int, int]) -> list[int]:
    """Return the partitions whose committed offset is not the end of what went in."""
    return [one for one, end in ends.items() if committed.get(one) != end]


class ProgressTimer:
    """The longest time without progress; seconds."""

    def __init__(self, now: float) -> None:
        self.longest = 0.0
        self._last = now

    def note_progress(self, now: float) -> None:
        """Start anew: there is progress, or there is nothing to be done."""
        self.longest = max(self.longest, self.idle(now))
        self._last = now

    def idle(self, now: float) -> float:
        """Return how long there has been no progress."""
        return now - self._last
