"""The witness: a read_committed reader that watches all three topics while they grow."""

from __future__ import annotations

import json
import threading
import time
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from tools.chaos.ledger import Fate, Ledger, Pulse, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Found = Any  # a ConsumerRecord of kafka-python, which ships no types


class Topics(NamedTuple):
    """The topics of one relay."""

    images: str = "images"
    predictions: str = "predictions"
    dead: str = "images.dead"


def due(found: Found, classes: Mapping[bytes, int]) -> Fate:
    """What has to become of an input record; `classes`: what the model says of each picture."""
    return Fate(found.key, classes.get(found.value))


def result(found: Found) -> tuple[Source, Fate]:
    """Whose result it is, by its own words."""
    said = json.loads(found.value)
    _, partition, offset = said["id"].rsplit("/", 2)
    return Source(int(partition), int(offset)), Fate(found.key, said["class"])


def dead_letter(found: Found) -> tuple[Source, Fate]:
    """Whose dead letter it is, by its headers."""
    headers = dict(found.headers)
    partition, offset = (headers[f"__connect.errors.{name}"] for name in ("partition", "offset"))
    return Source(int(partition), int(offset)), Fate(found.key, None)


class Watch:
    """Fills a ledger from a thread of its own, and notes how long nothing came out."""

    def __init__(
        self, servers: str, topics: Topics, partitions: int, classes: Mapping[bytes, int]
    ) -> None:
        self.ledger = Ledger()
        self.pulse = Pulse(time.monotonic())
        self._topics = topics
        self._classes = classes
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch")
        self._consumer = _consumer(servers)
        places = [TopicPartition(*one) for one in product(topics, range(partitions))]
        self._consumer.assign(places)
        for place in places:
            self._consumer.seek(place, 0)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def check(self) -> None:
        """Raise what ended the thread."""
        if self._error:
            raise self._error

    def close(self) -> None:
        """Stop reading."""
        self._over.set()
        self._thread.join(30)
        self._consumer.close(timeout_ms=5_000)

    def _watch(self) -> None:
        try:
            while not self._over.is_set():
                self._note()
        except Exception as error:  # noqa: BLE001 - raised again by `check`, in the main thread
            self._error = error

    def _note(self) -> None:
        idle = self.ledger.open == 0
        try:
            batches = self._consumer.poll(500)
        except KafkaError:  # the broker is away, and everybody has to live with it
            return
        for partition, batch in batches.items():
            for found in batch:
                self._enter(partition, found)
        if idle or any(one.topic != self._topics.images for one in batches):
            self.pulse.beat(time.monotonic())

    def _enter(self, at: TopicPartition, found: Found) -> None:
        if at.topic == self._topics.images:
            self.ledger.enter(Source(at.partition, found.offset), due(found, self._classes))
            return
        read = result if at.topic == self._topics.predictions else dead_letter
        self.ledger.leave(*read(found), at.partition)


def _consumer(servers: str) -> KafkaConsumer:
    return KafkaConsumer(
        bootstrap_servers=servers,
        isolation_level="read_committed",
        auto_offset_reset="none",  # a jump would look like a loss
        enable_auto_commit=False,
        request_timeout_ms=10_000,
        reconnect_backoff_max_ms=1_000,
    )


def whole(servers: str, topic: str, isolation: str = "read_committed") -> list[Found]:
    """Everything that is in a topic now."""
    reader = KafkaConsumer(
        bootstrap_servers=servers, isolation_level=isolation, enable_auto_commit=False
    )
    try:
        places = [TopicPartition(topic, one) for one in reader.partitions_for_topic(topic)]
        reader.assign(places)
        reader.seek_to_beginning(*places)
        return list(_until(reader, reader.end_offsets(places)))
    finally:
        reader.close(timeout_ms=5_000)


def _until(reader: KafkaConsumer, ends: Mapping[TopicPartition, int]) -> Iterator[Found]:
    while any(reader.position(place) < end for place, end in ends.items()):
        for batch in reader.poll(500).values():
            yield from batch


def committed(servers: str, group: str) -> dict[int, int]:
    """The offsets that a group has committed, by partition."""
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        offsets = admin.list_group_offsets([group])[group]
        return {at.partition: found.offset for at, found in offsets.items()}
    finally:
        admin.close()
