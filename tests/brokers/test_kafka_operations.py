"""Real Kafka: dead letters and their way back, what the checks find, what the lag counts."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from kafka import codec as kafka_codec
from kafka.admin import NewPartitions

from connectors import codec as connectors_codec
from connectors.brokers.kafka.admin import (
    DeadLetterReader,
    list_all_checks,
    list_checks,
    open_dead_letters,
    open_replay,
)
from connectors.brokers.kafka.broker import KafkaBroker
from connectors.brokers.kafka.settings import CheckKafka, ListDeadKafka, ReplayKafka, ShowDeadKafka
from connectors.commands import dlq, doctor
from connectors.errors import Exit, Stop
from connectors.records import Advice, Prediction, Rejection, Settled
from tests.brokers.conformance import Topics, predicted, take, values
from tests.brokers.test_kafka import KafkaHarness
from tests.conftest import missing
from tools.servers import kafka as stack_kafka
from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from connectors.brokers.kafka.admin import ReplayBroker
    from connectors.records import Headers, Outcome
    from tests.brokers.conformance import Published

pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("swept"),
    # kafka-python leaves the sockets of refused connections to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

TRACE = ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
BODY: dict[str, Any] = {"class": 9, "label": "Ankle boot", "score": 0.9, "top": [], "model": {}}


@pytest.fixture(scope="module")
def servers() -> Iterator[str]:
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(stack_kafka.kafka())
        except StackError as error:
            missing(str(error))
        yield cluster.plain_servers


@pytest.fixture
def kafka(servers: str) -> Iterator[KafkaHarness]:
    with ExitStack() as stack:
        yield KafkaHarness(servers, stack)


@pytest.fixture
def topics(kafka: KafkaHarness) -> Topics:
    return kafka.topics()


def asked(harness: KafkaHarness, topics: Topics, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    return {
        "bootstrap_servers": harness.servers,
        "input_topic": topics.input,
        "dead_letter_topic": topics.dead,
        "group": harness.group("group"),
        "session_timeout": 6.0,
        "heartbeat_interval": 0.2,
        **more,
    }


def bury(
    harness: KafkaHarness, topics: Topics, reasons: Sequence[Literal["failed", "empty"]]
) -> None:
    """One dead letter for each reason, by way of the daemon's broker."""
    for number, _ in enumerate(reasons):
        headers: Headers = (("own", b"%d" % number), TRACE, ("own", None))
        harness.produce(
            topics.input,
            b"image %d" % number,
            partition=number % 2,
            key=b"key %d" % number,
            headers=headers,
        )
    broker = harness.open(topics, connectors_codec.encode)
    found = sorted(take(harness, broker, len(reasons)), key=lambda record: record.value or b"")
    broker.commit(
        [
            Settled(record, Rejection(reason, "why", 503, 3))
            for record, reason in zip(found, reasons, strict=True)
        ]
    )
    broker.close()


def opened(harness: KafkaHarness, settings: ReplayKafka) -> ReplayBroker:
    replay: ReplayBroker = harness.closing(open_replay(settings, dlq.encode))
    return replay


def sent(harness: KafkaHarness, topics: Topics, **more: Any) -> int:  # noqa: ANN401 - any field
    """Replay, and count what went."""
    settings = ReplayKafka(**asked(harness, topics, name="one", **more))
    return dlq.send_back(settings, opened(harness, settings))["sent"]


def came_back(harness: KafkaHarness, topics: Topics) -> list[Published]:
    return [
        one
        for one in harness.read_committed(topics.input)
        if "connector.replay" in dict(one.headers)
    ]


def test_a_new_cluster_is_given_the_time_to_choose_a_coordinator(
    kafka: KafkaHarness, topics: Topics
) -> None:
    assert "at most 0" in dict(list_all_checks(checked(kafka, topics)))["group"]().text


# What is in the topic


def test_each_letter_is_listed_with_the_id_of_its_source(
    kafka: KafkaHarness, topics: Topics
) -> None:
    bury(kafka, topics, ["failed", "empty", "failed"])
    settings = ListDeadKafka(**asked(kafka, topics, json_lines=True))
    *lines, counts = map(json.loads, dlq.list_(settings, open_dead_letters(settings)))
    source = topics.input
    assert {line["id"] for line in lines} == {f"{source}/0/0", f"{source}/1/0", f"{source}/0/1"}
    assert {line["key"] for line in lines} == {"key 0", "key 1", "key 2"}
    assert counts == {"dead_letters": 3, "reasons": {"failed": 2, "empty": 1}}


def test_an_empty_topic_has_no_letters_and_does_not_wait_for_some(
    kafka: KafkaHarness, topics: Topics
) -> None:
    settings = ListDeadKafka(**asked(kafka, topics))
    assert list(dlq.list_(settings, open_dead_letters(settings))) == ["0 dead letters"]


def test_a_missing_topic_of_dead_letters_is_named(kafka: KafkaHarness, topics: Topics) -> None:
    absent = f"{topics.dead}-absent"
    settings = ListDeadKafka(**asked(kafka, topics) | {"dead_letter_topic": absent})
    with pytest.raises(Stop, match=absent) as stop:
        open_dead_letters(settings)
    assert stop.value.code == Exit.UNAVAILABLE


def test_one_letter_is_found_by_its_id_and_shown_whole(kafka: KafkaHarness, topics: Topics) -> None:
    bury(kafka, topics, ["failed", "empty"])
    where = [f"id={topics.input}/1/0"]
    settings = ShowDeadKafka(**asked(kafka, topics, where=where))
    (page,) = dlq.show(settings, open_dead_letters(settings))
    assert "header traceparent: 00-0af7651916cd43dd8448eb211c80319c" in page
    assert "reason: empty" in page


# The way back


def test_a_replay_brings_back_what_came_byte_for_byte(kafka: KafkaHarness, topics: Topics) -> None:
    bury(kafka, topics, ["failed", "empty", "failed"])
    assert sent(kafka, topics) == 3
    back = came_back(kafka, topics)
    came = kafka.read_committed(topics.input)[:1]
    assert sorted(values(back), key=str) == [b"image 0", b"image 1", b"image 2"]
    assert {one.key for one in back} == {b"key 0", b"key 1", b"key 2"}
    assert [one.partition for one in back if one.key == b"key 1"] == [1]
    (again,) = [one for one in back if one.key == came[0].key]
    ours = (("connector.replay", b"one"), ("connector.nulls", b"headers[2]"))
    assert again.headers == (("own", b"0"), TRACE, ("own", b""), *ours)


def test_the_same_name_sends_each_letter_once(kafka: KafkaHarness, topics: Topics) -> None:
    bury(kafka, topics, ["failed", "empty", "failed"])
    assert [sent(kafka, topics, limit=2), sent(kafka, topics), sent(kafka, topics)] == [2, 1, 0]
    assert sorted(values(came_back(kafka, topics)), key=str) == [b"image 0", b"image 1", b"image 2"]


def test_another_name_begins_with_the_oldest(kafka: KafkaHarness, topics: Topics) -> None:
    bury(kafka, topics, ["failed"])
    assert sent(kafka, topics) == 1
    other = ReplayKafka(**asked(kafka, topics, name="two"))
    assert dlq.send_back(other, opened(kafka, other))["sent"] == 1


def test_only_what_is_asked_for_goes_back(kafka: KafkaHarness, topics: Topics) -> None:
    bury(kafka, topics, ["failed", "empty", "failed"])
    assert sent(kafka, topics, where=["reason=failed", "header.own=2"]) == 1
    assert values(came_back(kafka, topics)) == [b"image 2"]


def test_a_name_is_bound_to_its_conditions(kafka: KafkaHarness, topics: Topics) -> None:
    bury(kafka, topics, ["failed"])
    assert sent(kafka, topics, where=["reason=failed", "header.own=0"]) == 1
    with pytest.raises(Stop, match=r"reason=failed.*repeat them, or choose another --name") as stop:
        sent(kafka, topics, where=["reason=empty"])
    assert stop.value.code == Exit.USAGE
    assert sent(kafka, topics, where=["header.own=0", "reason=failed"]) == 0


def test_a_dry_run_sends_nothing_and_acknowledges_nothing(
    kafka: KafkaHarness, topics: Topics
) -> None:
    bury(kafka, topics, ["failed", "empty"])
    assert sent(kafka, topics, dry_run=True) == 2
    assert came_back(kafka, topics) == []
    assert sent(kafka, topics) == 2


@pytest.mark.parametrize("fault", ["break_commit", "lose_answer"])
def test_a_replay_doubles_and_loses_nothing_when_a_commit_fails(
    kafka: KafkaHarness, topics: Topics, fault: str
) -> None:
    bury(kafka, topics, ["failed", "empty", "failed"])
    settings = ReplayKafka(**asked(kafka, topics, name="one"))
    broker = opened(kafka, settings)
    kafka.break_commit(broker, 1) if fault == "break_commit" else kafka.lose_answer(broker)
    dlq.send_back(settings, broker)
    assert sorted(values(came_back(kafka, topics)), key=str) == [b"image 0", b"image 1", b"image 2"]


def test_letters_that_come_meanwhile_are_left_for_the_next_time(
    kafka: KafkaHarness, topics: Topics
) -> None:
    bury(kafka, topics, ["failed"])
    settings = ReplayKafka(**asked(kafka, topics, name="one"))
    broker = opened(kafka, settings)
    kafka.produce(topics.dead, b"later", key=b"later")
    assert dlq.send_back(settings, broker)["sent"] == 1
    assert sent(kafka, topics) == 1


@pytest.mark.parametrize("command", ["list", "replay", "dry run"])
def test_a_topic_of_dead_letters_that_grows_meanwhile_ends_no_command(
    kafka: KafkaHarness, topics: Topics, command: str
) -> None:
    bury(kafka, topics, ["failed"])
    age = {"metadata_max_age_ms": 300}
    settings = ReplayKafka(
        **asked(kafka, topics, name="one", dry_run=command == "dry run", kafka=age)
    )
    reader = kafka.closing(DeadLetterReader(settings)) if command == "list" else None
    replay = None if reader else opened(kafka, settings)
    kafka.admin.create_partitions({topics.dead: NewPartitions(4)})
    kafka.produce(topics.dead, b"later", partition=3)
    if reader:
        assert [one.value for _ in range(20) for one in reader.read(0.1)] == [b"image 0"]
    if replay:
        assert dlq.send_back(settings, replay)["sent"] == 1


def test_a_younger_replay_of_the_same_name_fences_the_elder(
    kafka: KafkaHarness, topics: Topics
) -> None:
    bury(kafka, topics, ["failed"])
    settings = ReplayKafka(**asked(kafka, topics, name="one"))
    earlier = opened(kafka, settings)
    (dead_letter,) = take(kafka, earlier, 1)
    opened(kafka, settings)
    with pytest.raises(Stop, match="fenced") as stop:
        earlier.commit([dlq.settle(dead_letter, settings)])
    assert stop.value.code == Exit.FENCED


# What goes along


def test_a_traceparent_reaches_result_dead_letter_and_replay(
    kafka: KafkaHarness, topics: Topics
) -> None:
    for number in range(2):
        kafka.produce(topics.input, b"%d" % number, headers=(TRACE,))
    broker = kafka.open(topics, connectors_codec.encode)
    one, other = take(kafka, broker, 2)
    with_outcomes: list[Outcome] = [Prediction(BODY), Rejection("failed", "why")]
    broker.commit([Settled(*pair) for pair in zip((one, other), with_outcomes, strict=True)])
    broker.close()
    assert sent(kafka, topics) == 1
    (result,), (dead_letter,) = (
        kafka.read_committed(topic) for topic in (topics.output, topics.dead)
    )
    (back,) = came_back(kafka, topics)
    assert all(TRACE in found.headers for found in (result, dead_letter, back))


def test_the_end_of_a_transaction_is_no_lag(kafka: KafkaHarness, topics: Topics) -> None:
    kafka.begin(topics.input, b"x").commit()
    broker = kafka.open(topics)
    assert isinstance(broker, KafkaBroker)
    assert not broker.joined()
    records = take(kafka, broker, 1)
    assert broker.joined()
    assert broker.lag()[f"{topics.input}/0"] == 2
    broker.commit(predicted(records))
    for _ in kafka.patience():
        broker.poll(10, 0.1)
        if not any(broker.lag().values()):
            break
    kafka.produce(topics.input, b"y")
    (record,) = take(kafka, broker, 1)
    assert broker.lag()[record.lane] > 0


# The checks


def checked(harness: KafkaHarness, topics: Topics, **more: Any) -> CheckKafka:  # noqa: ANN401 - any field
    return CheckKafka(**asked(harness, topics, output_topic=topics.output, **more))


def test_a_cluster_with_everything_passes_each_check(kafka: KafkaHarness, topics: Topics) -> None:
    found = list(doctor.run_checks(list_all_checks(checked(kafka, topics))))
    assert [(one.check, one.result) for one in found] == [
        (name, "ok") for name in ("library", "broker", "topics", "transactions", "sizes", "group")
    ]


def test_a_missing_topic_fails_and_what_depends_on_it_is_skipped(
    kafka: KafkaHarness, topics: Topics
) -> None:
    absent = Topics(topics.input, f"{topics.output}-absent", topics.dead)
    found = list(doctor.run_checks(list_checks(checked(kafka, absent))))
    assert [one.result for one in found] == ["ok", "failed", "skipped"]
    assert absent.output in found[1].text
    assert found[1].code == Exit.UNAVAILABLE


def test_a_check_fences_no_daemon(kafka: KafkaHarness, topics: Topics) -> None:
    kafka.produce(topics.input, b"x")
    daemon = kafka.open(topics, instance="slot")
    records = take(kafka, daemon, 1)
    settings = checked(kafka, topics, instance="slot")
    assert all(one.result == "ok" for one in doctor.run_checks(list_checks(settings)))
    daemon.commit(predicted(records))
    assert len(kafka.read_committed(topics.output)) == 1


def test_at_least_once_asks_for_no_transactions(kafka: KafkaHarness, topics: Topics) -> None:
    settings = checked(kafka, topics, delivery="at-least-once")
    assert "not asked for" in dict(list_checks(settings))["transactions"]().text


def advised(settings: CheckKafka, check: str) -> str:
    advice = dict(list_all_checks(settings))[check]()
    assert isinstance(advice, Advice)
    return advice.text


def test_the_doctor_advises_equal_numbers_of_partitions(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=2, output_partitions=3)
    assert "same number of partitions" in advised(checked(kafka, topics), "topics")


@pytest.mark.parametrize(
    ("codec", "library"), [("lz4", "lz4"), ("snappy", "python-snappy"), ("zstd", "zstandard")]
)
def test_check_and_doctor_name_the_library_of_a_missing_codec(
    kafka: KafkaHarness,
    topics: Topics,
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
    library: str,
) -> None:
    monkeypatch.setattr(kafka_codec, f"has_{codec}", lambda: False)
    for checks in (list_checks, list_all_checks):
        found = dict(checks(checked(kafka, topics)))["topics"]()
        assert isinstance(found, Advice)
        assert f"pip install {library}," in found.text


def test_the_doctor_compares_sizes(kafka: KafkaHarness) -> None:
    wide = kafka.create("in", max_message_bytes=6_000_000)
    topics = Topics(wide, kafka.create("out"), kafka.create("dead"))
    assert "larger dead letters lose their value" in advised(checked(kafka, topics), "sizes")
    narrow = Topics(topics.dead, kafka.create("out", max_message_bytes=300), wide)
    assert "results may not fit" in advised(checked(kafka, narrow), "sizes")


@pytest.mark.parametrize("policy", ["compact", "compact,delete", "delete,compact"])
@pytest.mark.parametrize("which", ["output", "dead"])
def test_the_doctor_warns_of_topics_that_are_compacted(
    kafka: KafkaHarness, topics: Topics, policy: str, which: str
) -> None:
    topics = replace(topics, **{which: kafka.create(which, cleanup_policy=policy)})
    assert f"set cleanup.policy of {which}-" in advised(checked(kafka, topics), "sizes")


def test_the_doctor_counts_what_nobody_reads(kafka: KafkaHarness, topics: Topics) -> None:
    kafka.produce(topics.input, b"x")
    advice = advised(checked(kafka, topics), "group")
    assert "start a daemon" in advice
    assert "members: 0, records to read: at most 1" in advice
