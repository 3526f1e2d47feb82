"""The benchmark is judged by its figures; what runs in it is tested elsewhere."""

from __future__ import annotations

import re
import subprocess
import time
from argparse import Namespace
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from connectors.inference.torchserve import interpret_reply
from connectors.records import Prediction
from tests.bench.benchmark import Who, compare, order_round
from tests.bench.bento import CONFIGURATIONS, FLAGS, VARIABLE, build_environment
from tests.bench.figures import Comparison, Round, compute_rate
from tests.bench.imports import measure_imports, render_imports, time_import
from tests.bench.instant_service import answer
from tests.bench.kafka import BASE, BENTOS, CONTESTANTS, Contestant, list_contestants
from tests.bench.latency import Latency, compute_latency
from tests.bench.measured import Measured, Table, Target
from tests.bench.turns import WARM_RUNS, list_first_of_trees, list_targets, measure_in_turns
from tests.bench.usage import measure

if TYPE_CHECKING:
    from collections.abc import Mapping


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


def measured(
    rate: float, cpu_us: Mapping[str, float] | None = None, cores: float = 1.0
) -> Measured:
    return Measured(records_s=rate, cpu_us=cpu_us or {}, rss_mb={}, cores=cores)


class FakeRelays:
    """A `turns.Benchmark` whose relays have rates of their own."""

    records = 100
    rates: Mapping[str, float] = {"exactly once": 90.0, "at least once": 100.0, "plain relay": 30.0}

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.asked: list[tuple[float, float]] = []

    def run(self, contestant: Contestant) -> Measured:
        name = next(name for name in self.rates if CONTESTANTS[name] == contestant)
        self.ran.append(name)
        return measured(self.rates[name], cores=1.7)

    def measure_latency(self, contestant: Contestant, rate: float, seconds: float) -> Latency:
        assert contestant is CONTESTANTS["exactly once"]
        self.asked.append((rate, seconds))
        return Latency(10.0, 20.0, 251.0)


def test_relays_run_forwards_and_backwards_in_turns_after_those_that_do_not_count() -> None:
    benchmark, lines = FakeRelays(), list[str]()
    names = list(benchmark.rates)
    table = measure_in_turns(benchmark, {one: CONTESTANTS[one] for one in names}, 2, lines.append)
    assert benchmark.ran == [*[names[0]] * WARM_RUNS, *names, *names, *reversed(names)]
    assert [len(runs) for runs in table.runs.values()] == [2, 2, 2]
    assert len(lines) == 2 * len(names)


def test_the_server_of_each_tree_is_warmed_up_once() -> None:
    ours, base = CONTESTANTS["exactly once"], CONTESTANTS["exactly once"]._replace(tree=Path("old"))
    once = CONTESTANTS["at least once"]
    assert list(list_first_of_trees([ours, once, base])) == [ours, base]


def test_the_latency_is_that_of_ours_at_half_its_rate() -> None:
    benchmark = FakeRelays()
    chosen = {"exactly once": CONTESTANTS["exactly once"]}
    table = measure_in_turns(benchmark, chosen, 1, lambda _: None)
    assert benchmark.asked == [(45.0, 20.0)]
    assert table.latency == (10.0, 20.0, 251.0, 0.0)


def test_bento_and_an_older_tree_run_where_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert list_contestants(None) == CONTESTANTS
    monkeypatch.setenv(VARIABLE, "bento")
    assert set(list_contestants(Path("old"))) - set(CONTESTANTS) == {*BENTOS, BASE}


@pytest.mark.parametrize("packed", [False, True])
def test_bentos_configuration_reads_what_every_relay_is_told(*, packed: bool) -> None:
    flags = {flag.removeprefix("--").replace("-", "_"): "one" for flag in FLAGS}
    read = re.findall(r"\$\{([A-Z_]+)\}", CONFIGURATIONS[packed].read_text())
    assert set(read) == set(build_environment(Namespace(**flags)))


def test_what_is_wanted_is_compared_with_what_was_found() -> None:
    runs = {
        "exactly once": [measured(90.0, cores=1.7)],
        "at least once": [measured(100.0)],
        "bento": [measured(30.0)],
        "plain relay": [measured(31.0)],
        "instant service": [measured(1.0, {"relay": 90.0})],
        "bare loop": [measured(1.0, {"relay": 45.0})],
    }
    table = Table(records=9, cores=2, runs=runs).add_latency(45.0, Latency(1.0, 2.0, 250.0))
    found = {target.what: (round(target.value, 2), target.met) for target in list_targets(table)}
    assert found == {
        "exactly once ÷ at least once": (0.9, True),
        "exactly once ÷ bento": (3.0, True),
        "exactly once ÷ plain relay": (2.9, False),
        "the relay's CPU ÷ the bare loop's": (2.0, False),
        "share of the cores in use": (0.85, True),
        "p99 at half load, ms": (250.0, True),
    }


@pytest.mark.parametrize(("value", "met"), [(0.99, False), (1.0, True), (2.0, True), (2.01, False)])
def test_a_target_holds_up_to_its_bounds(value: float, *, met: bool) -> None:
    assert Target("any", value, least=1.0, most=2.0).met is met


def test_the_median_of_the_rounds_ratios_counts_not_the_ratio_of_medians() -> None:
    runs = {
        "ours": [measured(10.0), measured(90.0), measured(30.0)],
        "other": [measured(10.0), measured(30.0), measured(20.0)],
    }
    table = Table(records=1, cores=2, runs=runs)
    assert table.compute_ratio("ours", "other") == 1.5
    assert table.find_median("ours").records_s == 30.0


def test_the_table_shows_cpu_by_process_and_their_sum() -> None:
    run = measured(1234.0, {"relay": 200.0, "worker": 300.0}, cores=1.5)
    run = replace(run, machine_cores=1.9, start_s=2.5)
    table = Table(records=1, cores=2, runs={"ours": [run]}, ceiling=5000.0)
    *_, line, ceiling = (one.split() for one in table.render().splitlines())
    assert ceiling[-1] == "5,000/s"
    assert line == [
        "ours",
        "1,234",
        "1,234-1,234",
        "200",
        "300",
        "0",
        "0",
        "0",
        "500",
        "1.50",
        "1.90",
        "2.5",
    ]
    assert table.to_dict()["runs"]["ours"][0]["cpu_us"] == {"relay": 200.0, "worker": 300.0}


def test_percentiles_are_in_milliseconds() -> None:
    found = compute_latency([number / 1000 for number in range(1, 1001)])
    assert [round(each) for each in found] == [500, 951, 991, 0]


def test_the_delays_behind_a_start_are_told_apart() -> None:
    found = compute_latency([9.0] * 10 + [0.1] * 90, early=10)
    assert [round(each) for each in found] == [100, 100, 100, 9000]


def test_cpu_time_is_counted_for_the_process_that_used_it() -> None:
    me = psutil.Process().pid
    first, until = measure({"me": [me]}), time.process_time() + 0.2
    while time.process_time() < until:
        pass
    last = measure({"me": [me], "gone": [2**22 + 1]})
    assert last["me"].cpu_s - first["me"].cpu_s >= 0.15
    assert last["me"].rss_bytes > 0
    assert last["gone"] == (0.0, 0)


def test_the_instant_service_answers_each_image_in_the_handlers_form() -> None:
    found = interpret_reply(200, answer(3), 3)
    assert isinstance(found, list)
    assert [type(one) for one in found] == [Prediction] * 3


def test_an_import_is_shown_without_what_python_takes_for_itself() -> None:
    found = {"sys": 0.02, "json": 0.05}
    assert render_imports(found).split() == ["Python", "alone", "20", "ms", "json", "30", "ms"]


def test_imports_are_timed_in_interpreters_of_their_own() -> None:
    assert measure_imports(["sys"], 2)["sys"] > 0
    with pytest.raises(subprocess.CalledProcessError):
        time_import("no_such_module")
