"""What a group has published, read back: so far it must have acknowledged (docs/decisions/013)."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors

from ...headers import OURS
from .clients import (
    CALL_TIMEOUT,
    CLOSE_TIMEOUT,
    find_unreadable,
    open_client,
    position_of,
    refresh_leaders,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from .. import Untyped
    from .settings import KafkaSettings


_log = logging.getLogger(__name__)

SOURCE = f"{OURS}source"
"""The header that says of which record this is the outcome, and to which group."""

MIN_LOOKBACK, MAX_LOOKBACK = 10, 100_000
"""Offsets from the end of a partition within which the last outcome is looked for."""

MAX_WARNINGS = 10
"""Records that are named because they are not believed."""

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


class Claim(NamedTuple):
    """A record in `place` that says of which record it is the outcome."""

    record: str
    place: TopicPartition
    source: SourceRecord

    @property
    def origin(self) -> TopicPartition:
        """The partition of the input that it speaks of."""
        return TopicPartition(self.source.topic, self.source.partition)

    def is_within(self, ends: Mapping[TopicPartition, int]) -> bool:
        """Say whether there is such a record, and its outcome would be in this place."""
        same = self.source.partition == self.place.partition
        return same and self.source.offset < ends.get(self.origin, 0)


class PublishedOffsets:
    """The outcomes of a group in `topics`, each with as many partitions as its input topic.

    There a record's outcome is in the partition of the record's number, behind those of all
    records before it. So the last one of a partition says where the group's offset is at least.
    """

    def __init__(self, settings: KafkaSettings, topics: Collection[str]) -> None:
        self._settings = settings
        self._topics = topics
        self._warned: set[str] = set()
        ours = {
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",
            "fetch_max_wait_ms": 100,
            "max_partition_fetch_bytes": 64 << 10,
            # A leader that has gone in silence is given up, and its successor asked, within the
            # time that one answer may take; else all of it passes, and the same leader is asked
            # once more.
            "request_timeout_ms": round(CALL_TIMEOUT * 1000) // 2,
            # In a session a broker is silent about partitions in which nothing has changed. Those
            # that are assigned anew meanwhile, without a fetch in between, would never be told
            # where they end.
            "enable_incremental_fetch_sessions": False,
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
        refresh_leaders(self._consumer)
        firsts = self._consumer.beginning_offsets(left, timeout_ms=CALL_TIMEOUT * 1000)
        lasts = self._consumer.end_offsets(left, timeout_ms=CALL_TIMEOUT * 1000)
        found: dict[TopicPartition, int] = {}
        window = MIN_LOOKBACK
        while left:
            starts = {one: max(firsts[one], lasts[one] - window) for one in left}
            for claim in self._read_believed(starts):
                left.discard(claim.place)
                found[claim.origin] = max(claim.source.offset + 1, found.get(claim.origin, 0))
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

    def _read_believed(self, starts: Mapping[TopicPartition, int]) -> Iterator[Claim]:
        """Leave out, and name, what is of no record of the input: anybody may write such a header.

        The ends of the input are asked for again, since it grows meanwhile.
        """
        ends, doubted = self._find_input_ends(starts), []
        for claim in self._read(starts):
            if claim.is_within(ends):
                yield claim
            else:
                doubted.append(claim)
        ends = self._find_input_ends(starts) if doubted else ends
        for claim in doubted:
            if claim.is_within(ends):
                yield claim
            else:
                self._warn(claim, ends)

    def _find_input_ends(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        inputs = [TopicPartition(self._settings.input_topic, one.partition) for one in set(places)]
        ends: dict[TopicPartition, int] = self._consumer.end_offsets(
            inputs, timeout_ms=CALL_TIMEOUT * 1000
        )
        return ends

    def _warn(self, claim: Claim, ends: Mapping[TopicPartition, int]) -> None:
        """Name a record that is not believed, once."""
        if claim.record in self._warned or len(self._warned) >= MAX_WARNINGS:
            return
        self._warned.add(claim.record)
        home = TopicPartition(self._settings.input_topic, claim.place.partition)
        _log.warning(
            "%s says in %s that %s/%d/%d is done, but %s/%d ends at %s: it is not believed; only "
            "daemons may write there",
            *(claim.record, SOURCE, claim.source.topic, claim.source.partition),
            *(claim.source.offset, home.topic, home.partition, ends.get(home)),
        )

    def _read(self, starts: Mapping[TopicPartition, int]) -> Iterator[Claim]:
        """Give the sources of this group's outcomes, from these offsets to the ends."""
        self._consumer.assign(list(starts))
        for place, offset in starts.items():
            self._consumer.seek(place, offset)
        deadline = time.monotonic() + READ_TIMEOUT
        ends: dict[TopicPartition, int] = {}
        while not all(position_of(self._consumer, one) >= ends.get(one, 1 << 63) for one in starts):
            if time.monotonic() > deadline:
                raise kafka_errors.KafkaTimeoutError(self._describe_unread(starts, ends))
            for record in self._fetch():
                source = source_of(record.headers)
                if source and source[::3] == (self._settings.input_topic, self._settings.group):
                    name = f"{record.topic}/{record.partition}/{record.offset}"
                    yield Claim(name, TopicPartition(record.topic, record.partition), source)
            # Not the end for readers of what is committed: a transaction may be open before it.
            known = {one: self._consumer.highwater(one) for one in starts.keys() - ends}
            ends |= {one: end for one, end in known.items() if end is not None}

    def _describe_unread(
        self, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
    ) -> str:
        """Say which partitions could not be read to the end, and how far they could."""
        positions = {one: position_of(self._consumer, one) for one in sorted(starts)}
        unread = (
            f"{one.topic}/{one.partition} (read to {at} of {ends.get(one, '?')})"
            for one, at in positions.items()
            if one not in ends or at < ends[one]
        )
        return f"the ends of {', '.join(unread)} cannot be read yet"

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
