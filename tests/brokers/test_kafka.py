"""Real Kafka: what every broker promises, and what only Kafka can do to us."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from contextlib import ExitStack, closing, suppress
from itertools import count
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from kafka import (
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka import codec as kafka_codec
from kafka.admin import MemberToRemove, NewPartitions
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NotLeaderForPartitionError,
)
from kafka.future import Future
from kafka.protocol.consumer import SyncGroupRequest
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    EndTxnRequest,
    ProduceRequest,
    TxnOffsetCommitRequest,
)
from kafka.record.memory_records import MemoryRecordsBuilder

from connectors.brokers.kafka import clients, published_offsets
from connectors.brokers.kafka.broker import KafkaBroker
from connectors.brokers.kafka.clients import BATCH_BYTES
from connectors.brokers.kafka.endpoints import TopicPublisher, TopicReader
from connectors.brokers.kafka.published_offsets import SOURCE, PublishedOffsets, SourceRecord
from connectors.brokers.kafka.settings import KafkaSettings
from connectors.commands.dlq import find_source
from connectors.errors import Exit, Rewound, Stop
from connectors.records import Message, Prediction, Settled
from tests.brokers import conformance
from tests.brokers.conformance import (
    Conformance,
    Encode,
    Groups,
    LogHarness,
    Partitions,
    Published,
    Redelivers,
    RepeatsHeaders,
    TellsNulls,
    Topics,
    Transactions,
    as_record,
    predicted,
    rejected,
    sources,
    take,
    values,
)
from tests.conftest import missing
from tools.servers.kafka import Kafka, create_topic
from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from connectors.brokers import Untyped
    from connectors.records import Broker, Headers, Record

pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("swept"),
    # kafka-python leaves the sockets of refused connections to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


TIMEOUT = 30.0
"""Seconds that the slowest step may take."""


@pytest.fixture(scope="session")
def server() -> Iterator[Kafka]:
    """Kafka with a listener that wants a password beside the open one."""
    with ExitStack() as stack:
        try:
            kafka = stack.enter_context(Kafka(sasl=True))
        except StackError as error:
            missing(str(error))
        yield kafka


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> str:
    """The open listener: of KAFKA_BOOTSTRAP_SERVERS if there is one."""
    there = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    return there or str(request.getfixturevalue("server").plain_servers)


class Elsewhere:
    """Somebody else's open transaction."""

    def __init__(self, producer: Untyped) -> None:
        self.producer = producer

    def commit(self) -> None:
        self.producer.commit_transaction()

    def abort(self) -> None:
        self.producer.abort_transaction()


class KafkaHarness:
    """The suite's view of one Kafka; topics, groups and names are new for each test."""

    names = count()

    def __init__(self, servers: str, stack: ExitStack) -> None:
        self.servers = servers
        self.stack = stack
        self.run = f"{os.getpid()}-{next(self.names)}"
        self.admin = self.closing(KafkaAdminClient(bootstrap_servers=servers))
        self.readers = {
            level: self.closing(
                KafkaConsumer(
                    bootstrap_servers=servers,
                    isolation_level=level,
                    auto_offset_reset="earliest",
                    enable_auto_commit=False,
                )
            )
            for level in ("read_committed", "read_uncommitted")
        }

    def closing(self, client: Untyped) -> Untyped:
        self.stack.callback(client.close)
        return client

    def create(self, name: str, partitions: int = 1, **config: object) -> str:
        topic = f"{name}-{self.run}-{next(self.names)}"
        create_topic(self.servers, topic, partitions, **config)
        return topic

    def topics(self, partitions: int = 2, output_partitions: int | None = None) -> Topics:
        return Topics(
            self.create("in", partitions),
            self.create("out", output_partitions or partitions),
            self.create("dead", partitions),
        )

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int = 0,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> str:
        """With a request of our own, since `send` refuses nulls, which other clients write."""
        batch = MemoryRecordsBuilder(
            magic=2, compression_type=0, batch_size=len(value or b"") + 1024
        )
        batch.append(round(time.time() * 1000), key, value, list(headers))
        batch.close()
        data = ProduceRequest.TopicProduceData
        part = data.PartitionProduceData(index=partition, records=batch.buffer())
        request = ProduceRequest(
            acks=-1,
            timeout_ms=10_000,
            topic_data=[data(name=topic, partition_data=[part])],
            max_version=9,
        )
        manager = self.admin._manager
        for _ in self.patience():
            response = manager.run(manager.send, request, self.leader(topic, partition))
            answer = response.responses[0].partition_responses[0]
            if answer.error_code != NotLeaderForPartitionError.errno:  # while partitions are made
                break
        assert answer.error_code == 0
        return f"{topic}/{partition}/{answer.base_offset}"

    def leader(self, topic: str, partition: int) -> int:
        """Ask until it is there: a partition that was just added may not be described yet."""
        for _ in self.patience():
            (description,) = self.admin.describe_topics([topic])
            leaders = {
                one["partition_index"]: one["leader_id"] for one in description["partitions"]
            }
            if leaders.get(partition, -1) >= 0:
                break
        return int(leaders[partition])

    def begin(self, topic: str, value: bytes, *, partition: int = 0) -> Elsewhere:
        producer = self.closing(
            KafkaProducer(
                bootstrap_servers=self.servers,
                transactional_id=f"elsewhere-{self.run}-{next(self.names)}",
            )
        )
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(topic, value, partition=partition).get(timeout=10)
        return Elsewhere(producer)

    def settings(self, topics: Topics, **more: Untyped) -> KafkaSettings:
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.servers,
            "input_topic": topics.input,
            "output_topic": topics.output,
            "dead_letter_topic": topics.dead,
            "session_timeout": 6.0,
            "heartbeat_interval": 0.2,
        }
        return KafkaSettings(**arguments | more)

    def open(
        self,
        topics: Topics,
        encode: Encode = conformance.encode,
        *,
        group: str = "group",
        instance: str = "one",
        start: Literal["earliest", "latest"] = "earliest",
        delivery: Literal["exactly-once", "at-least-once"] = "exactly-once",
    ) -> KafkaBroker:
        settings = self.settings(
            topics, group=self.group(group), instance=instance, start=start, delivery=delivery
        )
        broker: KafkaBroker = self.closing(KafkaBroker(settings, encode, sleep=lambda _: None))
        return broker

    def group(self, name: str) -> str:
        return f"{name}-{self.run}"

    def read_committed(self, topic: str) -> list[Published]:
        for _ in self.patience():
            if self.ends(topic, "read_committed") == self.ends(topic, "read_uncommitted"):
                return self.peek(topic)
        raise AssertionError

    def ends(self, topic: str, level: str) -> Mapping[TopicPartition, int]:
        """The last stable offset of each partition, or its high watermark."""
        reader = self.readers[level]
        partitions = [TopicPartition(topic, one) for one in reader.partitions_for_topic(topic)]
        reader.assign(partitions)
        found: Mapping[TopicPartition, int] = reader.end_offsets(partitions)
        return found

    def peek(self, topic: str) -> list[Published]:
        ends = self.ends(topic, "read_committed")
        reader = self.readers["read_committed"]
        reader.seek_to_beginning()
        found: list[Published] = []
        for _ in self.patience():
            if all(reader.position(one) >= end for one, end in ends.items()):
                break
            for records in reader.poll(100).values():
                found += [
                    Published(one.partition, one.offset, one.key, one.value, passed_on(one))
                    for one in records
                ]
        return sorted(found, key=lambda one: (one.partition, one.offset))

    def committed(self, topics: Topics, group: str = "group") -> Mapping[int, int]:
        member = self.closing(
            KafkaConsumer(
                bootstrap_servers=self.servers,
                group_id=self.group(group),
                isolation_level="read_committed",
                enable_auto_commit=False,
            )
        )
        offsets = {
            one: member.committed(TopicPartition(topics.input, one), timeout_ms=10_000)
            for one in member.partitions_for_topic(topics.input)
        }
        return {one: offset for one, offset in offsets.items() if offset is not None}

    def patience(self, timeout: float = TIMEOUT) -> Iterator[None]:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            yield
        found = self.admin.list_transactions()  # their states say whether Kafka itself is stuck
        pytest.fail(f"the broker took more than {timeout} s; transactions at Kafka: {found}")

    def break_commit(self, broker: Broker, after: int) -> None:
        producer = producer_of(broker)
        send, left = producer.send, iter(range(after))

        def broken(*arguments: Untyped, **named: Untyped) -> Untyped:
            if next(left, None) is None:
                fail()
            return send(*arguments, **named)

        def fail(*_: object) -> None:
            raise KafkaError("broken on purpose")

        producer.send = broken
        producer.send_offsets_to_transaction = fail

    def lose_answer(self, broker: Broker) -> None:
        producer = producer_of(broker)
        commit = producer.commit_transaction

        def deaf() -> None:
            commit()
            raise KafkaError("the answer was lost on purpose")

        producer.commit_transaction = deaf

    def watch_commit(self, broker: Broker, look: Callable[[], None]) -> None:
        producer = producer_of(broker)
        commit = producer.commit_transaction

        def commit_and_watch() -> None:
            look()
            commit()

        producer.commit_transaction = commit_and_watch

    def expel(self, broker: Broker) -> None:
        member = consumer_of(broker).group_metadata()
        put_out = MemberToRemove(member_id=member.member_id)
        self.admin.remove_group_members(member.group_id, [put_out])


def passed_on(record: Untyped) -> Headers:
    """Without the one that the broker reads itself."""
    return tuple(header for header in record.headers if header[0] != SOURCE)


def producer_of(broker: Broker) -> Untyped:
    assert isinstance(broker, KafkaBroker)
    return broker._delivery._producer  # type: ignore[attr-defined]  # of both kinds of delivery


def consumer_of(broker: Broker) -> Untyped:
    assert isinstance(broker, KafkaBroker)
    return broker._source._consumer


@pytest.fixture
def kafka(servers: str) -> Iterator[KafkaHarness]:
    with ExitStack() as stack:
        yield KafkaHarness(servers, stack)


class TestKafka(Conformance, RepeatsHeaders, TellsNulls, Transactions, Partitions, Groups):
    absent: ClassVar[Mapping[type, str]] = {
        Redelivers: "within a generation an offset is handed out once, or again after a Rewound"
    }

    @pytest.fixture
    def harness(self, kafka: KafkaHarness) -> LogHarness:
        return kafka


def large(size: int) -> Encode:
    """Results of `size` bytes; everything else as usual."""

    def encode(settled: Settled) -> Message | None:
        if isinstance(settled.outcome, Prediction) and settled.record.key == b"large":
            return Message(bytes(size), settled.record.key, (), dead=False)
        return conformance.encode(settled)

    return encode


def headers_of(dead_letter: Published) -> dict[str, bytes | None]:
    assert len(dict(dead_letter.headers)) == len(dead_letter.headers)
    return dict(dead_letter.headers)


def stopped(harness: KafkaHarness, topics: Topics, **more: object) -> Stop:
    with pytest.raises(Stop) as stop:
        KafkaBroker(harness.settings(topics, **more), conformance.encode)
    assert "\n" not in str(stop.value)
    return stop.value


# What is not there, or not allowed


def test_a_broker_that_is_not_there_stops_the_daemon_in_one_sentence(kafka: KafkaHarness) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{nobody.getsockname()[1]}"
        table = {"bootstrap_timeout_ms": 1000}
        stop = stopped(kafka, Topics("a", "b", "c"), bootstrap_servers=where, kafka=table)
    assert stop.code is Exit.UNAVAILABLE
    assert where in str(stop)


def test_a_missing_topic_is_named_and_never_created(kafka: KafkaHarness) -> None:
    topics = kafka.topics()
    absent = Topics(topics.input, f"{topics.output}-absent", topics.dead)
    stop = stopped(kafka, absent)
    assert stop.code is Exit.UNAVAILABLE
    assert absent.output in str(stop)
    assert absent.output not in kafka.admin.list_topics()


@pytest.mark.parametrize("name", ["isolation_levle", "isolation_level"])
def test_the_kafka_table_may_not_hold_what_is_unknown_or_ours(
    kafka: KafkaHarness, name: str
) -> None:
    stop = stopped(kafka, kafka.topics(), kafka={name: "read_uncommitted"})
    assert stop.code is Exit.USAGE
    assert name in str(stop)


def test_settings_that_kafka_cannot_work_with_stop_the_daemon(kafka: KafkaHarness) -> None:
    stop = stopped(kafka, kafka.topics(), heartbeat_interval=20.0)
    assert stop.code is Exit.USAGE
    settings = kafka.settings(kafka.topics(), session_timeout=7200.0)
    broker = kafka.closing(KafkaBroker(settings, conformance.encode))
    with pytest.raises(Stop) as stopping:
        take(kafka, broker, 1)
    assert stopping.value.code is Exit.USAGE


def login(server: Kafka, password_file: Path) -> dict[str, object]:
    return {
        "bootstrap_servers": server.bootstrap_servers,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_username": server.username,
        "sasl_password_file": password_file,
    }


@pytest.fixture
def guarded(server: Kafka) -> Iterator[KafkaHarness]:
    with ExitStack() as stack:
        yield KafkaHarness(server.plain_servers, stack)


def test_the_password_lets_in(guarded: KafkaHarness, server: Kafka, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(server.password + "\n", encoding="utf-8")
    topics = guarded.topics(partitions=1)
    guarded.produce(topics.input, b"x")
    settings = guarded.settings(topics, **login(server, tmp_path / "password"))
    broker = guarded.closing(KafkaBroker(settings, conformance.encode))
    broker.commit(predicted(take(guarded, broker, 1)))
    assert len(guarded.read_committed(topics.output)) == 1


def test_a_wrong_password_stops_the_daemon(
    guarded: KafkaHarness, server: Kafka, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("wrong-secret", encoding="utf-8")
    settings = login(server, tmp_path / "password") | {"kafka": {"bootstrap_timeout_ms": 2000}}
    stop = stopped(guarded, guarded.topics(), **settings)
    assert stop.code is Exit.UNAVAILABLE
    assert "does not let us in" in str(stop)
    assert "wrong-secret" not in str(stop)


# Offsets


def test_records_deleted_unread_stop_the_daemon_and_are_counted(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    for _ in range(5):
        kafka.produce(topics.input, b"x")
    broker = kafka.open(topics)
    broker.commit(predicted(take(kafka, broker, 1)))
    broker.close()
    kafka.admin.delete_records({TopicPartition(topics.input, 0): 4})
    with pytest.raises(Stop, match=f"3 records from {topics.input}/0/1 on") as stop:
        take(kafka, kafka.open(topics), 1)
    assert stop.value.code is Exit.GIVEN_UP


def test_an_offset_beyond_the_end_stops_the_daemon(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    offsets = {TopicPartition(topics.input, 0): OffsetAndMetadata(7, "", -1)}
    kafka.admin.alter_group_offsets(kafka.group("group"), offsets)
    with pytest.raises(Stop, match="ends before offset 7") as stop:
        take(kafka, kafka.open(topics), 1)
    assert stop.value.code is Exit.GIVEN_UP


class NotUtf8(str):
    """A header's name as a client in another language may send it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff"


def test_a_record_that_the_library_cannot_read_stops_the_daemon_behind_its_elders(
    kafka: KafkaHarness,
) -> None:
    topics = kafka.topics(1)
    kafka.produce(topics.input, b"elder")
    kafka.produce(topics.input, b"unreadable", headers=((NotUtf8("name"), b""),))
    kafka.produce(topics.input, b"younger")
    broker = kafka.open(topics)
    (earlier,) = take(kafka, broker, 1)
    assert broker.poll(10, 0.5) == []
    assert broker.poll(10, 0.5) == []
    broker.commit(predicted([earlier]))
    with pytest.raises(Stop, match=f"{topics.input}/0/1 cannot be read .*utf-8") as stop:
        take(kafka, broker, 1)
    assert stop.value.code is Exit.GIVEN_UP
    assert kafka.committed(topics) == {0: 1 + earlier.position.offset}


CODECS = {"lz4": "lz4", "snappy": "python-snappy", "zstd": "zstandard"}


def produce_packed(kafka: KafkaHarness, topic: str, codec: str, partition: int = 0) -> None:
    producer = kafka.closing(KafkaProducer(bootstrap_servers=kafka.servers, compression_type=codec))
    producer.send(topic, b"packed" * 100, partition=partition).get(timeout=10)


def forget_library(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setattr(kafka_codec, f"has_{codec}", lambda: False)


@pytest.mark.parametrize("codec", ["gzip", *CODECS])
def test_records_are_read_however_their_producer_packed_them(
    kafka: KafkaHarness, codec: str
) -> None:
    output = kafka.create("out", compression_type=codec)
    topics = Topics(kafka.create("in"), output, kafka.create("dead"))
    produce_packed(kafka, topics.input, codec)
    broker = kafka.open(topics)
    records = take(kafka, broker, 1)
    broker.commit(predicted(records))
    broker.close()
    assert values(records) == [b"packed" * 100]
    kafka.produce(topics.input, b"y")
    assert values(take(kafka, kafka.open(topics, instance="two"), 1)) == [b"y"]
    with closing(TopicReader(kafka.settings(topics), topics.output, "beginning_offsets")) as reader:
        (result,) = take_results(kafka, reader)
    assert json.loads(result.value or b"") == {"of": records[0].id}


def take_results(kafka: KafkaHarness, reader: TopicReader) -> Sequence[Record]:
    for _ in kafka.patience():
        if found := reader.read(0.1):
            return found
    raise AssertionError


@pytest.mark.parametrize("earlier", [0, 1, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_a_record_whose_codec_is_missing_stops_the_daemon_behind_its_elders(
    kafka: KafkaHarness, monkeypatch: pytest.MonkeyPatch, codec: str, earlier: int
) -> None:
    topics = kafka.topics(2)
    for _ in range(earlier):
        kafka.produce(topics.input, b"elder")
        kafka.produce(topics.input, b"beside", partition=1)
    produce_packed(kafka, topics.input, codec)
    forget_library(monkeypatch, codec)
    broker = kafka.open(topics)
    held = take(kafka, broker, 2 * earlier)
    if held:
        assert broker.poll(0, 0.5) == []
        assert broker.poll(10, 0.5) == []
        broker.commit(predicted(held))
    with pytest.raises(Stop, match=f"{topics.input}/0/.* pip install {CODECS[codec]}") as stop:
        take(kafka, broker, 1)
    assert stop.value.code is Exit.UNAVAILABLE
    assert len(kafka.peek(topics.output)) == 2 * earlier


def poll_and_pause(kafka: KafkaHarness, broker: Broker) -> None:
    for _ in kafka.patience():
        broker.poll(10, 0.2)
        broker.poll(0, 0.0)


@pytest.mark.parametrize("partition", [0, 1, 2])
def test_a_record_whose_codec_is_missing_is_met_again_after_a_pause(
    kafka: KafkaHarness, monkeypatch: pytest.MonkeyPatch, partition: int
) -> None:
    topics = kafka.topics(3)
    for number in {0, 1, 2} - {partition}:
        kafka.produce(topics.input, b"beside", partition=number)
    produce_packed(kafka, topics.input, "lz4", partition)
    forget_library(monkeypatch, "lz4")
    broker = kafka.open(topics)
    with pytest.raises(Stop, match=f"{topics.input}/{partition}/0 .* pip install lz4"):
        poll_and_pause(kafka, broker)


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_of_the_kafka_table_that_is_missing_is_one_sentence(
    kafka: KafkaHarness, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    forget_library(monkeypatch, codec)
    stop = stopped(kafka, kafka.topics(), kafka={"compression_type": codec})
    assert stop.code is Exit.USAGE
    assert f"pip install {CODECS[codec]}" in str(stop)


@pytest.mark.parametrize("codec", CODECS)
def test_a_reader_whose_codec_is_missing_is_told_in_one_sentence(
    kafka: KafkaHarness, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    topics = kafka.topics(1)
    produce_packed(kafka, topics.output, codec)
    forget_library(monkeypatch, codec)
    with (
        closing(TopicReader(kafka.settings(topics), topics.output, "beginning_offsets")) as reader,
        pytest.raises(Stop, match=f"pip install {CODECS[codec]}") as stop,
    ):
        take_results(kafka, reader)
    assert stop.value.code is Exit.UNAVAILABLE


def test_a_group_that_begins_at_the_latest_has_that_in_writing(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"before")
    first = kafka.open(topics, start="latest")
    for _ in kafka.patience():
        first.poll(0, 0.1)
        if kafka.committed(topics):
            break
    first.close()
    kafka.produce(topics.input, b"between")
    assert values(take(kafka, kafka.open(topics, start="latest"), 1)) == [b"between"]


def test_the_lag_counts_what_is_not_acknowledged(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    for _ in range(3):
        kafka.produce(topics.input, b"x")
    broker = kafka.open(topics)
    records = take(kafka, broker, 3)
    assert broker.lag() == {records[0].lane: 3}
    broker.commit(predicted(records[:2]))
    assert broker.lag() == {records[0].lane: 1}


# Nulls


def test_nulls_of_a_dead_letter_are_named(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, None, headers=(("a", b"1"), ("nothing", None)))
    broker = kafka.open(topics)
    broker.commit([rejected(take(kafka, broker, 1)[0])])
    (dead_letter,) = kafka.read_committed(topics.dead)
    assert (dead_letter.key, dead_letter.value) == (None, b"")
    assert dead_letter.headers[:2] == (("a", b"1"), ("nothing", b""))
    assert headers_of(dead_letter)["connector.nulls"] == b"headers[1],value"


def test_a_tombstone_with_a_key_stays_one(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, None, key=b"k")
    broker = kafka.open(topics)
    broker.commit([rejected(take(kafka, broker, 1)[0])])
    (dead_letter,) = kafka.read_committed(topics.dead)
    assert (dead_letter.key, dead_letter.value) == (b"k", None)
    assert "connector.nulls" not in headers_of(dead_letter)


def test_a_null_header_does_not_keep_a_result_back(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x", headers=(("nothing", None),))
    broker = kafka.open(topics)
    broker.commit(predicted(take(kafka, broker, 1)))
    (result,) = kafka.read_committed(topics.output)
    assert result.headers == (("nothing", b""), ("connector.nulls", b"headers[0]"))


# Sizes


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_result_too_large_for_its_topic_becomes_a_dead_letter(
    kafka: KafkaHarness, delivery: Literal["exactly-once", "at-least-once"]
) -> None:
    output = kafka.create("out", max_message_bytes=2000)
    topics = Topics(kafka.create("in"), output, kafka.create("dead"))
    for key in (b"1", b"large", b"2", b"large", b"3"):
        kafka.produce(topics.input, b"x", key=key)
    broker = kafka.open(topics, large(5000), delivery=delivery)
    records = take(kafka, broker, 5)
    broker.commit(predicted(records))
    results = kafka.read_committed(topics.output)
    assert sources(results) == [record.id for record in records if record.key != b"large"]
    dead_letters = kafka.read_committed(topics.dead)
    assert [headers_of(one)["connector.reason"] for one in dead_letters] == [
        b"result_too_large"
    ] * 2
    assert [headers_of(one)["__connect.errors.offset"] for one in dead_letters] == [b"1", b"3"]
    assert kafka.committed(topics) == {0: 5}


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_topic_that_takes_less_than_a_batch_gets_all_results_in_order(
    kafka: KafkaHarness, delivery: Literal["exactly-once", "at-least-once"]
) -> None:
    output = kafka.create("out", max_message_bytes=6000)
    topics = Topics(kafka.create("in"), output, kafka.create("dead"))
    count = 2 * BATCH_BYTES // 1000
    for _ in range(count):
        kafka.produce(topics.input, b"x", key=bytes(1000))  # the results have it, too
    broker = kafka.open(topics, delivery=delivery)
    records = take(kafka, broker, count)
    broker.commit(predicted(records))
    results = kafka.read_committed(topics.output)
    assert sources(results) == [record.id for record in records]
    assert kafka.read_committed(topics.dead) == []
    assert kafka.committed(topics) == {0: count}


@pytest.mark.parametrize("keys", ["k-k", "-kk", "kk-", "--k", "-", "k-k-k-"])
@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_result_that_its_topic_refuses_for_its_own_reason_is_the_only_dead_letter(
    kafka: KafkaHarness, delivery: Literal["exactly-once", "at-least-once"], keys: str
) -> None:
    output = kafka.create("out", cleanup_policy="compact")
    topics = Topics(kafka.create("in"), output, kafka.create("dead"))
    for number, key in enumerate(keys):
        name = None if key == "-" else b"%d" % number
        kafka.produce(topics.input, b"%d" % number, key=name)
    broker = kafka.open(topics, delivery=delivery)
    records = take(kafka, broker, len(keys))
    broker.commit(predicted(records))
    results = kafka.read_committed(topics.output)
    assert sources(results) == [record.id for record in records if record.key]
    dead_letters = kafka.read_committed(topics.dead)
    assert values(dead_letters) == [record.value for record in records if not record.key]
    for one in dead_letters:
        assert headers_of(one)["connector.reason"] == b"result_refused"
        message = headers_of(one)["__connect.errors.exception.message"] or b""
        assert b"without key" in message
        assert output.encode() in message
    assert kafka.committed(topics) == {0: len(keys)}


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_dead_letter_that_its_topic_refuses_stops_the_daemon_with_the_reason(
    kafka: KafkaHarness, delivery: Literal["exactly-once", "at-least-once"]
) -> None:
    dead = kafka.create("dead", cleanup_policy="compact")
    topics = Topics(kafka.create("in"), kafka.create("out"), dead)
    kafka.produce(topics.input, b"x")
    broker = kafka.open(topics, delivery=delivery)
    with pytest.raises(Stop, match=f"{dead} .*without key") as stop:
        broker.commit([rejected(take(kafka, broker, 1)[0])])
    assert stop.value.code is Exit.GIVEN_UP
    assert not kafka.committed(topics)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_a_topic_that_refuses_every_message_stops_the_daemon_and_is_named(
    kafka: KafkaHarness, delivery: Literal["exactly-once", "at-least-once"], count: int
) -> None:
    output = kafka.create("out", message_timestamp_before_max_ms=0)
    topics = Topics(kafka.create("in"), output, kafka.create("dead"))
    for number in range(count):
        kafka.produce(topics.input, b"x", key=b"%d" % number)
    broker = kafka.open(topics, delivery=delivery)
    records = take(kafka, broker, count)
    with pytest.raises(Stop, match=f"{output} takes no message .*imestamp.* clock") as stop:
        broker.commit(predicted(records))
    assert stop.value.code is Exit.UNAVAILABLE
    assert not kafka.committed(topics)
    assert kafka.read_committed(topics.dead) == []


def test_a_dead_letter_too_large_for_its_topic_leaves_its_value_behind(
    kafka: KafkaHarness,
) -> None:
    dead = kafka.create("dead", max_message_bytes=2000)
    topics = Topics(kafka.create("in"), kafka.create("out"), dead)
    value = os.urandom(5000)
    kafka.produce(topics.input, value, key=b"k", headers=(("a", b"1"),))
    kafka.produce(topics.input, b"small")
    broker = kafka.open(topics)
    broker.commit([rejected(record) for record in take(kafka, broker, 2)])
    dead_letter, small = kafka.read_committed(topics.dead)
    headers = headers_of(dead_letter)
    assert (dead_letter.key, dead_letter.value, headers["a"]) == (b"k", b"", b"1")
    assert headers["connector.value-bytes"] == b"5000"
    assert headers["connector.value-sha256"] == hashlib.sha256(value).hexdigest().encode()
    assert headers["connector.reason"] == b"not_an_image"
    assert small.value == b"small"


def test_a_dead_letter_may_leave_everything_behind_but_its_reason(kafka: KafkaHarness) -> None:
    dead = kafka.create("dead", max_message_bytes=2000)
    topics = Topics(kafka.create("in"), kafka.create("out"), dead)
    kafka.produce(topics.input, b"x", key=bytes(3000), headers=(("a", bytes(3000)),))
    broker = kafka.open(topics)
    broker.commit([rejected(take(kafka, broker, 1)[0])])
    (dead_letter,) = kafka.read_committed(topics.dead)
    headers = headers_of(dead_letter)
    assert (dead_letter.key, dead_letter.value, headers["connector.value-bytes"]) == (
        None,
        b"",
        b"1",
    )
    assert headers["__connect.errors.offset"] == b"0"
    assert "a" not in headers


def test_a_dead_letter_topic_that_takes_nothing_stops_the_daemon(kafka: KafkaHarness) -> None:
    dead = kafka.create("dead", max_message_bytes=100)
    topics = Topics(kafka.create("in"), kafka.create("out"), dead)
    kafka.produce(topics.input, b"x")
    broker = kafka.open(topics)
    with pytest.raises(Stop, match=dead) as stop:
        broker.commit([rejected(take(kafka, broker, 1)[0])])
    assert stop.value.code is Exit.GIVEN_UP
    assert not kafka.committed(topics)


def test_a_value_of_20_mb_comes_and_goes(kafka: KafkaHarness) -> None:
    wide = {"max_message_bytes": 32 << 20}
    topics = Topics(kafka.create("in", **wide), kafka.create("out"), kafka.create("dead", **wide))
    value = os.urandom(20 << 20)
    kafka.produce(topics.input, value)
    kafka.produce(topics.input, b"after")
    broker = kafka.open(topics)
    big, after = take(kafka, broker, 2)
    broker.commit([rejected(big), *predicted([after])])
    (dead_letter,) = kafka.read_committed(topics.dead)
    assert dead_letter.value == value
    assert sources(kafka.read_committed(topics.output)) == [after.id]


# Doubt


def test_a_transaction_whose_connection_broke_is_followed_by_a_new_producer(
    kafka: KafkaHarness,
) -> None:
    topics = kafka.topics(partitions=1)
    for _ in range(2):
        kafka.produce(topics.input, b"x")
    broker = kafka.open(topics)
    first, second = take(kafka, broker, 2)
    earlier = producer_of(broker)
    cut_once(earlier, EndTxnRequest)
    broker.commit(predicted([first]))
    assert producer_of(broker) is earlier
    broker.commit(predicted([second]))
    assert producer_of(broker) is not earlier
    assert sources(kafka.read_committed(topics.output)) == [first.id, second.id]


@pytest.mark.parametrize(
    "kind",
    [AddOffsetsToTxnRequest, TxnOffsetCommitRequest, EndTxnRequest],
    ids=lambda kind: kind.__name__,
)
def test_a_transaction_that_nobody_answers_is_given_up_when_its_time_is_over(
    kafka: KafkaHarness, kind: type
) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x")
    settings = kafka.settings(topics, group=kafka.group("group"), transaction_timeout=2.0)
    broker = kafka.closing(KafkaBroker(settings, conformance.encode, sleep=lambda _: None))
    (record,) = take(kafka, broker, 1)
    leave_unanswered(producer_of(broker), kind)
    found: list[str] = []

    def commit() -> None:
        try:
            broker.commit(predicted([record]))
        except Rewound as why:
            found.append(str(why))

    thread = Thread(target=commit, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert "a transaction timed out" in found[0]
    again = take(kafka, broker, 1)
    broker.commit(predicted(again))
    assert sources(kafka.read_committed(topics.output)) == [record.id]
    assert kafka.committed(topics) == {0: 1}


def leave_unanswered(producer: Untyped, kind: type) -> None:
    """Send no request of this kind, and let its answer be waited for."""
    net_client = producer._sender._client
    send = net_client.send

    def swallow(node: int, request: object, **options: object) -> Untyped:
        return Future() if isinstance(request, kind) else send(node, request, **options)

    net_client.send = swallow


def test_a_quiet_transaction_keeps_its_producer(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    for _ in range(3):
        kafka.produce(topics.input, b"x")
    broker = kafka.open(topics)
    producer = producer_of(broker)
    for record in take(kafka, broker, 3):
        broker.commit(predicted([record]))
    assert producer_of(broker) is producer


def cut_once(producer: Untyped, kind: type) -> None:
    """Break the connection under the next request of this kind, after it has been written."""
    net_client = producer._sender._client
    send = net_client.send

    def cut(node: int, request: object, **options: object) -> Untyped:
        future = send(node, request, **options)
        if isinstance(request, kind):
            net_client.send = send
            net_client._manager._conns[node].close(KafkaConnectionError("cut on purpose"))
        return future

    net_client.send = cut


def test_a_producer_that_cannot_deliver_is_abandoned_in_bounded_time(kafka: KafkaHarness) -> None:
    """Named after what its private attribute is used for; red when the attribute is gone."""
    broker = kafka.open(kafka.topics())
    producer = producer_of(broker)
    sender = producer._sender
    mute(producer)
    producer.begin_transaction()
    future = producer.send(broker._settings.output_topic, b"x")
    broker.close()
    assert future.failed()
    assert not sender.is_alive()


def mute(producer: Untyped) -> None:
    """Let nothing out that carries records."""
    producer._sender._send_producer_data = lambda *_: 50


def test_an_old_answer_about_offsets_is_not_taken_for_a_new_one(kafka: KafkaHarness) -> None:
    """What a question that timed out leaves behind; red when the attribute is gone."""
    topics = kafka.topics(partitions=1)
    for _ in range(3):
        kafka.produce(topics.input, b"x")
    broker = kafka.open(topics)
    records = take(kafka, broker, 3)
    broker.commit(predicted(records[:1]))
    consumer = consumer_of(broker)
    where = TopicPartition(topics.input, 0)
    stale = consumer._client._manager.call_soon(
        consumer._coordinator._send_offset_fetch_request, [where]
    )
    for _ in kafka.patience():
        if stale.is_done:
            break
    consumer._coordinator._offset_fetch_futures[frozenset([where])] = stale
    broker.commit(predicted(records[1:2]))
    kafka.break_commit(broker, after=0)
    with pytest.raises(Rewound):
        broker.commit(predicted(records[2:]))
    assert take(kafka, broker, 1)[0].id == records[2].id


@pytest.mark.parametrize("stale", [1, None])
def test_an_offset_that_went_back_is_asked_for_again(
    kafka: KafkaHarness,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stale: int | None,
) -> None:
    """What a coordinator says that has not read all of its log yet (docs/decisions/013)."""
    topics = kafka.topics(partitions=1)
    for _ in range(4):
        kafka.produce(topics.input, b"x")
    broker = kafka.open(topics)
    records = take(kafka, broker, 4)
    broker.commit(predicted(records[:1]))
    broker.commit(predicted(records[1:3]))
    with monkeypatch.context() as patch:
        patch.setattr(consumer_of(broker), "committed", lambda *_, **__: stale)
        kafka.break_commit(broker, after=0)
        with pytest.raises(Rewound):
            broker.commit(predicted(records[3:]))
        assert [broker.poll(10, 0.1) for _ in range(3)] == [[], [], []]
    assert f"{topics.input}/0 went back from 3 to {stale}" in caplog.text
    assert [record.id for record in take(kafka, broker, 1)] == [records[3].id]


@pytest.mark.parametrize("stale", [1, None])
@pytest.mark.parametrize("settle", [lambda one: predicted([one])[0], rejected])
def test_a_new_daemon_goes_by_what_is_published(
    kafka: KafkaHarness,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stale: int | None,
    settle: Callable[[Record], Settled],
) -> None:
    """It has never seen a higher offset; its predecessor's last outcome tells, of either kind."""
    topics = kafka.topics(partitions=1)
    for _ in range(4):
        kafka.produce(topics.input, b"x")
    earlier = kafka.open(topics)
    records = take(kafka, earlier, 4)
    earlier.commit(predicted(records[:2]))
    earlier.commit([settle(records[2])])
    earlier.close()
    broker = kafka.open(topics)
    with monkeypatch.context() as patch:
        patch.setattr(consumer_of(broker), "committed", lambda *_, **__: stale)
        for _ in kafka.patience():
            assert broker.poll(10, 0.1) == []
            if "went back from 3" in caplog.text:
                break
    assert [record.id for record in take(kafka, broker, 1)] == [records[3].id]


def test_a_group_that_was_set_back_stops_the_daemon(
    kafka: KafkaHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x")
    earlier = kafka.open(topics)
    earlier.commit(predicted(take(kafka, earlier, 1)))
    earlier.close()
    offsets = {TopicPartition(topics.input, 0): OffsetAndMetadata(0, "", -1)}
    kafka.admin.alter_group_offsets(kafka.group("group"), offsets)
    monkeypatch.setattr("connectors.brokers.kafka.consumer.STALE_OFFSET_TIMEOUT", 0.5)
    with pytest.raises(Stop, match="from 1 to 0, and nothing is done twice: find out who") as stop:
        take(kafka, kafka.open(topics), 1)
    assert stop.value.code is Exit.GIVEN_UP


def test_at_least_once_goes_back_when_its_group_was_set_back(kafka: KafkaHarness) -> None:
    """There, outcomes may be published of what is not acknowledged."""
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x")
    earlier = kafka.open(topics, delivery="at-least-once")
    earlier.commit(predicted(take(kafka, earlier, 1)))
    earlier.close()
    offsets = {TopicPartition(topics.input, 0): OffsetAndMetadata(0, "", -1)}
    kafka.admin.alter_group_offsets(kafka.group("group"), offsets)
    assert len(take(kafka, kafka.open(topics, delivery="at-least-once"), 1)) == 1


def test_outcomes_of_another_group_say_nothing_about_ours(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x")
    other = kafka.open(topics, group="other")
    other.commit(predicted(take(kafka, other, 1)))
    assert len(take(kafka, kafka.open(topics, instance="two"), 1)) == 1


def test_nothing_is_handed_out_while_an_outcome_may_still_come(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x")
    pending = kafka.begin(topics.output, b"elder's")
    broker = kafka.open(topics)
    for _ in range(20):
        assert broker.poll(10, 0.1) == []
    pending.abort()
    assert len(take(kafka, broker, 1)) == 1


def test_the_last_outcome_is_found_behind_what_others_wrote(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=2)
    consumer = PublishedOffsets(kafka.settings(topics, group="ours"), {topics.output})
    kafka.stack.callback(consumer.close)
    for _ in range(100):
        kafka.produce(topics.input, b"x", partition=1)
    places = [TopicPartition(topics.input, one) for one in range(2)]
    assert consumer.find_ends(places) == {}
    for offset in (7, 8):
        ours = SourceRecord(topics.input, 1, offset, "ours").encoded()
        kafka.produce(topics.output, b"x", partition=1, headers=((SOURCE, ours),))
    theirs = SourceRecord(topics.input, 1, 99, "theirs").encoded()
    for name, value in (SOURCE, theirs), (SOURCE, b"?"), (NotUtf8("x"), b""), *[("x", b"")] * 20:
        kafka.produce(topics.output, b"x", partition=1, headers=((name, value),))
    assert consumer.find_ends(places) == {places[1]: 9}


def test_an_empty_partition_that_is_assigned_anew_is_read_to_its_end(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    consumer = PublishedOffsets(kafka.settings(topics, group="ours"), {topics.output})
    kafka.stack.callback(consumer.close)
    places = [TopicPartition(topics.input, 0)]
    assert consumer.find_ends(places) == {}
    consumer._consumer.assign(places)  # as another share may be, without a fetch
    assert consumer.find_ends(places) == {}


def test_where_reading_stands_is_told_while_a_transaction_is_open(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    pending = kafka.begin(topics.output, b"elder's")
    consumer = PublishedOffsets(kafka.settings(topics, group="ours"), {topics.output})
    kafka.stack.callback(consumer.close)
    place = re.escape(f"{topics.output}/0 (read to 0 of 1)")
    with pytest.raises(KafkaTimeoutError, match=f"the ends of {place} cannot be read yet"):
        consumer.find_ends([TopicPartition(topics.input, 0)])
    pending.abort()


@pytest.mark.parametrize("beyond", [0, 1, 999_999, (1 << 63) - 10])
@pytest.mark.parametrize("dead", [False, True])
def test_a_source_beyond_the_end_of_the_input_is_named_and_not_believed(
    kafka: KafkaHarness, caplog: pytest.LogCaptureFixture, beyond: int, *, dead: bool
) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x")
    topic = topics.dead if dead else topics.output
    forged = SourceRecord(topics.input, 0, 1 + beyond, kafka.group("forged")).encoded()
    kafka.produce(topic, b"forged", headers=((SOURCE, forged),))
    broker = kafka.open(topics, group="forged")
    assert [record.value for record in take(kafka, broker, 1)] == [b"x"]
    assert f"{topic}/0/0 says in connector.source" in caplog.text


def test_nothing_is_handed_out_while_a_rewind_is_owed(
    kafka: KafkaHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x")
    broker = kafka.open(topics)
    (record,) = take(kafka, broker, 1)
    with monkeypatch.context() as patch:
        patch.setattr(consumer_of(broker), "committed", timed_out)
        kafka.break_commit(broker, after=0)
        with pytest.raises(Rewound):
            broker.commit(predicted([record]))
        assert [broker.poll(10, 0.1) for _ in range(3)] == [[], [], []]
    assert take(kafka, broker, 1)[0].id == record.id


def timed_out(*_: object, **__: object) -> None:
    raise KafkaTimeoutError("on purpose")


def test_rewinds_in_a_row_are_spaced(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"x")
    pauses: list[float] = []
    settings = kafka.settings(topics, group=kafka.group("group"))
    broker = kafka.closing(
        KafkaBroker(settings, conformance.encode, clock=lambda: 0.0, sleep=pauses.append)
    )
    for _ in range(4):
        records = take(kafka, broker, 1)
        kafka.break_commit(broker, after=0)
        with pytest.raises(Rewound):
            broker.commit(predicted(records))
    broker.commit(predicted(take(kafka, broker, 1)))
    kafka.produce(topics.input, b"y")
    records = take(kafka, broker, 1)
    kafka.break_commit(broker, after=0)
    with pytest.raises(Rewound):
        broker.commit(predicted(records))
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.0]


def test_offsets_are_committed_under_the_generation_that_they_were_read_under(
    kafka: KafkaHarness,
) -> None:
    """The library is in the next generation already; what it would say now must not count."""
    topics = kafka.topics(partitions=2)
    for partition in (0, 1):
        kafka.produce(topics.input, b"x", partition=partition)
    broker = kafka.open(topics)
    held = take(kafka, broker, 2)
    other = kafka.open(topics, instance="two")
    for _ in kafka.patience():
        other.poll(0, 0.1)
        consumer_of(broker).poll(100)
        if len(consumer_of(broker).assignment()) == 1:
            break
    with pytest.raises(Rewound):
        broker.commit(predicted(held))
    assert kafka.read_committed(topics.output) == []
    assert not any(kafka.committed(topics).values())


@pytest.mark.parametrize(("stuck_after", "expected"), [(120.0, 35_000), (20.0, 20_000)])
def test_a_rebalance_waits_for_five_sessions_and_no_longer_than_for_a_stuck_daemon(
    kafka: KafkaHarness, stuck_after: float, expected: int
) -> None:
    settings = kafka.settings(kafka.topics(), stuck_after=stuck_after, session_timeout=7.0)
    broker = kafka.closing(KafkaBroker(settings, conformance.encode))
    assert consumer_of(broker).config["max_poll_interval_ms"] == expected


def test_a_broker_that_is_killed_and_comes_back_costs_nothing(
    guarded: KafkaHarness, server: Kafka
) -> None:
    topics = guarded.topics(partitions=1)
    for number in range(6):
        guarded.produce(topics.input, b"%d" % number)
    broker = guarded.open(topics)
    records = take(guarded, broker, 6)
    broker.commit(predicted(records[:2]))
    server.kill()
    for _ in range(3):
        with suppress(Rewound):
            assert not broker.poll(10, 0.1)
    server.start()
    with suppress(Rewound):
        broker.commit(predicted(records[2:]))
    for _ in guarded.patience(4 * TIMEOUT):  # Kafka has to start, too, and its group to join anew
        if len(results := sources(guarded.read_committed(topics.output))) >= len(records):
            break
        with suppress(Rewound):
            broker.commit(predicted(broker.poll(10, 0.1)))
    assert results == [record.id for record in records]


def test_partitions_added_while_it_runs_are_read_too(kafka: KafkaHarness) -> None:
    """With polls shorter than a rebalance; red when the private attribute is gone."""
    topics = kafka.topics(partitions=1)
    settings = kafka.settings(
        topics, group=kafka.group("group"), kafka={"metadata_max_age_ms": 300}
    )
    broker = kafka.closing(KafkaBroker(settings, conformance.encode))
    kafka.produce(topics.input, b"1")
    broker.commit(predicted(take(kafka, broker, 1)))
    delay_assignments(broker)
    kafka.admin.create_partitions({topics.input: NewPartitions(3)})
    kafka.produce(topics.input, b"2", partition=2)
    for _ in kafka.patience():
        with suppress(Rewound):
            if records := broker.poll(10, 0.001):
                break
    assert values(records) == [b"2"]


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
@pytest.mark.parametrize(
    "grown",
    [("input",), ("output", "input"), ("input", "output", "dead"), ("output", "dead", "input")],
    ids="-".join,
)
def test_records_of_partitions_added_while_it_runs_have_their_outcomes(
    kafka: KafkaHarness,
    delivery: Literal["exactly-once", "at-least-once"],
    grown: Sequence[str],
) -> None:
    topics = kafka.topics(partitions=1)
    settings = kafka.settings(
        topics,
        group=kafka.group("group"),
        delivery=delivery,
        kafka={"metadata_max_age_ms": 300},
    )
    broker = kafka.closing(KafkaBroker(settings, conformance.encode))
    kafka.produce(topics.input, b"1")
    broker.commit(predicted(take(kafka, broker, 1)))
    for which in grown:
        kafka.admin.create_partitions({getattr(topics, which): NewPartitions(3)})
    names = [kafka.produce(topics.input, b"x", partition=number) for number in (1, 2)]
    records = take(kafka, broker, 2)
    broker.commit([*predicted(records[:1]), rejected(records[1])])
    (result,) = [one for one in kafka.read_committed(topics.output) if one.offset or one.partition]
    (dead_letter,) = kafka.read_committed(topics.dead)
    assert {*sources([result]), find_source(as_record(dead_letter))} == {*names}
    if "output" in grown:
        assert result.partition == records[0].position.partition
    if "dead" in grown:
        assert dead_letter.partition == records[1].position.partition


@pytest.mark.parametrize(
    ("which", "delivery"),
    [
        ("output", "exactly-once"),
        ("dead", "exactly-once"),
        ("output", "at-least-once"),
        ("input", "exactly-once"),
    ],
)
def test_a_topic_that_is_deleted_while_it_runs_stops_the_daemon_and_is_named(
    kafka: KafkaHarness,
    which: str,
    delivery: Literal["exactly-once", "at-least-once"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is lost: what was not committed is not, and comes again once the topic is there."""
    monkeypatch.setattr(clients, "DELETED_TOPIC_INTERVAL", 1.0)
    monkeypatch.setattr(published_offsets, "CALL_TIMEOUT", 2.0)
    topics = kafka.topics(partitions=1)
    kafka.produce(topics.input, b"1")
    settings = kafka.settings(
        topics, group=kafka.group("group"), delivery=delivery, transaction_timeout=2.0
    )
    broker = kafka.closing(KafkaBroker(settings, conformance.encode))
    broker.commit(predicted(take(kafka, broker, 1)))
    gone = getattr(topics, which)
    kafka.admin.delete_topics([gone])
    if which != "input":
        kafka.produce(topics.input, b"2")
    settle = (lambda records: [*map(rejected, records)]) if which == "dead" else predicted
    with pytest.raises(Stop, match=f"{gone} is not there any more .*: create it") as stop:
        relay_for_long(kafka, broker, settle)
    assert stop.value.code is Exit.UNAVAILABLE
    if which != "input":
        assert kafka.committed(topics) == {0: 1}


def relay_for_long(
    kafka: KafkaHarness, broker: Broker, settle: Callable[[Sequence[Record]], Sequence[Settled]]
) -> None:
    for _ in kafka.patience():
        with suppress(Rewound):
            if records := broker.poll(10, 0.1):
                broker.commit(settle(records))


def test_topics_that_differ_are_counted_again_after_a_while(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=2, output_partitions=1)
    settings = kafka.settings(topics, group=kafka.group("group"))
    seconds = iter([*range(1, 5), *range(1000, 1100)])
    broker = kafka.closing(
        KafkaBroker(settings, conformance.encode, clock=lambda: float(next(seconds)))
    )
    for number in range(3):
        kafka.produce(topics.input, b"%d" % number, partition=1, key=b"k")
    records = take(kafka, broker, 3)
    broker.commit(predicted(records[:1]))
    kafka.admin.create_partitions({topics.output: NewPartitions(2)})
    for record in records[1:]:
        broker.commit(predicted([record]))
    assert [one.partition for one in kafka.read_committed(topics.output)][-1] == 1


def delay_assignments(broker: Broker) -> None:
    """Let the answers to SyncGroup take longer than a poll."""
    manager = consumer_of(broker)._client._manager
    send = manager.send

    async def late(answer: Untyped) -> Untyped:
        await manager._net.sleep(0.3)
        return await answer

    def slow(request: object, *arguments: object, **options: object) -> Untyped:
        answer = send(request, *arguments, **options)
        delayed = isinstance(request, SyncGroupRequest)
        return manager.call_soon(late, answer) if delayed else answer

    manager.send = slow


# The two ends


def test_what_the_publisher_sends_the_reader_finds(kafka: KafkaHarness) -> None:
    topics = kafka.topics(partitions=3)
    settings = kafka.settings(topics)
    publisher = kafka.closing(TopicPublisher(settings))
    publisher.publish(b"k", b"before", ())
    publisher.flush()
    whole = kafka.closing(TopicReader(settings, topics.input, "beginning_offsets"))
    fresh = kafka.closing(TopicReader(settings, topics.input, "end_offsets"))
    publisher.publish(None, b"after", (("content-type", b"image/png"),))
    publisher.flush()
    assert sorted(read(kafka, whole, 2)) == [b"after", b"before"]
    assert read(kafka, fresh, 1) == [b"after"]


@pytest.mark.parametrize("bound", ["beginning_offsets", "end_offsets"])
@pytest.mark.parametrize("partitions", [2, 5])
def test_a_reader_sees_partitions_that_are_added_while_it_reads(
    kafka: KafkaHarness, bound: str, partitions: int
) -> None:
    topics = kafka.topics(partitions=1)
    settings = kafka.settings(topics, kafka={"metadata_max_age_ms": 300})
    reader = kafka.closing(TopicReader(settings, topics.input, bound))
    kafka.produce(topics.input, b"first")
    assert read(kafka, reader, 1) == [b"first"]
    kafka.admin.create_partitions({topics.input: NewPartitions(partitions)})
    for number in range(partitions):
        kafka.produce(topics.input, b"%d" % number, partition=number)
    assert sorted(read(kafka, reader, partitions)) == [b"%d" % n for n in range(partitions)]


@pytest.mark.parametrize("largest", [2_000, 100_000, 1_048_588])
def test_the_publisher_knows_what_its_topic_takes(kafka: KafkaHarness, largest: int) -> None:
    wide = kafka.topics(partitions=1)
    topics = Topics(kafka.create("in", max_message_bytes=largest), wide.output, wide.dead)
    publisher = kafka.closing(TopicPublisher(kafka.settings(topics)))
    assert publisher.limit
    publisher.publish(None, bytes(publisher.limit.bytes), ())
    publisher.flush()
    publisher.publish(None, bytes(largest), ())
    with pytest.raises(Stop, match=r"raise its max\.message\.bytes"):
        publisher.flush()


def read(kafka: KafkaHarness, reader: Untyped, count: int) -> list[bytes]:
    found: list[bytes] = []
    for _ in kafka.patience():
        found += [record.value for record in reader.read(0.1)]
        if len(found) >= count:
            break
    return found


def test_the_clients_stop_when_their_topic_is_missing(kafka: KafkaHarness) -> None:
    settings = kafka.settings(Topics("absent", "absent", "absent"))
    with pytest.raises(Stop, match="absent"):
        TopicPublisher(settings)
    with pytest.raises(Stop, match="absent"):
        TopicReader(settings, "absent", "beginning_offsets")


def test_the_publisher_stops_at_a_record_that_is_refused(kafka: KafkaHarness) -> None:
    topics = Topics(kafka.create("in", max_message_bytes=1000), "", "")
    publisher = kafka.closing(TopicPublisher(kafka.settings(topics)))
    publisher.publish(None, os.urandom(5000), ())
    with pytest.raises(Stop, match=topics.input):
        publisher.flush()
