"""Who runs against whom, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from tools.bench.figures import Comparison, Round

if TYPE_CHECKING:
    from collections.abc import Callable

Who = Literal["ours", "plain"]


class Course(Protocol):
    """One broker and what is measured on it; made ready by `with`."""

    broker: str

    def heat(self, who: Who, records: int) -> float:
        """Let one of them relay so many records; return its results a second."""
        ...

    def ceilings(self, records: int) -> dict[str, float]:
        """What the broker can do alone, in records a second."""
        ...


def order(number: int) -> tuple[Who, Who]:
    """Who begins takes turns: what warms up in a round, or tires, does so for both."""
    return ("ours", "plain") if number % 2 else ("plain", "ours")


def contest(
    course: Course, rounds: int, records: int, wanted: float, say: Callable[[str], None]
) -> Comparison:
    """Run both side by side, after one short round that does not count."""
    warmth = max(1, records // 5)
    for who in order(0):
        course.heat(who, warmth)
    found = []
    for number in range(1, rounds + 1):
        rates = {who: course.heat(who, records) for who in order(number)}
        found.append(Round(**rates))
        say(f"round {number}: ours {found[-1].ours:,.0f}/s, plain {found[-1].plain:,.0f}/s")
    return Comparison(
        broker=course.broker,
        records=records,
        rounds=found,
        ceilings=course.ceilings(records),
        wanted=wanted,
    )
