"""Real Pub/Sub, by its emulator: what every broker promises, and what only Pub/Sub can do to us."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from contextlib import ExitStack
from itertools import count, islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from google.api_core.exceptions import Cancelled, InvalidArgument, ServiceUnavailable
from google.cloud.pubsub_v1.subscriber._protocol import leaser
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.types import PubsubMessage

from connectors.brokers.publishing import PendingMessage
from connectors.brokers.pubsub import broker as broker_module
from connectors.brokers.pubsub import clients, producer
from connectors.brokers.pubsub.broker import PubSubBroker
from connectors.brokers.pubsub.clients import connect_subscriber
from connectors.brokers.pubsub.endpoints import TopicPublisher, TopicReader, open_reader
from connectors.brokers.pubsub.messages import Outgoing
from connectors.brokers.pubsub.settings import ListenPubSub, PubSubSettings
from connectors.errors import Exit, Rewound, Stop
from connectors.records import Message, Prediction, Record, Settled
from tests.brokers import conformance
from tests.brokers.conformance import (
    Conformance,
    Encode,
    Groups,
    Partitions,
    Published,
    RedeliveringHarness,
    Redelivers,
    RepeatsHeaders,
    TellsNulls,
    Topics,
    Transactions,
    predicted,
    rejected,
    relay,
    sources,
    take,
)
from tests.conftest import missing
from tools.servers.process import StackError, free_ports
from tools.servers.pubsub import HOST, Emulation, Emulator
from tools.servers.pubsub import pubsub as emulation_of_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from connectors.brokers import Untyped
    from connectors.records import Broker, Headers

pytestmark = [
    pytest.mark.system,
    # Nothing else says at once that a subscription is empty.
    pytest.mark.filterwarnings("ignore:The return_immediately flag:DeprecationWarning"),
]


TIMEOUT = 40.0
"""Seconds that the slowest step may take: what was not acknowledged comes again after LEASE."""

LEASE = 10
"""Seconds; Pub/Sub has no shorter ones."""


@pytest.fixture(scope="module")
def emulation() -> Iterator[Emulation]:
    """The emulator of PUBSUB_EMULATOR_HOST if there is one, otherwise one of our own."""
    with ExitStack() as stack:
        try:
            found = stack.enter_context(emulation_of_environment())
        except StackError as error:
            missing(str(error))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv(HOST, found.host)
        yield found


class PubSubHarness:
    """The suite's view of one Pub/Sub; what it makes is new for each test.

    The subscription of a topic has the topic's id, so an input topic names its records.
    """

    names = count()

    def __init__(
        self, emulation: Emulation, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.emulation = emulation
        self.stack = stack
        self.monkeypatch = monkeypatch
        self.run = f"{os.getpid()}-{next(self.names)}"
        self.publisher = PublisherClient()
        self.subscriber = connect_subscriber()
        stack.callback(self.subscriber.close)
        self.published: dict[str, list[Published]] = {}

    def create(self, name: str, **subscription: object) -> str:
        topic = f"{name}-{self.run}-{next(self.names)}"
        self.emulation.create_topic(topic)
        self.emulation.create_subscription(topic, topic, **subscription)  # type: ignore[arg-type]
        return topic

    def topics(self, partitions: int = 2, output_partitions: int | None = None) -> Topics:  # noqa: ARG002 - there are none
        return Topics(self.create("in"), self.create("out"), self.create("dead"))

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int = 0,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> str:
        return self.send(topic, value or b"", (key or b"lane-%d" % partition).decode(), headers)

    def send(self, topic: str, value: bytes, key: str = "", headers: Headers = ()) -> str:
        attributes = {name: (content or b"").decode() for name, content in headers}
        message = PubsubMessage(data=value, ordering_key=key, attributes=attributes)
        answer = self.publisher.publish(topic=self.emulation.topic(topic), messages=[message])
        return f"{topic}/{answer.message_ids[0]}"

    def settings(self, topics: Topics, **more: Untyped) -> PubSubSettings:
        arguments: dict[str, Any] = {
            "project": self.emulation.project,
            "subscription": topics.input,
            "input_topic": topics.input,
            "output_topic": topics.output,
            "dead_letter_topic": topics.dead,
            "ack_deadline": LEASE,
        }
        return PubSubSettings(**arguments | more)

    def open(
        self,
        topics: Topics,
        encode: Encode = conformance.encode,
        *,
        group: str = "",  # noqa: ARG002 - the subscription is the group
        instance: str = "",  # noqa: ARG002 - nobody has a name
        start: Literal["earliest", "latest"] = "earliest",  # noqa: ARG002 - the subscription's
        delivery: Literal["exactly-once", "at-least-once"] = "at-least-once",  # noqa: ARG002
        **more: Untyped,
    ) -> PubSubBroker:
        settings = self.settings(topics, **more)
        broker = PubSubBroker(settings, encode, sleep=lambda _: None)
        self.stack.callback(broker.close)
        return broker

    def read_committed(self, topic: str) -> list[Published]:
        """All that has come, until three looks in a row bring nothing."""
        found = self.published.setdefault(topic, [])
        path = self.emulation.subscription(topic)
        quiet = 0
        while quiet < 3:
            pulled = self.subscriber.pull(
                subscription=path, max_messages=1000, return_immediately=True, timeout=10
            ).received_messages
            quiet = 0 if pulled else quiet + 1
            for one in pulled:
                found.append(published(len(found), one.message))
            if pulled:
                ids = [one.ack_id for one in pulled]
                self.subscriber.acknowledge(subscription=path, ack_ids=ids, timeout=10)
        return list(found)

    def patience(self) -> Iterator[None]:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            yield
        pytest.fail(f"the broker took more than {TIMEOUT} s")

    def break_commit(self, broker: Broker, after: int) -> None:
        client = post_of(broker)
        publish, left = client.publish, iter(range(after))

        def broken(*arguments: Untyped, **named: Untyped) -> Untyped:
            if next(left, None) is None:
                raise ServiceUnavailable("broken on purpose")  # type: ignore[no-untyped-call]
            return publish(*arguments, **named)

        self.in_next_commit(broker, client, "publish", broken)

    def lose_answer(self, broker: Broker) -> None:
        def deaf(*_: object) -> list[Exception]:
            return [ServiceUnavailable("lost on purpose")]  # type: ignore[no-untyped-call]

        self.in_next_commit(broker, broker_module, "acknowledge", deaf)

    def deliver_again(self, broker: Broker, held: Sequence[Record]) -> None:
        """As another client would that lost its patience: the leases end, and nobody is told."""
        assert isinstance(broker, PubSubBroker)
        self.subscriber.modify_ack_deadline(
            subscription=self.emulation.subscription(broker._settings.subscription),
            ack_ids=[record.position.ack_id for record in held],
            ack_deadline_seconds=0,
        )

    def in_next_commit(self, broker: Broker, where: object, name: str, instead: Untyped) -> None:
        commit = broker.commit

        def once(settled: Sequence[Settled]) -> None:
            self.monkeypatch.setattr(broker, "commit", commit)
            with self.monkeypatch.context() as patch:
                patch.setattr(where, name, instead)
                commit(settled)

        self.monkeypatch.setattr(broker, "commit", once)


def published(offset: int, message: PubsubMessage) -> Published:
    headers = tuple((name, text.encode()) for name, text in sorted(message.attributes.items()))
    return Published(0, offset, message.ordering_key.encode() or None, message.data, headers)


def post_of(broker: Broker) -> Untyped:
    assert isinstance(broker, PubSubBroker)
    return broker._batch_publisher.client


def break_stream(broker: PubSubBroker) -> None:
    """End the stream behind the broker's back."""
    broker._stream._future.cancel()
    broker._stream._future.exception(timeout=10)


@pytest.fixture
def harness(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> Iterator[PubSubHarness]:
    with ExitStack() as stack:
        yield PubSubHarness(emulation, stack, monkeypatch)


class TestPubSub(Conformance, Redelivers):
    exactly_once = False
    absent: ClassVar[Mapping[type, str]] = {
        RepeatsHeaders: "attributes are a map: a name stands there once, and they have no order",
        TellsNulls: "the service knows no null: a value, a key, an attribute is empty at the least",
        Transactions: "the service has none: publishing and acknowledging are two requests",
        Partitions: "a lane is an ordering key, of which one message is out; there are no offsets",
        Groups: "the subscription is the group; it has no members, generations or beginning",
    }

    @pytest.fixture
    def harness(
        self, emulation: Emulation, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[RedeliveringHarness]:
        with ExitStack() as stack:
            yield PubSubHarness(emulation, stack, monkeypatch)


def large(size: int) -> Encode:
    """Results of `size` bytes for what has attribute `large`; everything else as usual."""

    def encode(settled: Settled) -> Message | None:
        if isinstance(settled.outcome, Prediction) and dict(settled.record.headers).get("large"):
            return Message(bytes(size), settled.record.key, (), dead=False)
        return conformance.encode(settled)

    return encode


def stopped(harness: PubSubHarness, topics: Topics) -> Stop:
    with pytest.raises(Stop) as stop:
        harness.open(topics)
    assert "\n" not in str(stop.value)
    return stop.value


# What is not there


def test_an_emulator_that_is_not_there_stops_the_daemon_in_one_sentence(
    harness: PubSubHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = harness.topics()
    where = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv(HOST, where)
    monkeypatch.setattr(clients, "RETRY", None)
    stop = stopped(harness, topics)
    assert stop.code is Exit.UNAVAILABLE
    assert where in str(stop)


def test_credentials_that_are_not_there_stop_the_daemon_in_one_sentence(
    harness: PubSubHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = harness.topics()
    monkeypatch.delenv(HOST)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    stop = stopped(harness, topics)
    assert stop.code is Exit.UNAVAILABLE
    assert "/nowhere/key.json" in str(stop)


def test_a_missing_topic_is_named_and_never_created(harness: PubSubHarness) -> None:
    there = harness.topics()
    stop = stopped(harness, Topics(there.input, "absent", there.dead))
    assert (stop.code, "absent" in str(stop)) == (Exit.UNAVAILABLE, True)
    assert "--create" in str(stop)
    assert "absent" not in harness.emulation.topics()


def test_a_subscription_that_is_deleted_while_it_is_read_stops_the_daemon(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    broker = harness.open(topics)
    harness.send(topics.input, b"x")
    take(harness, broker, 1)
    path = harness.emulation.subscription(topics.input)
    harness.subscriber.delete_subscription(subscription=path, timeout=10)
    with pytest.raises(Stop, match="--create") as stop:
        broker.poll(0, TIMEOUT)
    assert stop.value.code is Exit.UNAVAILABLE


def test_a_topic_that_is_deleted_while_it_is_written_to_stops_the_daemon(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    broker = harness.open(topics)
    harness.send(topics.input, b"x")
    records = take(harness, broker, 1)
    harness.publisher.delete_topic(topic=harness.emulation.topic(topics.output), timeout=10)
    with pytest.raises(Stop) as stop:
        broker.commit(predicted(records))
    assert stop.value.code is Exit.UNAVAILABLE


# The stream


def test_without_ordering_keys_records_have_no_lane_and_many_are_out(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    names = {harness.send(topics.input, b"x") for _ in range(30)}
    records = take(harness, harness.open(topics), 30)
    assert {record.id for record in records} == names
    assert {(record.lane, record.key) for record in records} == {(None, None)}


def test_a_broken_stream_is_a_rewound_and_brings_everything_again(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    names = [harness.send(topics.input, b"x", f"key-{number % 2}") for number in range(6)]
    broker = harness.open(topics)
    assert len(take(harness, broker, 2)) == 2
    break_stream(broker)
    with pytest.raises(Rewound):
        broker.poll(10, 0)
    relay(harness, broker, 6)
    results = sources(harness.read_committed(topics.output))
    assert sorted(results) == sorted(names)
    for lane in (0, 1):
        assert [one for one in results if one in names[lane::2]] == names[lane::2]


def test_what_a_broken_stream_brought_is_not_published(harness: PubSubHarness) -> None:
    topics = harness.topics()
    harness.send(topics.input, b"x")
    broker = harness.open(topics)
    records = take(harness, broker, 1)
    break_stream(broker)
    with pytest.raises(Rewound):
        broker.commit(predicted(records))
    assert harness.read_committed(topics.output) == []


def test_a_stream_that_ends_gives_nothing_of_a_key_back(harness: PubSubHarness) -> None:
    """With more than the window takes; red when the library's private request is gone."""
    topics = harness.topics()
    keys = 20
    names = [harness.send(topics.input, b"x", f"key-{n % keys}") for n in range(10 * keys)]
    broker = harness.open(topics, window=10)
    done = [record.id for record in relay(harness, broker, 23)]
    broker.poll(5, 0)
    break_stream(broker)
    with pytest.raises(Rewound):
        broker.poll(10, 0)
    done += [record.id for record in relay(harness, broker, len(names) - len(done))]
    first = list(dict.fromkeys(done))
    assert sorted(first) == sorted(names)
    for lane in range(keys):
        own = names[lane::keys]
        assert [one for one in first if one in own] == own


def test_rewinds_in_a_row_are_spaced(harness: PubSubHarness) -> None:
    topics = harness.topics()
    pauses: list[float] = []
    settings = harness.settings(topics)
    broker = PubSubBroker(settings, conformance.encode, clock=lambda: 0.0, sleep=pauses.append)
    harness.stack.callback(broker.close)
    for _ in range(4):
        break_stream(broker)
        with pytest.raises(Rewound):
            broker.poll(0, 0)
    harness.send(topics.input, b"x")
    broker.commit(predicted(take(harness, broker, 1)))
    break_stream(broker)
    with pytest.raises(Rewound):
        broker.poll(0, 0)
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.0]


@pytest.mark.parametrize("key", ["", "key"])
def test_the_smallest_window_lets_everything_through(harness: PubSubHarness, key: str) -> None:
    topics = harness.topics()
    names = [harness.send(topics.input, b"xx", key) for _ in range(20)]
    broker = harness.open(topics, window=1, window_bytes=1)
    relay(harness, broker, 20)
    assert sorted(sources(harness.read_committed(topics.output))) == sorted(names)


def test_no_more_is_out_than_the_window_takes(harness: PubSubHarness) -> None:
    topics = harness.topics()
    for _ in range(50):
        harness.send(topics.input, b"x")
    broker = harness.open(topics, window=7)
    records = take(harness, broker, 7)
    assert not any(broker.poll(10, 0.1) for _ in islice(harness.patience(), 10))
    broker.commit(predicted(records))
    assert len(take(harness, broker, 7)) == 7


def test_more_than_the_window_takes_begins_again(harness: PubSubHarness) -> None:
    topics = harness.topics()
    broker = harness.open(topics)
    broker._stream._inbox = queue.Queue(1)
    for _ in range(2):
        harness.send(topics.input, b"x")
    for _ in harness.patience():
        if broker._stream.error():
            break
    with pytest.raises(Rewound, match="window"):
        broker.poll(10, 0)


def test_what_is_held_for_long_stays_ours(harness: PubSubHarness) -> None:
    topics = harness.topics()
    held = harness.send(topics.input, b"held", "key")
    broker = harness.open(topics)
    records = take(harness, broker, 1)
    begin = time.monotonic()
    for _ in harness.patience():
        assert broker.poll(0, 0.5) == []
        if time.monotonic() - begin > 2 * LEASE + 2:
            break
    assert broker.poll(10, 0.1) == []
    other = harness.open(topics)
    assert other.poll(10, 1.0) == []
    broker.commit(predicted(records))
    assert sources(harness.read_committed(topics.output)) == [held]


# Exactly-once delivery


def test_on_an_exactly_once_subscription_what_is_committed_is_acknowledged(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    topics = Topics(
        harness.create("once", enable_exactly_once_delivery=True), topics.output, topics.dead
    )
    names = [harness.send(topics.input, b"x", f"key-{number % 3}") for number in range(9)]
    broker = harness.open(topics)
    relay(harness, broker, 9)
    assert sorted(sources(harness.read_committed(topics.output))) == sorted(names)
    last = harness.send(topics.input, b"x")
    records = take(harness, broker, 1)
    path = harness.emulation.subscription(topics.input)
    harness.subscriber.acknowledge(
        subscription=path, ack_ids=[records[0].position.ack_id], timeout=10
    )
    with pytest.raises(Rewound, match="INVALID_ACK_ID"):
        broker.commit(predicted(records))
    assert sources(harness.read_committed(topics.output)).count(last) == 1


# Sizes


def test_a_result_too_large_for_its_topic_becomes_a_dead_letter(harness: PubSubHarness) -> None:
    topics = harness.topics()
    for number, headers in enumerate([(), (("large", b"1"),), ()]):
        harness.send(topics.input, b"%d" % number, "", headers)
    broker = harness.open(topics, large(10_000_001))
    broker.commit(predicted(take(harness, broker, 3)))
    (dead_letter,) = harness.read_committed(topics.dead)
    assert dead_letter.value == b"1"
    assert dict(dead_letter.headers)["connector.reason"] == b"result_too_large"
    assert len(harness.read_committed(topics.output)) == 2


def test_a_message_of_nearly_10_mb_comes_and_its_letter_leaves_its_value_behind(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    value = os.urandom(9_999_000)
    harness.send(topics.input, value, "key", (("a", b"1"),))
    broker = harness.open(topics)
    (record,) = take(harness, broker, 1)
    assert record.value == value
    broker.commit([rejected(record)])
    (dead_letter,) = harness.read_committed(topics.dead)
    headers = dict(dead_letter.headers)
    assert (dead_letter.key, dead_letter.value, headers["a"]) == (b"key", b"", b"1")
    assert headers["connector.value-bytes"] == b"9999000"
    assert headers["connector.value-sha256"] == hashlib.sha256(value).hexdigest().encode()
    assert headers["connector.reason"] == b"not_an_image"


def test_a_letter_with_too_many_attributes_keeps_its_value_and_says_what_it_left_out(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    own = tuple((f"a{number:02}", b"x") for number in range(98))
    harness.send(topics.input, b"value", "key", own)
    broker = harness.open(topics)
    broker.commit([rejected(take(harness, broker, 1)[0])])
    (dead_letter,) = harness.read_committed(topics.dead)
    headers = dict(dead_letter.headers)
    assert (dead_letter.key, dead_letter.value) == (b"key", b"value")
    assert headers["connector.left-out"] == ",".join(name for name, _ in own).encode()
    assert not {name for name, _ in own} & set(headers)


@pytest.mark.parametrize(
    "unfit",
    [
        Outgoing("t", bytes(10_000_001), "", {}),
        Outgoing("t", bytes(9_999_990), "", {"a": "1"}),
        Outgoing("t", b"", "", {str(number): "" for number in range(101)}),
        Outgoing("t", b"", "", {"n" * 257: ""}),
        Outgoing("t", b"", "", {"ä" * 129: ""}),
        Outgoing("t", b"", "", {"a": "v" * 1025}),
        Outgoing("t", b"", "k" * 1025, {}),
    ],
)
def test_what_the_service_refuses_by_its_documents_is_not_tried(unfit: Outgoing) -> None:
    assert not unfit.fits()


def test_what_is_just_within_the_limits_is_tried() -> None:
    attributes = {f"{number:0256}": "v" * 1024 for number in range(100)}
    assert Outgoing("t", b"x", "k" * 1024, attributes).fits()


# Publishing


def test_of_an_ordering_key_nothing_follows_the_first_failure(harness: PubSubHarness) -> None:
    topics = harness.topics()
    broker = harness.open(topics)
    names = ("a1", "b1", "a2", "b2", "a3", "b3")
    pending_messages = [pending(topics.output, name) for name in names]
    harness.monkeypatch.setattr(producer, "MAX_BATCH", 1)
    client = post_of(broker)
    publish = client.publish

    def failing(request: Untyped, **named: Untyped) -> Untyped:
        if request.messages[0].data == b"a2":
            raise ServiceUnavailable("broken on purpose")  # type: ignore[no-untyped-call]
        return publish(request, **named)

    harness.monkeypatch.setattr(client, "publish", failing)
    lost = broker._batch_publisher.publish(pending_messages)
    assert {one.record.id for one in lost} == {"a2", "a3"}
    done = [one.value or b"" for one in harness.read_committed(topics.output)]
    assert sorted(done) == [b"a1", b"b1", b"b2", b"b3"]
    assert [one for one in done if one.startswith(b"b")] == [b"b1", b"b2", b"b3"]


def pending(topic: str, name: str) -> PendingMessage[Outgoing]:
    """A message whose ordering key is the first letter of its name."""
    message = Outgoing(topic, name.encode(), name[0], {})
    return PendingMessage(Record(name, None, None, (), 0, name[0], None), iter([message]), "")


# What the service refuses, which the emulator takes


def refuse(harness: PubSubHarness, broker: Broker, refused: object) -> list[int]:
    """Let the service refuse each request with a message of which `refused` is true."""
    client = post_of(broker)
    publish, sizes = client.publish, []
    assert callable(refused)

    def picky(request: Untyped, **named: Untyped) -> Untyped:
        sizes.append(len(request.messages))
        if any(map(refused, request.messages)):
            raise InvalidArgument("refused on purpose")  # type: ignore[no-untyped-call]
        return publish(request, **named)

    harness.monkeypatch.setattr(client, "publish", picky)
    return sizes


def test_a_refused_request_is_cut_until_only_the_message_at_fault_is_a_dead_letter(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    names = [harness.send(topics.input, b"%d" % number) for number in range(9)]
    broker = harness.open(topics)
    records = take(harness, broker, 9)
    at_fault = names[5].encode()
    refuse(harness, broker, lambda message: at_fault in message.data)
    broker.commit(predicted(records))
    (dead_letter,) = harness.read_committed(topics.dead)
    assert dead_letter.value == b"5"
    assert dict(dead_letter.headers)["connector.reason"] == b"result_too_large"
    assert sorted(sources(harness.read_committed(topics.output))) == sorted({*names} - {names[5]})


def test_reserved_attributes_are_left_out_when_the_service_wants_that(
    harness: PubSubHarness,
) -> None:
    topics = harness.topics()
    headers = (("googclient_schemaencoding", b"JSON"), ("index", b"1"))
    for _ in range(2):
        harness.send(topics.input, b"x", "", headers)
    broker = harness.open(topics)
    kept, left_out = take(harness, broker, 2)
    broker.commit(predicted([kept]))
    refuse(harness, broker, lambda message: "googclient_schemaencoding" in message.attributes)
    broker.commit(predicted([left_out]))
    one, other = harness.read_committed(topics.output)
    assert one.headers == headers
    assert other.headers == (
        ("connector.left-out", b"googclient_schemaencoding"),
        ("index", b"1"),
    )


def test_a_dead_letter_topic_that_takes_nothing_stops_the_daemon(harness: PubSubHarness) -> None:
    topics = harness.topics()
    harness.send(topics.input, b"x")
    broker = harness.open(topics)
    records = take(harness, broker, 1)
    refuse(harness, broker, lambda _: True)
    with pytest.raises(Stop, match=topics.dead) as stop:
        broker.commit([rejected(records[0])])
    assert stop.value.code is Exit.GIVEN_UP


# The end


def test_closing_gives_what_has_no_key_to_the_next_at_once(harness: PubSubHarness) -> None:
    topics = harness.topics()
    names = {harness.send(topics.input, b"x") for _ in range(20)}
    leaving = harness.open(topics)
    take(harness, leaving, 3)
    leaving.close()
    staying = harness.open(topics)
    begin = time.monotonic()
    records = relay(harness, staying, 20)
    assert time.monotonic() - begin < LEASE / 2
    assert {record.id for record in records} == names


def test_closing_gives_back_once_and_takes_nothing_more(harness: PubSubHarness) -> None:
    """With more than the window takes; each time that it is given back counts as an attempt."""
    topics = harness.topics()
    policy = {
        "dead_letter_topic": harness.emulation.topic(topics.dead),
        "max_delivery_attempts": 5,
    }
    topics = Topics(
        harness.create("counted", ordering=False, dead_letter_policy=policy),
        topics.output,
        topics.dead,
    )
    for _ in range(60):
        harness.send(topics.input, b"x")
    leaving = harness.open(topics, window=20)
    take(harness, leaving, 10)
    leaving.close()
    begin = time.monotonic()
    records = relay(harness, harness.open(topics), 60)
    assert time.monotonic() - begin < LEASE / 2
    assert {record.position.delivery_attempt for record in records} <= {1, 2}


def test_closing_ends_in_time_when_the_service_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Leases are extended all the time: so the library is in the middle of it when all ends.
    monkeypatch.setattr(leaser, "random", SimpleNamespace(uniform=min))
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator())
        monkeypatch.setenv(HOST, emulator.host)
        harness = PubSubHarness(emulator, stack, monkeypatch)
        topics = harness.topics()
        harness.send(topics.input, b"x")
        broker = harness.open(topics)
        records = take(harness, broker, 1)
        emulator.kill()
        monkeypatch.setattr(producer, "PUBLISH_TIMEOUT", 1.0)
        begin = time.monotonic()
        with pytest.raises(Rewound):
            broker.commit(predicted(records))
        broker.close()
        assert time.monotonic() - begin < 20
        threads = [one for one in threading.enumerate() if one.name == "Thread-LeaseMaintainer"]
        for thread in threads:
            thread.join(TIMEOUT)
        assert not [one for one in caplog.records if one.exc_info]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("acknowledge", {"subscription": "s", "ack_ids": ["1"]}),
        (
            "modify_ack_deadline",
            {"subscription": "s", "ack_ids": ["1"], "ack_deadline_seconds": 10},
        ),
        ("streaming_pull", {"requests": iter([])}),
    ],
)
def test_a_call_after_the_end_fails_as_one_that_the_end_cuts_off(
    monkeypatch: pytest.MonkeyPatch, call: str, arguments: dict[str, Untyped]
) -> None:
    monkeypatch.setenv(HOST, "localhost:1")
    client = connect_subscriber()
    client.transport.close()
    with pytest.raises(ValueError, match=r"(?i)closed"):  # as gRPC has it: nobody ended the client
        getattr(client, call)(**arguments)
    client.close()
    with pytest.raises(Cancelled, match=r"(?i)closed"):
        getattr(client, call)(**arguments)


# The two ends


def test_what_the_publisher_sends_the_reader_finds(harness: PubSubHarness) -> None:
    topics = harness.topics()
    settings = harness.settings(topics)
    kept = TopicReader(harness.settings(topics, output_subscription=topics.input), topics.input)
    fresh = TopicReader(settings, topics.input)
    publisher = TopicPublisher(settings)
    publisher.publish(b"k", b"1", (("content-type", b"image/png"), ("timeout", b"1")))
    for _ in range(600):
        publisher.publish(None, b"2", ())
    publisher.flush()
    for reader in (kept, fresh):
        found = read(harness, reader, 601)
        (keyed,) = [record for record in found if record.key == b"k"]
        assert keyed.headers == (("content-type", b"image/png"), ("timeout", b"1"))
        reader.close()
    publisher.close()
    assert harness.read_committed(topics.input) == [], "what was shown is taken away"


def read(harness: PubSubHarness, reader: Untyped, count: int) -> list[Record]:
    found: list[Record] = []
    for _ in harness.patience():
        found += reader.read(0.1)
        if len(found) >= count:
            break
    return found


def test_the_subscription_that_a_reader_makes_goes_with_it(harness: PubSubHarness) -> None:
    topics = harness.topics()
    reader = TopicReader(harness.settings(topics), topics.output)
    name = reader._name
    project = f"projects/{harness.emulation.project}"

    def list_subscriptions() -> set[str]:
        found = harness.subscriber.list_subscriptions(project=project, timeout=10)
        return {one.name for one in found}

    assert harness.emulation.subscription(name) in list_subscriptions()
    reader.close()
    assert harness.emulation.subscription(name) not in list_subscriptions()


def test_a_topic_has_no_beginning_for_a_new_subscription(harness: PubSubHarness) -> None:
    topics = harness.topics()
    with pytest.raises(Stop, match="--output-subscription") as stop:
        open_reader(
            ListenPubSub(
                project=harness.emulation.project, output_topic=topics.output, from_beginning=True
            )
        )
    assert stop.value.code is Exit.USAGE


def test_the_clients_stop_when_their_topic_is_missing(harness: PubSubHarness) -> None:
    settings = harness.settings(Topics("absent", "absent", "absent"))
    with pytest.raises(Stop, match="absent"):
        TopicPublisher(settings)
    with pytest.raises(Stop, match="absent"):
        TopicReader(settings, "absent")


def test_the_publisher_stops_at_what_no_topic_takes(harness: PubSubHarness) -> None:
    publisher = TopicPublisher(harness.settings(harness.topics()))
    with pytest.raises(Stop, match="10000001 bytes") as stop:
        publisher.publish(None, bytes(10_000_001), ())
    publisher.close()
    assert stop.value.code is Exit.USAGE
