"""Kafka's observer: a read_committed reader of all three topics, while they grow."""

from __future__ import annotations

import json
import threading
import time
from itertools import product
from typing import TYPE_CHECKING, Any
from zlib import crc32

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from tests.chaos.observer import Observer, Topics
from tests.chaos.operation_log import OperationLog, Outcome, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Found = Any  # a ConsumerRecord of kafka-python, which ships no types

CLOSE_TIMEOUT_S = 30.0


def expect_outcome(found: Found, classes: Mapping[bytes, int]) -> Outcome:
    """Return what an input record must become; `classes`: what the model says of each picture."""
    return Outcome(found.key, classes.get(found.value))


def parse_result(found: Found) -> tuple[Source, Outcome]:
    """Return whose result it is, by its own words."""
    body = json.loads(found.value)
    _, partition, offset = body["id"].rsplit("/", 2)
    answer = body["class"] if "class" in body else digest_outputs(body["outputs"])
    return Source(int(partition), int(offset)), Outcome(found.key, answer)


def digest_outputs(outputs: object) -> int:
    """Return a number that stands for what a foreign server answered."""
    return crc32(json.dumps(outputs).encode("ascii"))


def parse_dead_letter(found: Found) -> tuple[Source, Outcome]:
    """Return whose dead letter it is, by its headers."""
    headers = dict(found.headers)
    partition, offset = (headers[f"__connect.errors.{name}"] for name in ("partition", "offset"))
    return Source(int(partition), int(offset)), Outcome(found.key, None)


class KafkaObserver(Observer):
    """Fills an operation log from a thread of its own."""

    def __init__(
        self, servers: str, topics: Topics, partitions: int, classes: Mapping[bytes, int]
    ) -> None:
        super().__init__(OperationLog())
        self._topics = topics
        self._classes = classes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer")
        self._consumer = _open_consumer(servers)
        assigned = [TopicPartition(*one) for one in product(topics, range(partitions))]
        self._consumer.assign(assigned)
        for partition in assigned:
            self._consumer.seek(partition, 0)

    def start(self) -> None:
        """See `Observer.start`."""
        self._thread.start()

    def close(self) -> None:
        """See `Observer.close`."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)
        self._consumer.close(timeout_ms=5_000)

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._read()
        except Exception as error:  # noqa: BLE001 - raised again where it ends the process
            self._error = error

    def _read(self) -> None:
        nothing_open = self.log.missing == 0
        try:
            batches = self._consumer.poll(500)
        except KafkaError:  # the broker is away, and everybody has to live with it
            return
        for partition, batch in batches.items():
            for found in batch:
                self._note(partition, found)
        if nothing_open or any(one.topic != self._topics.images for one in batches):
            self.timer.note_progress(time.monotonic())

    def _note(self, at: TopicPartition, found: Found) -> None:
        if at.topic == self._topics.images:
            expected = expect_outcome(found, self._classes)
            self.log.note_input(Source(at.partition, found.offset), expected)
            return
        parse = parse_result if at.topic == self._topics.predictions else parse_dead_letter
        self.log.note_outcome(*parse(found), at.partition)


def _open_consumer(servers: str) -> KafkaConsumer:
    return KafkaConsumer(
        bootstrap_servers=servers,
        isolation_level="read_committed",
        auto_offset_reset="none",  # a jump would look like a loss
        enable_auto_commit=False,
        request_timeout_ms=10_000,
        reconnect_backoff_max_ms=1_000,
    )


def read_topic(servers: str, topic: str, isolation: str = "read_committed") -> list[Found]:
    """Return everything that is in a topic now."""
    reader = KafkaConsumer(
        bootstrap_servers=servers, isolation_level=isolation, enable_auto_commit=False
    )
    try:
        partitions = [TopicPartition(topic, one) for one in reader.partitions_for_topic(topic)]
        reader.assign(partitions)
        reader.seek_to_beginning(*partitions)
        return list(_read_until(reader, reader.end_offsets(partitions)))
    finally:
        reader.close(timeout_ms=5_000)


def _read_until(reader: KafkaConsumer, ends: Mapping[TopicPartition, int]) -> Iterator[Found]:
    while any(reader.position(partition) < end for partition, end in ends.items()):
        for batch in reader.poll(500).values():
            yield from batch


def read_committed_offsets(servers: str, group: str) -> dict[int, int]:
    """Return the offsets that a group has committed, by partition."""
    admin = KafkaAdminClient(bootstrap_servers=servers)
    try:
        offsets = admin.list_group_offsets([group])[group]
        return {at.partition: found.offset for at, found in offsets.items()}
    finally:
        admin.close()
