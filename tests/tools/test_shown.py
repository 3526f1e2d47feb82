"""What the outage, the killer and the soak are judged by: each of them can go red."""

from __future__ import annotations

import json
import os
import signal
import struct
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from connectors.images import CANARY, encode_png
from connectors.inference import torchserve
from connectors.records import Image
from tests.chaos.brokers.kafka.groups import parse_group_metadata
from tests.chaos.goodput import STABLE_S, Sample, compute_rate, count_at, find_recovery
from tests.chaos.load import POISON, Input
from tests.chaos.scenarios import killer, outage, soak
from tests.chaos.verdict import Verdict, conclude, make_log_folder
from tools import demo
from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def steady(start: float, end: float, speed: float, first: int = 0) -> list[Sample]:
    """Ten samples a second."""
    ticks = range(round(10 * (end - start)))
    return [Sample(start + tick / 10, first + round(speed * tick / 10)) for tick in ticks]


def test_outcomes_are_counted_between_two_moments() -> None:
    samples = steady(100, 110, 50)
    assert (count_at(samples, 99), count_at(samples, 101.05), count_at(samples, 200)) == (
        0,
        50,
        495,
    )
    assert compute_rate(samples, 102, 106) == 50


@pytest.mark.parametrize("late", [0, 3, 7])
def test_goodput_is_back_when_it_comes_and_stays(late: int) -> None:
    samples = [*steady(100, 110 + late, 0), *steady(110 + late, 140, 50)]
    assert find_recovery(samples, 110, 45) == pytest.approx(late + 0.9, abs=0.11)


def test_a_burst_alone_is_not_goodput() -> None:
    samples = [*steady(100, 111, 0), *steady(111, 140, 5, first=300)]
    assert find_recovery(samples, 110, 45) is None


def test_goodput_that_nobody_watched_for_long_enough_is_not_back() -> None:
    assert find_recovery(steady(100, 110 + STABLE_S - 1, 50), 110, 45) is None


def members(group: str, generation: int) -> tuple[bytes, bytes]:
    """A record about a group as Kafka writes it: GroupMetadataKey 2, GroupMetadataValue 3."""
    key = struct.pack(">hh", 2, len(group)) + group.encode()
    value = struct.pack(">hh", 3, 8) + b"consumer" + struct.pack(">ih", generation, 5) + b"range"
    return key, value


def test_a_rebalance_is_read_from_what_the_broker_notes() -> None:
    assert parse_group_metadata(*members("chaos", 7)) == ("chaos", 7)
    assert parse_group_metadata(members("chaos", 7)[0], None) is None
    offset = struct.pack(">hh", 1, 5) + b"chaos" + struct.pack(">h", 6) + b"images" + bytes(4)
    assert parse_group_metadata(offset, b"an offset") is None


GOOD_OUTAGE: dict[str, Any] = {
    "records_per_second": 240.0,
    "goodput_before": 239.8,
    "goodput_back_after_seconds": 1.2,
    "dead_letters": 0,
    "generation_before": 2,
    "generation_after": 2,
}


def test_an_outage_that_cost_time_only_passes() -> None:
    assert outage.find_complaints(GOOD_OUTAGE, {"lost": 0}) == []


@pytest.mark.parametrize(
    "flaw",
    [
        {"goodput_back_after_seconds": None},
        {"goodput_back_after_seconds": 5.1},
        {"dead_letters": 1},
        {"generation_after": 3},
        {"generation_before": None, "generation_after": None},
        {"goodput_before": 200.0},
    ],
)
def test_an_outage_that_cost_more_does_not(flaw: dict[str, Any]) -> None:
    assert len(outage.find_complaints(GOOD_OUTAGE | flaw, {})) == 1


def test_lost_records_of_an_outage_are_told() -> None:
    assert outage.find_complaints(GOOD_OUTAGE, {"lost": 3, "doubled": 0}) == ["3 lost"]


PICTURES = [encode_png(2, 2, bytes([number] * 4)) for number in range(killer.PACK * killer.PACKS)]


def ask(calls: killer.Calls, *images: bytes, status: int = 200) -> None:
    """One call, packed as the relay packs it, and its answer."""
    kind, body = torchserve.encode_multipart([Image(image) for image in images])
    proxy = killer.RecordingProxy("http://127.0.0.1:1/", calls)
    with proxy, proxy.enclose(kind, body) as on_answer:
        on_answer(status)


def test_a_call_is_extra_when_it_asks_about_nothing_for_the_first_time() -> None:
    calls = killer.Calls([*PICTURES, killer.KILLER], [])
    ask(calls, PICTURES[0], killer.KILLER)
    ask(calls, PICTURES[0])  # a trial
    ask(calls, killer.KILLER)  # another
    ask(calls, CANARY.data)
    ask(calls, PICTURES[0], PICTURES[1])  # one that the load needs
    made = calls.list_all()
    assert [call.new for call in made] == [2, 0, 0, 0, 1]
    assert [call.killer for call in made] == [True, False, True, False, False]
    assert [call.images for call in made] == [2, 1, 1, 1, 2]


def test_an_other_is_answered_once_and_not_when_it_is_refused() -> None:
    packs, others = PICTURES[:2], PICTURES[2:]
    calls = killer.Calls([*packs, killer.KILLER], others)
    ask(calls, *packs, others[0])
    ask(calls, others[1], status=503)
    ask(calls, others[0], others[1])
    ask(calls, killer.KILLER, others[2], status=500)
    ask(calls, packs[0])
    assert [call.others for call in calls.list_all()] == [0, 1, 1, 2, 2]


def test_the_killer_is_in_a_full_pack_and_the_others_in_other_partitions() -> None:
    packs = list(killer.generate_full_packs(PICTURES))
    assert len(packs) == killer.PACK * killer.PACKS
    assert [one.value for one in packs].index(killer.KILLER) == killer.POSITION
    assert {one.partition for one in packs} == {0}
    others = list(killer.generate_others(PICTURES))
    assert not {one.value for one in packs} & {one.value for one in others}
    assert 0 not in {one.partition for one in others}
    keys = [one.key for one in packs + others]
    assert len(set(keys)) == len(keys)


GOOD_KILLER: dict[str, Any] = {
    "extra_calls": 60,
    "longest_call_seconds": 9.0,
    "images_in_its_first_pack": 64,
    "dead_letters": 1,
    "reason": "failed",
    "attempts": 3,
    "others_due_meanwhile": 1000,
    "others_answered_meanwhile": 900,
}


def test_a_killer_that_harmed_itself_only_passes() -> None:
    assert killer.find_complaints(GOOD_KILLER, {"lost": 0}) == []
    assert killer.find_complaints(GOOD_KILLER, {"wrong dead letters": 1}) == [
        "1 wrong dead letters"
    ]


@pytest.mark.parametrize(
    "flaw",
    [
        {"extra_calls": 61},
        {"longest_call_seconds": 20.0},
        {"images_in_its_first_pack": 32},
        {"dead_letters": 2},
        {"reason": "not_an_image"},
        {"attempts": 1},
        {"others_answered_meanwhile": 249},
        {"others_due_meanwhile": 0},
    ],
)
def test_a_killer_that_harmed_others_does_not(flaw: dict[str, Any]) -> None:
    assert len(killer.find_complaints(GOOD_KILLER | flaw, {})) == 1


def flat(*megabytes: float) -> list[soak.MemorySample]:
    """One sample every 5 s of a relay that does 1,000 records a second."""
    return [
        soak.MemorySample(
            60.0 + 5 * number, round(size * soak.MEGABYTE), 5_000 * number, 5_000 * number + 9_000
        )
        for number, size in enumerate(megabytes)
    ]


LAST = {"dead_letters": 5, "poison": 5, "outcomes": 99, "records": 99, "exit_code": 0}


def test_the_memory_of_a_soak_is_measured() -> None:
    found = soak.measure(flat(90), flat(100, 101, 99, 100, 104))
    assert found["rss_mb_median"] == 100
    assert found["rss_percent_off_the_median"] == 4
    assert (found["images_per_second"], found["least_ahead"]) == (1000, 9_000)
    assert len(found["samples"]) == 6
    assert soak.find_complaints(found | LAST) == []


def test_a_leak_has_a_slope() -> None:
    assert soak.compute_slope(flat(100, 101, 102)) == pytest.approx(720)


@pytest.mark.parametrize("size", [94.9, 105.1])
def test_one_sample_that_is_off_the_median_is_enough(size: float) -> None:
    found = soak.measure([], flat(100, 100, size, 100, 100))
    assert len(soak.find_complaints(found | LAST)) == 1


@pytest.mark.parametrize(
    "flaw", [{"least_ahead": 8191}, {"dead_letters": 4}, {"outcomes": 98}, {"exit_code": 70}]
)
def test_a_soak_that_shows_nothing_does_not_pass(flaw: dict[str, int]) -> None:
    found = soak.measure([], flat(100, 100))
    assert len(soak.find_complaints(found | LAST | flaw)) == 1


def test_the_counts_are_those_of_the_relay() -> None:
    page = (
        "# TYPE connector_predictions_total counter\nconnector_predictions_total 40.0\n"
        "# TYPE connector_dead_letters_total counter\n"
        'connector_dead_letters_total{reason="empty"} 2.0\n'
        'connector_dead_letters_total{reason="failed"} 1.0\n'
        "# TYPE connector_rewinds_total counter\nconnector_rewinds_total 5.0\n"
    )
    assert soak.parse_counts(page) == (40, 3, 5)


def test_the_supply_waits_for_the_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "MOST_AHEAD", 2)
    supply = soak.Supply()
    load = [Input(value, b"", [], 0) for value in (b"1", POISON[0], b"3", b"4", b"5")]
    sent: list[Input] = []
    for record in supply.throttle(load):
        sent.append(record)
        supply.note_relayed(len(sent) - 1)  # or it would wait for ever
        if len(sent) == 4:
            supply.end()
    assert sent == load[:4]
    assert supply.poison == 1


@pytest.fixture
def _deaf() -> Iterator[None]:
    """Survive the SIGTERM of a program that does not care for it."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_deaf")
def test_a_verdict_shows_everything_and_passes_without_complaints(tmp_path: Path) -> None:
    good, bad = Verdict({"extra_calls": 7, "samples": [1]}, []), Verdict({}, ["a leak"])
    output = make_log_folder(tmp_path / "run" / "one.json").parent / "one.json"
    assert conclude(lambda: good, output, print) == 0
    assert json.loads(output.read_text()) == {
        "passed": True,
        "broken": [],
        "extra_calls": 7,
        "samples": [1],
    }
    assert conclude(lambda: bad, output, print) == 1
    assert not json.loads(output.read_text())["passed"]
    assert "extra calls" in good.render()
    assert "samples" not in good.render()
    assert "a leak" in bad.render()


@pytest.mark.usefixtures("_deaf")
def test_a_server_that_does_not_start_is_69(tmp_path: Path) -> None:
    def run() -> NoReturn:
        raise StackError("no luck today")

    lines: list[str] = []
    assert conclude(run, tmp_path / "one.json", lines.append) == 69
    assert lines == ["no luck today"]


def end_me(*_: object) -> Verdict:
    os.kill(os.getpid(), signal.SIGTERM)
    return Verdict({}, [])


@pytest.mark.usefixtures("_deaf")
def test_a_program_that_is_asked_to_end_cleans_up_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert conclude(end_me, tmp_path / "one.json", print) == 130
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    monkeypatch.setattr(demo, "run", end_me)
    assert demo.main(["--output", str(tmp_path / "demo.json")]) == 130
