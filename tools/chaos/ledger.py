"""What went in and what came out, and the judgement: pure."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLES = 5


class Source(NamedTuple):
    """Where an input record stands: its coordinates are the id of its outcome."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


class Fate(NamedTuple):
    """Whose outcome it is, and what it is: a class, or None, which is a dead letter."""

    key: bytes | None
    answer: int | None


class Ledger:
    """Each input record and each outcome, noted as they are seen; the topics race each other.

    Within one partition of one topic they must be noted in the order of their offsets.
    """

    def __init__(self) -> None:
        self._due: dict[Source, Fate] = {}
        self._came: dict[Source, Fate] = {}
        self._newest: dict[tuple[int, bool], int] = {}
        self._doubled: Counter[Source] = Counter()
        self._disordered: list[Source] = []
        self._astray: list[Source] = []

    def enter(self, source: Source, due: Fate) -> None:
        """An input record, and what has to become of it."""
        self._due[source] = due

    def leave(self, source: Source, came: Fate, partition: int) -> None:
        """An outcome, as it was found in a partition of its topic."""
        if source in self._came:
            self._doubled[source] += 1
        self._came.setdefault(source, came)
        lane = (partition, came.answer is None)
        if source.offset < self._newest.get(lane, -1):
            self._disordered.append(source)
        self._newest[lane] = source.offset
        if source.partition != partition:
            self._astray.append(source)

    @property
    def entered(self) -> int:
        """How many records went in."""
        return len(self._due)

    @property
    def results(self) -> int:
        """How many different records were answered."""
        return len(self._came) - self.dead_letters

    @property
    def dead_letters(self) -> int:
        """How many different records became dead letters."""
        return sum(came.answer is None for came in tuple(self._came.values()))

    @property
    def poison(self) -> int:
        """How many records should become dead letters."""
        return sum(due.answer is None for due in tuple(self._due.values()))

    @property
    def settled(self) -> int:
        """How many outcomes were seen, repeated ones included."""
        return len(self._came) + self._doubled.total()

    @property
    def open(self) -> int:
        """How many outcomes there still are to come, if none is wrong."""
        return len(self._due) - len(self._came)

    @property
    def broken(self) -> bool:
        """Say whether it is already known that the promise was broken."""
        return bool(self._doubled or self._disordered or self._astray)

    def ends(self) -> dict[int, int]:
        """The offset after the last input record of each partition."""
        return {partition: offset + 1 for partition, offset in sorted(self._due)}

    def findings(self) -> dict[str, list[Source]]:
        """Each way to break the promise, and the records that it was broken for."""
        known = self._due.keys() & self._came.keys()
        dead = [one for one in known if _differ(self._due[one], self._came[one])]
        other = [one for one in known if self._due[one] != self._came[one]]
        return {
            "lost": sorted(self._due.keys() - self._came.keys()),
            "doubled": sorted(self._doubled),
            "from nowhere": sorted(self._came.keys() - self._due.keys()),
            "out of order": self._disordered,
            "in another partition": self._astray,
            "wrong dead letters": sorted(dead),
            "another's outcome": sorted(set(other) - set(dead)),
        }


def _differ(due: Fate, came: Fate) -> bool:
    """Say whether one of them is a dead letter and the other is not."""
    return (due.answer is None) != (came.answer is None)


def examples(found: Iterable[object]) -> str:
    """The first of them, for people."""
    return ", ".join(map(str, islice(found, EXAMPLES)))


def behind(ends: Mapping[int, int], committed: Mapping[int, int]) -> list[int]:
    """The partitions whose committed offset is not the end of what went in."""
    return [one for one, end in ends.items() if committed.get(one) != end]


class Pulse:
    """The longest time without progress; seconds."""

    def __init__(self, now: float) -> None:
        self.longest = 0.0
        self._last = now

    def beat(self, now: float) -> None:
        """There is progress, or there is nothing to be done."""
        self.longest = max(self.longest, self.silence(now))
        self._last = now

    def silence(self, now: float) -> float:
        """How long there has been none."""
        return now - self._last
