"""The judgement of the Pub/Sub cases: it must not be possible to break the promise and pass."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field, replace
from random import Random
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

import pytest

from connectors.brokers import pubsub as product
from tools.chaos.ledger import Fate, Source
from tools.chaos.load import PICTURES, POISON, inputs
from tools.chaos.plan import Fault
from tools.chaos.pubsub import controls, patched
from tools.chaos.pubsub.__main__ import CASES, scaled
from tools.chaos.pubsub.cable import laid
from tools.chaos.pubsub.ledger import RepeatLedger, asked_again, source
from tools.chaos.pubsub.load import due, key, tagged, tags
from tools.chaos.pubsub.report import CaseReport
from tools.chaos.pubsub.watch import dead_letter, lane, result

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = 5
COUNT = 60
CLASSES = dict(zip(PICTURES, (9, 1), strict=True))


class Outcome(NamedTuple):
    """What the reader finds, and with which ordering key."""

    source: Source
    came: Fate
    partition: int


def fate(number: int) -> Fate:
    return Fate(b"images/%d" % (1000 + number), None if number % 7 == 0 else number % 2)


def perfect(keys: int = KEYS) -> list[Outcome]:
    """One outcome for each of the messages, when it has to come."""
    sources = [source(number, keys) for number in range(COUNT)]
    return [Outcome(one, fate(i), one.partition) for i, one in enumerate(sources)]


def noted(outcomes: list[Outcome], keys: int = KEYS) -> RepeatLedger:
    ledger = RepeatLedger()
    for right in perfect(keys):
        ledger.enter(right.source, right.came)
    for outcome in outcomes:
        ledger.leave(*outcome)
    return ledger


def judged(outcomes: list[Outcome], keys: int = KEYS) -> dict[str, list[Source]]:
    """Only what was found to be wrong."""
    found = noted(outcomes, keys).findings()
    return {kind: sources for kind, sources in found.items() if sources}


@pytest.mark.parametrize("keys", [0, KEYS])
def test_one_outcome_for_each_message_is_what_is_wanted(keys: int) -> None:
    assert judged(perfect(keys), keys) == {}
    assert noted(perfect(keys), keys).doubled == 0


def test_doubles_that_are_the_same_are_counted_and_forgiven_wherever_they_come() -> None:
    outcomes = perfect()
    repeated = [*outcomes, *outcomes[3:40:3], outcomes[3]]
    ledger = noted(repeated)
    assert not any(ledger.findings().values())
    assert not ledger.broken
    assert ledger.doubled == 14
    assert ledger.settled == COUNT + 14
    assert ledger.open == 0


def test_a_lost_message_is_red() -> None:
    outcomes = perfect()
    gone = outcomes.pop(13)
    assert judged(outcomes) == {"lost": [gone.source]}


def test_an_outcome_with_another_id_than_its_messages_is_red() -> None:
    outcomes = perfect()
    outcomes[15] = outcomes[15]._replace(came=Fate(b"images/1", 1))
    assert judged(outcomes) == {"another's outcome": [outcomes[15].source]}


@pytest.mark.parametrize("came", [Fate(b"images/1", 1), Fate(fate(15).key, None)])
def test_a_double_with_another_id_or_another_end_is_red(came: Fate) -> None:
    outcomes = perfect()
    repeated = [*outcomes, outcomes[15]._replace(came=came)]
    assert judged(repeated) == {"doubled with a difference": [outcomes[15].source]}
    assert noted(repeated).broken


def test_first_outcomes_of_a_key_that_changed_places_are_red() -> None:
    outcomes = perfect()
    outcomes[31], outcomes[31 + KEYS] = outcomes[31 + KEYS], outcomes[31]
    assert judged(outcomes) == {"out of order": [outcomes[31 + KEYS].source]}


def test_without_keys_there_is_no_order() -> None:
    assert judged(perfect(0)[::-1], 0) == {}


def test_an_outcome_with_another_key_is_red() -> None:
    outcomes = perfect()
    outcomes[-1] = outcomes[-1]._replace(partition=0)
    assert judged(outcomes) == {"with another key": [outcomes[-1].source]}


@pytest.mark.parametrize(("number", "answer"), [(14, 1), (15, None)])
def test_dead_letters_that_are_not_the_poison_are_red(number: int, answer: int | None) -> None:
    outcomes = perfect()
    wrong = outcomes[number]
    outcomes[number] = wrong._replace(came=Fate(wrong.came.key, answer))
    assert judged(outcomes) == {"wrong dead letters": [wrong.source]}


def test_an_outcome_of_no_message_is_red() -> None:
    stranger = Outcome(source(999, KEYS), fate(1), 999 % KEYS)
    assert judged([*perfect(), stranger]) == {"from nowhere": [stranger.source]}


def test_what_was_asked_twice_is_known() -> None:
    assert asked_again({1: 1, 7: 2, 3: 5, 4: 1}) == [3, 7]


@dataclass
class Found:
    """A message of the library, as far as it is looked at."""

    data: bytes = b""
    ordering_key: str = ""
    attributes: dict[str, str] = field(default_factory=dict)


def test_an_outcome_names_its_message() -> None:
    said = json.dumps({"id": "images/1042", "class": 9}).encode()
    assert result(Found(said)) == Fate(b"images/1042", 9)
    letter = Found(attributes={"connector.id": "images/1042"})
    assert dead_letter(letter) == Fate(b"images/1042", None)


def test_an_outcome_without_its_key_or_with_one_too_many_is_in_no_lane() -> None:
    assert lane(Found(ordering_key="key-3"), KEYS) == 3
    assert lane(Found(attributes={"number": "12"}), 0) == 12
    assert lane(Found(), KEYS) == lane(Found(ordering_key="key-3"), 0) == -1


def test_the_load_is_recognised_with_its_number() -> None:
    load = list(tagged(inputs(2_000, KEYS, 0.05, Random(1))))
    answers = [due(record.value, CLASSES) for record in load]
    assert 50 < answers.count(None) < 150
    assert set(answers) == {None, *CLASSES.values()}
    assert tags(b"".join(record.value for record in load)) == list(range(2_000))
    assert [key(record, KEYS) for record in load[:6]] == [f"key-{n % KEYS}" for n in range(6)]
    assert key(load[0], 0) == ""


def test_what_is_no_picture_has_to_become_a_dead_letter() -> None:
    assert [due(one, CLASSES) for one in PICTURES] == list(CLASSES.values())
    assert {due(one, CLASSES) for one in POISON} == {None}


GOOD = CaseReport(
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
    assert GOOD.figures()["doubled"] == 7
    rows = dict(line.rsplit(maxsplit=1) for line in GOOD.table().splitlines())
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
    short = scaled(whole["kills"], 0.25)
    assert (short.duration, short.wanted()) == (25.0, {"relay killed": 3})
    assert whole["kills"].records() == 20_000
    assert whole["keys"].records() == 200 * whole["keys"].keys == 10_000


@pytest.fixture
def echo() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_cable_carries_both_ways_until_it_is_cut_and_again_when_it_is_mended(
    echo: socket.socket,
) -> None:
    with laid(f"127.0.0.1:{echo.getsockname()[1]}") as cable:
        host, port = cable.address.split(":")
        for _ in range(2):
            with socket.create_connection((host, int(port)), 10) as client:
                server, _ = echo.accept()
                client.sendall(b"there")
                assert server.recv(5) == b"there"
                server.sendall(b"and back")
                assert client.recv(8) == b"and back"
                assert cable.suffer(Fault(0.0, "stream cut", -1.0, 0), Event())
                for end in (client, server):
                    with pytest.raises(ConnectionResetError):
                        end.recv(1)
                server.close()
        assert not cable.carries()


def test_a_cut_cable_takes_no_connection(echo: socket.socket) -> None:
    with laid(f"127.0.0.1:{echo.getsockname()[1]}") as cable:
        assert cable.cut() == 0
        host, port = cable.address.split(":")
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection((host, int(port)), 10) as client,
        ):
            client.recv(1)
        over = Event()
        over.set()
        assert not cable.suffer(Fault(0.0, "stream cut", 1.0, 0), over)


def test_each_bug_has_its_control() -> None:
    assert set(controls.CONTROLS) == set(patched.BUGS)


@pytest.mark.parametrize(
    ("owner", "name"),
    [("PubSubBroker", "poll"), ("_Addressing", "_address")],
)
def test_what_the_bugs_replace_is_there(owner: str, name: str) -> None:
    assert callable(getattr(getattr(product, owner), name))
    assert callable(product.record)
