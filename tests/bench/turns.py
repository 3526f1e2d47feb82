"""A benchmark of many relays: rounds, in which all take turns, and what is wanted of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from tests.bench.measured import Table, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.bench.kafka import Contestant
    from tests.bench.latency import Latency
    from tests.bench.measured import Measured

OURS = "exactly once"
LATENCY_SECONDS = 20.0
WARM_RUNS = 3


class Benchmark(Protocol):
    """One broker, its servers and a backlog of so many records."""

    records: int

    def run(self, contestant: Contestant) -> Measured:
        """Let one relay answer the whole backlog."""
        ...

    def measure_latency(self, contestant: Contestant, rate: float, seconds: float) -> Latency:
        """Return how long records wait at `rate` records a second."""
        ...


def order_round(names: Sequence[str], number: int) -> Sequence[str]:
    """Return who runs first: forwards and backwards in turns, so that a drift meets all alike."""
    return names[::-1] if number % 2 else names


def list_first_of_trees(contestants: Iterable[Contestant]) -> Iterable[Contestant]:
    """Return one contestant of each tree, since each tree has a server of its own."""
    first: dict[Path, Contestant] = {}
    for contestant in contestants:
        first.setdefault(contestant.tree, contestant)
    return first.values()


def measure_in_turns(
    benchmark: Benchmark,
    contestants: Mapping[str, Contestant],
    rounds: int,
    say: Callable[[str], None],
) -> Table:
    """Let each run in each round, then measure the latency of ours at half its own rate.

    WARM_RUNS before warm each tree's server up and do not count, nor does one run of each then:
    Java compiles meanwhile, for packs and for lone images, and who came first paid for it.
    """
    for contestant in list_first_of_trees(contestants.values()):
        for _ in range(WARM_RUNS):
            benchmark.run(contestant)
    for contestant in contestants.values():
        benchmark.run(contestant)
    runs: dict[str, list[Measured]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in order_round(list(contestants), number):
            runs[name].append(benchmark.run(contestants[name]))
            say(f"round {number + 1}, {name}: {runs[name][-1].records_s:,.0f} records/s")
    table = Table(records=benchmark.records, cores=os.cpu_count() or 1, runs=runs)
    if OURS not in contestants:
        return table
    rate = table.find_median(OURS).records_s / 2
    found = benchmark.measure_latency(contestants[OURS], rate, LATENCY_SECONDS)
    return table.add_latency(rate, found)


def list_targets(table: Table) -> list[Target]:
    """Return what is wanted of those who ran."""
    ran = set(table.runs)
    targets = [
        Target(f"{OURS} ÷ {other}", table.compute_ratio(OURS, other), least=least)
        for other, least in (
            ("at least once", 0.9),
            ("bento", 3.0),
            ("plain relay", 3.0),
            ("base", 1.7),
        )
        if {OURS, other} <= ran
    ]
    if {"instant service", "bare loop"} <= ran:
        relay, bare = (
            table.find_median(name).cpu_us["relay"] for name in ("instant service", "bare loop")
        )
        targets.append(Target("the relay's CPU ÷ the bare loop's", relay / bare, most=1.8))
    if OURS in ran:
        used = table.find_median(OURS).cores / table.cores
        targets.append(Target("share of the cores in use", used, least=0.8))
    if table.latency:
        targets.append(Target("p99 at half load, ms", table.latency.p99_ms, most=250.0))
    return targets
