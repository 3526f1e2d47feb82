"""The judgement of the Pub/Sub cases: it must not be possible to break the promise and pass."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field, replace
from random import Random
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.chaos.brokers.pubsub.bugs import BUGS
from tests.chaos.brokers.pubsub.cases import CASES, CONTROLS, scale_case
from tests.chaos.brokers.pubsub.observer import parse_dead_letter, parse_lane, parse_result
from tests.chaos.brokers.pubsub.operation_log import (
    RepeatedOperationLog,
    find_repeated,
    make_source,
)
from tests.chaos.brokers.pubsub.producer import (
    add_numbers,
    expect_answer,
    find_numbers,
    ordering_key,
)
from tests.chaos.brokers.pubsub.report import PubSubReport
from tests.chaos.load import PICTURES, POISON, generate_inputs
from tests.chaos.operation_log import Outcome, Source
from tests.chaos.schedule import Fault
from tests.chaos.tcp_proxy import open_tcp_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = 5
COUNT = 60
CLASSES = dict(zip(PICTURES, (9, 1), strict=True))


class Seen(NamedTuple):
    """What the observer finds, and with which ordering key."""

    source: Source
    outcome: Outcome
    partition: int


def make_outcome(number: int) -> Outcome:
    return Outcome(b"images/%d" % (1000 + number), None if number % 7 == 0 else number % 2)


def perfect(keys: int = KEYS) -> list[Seen]:
    """One outcome for each of the messages, when it has to come."""
    sources = [make_source(number, keys) for number in range(COUNT)]
    return [Seen(one, make_outcome(i), one.partition) for i, one in enumerate(sources)]


def fill_log(outcomes: list[Seen], keys: int = KEYS) -> RepeatedOperationLog:
    log = RepeatedOperationLog()
    for right in perfect(keys):
        log.note_input(right.source, right.outcome)
    for outcome in outcomes:
        log.note_outcome(*outcome)
    return log


def find_violations(outcomes: list[Seen], keys: int = KEYS) -> dict[str, list[Source]]:
    """Only what was found to be wrong."""
    found = fill_log(outcomes, keys).find_violations()
    return {kind: sources for kind, sources in found.items() if sources}


@pytest.mark.parametrize("keys", [0, KEYS])
def test_one_outcome_for_each_message_is_what_is_wanted(keys: int) -> None:
    assert find_violations(perfect(keys), keys) == {}
    assert fill_log(perfect(keys), keys).doubled == 0


def test_doubles_that_are_the_same_are_counted_and_forgiven_wherever_they_come() -> None:
    outcomes = perfect()
    repeated = [*outcomes, *outcomes[3:40:3], outcomes[3]]
    log = fill_log(repeated)
    assert not any(log.find_violations().values())
    assert not log.violated
    assert log.doubled == 14
    assert log.outcomes == COUNT + 14
    assert log.missing == 0


def test_a_lost_message_is_red() -> None:
    outcomes = perfect()
    gone = outcomes.pop(13)
    assert find_violations(outcomes) == {"lost": [gone.source]}


def test_an_outcome_with_another_id_than_its_messages_is_red() -> None:
    outcomes = perfect()
    outcomes[15] = outcomes[15]._replace(outcome=Outcome(b"images/1", 1))
    assert find_violations(outcomes) == {"another's outcome": [outcomes[15].source]}


@pytest.mark.parametrize("outcome", [Outcome(b"images/1", 1), Outcome(make_outcome(15).key, None)])
def test_a_double_with_another_id_or_another_end_is_red(outcome: Outcome) -> None:
    outcomes = perfect()
    repeated = [*outcomes, outcomes[15]._replace(outcome=outcome)]
    assert find_violations(repeated) == {"doubled with a difference": [outcomes[15].source]}
    assert fill_log(repeated).violated


def test_first_outcomes_of_a_key_that_changed_places_are_red() -> None:
    outcomes = perfect()
    outcomes[31], outcomes[31 + KEYS] = outcomes[31 + KEYS], outcomes[31]
    assert find_violations(outcomes) == {"out of order": [outcomes[31 + KEYS].source]}


def test_without_keys_there_is_no_order() -> None:
    assert find_violations(perfect(0)[::-1], 0) == {}


def test_an_outcome_with_another_key_is_red() -> None:
    outcomes = perfect()
    outcomes[-1] = outcomes[-1]._replace(partition=0)
    assert find_violations(outcomes) == {"with another key": [outcomes[-1].source]}


@pytest.mark.parametrize(("number", "answer"), [(14, 1), (15, None)])
def test_dead_letters_that_are_not_the_poison_are_red(number: int, answer: int | None) -> None:
    outcomes = perfect()
    wrong = outcomes[number]
    outcomes[number] = wrong._replace(outcome=Outcome(wrong.outcome.key, answer))
    assert find_violations(outcomes) == {"wrong dead letters": [wrong.source]}


def test_an_outcome_of_no_message_is_red() -> None:
    stranger = Seen(make_source(999, KEYS), make_outcome(1), 999 % KEYS)
    assert find_violations([*perfect(), stranger]) == {"from nowhere": [stranger.source]}


def test_what_was_asked_twice_is_known() -> None:
    assert find_repeated({1: 1, 7: 2, 3: 5, 4: 1}) == [3, 7]


@dataclass
class Found:
    """A message of the library, as far as it is looked at."""

    data: bytes = b""
    ordering_key: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


def test_an_outcome_names_its_message() -> None:
    body = json.dumps({"id": "images/1042", "class": 9}).encode()
    assert parse_result(Found(body)) == Outcome(b"images/1042", 9)
    dead_letter = Found(attributes={"connector.id": "images/1042"})
    assert parse_dead_letter(dead_letter) == Outcome(b"images/1042", None)


def test_an_outcome_without_its_key_or_with_one_too_many_is_in_no_lane() -> None:
    assert parse_lane(Found(ordering_key="key-3"), KEYS) == 3
    assert parse_lane(Found(attributes={"number": "12"}), 0) == 12
    assert parse_lane(Found(), KEYS) == parse_lane(Found(ordering_key="key-3"), 0) == -1


def test_the_load_is_recognised_with_its_number() -> None:
    load = list(add_numbers(generate_inputs(2_000, KEYS, 0.05, Random(1))))
    answers = [expect_answer(record.value, CLASSES) for record in load]
    assert 50 < answers.count(None) < 150
    assert set(answers) == {None, *CLASSES.values()}
    assert find_numbers(b"".join(record.value for record in load)) == list(range(2_000))
    assert [ordering_key(record, KEYS) for record in load[:6]] == [
        f"key-{n % KEYS}" for n in range(6)
    ]
    assert ordering_key(load[0], 0) == ""


def test_what_is_no_picture_has_to_become_a_dead_letter() -> None:
    assert [expect_answer(one, CLASSES) for one in PICTURES] == list(CLASSES.values())
    assert {expect_answer(one, CLASSES) for one in POISON} == {None}


GOOD = PubSubReport(
    case="kills",
    seed=1,
    settings={},
    records=100,
    results=99,
    dead_letters=1,
    poison=1,
    seconds=10.0,
    longest_silence=12.0,
    wanted={"relay killed": 2},
    faults={"relay killed": 2},
    bad_answers={},
    exits={},
    findings={"lost": 0},
    doubled=7,
    asked=107,
    asked_again=7,
)


def test_a_good_report_passes_and_prints_its_doubles() -> None:
    assert GOOD.passed
    assert GOOD.to_dict()["doubled"] == 7
    rows = dict(line.rsplit(maxsplit=1) for line in GOOD.render().splitlines())
    assert rows["doubled, with equal ids"] == rows["messages asked again (of 107 images)"] == "7"


@pytest.mark.parametrize("finding", ["lost", "doubled with a difference", "asked again"])
def test_one_broken_promise_is_enough(finding: str) -> None:
    assert not replace(GOOD, findings={finding: 1}).passed


def test_kills_that_found_nobody_at_work_do_not_pass() -> None:
    assert not replace(GOOD, asked_again=0).passed
    assert replace(GOOD, wanted={}, faults={}, asked_again=0).passed


def test_a_longer_silence_is_allowed_where_the_service_is_slow() -> None:
    silent = replace(GOOD, longest_silence=150.0)
    assert not silent.passed
    assert replace(silent, silence=200.0).passed


def test_a_case_is_shortened_in_length_and_faults() -> None:
    whole = {case.name: case for case in CASES}
    short = scale_case(whole["kills"], 0.25)
    assert (short.duration, short.count_required()) == (25.0, {"relay killed": 3})
    assert whole["kills"].count_inputs() == 20_000
    assert whole["keys"].count_inputs() == 200 * whole["keys"].keys == 10_000


@pytest.fixture
def echo() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_cable_carries_both_ways_until_it_is_cut_and_again_when_it_is_mended(
    echo: socket.socket,
) -> None:
    with open_tcp_proxy(f"127.0.0.1:{echo.getsockname()[1]}") as proxy:
        host, port = proxy.address.split(":")
        for _ in range(2):
            with socket.create_connection((host, int(port)), 10) as client:
                server, _ = echo.accept()
                client.sendall(b"there")
                assert server.recv(5) == b"there"
                server.sendall(b"and back")
                assert client.recv(8) == b"and back"
                assert proxy.inject(Fault(0.0, "stream cut", -1.0, 0), Event())
                for end in (client, server):
                    with pytest.raises(ConnectionResetError):
                        end.recv(1)
                server.close()
        assert not proxy.is_connected()


def test_a_cut_cable_takes_no_connection(echo: socket.socket) -> None:
    with open_tcp_proxy(f"127.0.0.1:{echo.getsockname()[1]}") as proxy:
        assert proxy.cut() == 0
        host, port = proxy.address.split(":")
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection((host, int(port)), 10) as client,
        ):
            client.recv(1)
        over = Event()
        over.set()
        assert not proxy.inject(Fault(0.0, "stream cut", 1.0, 0), over)


def test_each_bug_has_its_control() -> None:
    assert set(CONTROLS) == set(BUGS)
