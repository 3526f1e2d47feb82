"""The benchmark is judged by its figures; what runs in it is tested elsewhere."""

from __future__ import annotations

from math import inf

import pytest

from tests.bench.benchmark import Who, compare, order_round
from tests.bench.figures import Comparison, Round, compute_rate


def test_the_first_moment_starts_the_clock_and_counts_for_nothing() -> None:
    assert compute_rate([10.0, 10.0, 10.0, 11.0, 12.0]) == 1.0
    assert compute_rate([12.0, 11.0, 10.0]) == 1.0
    assert compute_rate([10.0, 10.0]) == inf


class FakeBenchmark:
    """One that notes who ran, and knows how fast they are."""

    broker = "none"

    def __init__(self) -> None:
        self.runs: list[tuple[Who, int]] = []

    def run(self, who: Who, records: int) -> float:
        self.runs.append((who, records))
        return {"ours": 900.0, "plain": 300.0 + 10 * len(self.runs)}[who]

    def measure_ceilings(self, records: int) -> dict[str, float]:
        return {"publish alone": records / 2}


def test_both_run_alike_in_turns_after_a_round_that_does_not_count() -> None:
    benchmark, lines = FakeBenchmark(), list[str]()
    found = compare(benchmark, 2, 100, 2.0, lines.append)
    assert benchmark.runs == [
        *(("plain", 20), ("ours", 20)),
        *(("ours", 100), ("plain", 100)),
        *(("plain", 100), ("ours", 100)),
    ]
    assert found.rounds == [Round(ours=900.0, plain=340.0), Round(ours=900.0, plain=350.0)]
    assert found.ceilings == {"publish alone": 50.0}
    assert len(lines) == 2
    assert set(order_round(1)) == set(order_round(2)) == {"ours", "plain"}


def comparison(*ratios: float, wanted: float = 2.0) -> Comparison:
    rounds = [Round(ours=100.0 * ratio, plain=100.0) for ratio in ratios]
    ceilings = {"publish alone": 7000.0}
    return Comparison(broker="none", records=9, rounds=rounds, ceilings=ceilings, wanted=wanted)


@pytest.mark.parametrize(("ratios", "passed"), [((1.9, 2.0, 9.0), True), ((1.9, 1.99, 9.0), False)])
def test_the_median_round_decides(ratios: tuple[float, ...], *, passed: bool) -> None:
    found = comparison(*ratios)
    assert found.passed is passed
    assert found.to_dict()["passed"] is passed


def test_the_figures_show_everything() -> None:
    found = comparison(2.0, 3.0, 4.0)
    assert found.to_dict() == {
        "broker": "none",
        "records": 9,
        "ours": [200.0, 300.0, 400.0],
        "plain": [100.0, 100.0, 100.0],
        "ratio": 3.0,
        "ratio_range": [2.0, 4.0],
        "wanted": 2.0,
        "ceilings": {"publish alone": 7000.0},
        "passed": True,
    }
    assert "median                             300       100    3.00" in found.render()
    assert "publish alone                    7,000" in found.render()
