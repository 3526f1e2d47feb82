"""The report of a run, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_SILENCE_S = 60.0
"""The time without an outcome, while records wait, from which on it is too long."""

EXPECTED_EXITS = {69, 75}
"""A relay ends by itself when Kafka is away at its start, and when it was fenced (a zombie)."""


@dataclass(kw_only=True)
class Report:
    """What happened. `findings`: for how many records the promise was broken, by the way.

    `wanted` and `faults`: how many of each kind had to happen, and how many did. The names of the
    fields are those of the JSON.
    """

    promise: ClassVar = "exactly once"

    seed: int
    settings: dict[str, Any]
    records: int
    results: int
    dead_letters: int
    poison: int
    seconds: float
    longest_silence: float  # seconds
    wanted: dict[str, int]
    faults: dict[str, int]
    bad_answers: dict[str, int]
    exits: dict[int, int]  # of relays that ended by themselves, by code
    findings: dict[str, int]
    examples: dict[str, str] = field(default_factory=dict)
    silence: float = LONGEST_SILENCE_S  # that is not too long

    @property
    def kept(self) -> bool:
        """Say whether the promise was kept."""
        return not any(self.findings.values())

    def find_shortcomings(self) -> list[str]:
        """What else was not as it should be, a sentence each."""
        return [*self._find_missing(), *self._find_unexpected(), *self._find_silence()]

    def _find_missing(self) -> Iterator[str]:
        for kind, count in self.wanted.items():
            if (happened := self.faults.get(kind, 0)) < count:
                yield f"{kind}: {happened} times, not {count}"

    def _find_unexpected(self) -> Iterator[str]:
        for code, count in self.exits.items():
            if code not in EXPECTED_EXITS:
                yield f"a relay ended by itself with {code}, {count} times"

    def _find_silence(self) -> Iterator[str]:
        if self.longest_silence > self.silence:
            yield f"no outcome for {self.longest_silence:.0f} s while records waited"

    @property
    def passed(self) -> bool:
        """Say whether the promise was kept, and all was as it should be."""
        return self.kept and not self.find_shortcomings()

    def to_dict(self) -> dict[str, Any]:
        """See `Result.to_dict`."""
        verdict = {
            "kept": self.kept,
            "passed": self.passed,
            "shortcomings": self.find_shortcomings(),
        }
        return verdict | asdict(self)

    def render(self) -> str:
        """See `Result.render`."""
        return "\n".join(f"{name:<44}{value:>12}" for name, value in self._list_rows())

    def _list_rows(self) -> Iterator[tuple[str, object]]:
        yield "seed", self.seed
        yield "seconds", f"{self.seconds:,.0f}"
        yield "records in", f"{self.records:,}"
        yield "results", f"{self.results:,}"
        yield f"dead letters (of {self.poison:,} poisoned)", f"{self.dead_letters:,}"
        yield "longest silence, seconds", f"{self.longest_silence:.1f}"
        for kind, count in self.faults.items():
            yield f"{kind} (wanted {self.wanted.get(kind, 0)})", count
        for bad, count in self.bad_answers.items():
            yield f"answered: {bad}", count
        for code, count in self.exits.items():
            yield f"relays that ended with {code}", count
        for finding, count in self.findings.items():
            yield finding, f"{count:,}"
        for shortcoming in self.find_shortcomings():
            yield shortcoming, "!"
        yield self.promise, "yes" if self.kept else "NO"
        yield "passed", "yes" if self.passed else "NO"
