"""What a group has published, read back: so far it must have acknowledged (docs/decisions/013)."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from ...headers import OURS
from .clients import CALL_TIMEOUT, CLOSE_TIMEOUT, find_unreadable, open_client, position_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from .. import Untyped
    from .settings import KafkaSettings


SOURCE = f"{OURS}source"
"""The header that says of which record this is the outcome, and to which group."""

MIN_LOOKBACK, MAX_LOOKBACK = 10, 100_000
"""Offsets from the end of a partition within which the last outcome is looked for."""

READ_TIMEOUT = 2.0
"""Seconds in which the ends of all partitions are read, or it is tried again later."""


class SourceRecord(NamedTuple):
    """A record, and the group that has settled it."""

    topic: str
    partition: int
    offset: int
    group: str

    def encoded(self) -> bytes:
        """Return the value of the header."""
        return f"{self.topic}/{self.partition}/{self.offset} {self.group}".encode()


def source_of(headers: Sequence[tuple[str, bytes]]) -> SourceRecord | None:
    """Return what the header says; None when there is none, or one of somebody else."""
    value = dict(headers).get(SOURCE) or b""
    found = re.fullmatch(
        r"([^/]+)/([0-9]{1,10})/([0-9]{1,19}) (.+)", value.decode("utf-8", "replace")
    )
    return SourceRecord(found[1], int(found[2]), int(found[3]), found[4]) if found else None


class PublishedOffsets:
    """The outcomes of a group in `topics`, each with as many partitions as its input topic.

    There a record's outcome is in the partition of the record's number, behind those of all
    records before it. So the last one of a partition says where the group's offset is at least.
    """

    def __init__(self, settings: KafkaSettings, topics: Collection[str]) -> None:
        self._settings = settings
        self._topics = topics
        ours = {
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",
            "fetch_max_wait_ms": 100,
            "max_partition_fetch_bytes": 64 << 10,
        }
        self._consumer: Untyped = None
        if topics:
            self._consumer, _ = open_client(KafkaConsumer, settings, ours)

    def find_ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The offset after the last record with an outcome, for each partition that has one.

        Raises KafkaError when that is not known, as while somebody's transaction is open there:
        it may still be committed, and readers see nothing behind it either.
        """
        left = self._list_partitions(partitions)
        if not left:
            return {}
        firsts = self._consumer.beginning_offsets(left, timeout_ms=CALL_TIMEOUT * 1000)
        lasts = self._consumer.end_offsets(left, timeout_ms=CALL_TIMEOUT * 1000)
        found: dict[TopicPartition, int] = {}
        window = MIN_LOOKBACK
        while left:
            starts = {one: max(firsts[one], lasts[one] - window) for one in left}
            for place, source in self._read(starts):
                left.discard(place)
                origin = TopicPartition(source.topic, source.partition)
                found[origin] = max(source.offset + 1, found.get(origin, 0))
            left = {one for one in left if starts[one] > firsts[one] and window < MAX_LOOKBACK}
            window *= 10
        return found

    def _list_partitions(self, partitions: Collection[TopicPartition]) -> set[TopicPartition]:
        """Where outcomes of these may be; the input's partitions may have become more."""
        there = {topic: self._consumer.partitions_for_topic(topic) for topic in self._topics}
        if not all(there.values()):
            raise kafka_errors.UnknownTopicOrPartitionError(", ".join(sorted(self._topics)))
        numbers = {one.partition for one in partitions}
        return {TopicPartition(one, number) for one in there for number in numbers & there[one]}

    def _read(
        self, starts: Mapping[TopicPartition, int]
    ) -> Iterator[tuple[TopicPartition, SourceRecord]]:
        """Give the sources of this group's outcomes, from these offsets to the ends."""
        self._consumer.assign(list(starts))
        for place, offset in starts.items():
            self._consumer.seek(place, offset)
        deadline = time.monotonic() + READ_TIMEOUT
        ends: dict[TopicPartition, int] = {}
        while not all(position_of(self._consumer, one) >= ends.get(one, 1 << 63) for one in starts):
            if time.monotonic() > deadline:
                raise kafka_errors.KafkaTimeoutError(
                    f"the ends of {', '.join(sorted(self._topics))} cannot be read yet"
                )
            for record in self._fetch():
                source = source_of(record.headers)
                if source and source[::3] == (self._settings.input_topic, self._settings.group):
                    yield TopicPartition(record.topic, record.partition), source
            # Not the end for readers of what is committed: a transaction may be open before it.
            known = {one: self._consumer.highwater(one) for one in starts.keys() - ends}
            ends |= {one: end for one, end in known.items() if end is not None}

    def _fetch(self) -> list[Untyped]:
        """What comes next; a record that the library cannot take apart is none of ours."""
        try:
            fetched = self._consumer.poll(100)
        except kafka_errors.CorruptRecordError as error:
            place = find_unreadable(self._consumer, error)
            if place is None:
                raise
            self._consumer.seek(place, position_of(self._consumer, place) + 1)
            return []
        return [record for records in fetched.values() for record in records]

    def close(self) -> None:
        """Close the client."""
        if self._consumer:
            self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT * 1000)
