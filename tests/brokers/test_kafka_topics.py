"""Topics that are deleted while a daemon runs; without Kafka."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kafka import errors as kafka_errors

from connectors.brokers.kafka import clients
from connectors.brokers.kafka.broker import KafkaBroker
from connectors.brokers.kafka.clients import DELETED_TOPIC_INTERVAL, DeletedTopicDetector
from connectors.brokers.kafka.consumer import GroupConsumer
from connectors.brokers.kafka.settings import RunKafka
from connectors.errors import Exit, Rewound, Stop

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

TOPICS = ["images", "predictions", "images.dead"]


class Cluster:
    """What a broker says of the topics at each question, and the clock of who asks."""

    def __init__(self, *gone: Collection[str] | kafka_errors.KafkaError) -> None:
        self.gone = list(gone)
        self.now = 0.0
        self.asked = 0

    def clock(self) -> float:
        return self.now

    def describe(self, _: object, topics: Sequence[str]) -> dict[str, dict[str, int]]:
        gone = self.gone[min(self.asked, len(self.gone) - 1)]
        self.asked += 1
        if isinstance(gone, kafka_errors.KafkaError):
            raise gone
        return {topic: {"error_code": 3 if topic in gone else 0} for topic in topics}

    def make_detector(self, monkeypatch: pytest.MonkeyPatch) -> DeletedTopicDetector:
        monkeypatch.setattr(clients, "_describe_topics", self.describe)
        settings = RunKafka(input_topic="images", output_topic="predictions")
        return DeletedTopicDetector(settings, TOPICS, self.clock)


AWAY = kafka_errors.KafkaTimeoutError("nobody is there")


@pytest.mark.parametrize("gone", TOPICS)
def test_a_topic_that_is_gone_at_two_looks_stops_the_daemon_and_is_named(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster([gone])
    detector = cluster.make_detector(monkeypatch)
    cluster.now += DELETED_TOPIC_INTERVAL
    detector.check()
    cluster.now += DELETED_TOPIC_INTERVAL
    with pytest.raises(Stop, match=f"^{gone} is not there any more .*: create it") as stop:
        detector.check()
    assert stop.value.code is Exit.UNAVAILABLE
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "answers",
    [
        [[]],
        [["images"], []],
        [["images"], AWAY],
        [AWAY],
        [["images"], ["predictions"], ["images.dead"]],
        [["images"], AWAY, ["images"], []],
    ],
)
def test_a_topic_that_one_answer_does_not_know_is_not_taken_for_gone(
    answers: Sequence[Collection[str] | kafka_errors.KafkaError], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(*answers)
    detector = cluster.make_detector(monkeypatch)
    for _ in answers:
        cluster.now += DELETED_TOPIC_INTERVAL
        detector.check()
    assert cluster.asked == len(answers)


def test_a_broker_is_asked_about_its_topics_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([])
    detector = cluster.make_detector(monkeypatch)
    for tenth in range(1, 301):
        cluster.now = tenth * DELETED_TOPIC_INTERVAL / 100
        detector.check()
    assert cluster.asked == 3


@pytest.mark.parametrize(
    "error",
    [
        kafka_errors.TopicAuthorizationFailedError("images"),
        kafka_errors.SaslAuthenticationFailedError("no"),
        kafka_errors.UnsupportedSaslMechanismError("no"),
    ],
)
def test_what_may_not_be_asked_about_is_no_topic_that_is_gone(
    error: kafka_errors.KafkaError, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(error)
    detector = cluster.make_detector(monkeypatch)
    cluster.now += DELETED_TOPIC_INTERVAL
    with pytest.raises(Stop, match="refuses this client"):
        detector.check()


class Consumer:
    """The consumer of a group whose input topic the cluster knows, or does not any more."""

    def __init__(self, partitions: set[int] | None, *, joined: bool = True) -> None:
        self._settings = SimpleNamespace(input_topic="images")
        self._consumer = SimpleNamespace(
            _cluster=SimpleNamespace(partitions_for_topic=lambda _: partitions)
        )
        self.group_metadata = "member" if joined else None
        self.polled = 0

    def poll(self, *_: object) -> list[object]:
        self.polled += 1
        return []

    require_topic: Any = GroupConsumer.require_topic


def broker_of(consumer: Consumer, detector: DeletedTopicDetector) -> KafkaBroker:
    broker = KafkaBroker.__new__(KafkaBroker)
    broker._settings = RunKafka(input_topic="images", output_topic="predictions")
    broker._source = consumer  # type: ignore[assignment]
    broker._deleted_topics = detector
    broker._delivery = SimpleNamespace(ensure_ready=lambda: None)
    broker._retry_delay = SimpleNamespace(wait=lambda: None)  # type: ignore[assignment]
    return broker


@pytest.mark.parametrize("partitions", [None, set()])
@pytest.mark.parametrize("verb", ["poll", "commit"])
def test_an_input_topic_that_is_gone_is_noticed_though_nothing_comes_and_nothing_fails(
    verb: str, partitions: set[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(["images"])
    consumer = Consumer(partitions)
    broker = broker_of(consumer, cluster.make_detector(monkeypatch))
    cluster.now += DELETED_TOPIC_INTERVAL
    with pytest.raises(Rewound, match="UnknownTopicOrPartitionError: images"):
        broker.poll(1, 0) if verb == "poll" else broker.commit(())
    cluster.now += DELETED_TOPIC_INTERVAL
    polled = consumer.polled
    with pytest.raises(Stop, match="images is not there any more"):
        broker.poll(1, 0)
    assert consumer.polled > polled  # or the library would never learn that it is there again


@pytest.mark.parametrize(("joined", "asked"), [(False, 1), (True, 0)])
def test_topics_are_looked_for_while_the_daemon_cannot_read(
    joined: bool,  # noqa: FBT001 - a parameter of the test
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster([])
    consumer = Consumer({0}, joined=joined)
    broker = broker_of(consumer, cluster.make_detector(monkeypatch))
    cluster.now += DELETED_TOPIC_INTERVAL
    assert list(broker.poll(1, 0)) == []
    assert (consumer.polled, cluster.asked) == (1, asked)
