"""The two ends of the relay: putting images into a topic, reading results from one."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError, MessageSizeTooLargeError

from ...errors import Exit, Stop
from ...records import SizeLimit
from .clients import (
    CALL_TIMEOUT,
    CLOSE_TIMEOUT,
    close_now,
    find_unreadable,
    open_client,
    partition_counts,
    position_of,
    raise_if_permanent,
    read_max_message_bytes,
    stop_if_unreachable,
)
from .consumer import make_record
from .producer import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from collections.abc import (
        Iterator,
        Sequence,
    )

    from ...records import Headers, Record
    from .. import Untyped
    from .settings import KafkaSettings, ListenKafka, SendKafka


_log = logging.getLogger(__name__)


BATCH_OVERHEAD = 128
"""Bytes that Kafka's format adds to one record in a batch of its own, rounded up."""


class TopicPublisher:
    """Puts images into the input topic; idempotent, so a repeated request counts once."""

    records_out = 1_000
    bytes_out = MAX_REQUEST_BYTES

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        partition_counts(settings, [settings.input_topic])
        with stop_if_unreachable(settings):
            ours = {"max_request_size": MAX_REQUEST_BYTES}
            self._producer, _ = open_client(KafkaProducer, settings, ours)
            largest = read_max_message_bytes(settings, settings.input_topic)
        self.limit: SizeLimit | None = None
        if largest is not None:
            self.limit = SizeLimit(
                min(largest, MAX_REQUEST_BYTES) - BATCH_OVERHEAD,
                f"raise max.message.bytes of the topic {settings.input_topic} above {largest}",
            )
        self._out: deque[tuple[Untyped, int]] = deque()
        self._bytes = 0

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """See `Publisher.publish`."""
        filled = [(name, content or b"") for name, content in headers]
        topic = self._settings.input_topic
        with self._delivering():
            self._out.append((self._producer.send(topic, value, key, filled), len(value)))
            self._bytes += len(value)
            while len(self._out) > self.records_out or self._bytes > self.bytes_out:
                self._settle_one()

    def _settle_one(self) -> None:
        future, size = self._out.popleft()
        self._bytes -= size
        future.get(timeout=CALL_TIMEOUT)

    def flush(self) -> None:
        """See `Publisher.flush`."""
        with self._delivering():
            while self._out:
                self._settle_one()

    @contextmanager
    def _delivering(self) -> Iterator[None]:
        try:
            yield
        except KafkaError as error:
            raise_if_permanent(error, self._settings)
            topic = self._settings.input_topic
            if isinstance(error, MessageSizeTooLargeError):
                raise Stop(
                    f"{topic} does not take a record as large as one of these: raise its "
                    "max.message.bytes",
                    Exit.UNAVAILABLE,
                ) from error
            raise Stop(f"{topic} did not take a record: {error}", Exit.UNAVAILABLE) from error

    def close(self) -> None:
        """See `Publisher.close`."""
        close_now(self._producer)


class TopicReader:
    """Reads all partitions of one topic, outside any group; commits nothing."""

    def __init__(self, settings: KafkaSettings, topic: str, bound: str) -> None:
        self._settings = settings
        self._topic = topic
        partitions = [
            TopicPartition(topic, number)
            for number in range(partition_counts(settings, [topic])[topic])
        ]
        ours = {
            "isolation_level": "read_committed",
            "auto_offset_reset": "earliest",
            "group_id": None,
            "enable_auto_commit": False,
        }
        with stop_if_unreachable(settings):
            self._consumer, _ = open_client(KafkaConsumer, settings, ours)
            self._consumer.assign(partitions)
            # Asked for now: a lazy `seek_to_end` would miss what comes before the first read.
            places = getattr(self._consumer, bound)(partitions, timeout_ms=CALL_TIMEOUT * 1000)
            for partition, offset in places.items():
                self._consumer.seek(partition, offset)

    def read(self, timeout: float) -> Sequence[Record]:
        """See `Reader.read`."""
        with stop_if_unreachable(self._settings):
            return self._poll(timeout)

    def _poll(self, timeout: float) -> Sequence[Record]:
        """As `read`; raises KafkaError."""
        self._take_new_partitions()
        try:
            fetched = self._consumer.poll(round(timeout * 1000))
        except CorruptRecordError as error:
            self._step_over(error)
            return []
        return [make_record(found) for records in fetched.values() for found in records]

    def _take_new_partitions(self) -> None:
        """Read partitions that were added meanwhile from their beginning, as soon as it is known.

        The library asks for them every `metadata_max_age_ms`; what it knows costs nothing here. The
        others go on where they are.
        """
        numbers = self._consumer.partitions_for_topic(self._topic) or ()
        known = self._consumer.assignment()
        if new := {TopicPartition(self._topic, number) for number in numbers} - known:
            self._consumer.assign([*known, *new])

    def _step_over(self, error: CorruptRecordError) -> None:
        """Leave out a record that the library cannot take apart: the others can be shown."""
        partition = find_unreadable(self._consumer, error)
        if partition is None:
            raise error
        offset = position_of(self._consumer, partition)
        name = f"{partition.topic}/{partition.partition}/{offset}"
        _log.warning("%s cannot be read (%s) and is left out", name, error.__context__)
        self._consumer.seek(partition, offset + 1)

    def close(self) -> None:
        """See `Reader.close`."""
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT * 1000)


def open_publisher(settings: SendKafka) -> TopicPublisher:
    """The sending client's way into `settings.input_topic`."""
    return TopicPublisher(settings)


def open_reader(settings: ListenKafka) -> TopicReader:
    """The listening client's way out of the output topic: from its beginning, or from now on."""
    bound = "beginning_offsets" if settings.from_beginning else "end_offsets"
    return TopicReader(settings, settings.output_topic, bound)
