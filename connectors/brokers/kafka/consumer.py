"""The input topic, as one member of a consumer group reads it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError
from kafka.structs import MemberState

from ...errors import Exit, Rewound, Stop
from ...records import Record
from .clients import (
    CALL_TIMEOUT,
    CLOSE_TIMEOUT,
    advise_library,
    find_unreadable,
    forget_fetches,
    is_topic_known,
    open_client,
    position_of,
    raise_if_permanent,
    raise_kept_error,
    refresh_leaders,
    rejoin,
)

if TYPE_CHECKING:
    from collections.abc import (
        Collection,
        Hashable,
        Mapping,
    )

    from .. import Untyped
    from .published_offsets import PublishedOffsets
    from .settings import KafkaSettings


_log = logging.getLogger(__name__)

STALE_OFFSET_TIMEOUT = 60.0
"""Seconds for which a coordinator may answer with an offset that is too low."""

REBALANCE_SESSIONS = 5
"""Session timeouts that a rebalance waits for a member; one iteration of the loop takes less."""


Offsets = dict[TopicPartition, OffsetAndMetadata]
"""What is committed: the next offset of each partition, and the note that goes with it."""


class Position(NamedTuple):
    """Where a record stands; the leader's epoch is -1 when unknown."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int


def rebalance_timeout(settings: KafkaSettings) -> float:
    """Seconds; a daemon that is stuck for longer gives up, so the group need not wait for it."""
    return min(settings.stuck_after, REBALANCE_SESSIONS * settings.session_timeout)


def _highest(*floors: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """The highest of each."""
    return {one: max(each.get(one, -1) for each in floors) for one in set().union(*floors)}


def make_record(found: Untyped) -> Record:
    """Make a record of a ConsumerRecord of the library."""
    topic, partition, offset = found.topic, found.partition, found.offset
    lane = f"{topic}/{partition}"
    return Record(
        id=f"{lane}/{offset}",
        value=found.value,
        key=found.key,
        headers=tuple(found.headers),
        time=found.timestamp,
        lane=lane,
        position=Position(topic, partition, offset, found.leader_epoch),
    )


class GroupConsumer:
    """The input topic, as one member of the group reads it.

    `group_metadata` is what the group called us when everything handed out since was read. None: a
    rewind is owed, and nothing is handed out before it has succeeded. `note` is stored with each
    committed offset, as its metadata.
    """

    def __init__(
        self, settings: KafkaSettings, published_offsets: PublishedOffsets, note: str = ""
    ) -> None:
        self.group_metadata: Untyped = None
        self.note = note
        self._published_offsets = published_offsets
        self._settings = settings
        self._committed: dict[TopicPartition, int] = {}
        self._min_offsets: dict[TopicPartition, int] = {}  # below which no committed offset can be
        self._stale: tuple[str, float] = "", 0.0  # which answer was too low, since when
        self._why = ""  # why a rewind is still owed
        self._handed_out: dict[TopicPartition, int] = {}  # what follows the last one
        ours = {
            "group_id": settings.group,
            "session_timeout_ms": round(settings.session_timeout * 1000),
            "heartbeat_interval_ms": round(settings.heartbeat_interval * 1000),
            # So long a rebalance waits for a member: one that died while the coordinator restarted
            # may outlive its session there (seen with Kafka 4.1.0), and all waited for it in vain.
            "max_poll_interval_ms": round(rebalance_timeout(settings) * 1000),
            "enable_auto_commit": False,
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",  # never jump: out of range is for a person to decide
            "fetch_max_bytes": 16 << 20,
            # A poll hands out what one answer brought, so this bounds the rate of large records.
            # What came stays in memory until it is read: with the 1 MiB of default 9 partitions of
            # a full topic moved that by 30 MB. A larger record comes alone.
            "max_partition_fetch_bytes": 64 << 10,
        }
        self._consumer, _ = open_client(KafkaConsumer, settings, ours)
        self._consumer.subscribe([settings.input_topic])
        # Or the leader of the group, knowing no partitions yet, shares out none at first.
        self._consumer.partitions_for_topic(settings.input_topic)

    @property
    def consumer(self) -> Untyped:
        """The client, for questions that change nothing."""
        return self._consumer

    def require_topic(self) -> None:
        """Raise UnknownTopicOrPartitionError when the broker no longer knows the input topic.

        The library says nothing of that, and hands out nothing.
        """
        topic = self._settings.input_topic
        if not is_topic_known(self._consumer, topic):
            raise kafka_errors.UnknownTopicOrPartitionError(topic)

    def poll(self, limit: int, timeout: float) -> list[Untyped]:
        """As `Broker.poll`, but in ConsumerRecords."""
        reading = self.group_metadata is not None
        fetched = self._fetch(limit if reading else 0, timeout)
        if reading and self._is_current():
            self._handed_out |= {one: records[-1].offset + 1 for one, records in fetched.items()}
            return [found for records in fetched.values() for found in records]
        self.rewind()
        if reading:
            raise Rewound("the group has shared out its partitions anew")
        return []

    def _fetch(self, limit: int, timeout: float) -> Mapping[TopicPartition, list[Untyped]]:
        """What the library hands out now; it has to be asked even when nothing is wanted.

        It pauses partitions, but not those that it is assigned inside the call.
        """
        turn = self._consumer.resume if limit else self._consumer.pause
        turn(*self._consumer.assignment())
        try:
            raise_kept_error(self._consumer)
            return self._poll_until_stable(limit or 1, timeout)
        except kafka_errors.NoOffsetForPartitionError:
            self.group_metadata = None  # just assigned and never committed: rewinding places it
            return {}
        except kafka_errors.OffsetOutOfRangeError as error:
            raise self._out_of_range(error) from error
        except (kafka_errors.CorruptRecordError, kafka_errors.UnsupportedCodecError) as error:
            return self._hold_back_unreadable(error, timeout)

    def _hold_back_unreadable(
        self, error: KafkaError, timeout: float
    ) -> Mapping[TopicPartition, list[Untyped]]:
        """Hand out nothing while records before an unreadable one are not committed, then Stop."""
        partition = find_unreadable(self._consumer, error)
        if partition is None:
            raise error
        offset = position_of(self._consumer, partition)
        if self._committed.get(partition, offset) < self._handed_out.get(partition, offset):
            return self._fetch(0, timeout)
        name = f"{partition.topic}/{partition.partition}/{offset}"
        if isinstance(error, kafka_errors.UnsupportedCodecError):
            why = f"{name} cannot be unpacked ({advise_library(str(error))}): do that, then start"
            raise Stop(why, Exit.UNAVAILABLE) from error
        why = f"{name} cannot be read ({error.__context__}): reset the group's offset to step over"
        raise Stop(f"{why} that record, or delete it", Exit.GIVEN_UP) from error

    def _poll_until_stable(
        self, limit: int, timeout: float
    ) -> Mapping[TopicPartition, list[Untyped]]:
        """Poll, and go on while the group shares out its partitions.

        The library forgets the answer to its JoinGroup when that comes between two polls, and
        asks again, for which everybody has to join again. The others hear of it with their next
        heartbeat.
        """
        until = time.monotonic() + self._settings.heartbeat_interval + 1.0
        while True:
            fetched: Mapping[TopicPartition, list[Untyped]] = self._consumer.poll(
                round(timeout * 1000), max_records=limit
            )
            state = self._consumer.group_metadata().state
            if fetched or state is MemberState.STABLE or time.monotonic() > until:
                return fetched
            rejoin(self._consumer)
            timeout = max(timeout, 0.1)

    def _is_current(self) -> bool:
        """Say whether the generation that everything was read under is still the group's."""
        now, then = self._consumer.group_metadata(), self.group_metadata
        return then is not None and now[:3] == then[:3]

    def rewind(self) -> None:
        """Go back to what the group has committed; still owed when that does not succeed."""
        self.group_metadata = None
        now = self._consumer.group_metadata()
        if now.state is not MemberState.STABLE:
            return
        try:
            self._seek_committed(self._consumer.assignment())
        except (KafkaError, ValueError) as error:  # ValueError: no longer assigned
            raise_if_permanent(error, self._settings)
            if str(error) != self._why:
                _log.warning("cannot go back to the committed offsets yet: %s", error)
            self._why = str(error)
            return
        self._why = ""
        if self._consumer.group_metadata() == now:
            self.group_metadata = now

    def _seek_committed(self, partitions: Collection[TopicPartition]) -> None:
        offsets = {one: self._ask_committed(one) for one in partitions}
        self.verify_offsets(offsets)
        for partition, offset in offsets.items():
            start = self._find_start(partition) if offset is None else offset
            self._consumer.seek(partition, start)
            self._committed[partition] = self._handed_out[partition] = start

    def _ask_committed(self, partition: TopicPartition) -> int | None:
        forget_fetches(self._consumer)
        offset: int | None = self._consumer.committed(partition, timeout_ms=CALL_TIMEOUT * 1000)
        return offset

    def verify_offsets(self, offsets: Mapping[TopicPartition, int | None]) -> None:
        """Raise unless each is at least what this process has seen, and what is published.

        A coordinator of Kafka 4 that has just been restarted may answer while it still reads its
        log (docs/decisions/013). It is asked again until it is done.
        """
        min_offsets = _highest(self._min_offsets, self._published_offsets.find_ends(offsets))
        committed = {one: offset for one, offset in offsets.items() if offset is not None}
        for partition in offsets:
            if committed.get(partition, -1) < min_offsets.get(partition, -1):
                self._reject_stale_offset(
                    partition, min_offsets[partition], committed.get(partition)
                )
        self._stale = "", 0.0
        self._min_offsets = min_offsets | committed

    def _reject_stale_offset(
        self, partition: TopicPartition, min_offset: int, committed: int | None
    ) -> None:
        """Raise CoordinatorLoadInProgressError, or Stop when it has said the same for long."""
        name = f"{partition.topic}/{partition.partition}"
        what = f"the group's offset of {name} went back from {min_offset} to {committed}"
        if what != self._stale[0]:
            self._stale = what, time.monotonic()
        if time.monotonic() - self._stale[1] > STALE_OFFSET_TIMEOUT:
            raise Stop(
                f"{what}, and nothing is done twice: find out who moved it, then start with "
                "another --group and --from earliest, which does records again and loses none",
                Exit.GIVEN_UP,
            )
        raise kafka_errors.CoordinatorLoadInProgressError(what)

    def _find_start(self, partition: TopicPartition) -> int:
        """Where a group without an offset begins.

        The latest is committed at once, or whatever comes before the first commit would be
        skipped by the next rewind.
        """
        refresh_leaders(self._consumer)
        if self._settings.start == "earliest":
            found = self._consumer.beginning_offsets([partition], timeout_ms=CALL_TIMEOUT * 1000)
            return int(found[partition])
        found = self._consumer.end_offsets([partition], timeout_ms=CALL_TIMEOUT * 1000)
        offset = int(found[partition])
        self._consumer.commit({partition: OffsetAndMetadata(offset, "", -1)}, CALL_TIMEOUT * 1000)
        return offset

    def _out_of_range(self, error: KafkaError) -> Stop:
        ((partition, wanted),) = error.args[0].items()
        refresh_leaders(self._consumer)
        first = self._consumer.beginning_offsets([partition], timeout_ms=CALL_TIMEOUT * 1000)[
            partition
        ]
        name = f"{partition.topic}/{partition.partition}"
        if first > wanted:
            what = f"{first - wanted} records from {name}/{wanted} on were deleted unread"
            return Stop(f"{what}: reset the group's offset to accept that", Exit.GIVEN_UP)
        what = f"{name} ends before offset {wanted}, up to which this group has read"
        return Stop(f"{what}: if the topic was made anew, give another --group", Exit.GIVEN_UP)

    def commit(self, offsets: Offsets) -> None:
        """Acknowledge without a transaction."""
        if not self._is_current():
            raise kafka_errors.CommitFailedError
        self._consumer.commit(offsets, CALL_TIMEOUT * 1000)
        self.note_committed(offsets)

    def note_committed(self, offsets: Offsets) -> None:
        """Remember what has been committed."""
        done = {partition: one.offset for partition, one in offsets.items()}
        self._committed |= done
        self._min_offsets |= done

    def lag(self) -> dict[Hashable, int]:
        """Records in each lane that are not acknowledged, as far as the broker has said."""
        ends = {one: self._consumer.highwater(one) for one in self._consumer.assignment()}
        return {
            f"{one.topic}/{one.partition}": max(0, end - self._acknowledged(one))
            for one, end in ends.items()
            if end is not None and one in self._committed
        }

    def _acknowledged(self, partition: TopicPartition) -> int:
        """What is committed, and the ends of transactions that were read right behind it."""
        committed = self._committed[partition]
        if committed < self._handed_out[partition]:
            return committed
        return max(committed, position_of(self._consumer, partition))

    def close(self) -> None:
        """Leave the group, so that it need not wait for the session to run out."""
        self._published_offsets.close()
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT * 1000)
