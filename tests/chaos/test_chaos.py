"""The judgement of the chaos run: it must not be possible to break the promise and pass."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.inference import torchserve
from connectors.inference.http import HttpClient
from connectors.records import Answer, Busy, Failed, Image, Request
from tests.chaos import patched
from tests.chaos.answers import REPLIES, AnswerProxy, Bad, serve
from tests.chaos.brokers import BROKERS, load_bugs
from tests.chaos.brokers.kafka.bugs import BUGS
from tests.chaos.brokers.kafka.cases import CONTROLS
from tests.chaos.brokers.kafka.observer import expect_outcome, parse_dead_letter, parse_result
from tests.chaos.load import PICTURES, POISON, generate_inputs
from tests.chaos.operation_log import (
    OperationLog,
    Outcome,
    ProgressTimer,
    Source,
    find_uncommitted,
    format_examples,
)
from tests.chaos.patching import PatchError, replace_attribute
from tests.chaos.report import Report
from tests.chaos.scenarios import cluster, link
from tests.chaos.schedule import FULL_DURATION_S, LEAST_COUNTS, Kind, count_required, make_schedule
from tests.chaos.testbed import find_steady_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTITIONS = 3
COUNT = 60


class Seen(NamedTuple):
    """What the observer finds, and in which partition."""

    source: Source
    outcome: Outcome
    partition: int


def make_outcome(number: int) -> Outcome:
    return Outcome(b"%d" % number, None if number % 7 == 0 else number % 2)


def perfect() -> list[Seen]:
    """One outcome for each of the inputs, where and when it has to be."""
    sources = [Source(number % PARTITIONS, number // PARTITIONS) for number in range(COUNT)]
    return [Seen(one, make_outcome(i), one.partition) for i, one in enumerate(sources)]


def find_violations(outcomes: list[Seen]) -> dict[str, list[Source]]:
    """Only what was found to be wrong."""
    log = OperationLog()
    for right in perfect():
        log.note_input(right.source, right.outcome)
    for outcome in outcomes:
        log.note_outcome(*outcome)
    return {kind: found for kind, found in log.find_violations().items() if found}


def test_one_outcome_for_each_record_in_order_is_what_is_wanted() -> None:
    assert find_violations(perfect()) == {}


def test_partitions_and_topics_may_race_each_other() -> None:
    assert (
        find_violations(
            sorted(perfect(), key=lambda one: (one.outcome.answer is None, one.partition))
        )
        == {}
    )


def test_outcomes_may_be_seen_before_their_inputs() -> None:
    log = OperationLog()
    (first, *_) = perfect()
    log.note_outcome(*first)
    assert log.missing == -1
    log.note_input(first.source, first.outcome)
    assert not any(log.find_violations().values())


def test_a_lost_record_is_red() -> None:
    outcomes = perfect()
    gone = outcomes.pop(13)
    assert find_violations(outcomes) == {"lost": [gone.source]}


def test_a_doubled_record_is_red_and_known_at_once() -> None:
    outcomes = perfect()
    assert find_violations([*outcomes[:-1], outcomes[-1], outcomes[-1]]) == {
        "doubled": [outcomes[-1].source]
    }


def test_a_result_and_a_dead_letter_for_one_record_are_a_double() -> None:
    outcomes = perfect()
    twice = outcomes[8]
    dead_letter = twice._replace(outcome=Outcome(twice.outcome.key, None))
    assert find_violations([*outcomes[:9], dead_letter, *outcomes[9:]]) == {
        "doubled": [twice.source]
    }


def test_a_reordered_record_is_red() -> None:
    outcomes = perfect()
    outcomes[31], outcomes[31 + PARTITIONS] = outcomes[31 + PARTITIONS], outcomes[31]
    assert find_violations(outcomes) == {"out of order": [outcomes[31 + PARTITIONS].source]}


def test_a_record_in_another_partition_is_red() -> None:
    outcomes = perfect()
    outcomes[-1] = outcomes[-1]._replace(partition=0)
    assert find_violations(outcomes) == {"in another partition": [outcomes[-1].source]}


def test_an_outcome_of_no_record_is_red() -> None:
    stranger = Seen(Source(0, 999), make_outcome(1), 0)
    assert find_violations([*perfect(), stranger]) == {"from nowhere": [stranger.source]}


@pytest.mark.parametrize(("number", "answer"), [(14, 1), (15, None)])
def test_dead_letters_that_are_not_the_poison_are_red(number: int, answer: int | None) -> None:
    outcomes = perfect()
    wrong = outcomes[number]
    outcomes[number] = wrong._replace(outcome=Outcome(wrong.outcome.key, answer))
    assert find_violations(outcomes) == {"wrong dead letters": [wrong.source]}


@pytest.mark.parametrize("outcome", [Outcome(b"15", 0), Outcome(b"16", 1)])
def test_the_outcome_of_another_record_is_red(outcome: Outcome) -> None:
    outcomes = perfect()
    outcomes[15] = outcomes[15]._replace(outcome=outcome)
    assert find_violations(outcomes) == {"another's outcome": [outcomes[15].source]}


def drop(outcomes: list[Seen], at: int, _: int) -> None:
    del outcomes[at]


def repeat(outcomes: list[Seen], at: int, to: int) -> None:
    outcomes.insert(to, outcomes[at])


def swap(outcomes: list[Seen], at: int, to: int) -> None:
    one, other = outcomes[at], outcomes[to]
    outcomes[at] = one._replace(source=other.source)
    outcomes[to] = other._replace(source=one.source)


def deny(outcomes: list[Seen], at: int, _: int) -> None:
    outcome = outcomes[at].outcome
    outcomes[at] = outcomes[at]._replace(
        outcome=outcome._replace(answer=0 if outcome.answer is None else None)
    )


@given(
    st.sampled_from([drop, repeat, swap, deny]),
    st.lists(st.integers(0, COUNT - 1), min_size=2, max_size=2, unique=True),
)
def test_no_single_wrong_passes(
    wrong: Callable[[list[Seen], int, int], None], places: list[int]
) -> None:
    outcomes = perfect()
    wrong(outcomes, *places)
    assert find_violations(outcomes)


def test_the_ledger_counts_what_it_saw() -> None:
    log = OperationLog()
    for right in perfect():
        log.note_input(right.source, right.outcome)
    assert (log.inputs, log.missing, log.outcomes) == (COUNT, COUNT, 0)
    for right in perfect():
        log.note_outcome(*right)
    assert not log.violated
    log.note_outcome(*right)
    assert log.violated
    assert (log.missing, log.outcomes) == (0, COUNT + 1)
    assert (log.results, log.dead_letters, log.poison) == (51, 9, 9)
    assert log.end_offsets() == {0: 20, 1: 20, 2: 20}


@pytest.mark.parametrize("committed", [{}, {0: 19, 1: 20}, {0: 21, 1: 20}])
def test_a_partition_that_is_not_committed_to_its_end_is_red(committed: dict[int, int]) -> None:
    assert 0 in find_uncommitted({0: 20, 1: 20}, committed)
    assert find_uncommitted({0: 20, 1: 20}, {0: 20, 1: 20}) == []


def test_some_examples_are_named() -> None:
    assert format_examples([Source(1, number) for number in range(99)]) == "1/0, 1/1, 1/2, 1/3, 1/4"


def test_the_longest_silence_is_kept() -> None:
    timer = ProgressTimer(10.0)
    for now in (11.0, 14.0, 15.0):
        timer.note_progress(now)
    assert (timer.longest, timer.idle(17.0)) == (3.0, 2.0)


class Found(NamedTuple):
    """A ConsumerRecord, as far as it is looked at."""

    value: bytes
    key: bytes | None = b"7"
    headers: tuple[tuple[str, bytes], ...] = ()


def test_what_is_no_picture_has_to_become_a_dead_letter() -> None:
    classes = dict(zip(PICTURES, (9, 1), strict=True))
    assert [expect_outcome(Found(one), classes) for one in PICTURES] == [
        Outcome(b"7", 9),
        Outcome(b"7", 1),
    ]
    assert {expect_outcome(Found(one), classes) for one in POISON} == {Outcome(b"7", None)}


def test_an_outcome_names_its_record() -> None:
    body = json.dumps({"id": "images/3/1042", "class": 9}).encode()
    assert parse_result(Found(body)) == (Source(3, 1042), Outcome(b"7", 9))
    origin = (("__connect.errors.partition", b"3"), ("__connect.errors.offset", b"1042"))
    assert parse_dead_letter(Found(b"", headers=origin)) == (Source(3, 1042), Outcome(b"7", None))


def test_the_load_is_the_same_for_the_same_seed_and_poisoned_in_part() -> None:
    load = list(generate_inputs(2_000, PARTITIONS, 0.05, Random(1)))
    assert load == list(generate_inputs(2_000, PARTITIONS, 0.05, Random(1)))
    assert 50 < sum(one.value in POISON for one in load) < 150
    assert [one.key for one in load] == [b"%d" % number for number in range(2_000)]
    assert Counter(one.partition for one in load).most_common(1)[0][1] == 667


TARGETS: dict[Kind, int] = {"relay killed": 3, "zombie": 3}


def test_a_full_run_plans_at_least_what_is_wanted_of_each_kind() -> None:
    planned = Counter(
        fault.kind
        for fault in make_schedule(
            count_required(FULL_DURATION_S), FULL_DURATION_S, TARGETS, Random(1)
        )
    )
    assert all(planned[kind] >= count for kind, count in LEAST_COUNTS.items())


def test_even_a_short_run_has_each_kind_once() -> None:
    assert set(count_required(1.0).values()) == {1}
    assert {fault.kind for fault in make_schedule(count_required(1.0), 1.0, {}, Random(1))} == set(
        LEAST_COUNTS
    )


def test_the_plan_is_that_of_its_seed() -> None:
    schedules = [
        make_schedule(count_required(FULL_DURATION_S), FULL_DURATION_S, TARGETS, Random(seed))
        for seed in (1, 1, 2)
    ]
    assert schedules[0] == schedules[1] != schedules[2]


@given(st.integers(0, 2**31), st.floats(60.0, 3600.0))
def test_faults_are_spread_over_time_and_places(seed: int, duration: float) -> None:
    faults = make_schedule({"zombie": 20}, duration, TARGETS, Random(seed))
    parts = [int(fault.at / (duration / len(faults))) for fault in faults]
    assert parts == list(range(len(faults)))
    assert all(8 <= fault.seconds <= 10 for fault in faults)
    strikes = Counter(fault.target for fault in faults)
    assert set(strikes) == {0, 1, 2}
    assert max(strikes.values()) - min(strikes.values()) <= 1


GOOD = Report(
    seed=1,
    settings={},
    records=100,
    results=99,
    dead_letters=1,
    poison=1,
    seconds=10.0,
    longest_silence=12.0,
    wanted={"zombie": 2},
    faults={"zombie": 2},
    bad_answers={"500": 3},
    exits={69: 1, 75: 4},
    findings={"lost": 0, "doubled": 0},
)


def test_a_good_report_passes_and_shows_everything() -> None:
    assert GOOD.passed
    assert GOOD.to_dict() == asdict(GOOD) | {"kept": True, "passed": True, "shortcomings": []}
    assert "zombie (wanted 2)" in GOOD.render()


@pytest.mark.parametrize("finding", ["lost", "doubled"])
def test_one_broken_promise_is_enough(finding: str) -> None:
    report = replace(GOOD, findings=GOOD.findings | {finding: 1})
    assert not report.kept
    assert not report.passed


@pytest.mark.parametrize(
    ("flaw", "sentence"),
    [
        ({"faults": {"zombie": 1}}, "zombie: 1 times, not 2"),
        ({"exits": {70: 1}}, "ended by itself with 70"),
        ({"longest_silence": 61.0}, "no outcome for 61 s"),
    ],
)
def test_what_was_too_easy_or_too_slow_does_not_pass(flaw: dict[str, Any], sentence: str) -> None:
    report = replace(GOOD, **flaw)
    assert report.kept
    assert not report.passed
    assert sentence in report.render()


def interpret(kind: Bad) -> Answer:
    reply = REPLIES[kind]
    return torchserve.interpret_reply(reply.status, reply.body, 1)


def test_the_bad_answers_mean_to_a_relay_what_they_should() -> None:
    assert isinstance(interpret("503"), Busy)
    assert all(isinstance(interpret(kind), Failed) for kind in REPLIES if kind != "503")


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"type": self.headers["Content-Type"], "path": self.path}).encode()
        self.send_response(418)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer) + len(body)))
        self.end_headers()
        self.wfile.write(answer + body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_proxy() -> Iterator[AnswerProxy]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as service:
        thread = Thread(target=service.serve_forever, args=(0.05,))
        thread.start()
        target = f"http://127.0.0.1:{service.server_port}/predictions/fmnist"
        with serve(AnswerProxy(target)) as proxy:
            yield proxy
        service.shutdown()
        thread.join()


def ask(url: str, timeout: float = 20.0) -> Answer:
    authorize = partial(torchserve.KeyFile, None)
    dialect = torchserve.TorchServe(time.time)
    client = HttpClient(url, dialect, authorize, timeout=timeout, in_flight=1)
    try:
        client.send(Request((Image(b"a boot"),)))
        ((_, answer),) = client.collect(30)
        return answer
    finally:
        client.close()


def test_the_proxy_passes_on_what_it_is_not_told_to_spoil() -> None:
    with serve_proxy() as proxy:
        answer = ask(proxy.url)
    assert isinstance(answer, Busy)
    assert "418" in answer.detail
    assert "/predictions/fmnist" in answer.detail
    assert "multipart/form-data" in answer.detail


@pytest.mark.parametrize("kind", [kind for kind in get_args(Bad) if kind != "503"])
def test_the_proxy_gives_the_bad_answers_that_were_ordered(kind: Bad) -> None:
    with serve_proxy() as proxy:
        proxy.order(kind, 1)
        assert isinstance(ask(proxy.url, timeout=0.5), Failed)
        assert isinstance(ask(proxy.url), Busy)
        assert proxy.given == {kind: 1}


def test_a_service_that_is_away_is_busy_behind_the_proxy_too() -> None:
    with serve_proxy() as proxy:
        proxy.target = proxy.target._replace(netloc="127.0.0.1:1")
        answer = ask(proxy.url)
    assert isinstance(answer, Busy)


def test_each_bug_but_that_of_the_link_has_its_control() -> None:
    of_scenarios = {"cut-off-ignored", "offsets-believed", cluster.CONTROL}
    assert set(CONTROLS) == set(BUGS) - of_scenarios


ALL_BUGS = [(broker, bug) for broker in BROKERS for bug in load_bugs(broker)]


def plant(broker: str, bug: str, patch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """Put a bug into this process until `patch` is undone; return what it replaced."""
    replaced: list[tuple[Any, str]] = []

    def replace_and_note(owner: object, name: str, make: Callable[[Any], Any]) -> None:
        if name in vars(owner):
            patch.setattr(owner, name, getattr(owner, name))
        replace_attribute(owner, name, make)
        replaced.append((owner, name))

    patch.setattr(f"tests.chaos.brokers.{broker}.bugs.replace_attribute", replace_and_note)
    load_bugs(broker)[bug]()
    return replaced


@pytest.mark.parametrize(("broker", "bug"), ALL_BUGS)
def test_what_the_bugs_replace_is_there(
    broker: str, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = plant(broker, bug, monkeypatch)
    assert replaced
    assert all(callable(getattr(owner, name)) for owner, name in replaced)


@pytest.mark.parametrize(("broker", "bug"), ALL_BUGS)
def test_a_bug_whose_target_has_gone_is_an_error(
    broker: str, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        replaced = plant(broker, bug, patch)
    for owner, name in replaced:
        with monkeypatch.context() as patch:
            patch.delattr(owner, name)
            with pytest.raises(PatchError, match=f"has no {name} to replace"):
                plant(broker, bug, patch)


def test_a_relay_whose_bug_cannot_be_planted_ends_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("connectors.brokers.kafka.consumer.GroupConsumer.verify_offsets")
    assert patched.main("offsets-believed", "kafka", "--help") == patched.PATCH_FAILED
    assert "GroupConsumer has no verify_offsets to replace" in capsys.readouterr().err


def test_servers_get_ports_that_no_client_gets_by_chance() -> None:
    ports = find_steady_ports(8)
    assert len(set(ports)) == 8
    assert max(ports) < 32_768


def make_request(api: int, request_id: int) -> bytes:
    content = struct.pack(">hhi", api, 3, request_id) + b"and the rest"
    return struct.pack(">i", len(content)) + content


def test_requests_are_told_apart_however_they_arrive() -> None:
    one, other = socket.socketpair()
    with one, other:
        sent = make_request(26, 7) + make_request(28, 8)
        one.sendall(sent[:3])
        one.sendall(sent[3:30])
        one.sendall(sent[30:])
        one.shutdown(socket.SHUT_WR)
        found = list(link.read_frames(other))
    assert [(frame.api, frame.request_id) for frame in found] == [(26, 7), (28, 8)]
    assert b"".join(frame.content for frame in found) == sent


def test_an_answer_names_its_request() -> None:
    assert link.Frame(struct.pack(">iih", 6, 1042, 0)).answer_id == 1042


@pytest.mark.parametrize("name", list(link.LATE_REQUESTS))
def test_one_request_is_held_and_let_go_in_a_later_transaction(name: str) -> None:
    case, now = link.LATE_REQUESTS[name], [100.0]
    rule = link.HoldRule(case, 20.0, lambda: now[0])
    assert not rule.should_release(case.trigger)
    held = [rule.should_hold(case.held) for _ in range(link.SKIPPED_REQUESTS + 3)]
    assert held == [False] * link.SKIPPED_REQUESTS + [True, False, False]
    now[0] += 19.0
    assert not rule.should_release(case.trigger)
    now[0] += 1.0
    assert not rule.should_release(case.held)
    assert [rule.should_release(case.trigger) for _ in range(2)] == [True, False]
