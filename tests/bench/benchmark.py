"""A benchmark of the daemon against a plain subscriber: rounds, in which both take turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from tests.bench.figures import Comparison, Round

if TYPE_CHECKING:
    from collections.abc import Callable

Who = Literal["ours", "plain"]


class Benchmark(Protocol):
    """One broker, and what is measured on it; made ready by `with`."""

    broker: str

    def run(self, who: Who, records: int) -> float:
        """Let one of the two relay so many records; return its results a second."""
        ...

    def measure_ceilings(self, records: int) -> dict[str, float]:
        """Return what the broker can do alone, in records a second, by name."""
        ...


def order_round(number: int) -> tuple[Who, Who]:
    """Return who runs first in a round: in turns, so what changes within one does so for both."""
    return ("ours", "plain") if number % 2 else ("plain", "ours")


def compare(
    benchmark: Benchmark, rounds: int, records: int, wanted: float, say: Callable[[str], None]
) -> Comparison:
    """Run both side by side, after one short round that does not count."""
    warm_up = max(1, records // 5)
    for who in order_round(0):
        benchmark.run(who, warm_up)
    found = []
    for number in range(1, rounds + 1):
        rates = {who: benchmark.run(who, records) for who in order_round(number)}
        found.append(Round(**rates))
        say(f"round {number}: ours {found[-1].ours:,.0f}/s, plain {found[-1].plain:,.0f}/s")
    return Comparison(
        broker=benchmark.broker,
        records=records,
        rounds=found,
        ceilings=benchmark.measure_ceilings(records),
        wanted=wanted,
    )
