"""The judgement of the chaos run: it must not be possible to break the promise and pass."""

from __future__ import annotations

import json
import socket
import struct
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors import codec
from connectors.brokers import kafka as product
from connectors.brokers import kafka_clients as clients
from connectors.client import HttpClient
from connectors.records import Answer, Busy, Failed, Image, Request
from tools.chaos import controls, link, patched
from tools.chaos.answers import REPLIES, AnswerProxy, Bad, serving
from tools.chaos.ledger import Fate, Ledger, Pulse, Source, behind, examples
from tools.chaos.load import PICTURES, POISON, inputs
from tools.chaos.plan import FULL, WANTED, Kind, plan, wanted
from tools.chaos.report import Report
from tools.chaos.scene import steady_ports
from tools.chaos.watch import dead_letter, due, result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTITIONS = 3
COUNT = 60


class Outcome(NamedTuple):
    """What the reader finds, and in which partition."""

    source: Source
    came: Fate
    partition: int


def fate(number: int) -> Fate:
    return Fate(b"%d" % number, None if number % 7 == 0 else number % 2)


def perfect() -> list[Outcome]:
    """One outcome for each of the inputs, where and when it has to be."""
    sources = [Source(number % PARTITIONS, number // PARTITIONS) for number in range(COUNT)]
    return [Outcome(one, fate(i), one.partition) for i, one in enumerate(sources)]


def judged(outcomes: list[Outcome]) -> dict[str, list[Source]]:
    """Only what was found to be wrong."""
    ledger = Ledger()
    for right in perfect():
        ledger.enter(right.source, right.came)
    for outcome in outcomes:
        ledger.leave(*outcome)
    return {kind: found for kind, found in ledger.findings().items() if found}


def test_one_outcome_for_each_record_in_order_is_what_is_wanted() -> None:
    assert judged(perfect()) == {}


def test_partitions_and_topics_may_race_each_other() -> None:
    assert judged(sorted(perfect(), key=lambda one: (one.came.answer is None, one.partition))) == {}


def test_outcomes_may_be_seen_before_their_inputs() -> None:
    ledger = Ledger()
    (first, *_) = perfect()
    ledger.leave(*first)
    assert ledger.open == -1
    ledger.enter(first.source, first.came)
    assert not any(ledger.findings().values())


def test_a_lost_record_is_red() -> None:
    outcomes = perfect()
    gone = outcomes.pop(13)
    assert judged(outcomes) == {"lost": [gone.source]}


def test_a_doubled_record_is_red_and_known_at_once() -> None:
    outcomes = perfect()
    assert judged([*outcomes[:-1], outcomes[-1], outcomes[-1]]) == {
        "doubled": [outcomes[-1].source]
    }


def test_a_result_and_a_dead_letter_for_one_record_are_a_double() -> None:
    outcomes = perfect()
    twice = outcomes[8]
    letter = twice._replace(came=Fate(twice.came.key, None))
    assert judged([*outcomes[:9], letter, *outcomes[9:]]) == {"doubled": [twice.source]}


def test_a_reordered_record_is_red() -> None:
    outcomes = perfect()
    outcomes[31], outcomes[31 + PARTITIONS] = outcomes[31 + PARTITIONS], outcomes[31]
    assert judged(outcomes) == {"out of order": [outcomes[31 + PARTITIONS].source]}


def test_a_record_in_another_partition_is_red() -> None:
    outcomes = perfect()
    outcomes[-1] = outcomes[-1]._replace(partition=0)
    assert judged(outcomes) == {"in another partition": [outcomes[-1].source]}


def test_an_outcome_of_no_record_is_red() -> None:
    stranger = Outcome(Source(0, 999), fate(1), 0)
    assert judged([*perfect(), stranger]) == {"from nowhere": [stranger.source]}


@pytest.mark.parametrize(("number", "came"), [(14, 1), (15, None)])
def test_dead_letters_that_are_not_the_poison_are_red(number: int, came: int | None) -> None:
    outcomes = perfect()
    wrong = outcomes[number]
    outcomes[number] = wrong._replace(came=Fate(wrong.came.key, came))
    assert judged(outcomes) == {"wrong dead letters": [wrong.source]}


@pytest.mark.parametrize("came", [Fate(b"15", 0), Fate(b"16", 1)])
def test_the_outcome_of_another_record_is_red(came: Fate) -> None:
    outcomes = perfect()
    outcomes[15] = outcomes[15]._replace(came=came)
    assert judged(outcomes) == {"another's outcome": [outcomes[15].source]}


def drop(outcomes: list[Outcome], at: int, _: int) -> None:
    del outcomes[at]


def repeat(outcomes: list[Outcome], at: int, to: int) -> None:
    outcomes.insert(to, outcomes[at])


def swap(outcomes: list[Outcome], at: int, to: int) -> None:
    one, other = outcomes[at], outcomes[to]
    outcomes[at] = one._replace(source=other.source)
    outcomes[to] = other._replace(source=one.source)


def deny(outcomes: list[Outcome], at: int, _: int) -> None:
    came = outcomes[at].came
    outcomes[at] = outcomes[at]._replace(
        came=came._replace(answer=0 if came.answer is None else None)
    )


@given(
    st.sampled_from([drop, repeat, swap, deny]),
    st.lists(st.integers(0, COUNT - 1), min_size=2, max_size=2, unique=True),
)
def test_no_single_wrong_passes(
    wrong: Callable[[list[Outcome], int, int], None], places: list[int]
) -> None:
    outcomes = perfect()
    wrong(outcomes, *places)
    assert judged(outcomes)


def test_the_ledger_counts_what_it_saw() -> None:
    ledger = Ledger()
    for right in perfect():
        ledger.enter(right.source, right.came)
    assert (ledger.entered, ledger.open, ledger.settled) == (COUNT, COUNT, 0)
    for right in perfect():
        ledger.leave(*right)
    assert not ledger.broken
    ledger.leave(*right)
    assert ledger.broken
    assert (ledger.open, ledger.settled) == (0, COUNT + 1)
    assert (ledger.results, ledger.dead_letters, ledger.poison) == (51, 9, 9)
    assert ledger.ends() == {0: 20, 1: 20, 2: 20}


@pytest.mark.parametrize("committed", [{}, {0: 19, 1: 20}, {0: 21, 1: 20}])
def test_a_partition_that_is_not_committed_to_its_end_is_red(committed: dict[int, int]) -> None:
    assert 0 in behind({0: 20, 1: 20}, committed)
    assert behind({0: 20, 1: 20}, {0: 20, 1: 20}) == []


def test_some_examples_are_named() -> None:
    assert examples([Source(1, number) for number in range(99)]) == "1/0, 1/1, 1/2, 1/3, 1/4"


def test_the_longest_silence_is_kept() -> None:
    pulse = Pulse(10.0)
    for now in (11.0, 14.0, 15.0):
        pulse.beat(now)
    assert (pulse.longest, pulse.silence(17.0)) == (3.0, 2.0)


class Found(NamedTuple):
    """A ConsumerRecord, as far as it is looked at."""

    value: bytes
    key: bytes | None = b"7"
    headers: tuple[tuple[str, bytes], ...] = ()


def test_what_is_no_picture_has_to_become_a_dead_letter() -> None:
    classes = dict(zip(PICTURES, (9, 1), strict=True))
    assert [due(Found(one), classes) for one in PICTURES] == [Fate(b"7", 9), Fate(b"7", 1)]
    assert {due(Found(one), classes) for one in POISON} == {Fate(b"7", None)}


def test_an_outcome_names_its_record() -> None:
    said = json.dumps({"id": "images/3/1042", "class": 9}).encode()
    assert result(Found(said)) == (Source(3, 1042), Fate(b"7", 9))
    origin = (("__connect.errors.partition", b"3"), ("__connect.errors.offset", b"1042"))
    assert dead_letter(Found(b"", headers=origin)) == (Source(3, 1042), Fate(b"7", None))


def test_the_load_is_the_same_for_the_same_seed_and_poisoned_in_part() -> None:
    load = list(inputs(2_000, PARTITIONS, 0.05, Random(1)))
    assert load == list(inputs(2_000, PARTITIONS, 0.05, Random(1)))
    assert 50 < sum(one.value in POISON for one in load) < 150
    assert [one.key for one in load] == [b"%d" % number for number in range(2_000)]
    assert Counter(one.partition for one in load).most_common(1)[0][1] == 667


PLACES: dict[Kind, int] = {"relay killed": 3, "zombie": 3}


def test_a_full_run_plans_at_least_what_is_wanted_of_each_kind() -> None:
    planned = Counter(fault.kind for fault in plan(wanted(FULL), FULL, PLACES, Random(1)))
    assert all(planned[kind] >= count for kind, count in WANTED.items())


def test_even_a_short_run_has_each_kind_once() -> None:
    assert set(wanted(1.0).values()) == {1}
    assert {fault.kind for fault in plan(wanted(1.0), 1.0, {}, Random(1))} == set(WANTED)


def test_the_plan_is_that_of_its_seed() -> None:
    plans = [plan(wanted(FULL), FULL, PLACES, Random(seed)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


@given(st.integers(0, 2**31), st.floats(60.0, 3600.0))
def test_faults_are_spread_over_time_and_places(seed: int, duration: float) -> None:
    faults = plan({"zombie": 20}, duration, PLACES, Random(seed))
    parts = [int(fault.at / (duration / len(faults))) for fault in faults]
    assert parts == list(range(len(faults)))
    assert all(8 <= fault.seconds <= 10 for fault in faults)
    struck = Counter(fault.place for fault in faults)
    assert set(struck) == {0, 1, 2}
    assert max(struck.values()) - min(struck.values()) <= 1


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
    assert GOOD.figures() == asdict(GOOD) | {"kept": True, "passed": True, "shortcomings": []}
    assert "zombie (wanted 2)" in GOOD.table()


@pytest.mark.parametrize("finding", ["lost", "doubled"])
def test_one_broken_promise_is_enough(finding: str) -> None:
    report = replace(GOOD, findings=GOOD.findings | {finding: 1})
    assert not report.kept
    assert not report.passed


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ({"faults": {"zombie": 1}}, "zombie: 1 times, not 2"),
        ({"exits": {70: 1}}, "ended by itself with 70"),
        ({"longest_silence": 61.0}, "no outcome for 61 s"),
    ],
)
def test_what_was_too_easy_or_too_slow_does_not_pass(flaw: dict[str, Any], said: str) -> None:
    report = replace(GOOD, **flaw)
    assert report.kept
    assert not report.passed
    assert said in report.table()


def said(kind: Bad) -> Answer:
    reply = REPLIES[kind]
    return codec.answer(reply.status, reply.body, 1)


def test_the_bad_answers_mean_to_a_relay_what_they_should() -> None:
    assert isinstance(said("503"), Busy)
    assert all(isinstance(said(kind), Failed) for kind in REPLIES if kind != "503")


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
def proxied() -> Iterator[AnswerProxy]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as service:
        thread = Thread(target=service.serve_forever, args=(0.05,))
        thread.start()
        target = f"http://127.0.0.1:{service.server_port}/predictions/fmnist"
        with serving(AnswerProxy(target)) as proxy:
            yield proxy
        service.shutdown()
        thread.join()


def asked(url: str, timeout: float = 20.0) -> Answer:
    client = HttpClient(url, timeout=timeout)
    try:
        client.send(Request((Image(b"a boot"),)))
        ((_, answer),) = client.collect(30)
        return answer
    finally:
        client.close()


def test_the_proxy_passes_on_what_it_is_not_told_to_spoil() -> None:
    with proxied() as proxy:
        answer = asked(proxy.url)
    assert isinstance(answer, Busy)
    assert "418" in answer.detail
    assert "/predictions/fmnist" in answer.detail
    assert "multipart/form-data" in answer.detail


@pytest.mark.parametrize("kind", [kind for kind in get_args(Bad) if kind != "503"])
def test_the_proxy_gives_the_bad_answers_that_were_ordered(kind: Bad) -> None:
    with proxied() as proxy:
        proxy.order(kind, 1)
        assert isinstance(asked(proxy.url, timeout=0.5), Failed)
        assert isinstance(asked(proxy.url), Busy)
        assert proxy.given == {kind: 1}


def test_a_service_that_is_away_is_busy_behind_the_proxy_too() -> None:
    with proxied() as proxy:
        proxy.target = proxy.target._replace(netloc="127.0.0.1:1")
        answer = asked(proxy.url)
    assert isinstance(answer, Busy)


def test_each_bug_but_that_of_the_link_has_its_control() -> None:
    assert set(controls.CONTROLS) == set(patched.BUGS) - {"cut-off-ignored", "offsets-believed"}


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (product._ExactlyOnce, "deliver"),
        (product._ExactlyOnce, "_send"),
        (product._Source, "poll"),
        (product._Source, "_is_current"),
        (product._Source, "_believe"),
        (product.KafkaBroker, "commit"),
        (clients.Wire, "_count"),
    ],
)
def test_what_the_bugs_replace_is_there(owner: type, name: str) -> None:
    assert callable(getattr(owner, name))


def test_servers_get_ports_that_no_client_gets_by_chance() -> None:
    ports = steady_ports(8)
    assert len(set(ports)) == 8
    assert max(ports) < 32_768


def request(api: int, asked: int) -> bytes:
    content = struct.pack(">hhi", api, 3, asked) + b"and the rest"
    return struct.pack(">i", len(content)) + content


def test_requests_are_told_apart_however_they_arrive() -> None:
    one, other = socket.socketpair()
    with one, other:
        sent = request(26, 7) + request(28, 8)
        one.sendall(sent[:3])
        one.sendall(sent[3:30])
        one.sendall(sent[30:])
        one.shutdown(socket.SHUT_WR)
        found = list(link.frames(other))
    assert [(frame.api, frame.asked) for frame in found] == [(26, 7), (28, 8)]
    assert b"".join(frame.content for frame in found) == sent


def test_an_answer_names_its_request() -> None:
    assert link.Frame(struct.pack(">iih", 6, 1042, 0)).answered == 1042


@pytest.mark.parametrize("name", list(link.CASES))
def test_one_request_is_held_and_let_go_in_a_later_transaction(name: str) -> None:
    case, now = link.CASES[name], [100.0]
    trap = link.Trap(case, 20.0, lambda: now[0])
    assert not trap.springs(case.trigger)
    caught = [trap.catches(case.held) for _ in range(link.SKIPPED + 3)]
    assert caught == [False] * link.SKIPPED + [True, False, False]
    now[0] += 19.0
    assert not trap.springs(case.trigger)
    now[0] += 1.0
    assert not trap.springs(case.held)
    assert [trap.springs(case.trigger) for _ in range(2)] == [True, False]
