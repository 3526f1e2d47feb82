"""Kafka, through kafka-python: read, publish and acknowledge, in one transaction.

A reader with `isolation_level=read_committed` finds exactly one outcome for each input record,
because results, dead letters and the group's offsets are one transaction, and because after
every doubt about it this broker *begins again*: a new producer (its `init_transactions` waits for
the pending end and makes strays of the old one worthless), then the committed offsets, then
Rewound. Offsets are committed under the group's generation that the records were read under, so
the coordinator refuses them when the partitions are somebody else's by now (KIP-447).

Which errors mean what:

    fenced                          Stop 75
    refused by the broker           Stop 69: a restart helps once the password or right is mended
    settings it cannot work with    Stop 2
    offset out of range             Stop 78
    a record that cannot be read    Stop 78, once its elders are acknowledged
    anything else of kafka-python   begin again, then Rewound
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError
from kafka.structs import MemberState

from ..errors import Exit, Rewound, Stop
from ..records import Message, Record, Rejection, Settled
from .delivery import ORIGIN, OURS, Backoff, Parcel, before, complaint, replaced
from .kafka_clients import (
    CALL,
    CLOSE,
    abandon,
    check,
    forget_fetches,
    open_client,
    partition_counts,
    position_of,
    reaching,
    rejoin,
    unreadable,
)
from .kafka_outcomes import SOURCE, Outcomes, Source

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Collection,
        Hashable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from ..records import Headers
    from ..settings import KafkaSettings
    from .delivery import Encode

Untyped = Any  # an object of kafka-python, which ships no types

log = logging.getLogger(__name__)

TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)

DOUBT = 60.0
"""Seconds for which a coordinator may say what cannot be."""

SESSIONS = 5
"""Session timeouts that a rebalance waits for a member; one lap of the loop takes less."""

LARGEST = 64 << 20
"""Bytes of one request; a broker hangs up at 100 MiB (`socket.request.max.bytes`)."""

ADVICE = "raise its max.message.bytes"


class Position(NamedTuple):
    """Where a record stands; the leader's epoch is -1 when unknown."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int


class Outgoing(NamedTuple):
    """What `KafkaProducer.send` takes; `partition` None: by key."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int | None

    def size(self) -> int:
        """Bytes, but for the few that the format adds."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.value or b"") + len(self.key or b"") + headers


# What is published


class _Addressing:
    """Says what may be published for a settled record, and where."""

    def __init__(self, settings: KafkaSettings, encode: Encode) -> None:
        self._encode = encode
        self._input = settings.input_topic
        self._topics = {False: settings.output_topic, True: settings.dead_letter_topic}
        counts = partition_counts(settings, [self._input, *self._topics.values()])
        self._alike = {topic for topic in counts if counts[topic] == counts[self._input]}
        self._group = settings.group if settings.delivery == "exactly-once" else None

    def traceable(self) -> set[str]:
        """The topics in which every outcome says of which record it is, in that one's order."""
        return self._alike & set(self._topics.values()) if self._group else set()

    def forms(self, settled: Settled) -> Iterator[Outgoing]:
        """What may be published, each smaller than the one before; nothing if skipped.

        The result; the dead letter; that without its value; and without key and headers, too.
        """
        message = self._encode(settled)
        if message and not message.dead:
            result = self._address(message, settled)
            yield result
            detail = f"{result.topic} takes no result of {result.size()} bytes"
            settled = Settled(settled.record, Rejection("result_too_large", detail))
            message = self._encode(settled)
        if message:
            letter = self._address(message, settled)
            yield letter
            yield from _remains(letter)

    def _address(self, message: Message, settled: Settled) -> Outgoing:
        topic = self._topics[message.dead]
        partition = settled.record.position.partition if topic in self._alike else None
        headers = message.headers
        if self._group:
            at = settled.record.position
            source = Source(self._input, at.partition, at.offset, self._group)
            headers = replaced(headers, {SOURCE: source.encoded()})
        if message.dead and isinstance(settled.outcome, Rejection):
            headers = replaced(headers, self._origin(settled.record, settled.outcome))
        return _sendable(topic, message, headers, partition)

    def _origin(self, record: Record, rejection: Rejection) -> dict[str, bytes]:
        """The headers by which the tools around Kafka Connect find the source."""
        return {
            f"{ORIGIN}topic": self._input.encode(),
            f"{ORIGIN}partition": b"%d" % record.position.partition,
            f"{ORIGIN}offset": b"%d" % record.position.offset,
            f"{ORIGIN}exception.message": complaint(rejection),
        }


def _sendable(topic: str, message: Message, headers: Headers, partition: int | None) -> Outgoing:
    """What `send` can take: it refuses a null header, and null for both key and value.

    Those become empty bytes, and `connector.nulls` says which.
    """
    nulls = [f"headers[{place}]" for place, (_, value) in enumerate(headers) if value is None]
    value = message.value
    if value is None and message.key is None:
        value = b""
        nulls.append("value")
    filled: Iterable[tuple[str, bytes]] = [(name, content or b"") for name, content in headers]
    if nulls:
        filled = replaced(filled, {f"{OURS}nulls": ",".join(nulls).encode()})
    return Outgoing(topic, value, message.key, list(filled), partition)


def _remains(letter: Outgoing) -> Iterator[Outgoing]:
    """What is left of a dead letter that its topic does not take."""
    if letter.value:
        digest = hashlib.sha256(letter.value).hexdigest()
        size = b"%d" % len(letter.value)
        ours = {f"{OURS}value-bytes": size, f"{OURS}value-sha256": digest.encode()}
        letter = letter._replace(value=b"", headers=list(replaced(letter.headers, ours)))
        yield letter
    ours_only = [header for header in letter.headers if header[0].startswith((ORIGIN, OURS))]
    yield letter._replace(value=b"", key=None, headers=ours_only)


_Parcel = Parcel[Outgoing]
Failure = tuple[_Parcel, Exception]


def _publish(producer: Untyped, parcels: Iterable[_Parcel], timeout: float) -> list[Failure]:
    """Send in the order given and wait; return what failed, the cause of all first.

    In a transaction, kafka-python lets everything that waits fail with the first error. It runs
    the callbacks of one failure before it makes the next, so the first one noted is the cause.
    """
    noted: list[_Parcel] = []
    sent: list[tuple[_Parcel, Untyped]] = []
    failed: dict[_Parcel, Exception] = {}
    for parcel in parcels:
        if failed and not all(isinstance(error, TOO_LARGE) for error in failed.values()):
            failed[parcel] = kafka_errors.Cancelled("not sent after an earlier failure")
        elif parcel.message:
            try:
                future = producer.send(**parcel.message._asdict())
            except KafkaError as error:
                failed[parcel] = error
            else:
                future.add_errback(lambda parcel, _: noted.append(parcel), parcel)
                sent.append((parcel, future))
    failed |= _await(sent, time.monotonic() + timeout)
    return sorted(failed.items(), key=lambda failure: failure[0] not in noted[:1])


def _await(sent: Iterable[tuple[_Parcel, Untyped]], deadline: float) -> Iterator[Failure]:
    for parcel, future in sent:
        try:
            future.get(timeout=max(0.0, deadline - time.monotonic()))
        except KafkaError as error:
            yield parcel, error


Offsets = dict[TopicPartition, OffsetAndMetadata]


def _offsets(parcels: Iterable[_Parcel], note: str) -> Offsets:
    """The offset after the last record of each partition, and the note that goes with it."""
    positions = [parcel.record.position for parcel in parcels]
    return {
        TopicPartition(at.topic, at.partition): OffsetAndMetadata(
            at.offset + 1, note, at.leader_epoch
        )
        for at in positions
    }


# Reading


def _rebalance_timeout(settings: KafkaSettings) -> float:
    """Seconds; a daemon that is stuck for longer gives up, so the group need not wait for it."""
    return min(settings.stuck_after, SESSIONS * settings.session_timeout)


def _higher(*floors: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """The highest of each."""
    return {one: max(floor.get(one, -1) for floor in floors) for one in set().union(*floors)}


def _record(found: Untyped) -> Record:
    topic, partition, offset = found.topic, found.partition, found.offset
    return Record(
        id=f"{topic}/{partition}/{offset}",
        value=found.value,
        key=found.key,
        headers=tuple(found.headers),
        time=found.timestamp,
        lane=f"{topic}/{partition}",
        position=Position(topic, partition, offset, found.leader_epoch),
    )


class _Source:
    """The input topic, as one member of the group reads it.

    `membership` is what the group called us when everything handed out since was read. None: a
    rewind is owed, and nothing is handed out before it has succeeded. `note` is stored with each
    committed offset, as its metadata.
    """

    def __init__(self, settings: KafkaSettings, outcomes: Outcomes, note: str = "") -> None:
        self.membership: Untyped = None
        self.note = note
        self._outcomes = outcomes
        self._settings = settings
        self._committed: dict[TopicPartition, int] = {}
        self._floor: dict[TopicPartition, int] = {}  # below which no committed offset can be
        self._doubted: tuple[str, float] = "", 0.0  # what was said that cannot be, since when
        self._why = ""  # why a rewind is still owed
        self._handed_out: dict[TopicPartition, int] = {}  # what follows the last one
        ours = {
            "group_id": settings.group,
            "session_timeout_ms": round(settings.session_timeout * 1000),
            "heartbeat_interval_ms": round(settings.heartbeat_interval * 1000),
            # So long a rebalance waits for a member: one that died while the coordinator restarted
            # may outlive its session there (seen with Kafka 4.1.0), and all waited for it in vain.
            "max_poll_interval_ms": round(_rebalance_timeout(settings) * 1000),
            "enable_auto_commit": False,
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",  # never jump: out of range is for a person to decide
            "fetch_max_bytes": 16 << 20,
            # What a partition has sent stays in memory until it is read: with the 1 MiB of default
            # 9 partitions of a full topic moved it by 30 MB. A larger record comes alone.
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

    def poll(self, limit: int, timeout: float) -> list[Untyped]:
        """As `Broker.poll`, but in ConsumerRecords."""
        reading = self.membership is not None
        fetched = self._fetch(limit if reading else 0, timeout)
        if reading and self._is_current():
            for found in fetched:
                place = TopicPartition(found.topic, found.partition)
                self._handed_out[place] = found.offset + 1
            return fetched
        self.rewind()
        if reading:
            raise Rewound("the group has shared out its partitions anew")
        return []

    def _fetch(self, limit: int, timeout: float) -> list[Untyped]:
        """What the library hands out now; it has to be asked even when nothing is wanted.

        It pauses partitions, but not those that it is assigned inside the call.
        """
        turn = self._consumer.resume if limit else self._consumer.pause
        turn(*self._consumer.assignment())
        try:
            fetched = self._ask(limit or 1, timeout)
        except kafka_errors.NoOffsetForPartitionError:
            self.membership = None  # just assigned and never committed: rewinding places it
            return []
        except kafka_errors.OffsetOutOfRangeError as error:
            raise self._out_of_range(error) from error
        except kafka_errors.CorruptRecordError as error:
            return self._pass_over(error, timeout)
        return [found for records in fetched.values() for found in records]

    def _pass_over(self, error: KafkaError, timeout: float) -> list[Untyped]:
        """Hand out nothing while there are elders of a record that cannot be read, then Stop."""
        partition = unreadable(self._consumer, error)
        if partition is None:
            raise error
        offset = position_of(self._consumer, partition)
        if self._committed.get(partition, offset) < self._handed_out.get(partition, offset):
            return self._fetch(0, timeout)
        name = f"{partition.topic}/{partition.partition}/{offset}"
        why = f"{name} cannot be read ({error.__context__}): reset the group's offset to step over"
        raise Stop(f"{why} that record, or delete it", Exit.GIVEN_UP) from error

    def _ask(self, limit: int, timeout: float) -> Mapping[TopicPartition, list[Untyped]]:
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
        now, then = self._consumer.group_metadata(), self.membership
        return then is not None and now[:3] == then[:3]

    def rewind(self) -> None:
        """Go back to what the group has committed; still owed when that does not succeed."""
        self.membership = None
        now = self._consumer.group_metadata()
        if now.state is not MemberState.STABLE:
            return
        try:
            self._place(self._consumer.assignment())
        except (KafkaError, ValueError) as error:  # ValueError: no longer assigned
            check(error, self._settings)
            if str(error) != self._why:
                log.warning("cannot go back to the committed offsets yet: %s", error)
            self._why = str(error)
            return
        self._why = ""
        if self._consumer.group_metadata() == now:
            self.membership = now

    def _place(self, partitions: Collection[TopicPartition]) -> None:
        offsets = {one: self._ask_committed(one) for one in partitions}
        self._believe(offsets)
        for partition, offset in offsets.items():
            start = self._first(partition) if offset is None else offset
            self._consumer.seek(partition, start)
            self._committed[partition] = self._handed_out[partition] = start

    def _ask_committed(self, partition: TopicPartition) -> int | None:
        forget_fetches(self._consumer)
        offset: int | None = self._consumer.committed(partition, timeout_ms=CALL * 1000)
        return offset

    def _believe(self, offsets: Mapping[TopicPartition, int | None]) -> None:
        """Raise unless each is at least what this process has seen, and what is published.

        A coordinator of Kafka 4 that has just been restarted may answer while it still reads its
        log (docs/decisions/013). It is asked again until it is done.
        """
        floors = _higher(self._floor, self._outcomes.ends(offsets))
        told = {one: offset for one, offset in offsets.items() if offset is not None}
        for partition in offsets:
            if told.get(partition, -1) < floors.get(partition, -1):
                self._doubt(partition, floors[partition], told.get(partition))
        self._doubted = "", 0.0
        self._floor = floors | told

    def _doubt(self, partition: TopicPartition, floor: int, told: int | None) -> None:
        """Raise CoordinatorLoadInProgressError, or Stop when it has said the same for long."""
        name = f"{partition.topic}/{partition.partition}"
        what = f"the group's offset of {name} went back from {floor} to {told}"
        if what != self._doubted[0]:
            self._doubted = what, time.monotonic()
        if time.monotonic() - self._doubted[1] > DOUBT:
            raise Stop(
                f"{what}, and nothing is done twice: set it to {floor} to go on, or have the "
                "records done again by another --group",
                Exit.GIVEN_UP,
            )
        raise kafka_errors.CoordinatorLoadInProgressError(what)

    def _first(self, partition: TopicPartition) -> int:
        """Where a group without an offset begins.

        The latest is committed at once, or whatever comes before the first commit would be
        skipped by the next rewind.
        """
        if self._settings.start == "earliest":
            found = self._consumer.beginning_offsets([partition], timeout_ms=CALL * 1000)
            return int(found[partition])
        found = self._consumer.end_offsets([partition], timeout_ms=CALL * 1000)
        offset = int(found[partition])
        self._consumer.commit({partition: OffsetAndMetadata(offset, "", -1)}, CALL * 1000)
        return offset

    def _out_of_range(self, error: KafkaError) -> Stop:
        ((partition, wanted),) = error.args[0].items()
        first = self._consumer.beginning_offsets([partition], timeout_ms=CALL * 1000)[partition]
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
        self._consumer.commit(offsets, CALL * 1000)
        self.acknowledged(offsets)

    def acknowledged(self, offsets: Offsets) -> None:
        """Remember what has been committed."""
        done = {partition: one.offset for partition, one in offsets.items()}
        self._committed |= done
        self._floor |= done

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
        self._outcomes.close()
        self._consumer.close(autocommit=False, timeout_ms=CLOSE * 1000)


# Publishing and acknowledging


class _Delivery(Protocol):
    """One of the two promises."""

    def mend(self) -> None:
        """Make up for whatever went wrong last; nothing is delivered or read before that."""
        ...

    def deliver(self, parcels: Sequence[_Parcel], source: _Source) -> None:
        """Publish, then acknowledge; raises KafkaError when not all of it is known to be done."""
        ...

    def close(self) -> None:
        """Drop what is not done, in bounded time."""
        ...


class _ExactlyOnce:
    """Results, dead letters and offsets in one transaction, never open across anything else."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._timeout = settings.transaction_timeout
        self._producer: Untyped = None
        self._sound = False

    def mend(self) -> None:
        if not self._sound:
            self._renew()

    def _renew(self) -> None:
        """A new producer; the coordinator ends what the old one left open, and bumps the epoch."""
        self.close()
        ours = {
            **_production(self._settings),
            "transactional_id": f"{self._settings.group}-{self._settings.instance}",
            "transaction_timeout_ms": round(self._timeout * 1000),
        }
        self._producer, self._wire = open_client(KafkaProducer, self._settings, ours)
        self._producer.init_transactions()
        self._sound = True

    def deliver(self, parcels: Sequence[_Parcel], source: _Source) -> None:
        """1. Send all. 2. Wait for each. 3. Send the offsets. 4. End the transaction.

        A message that its topic does not take is replaced, in a new transaction.
        """
        self.mend()
        while failed := self._send(parcels):
            self._shrink(parcels, *failed[0])
            self._renew()
        offsets = _offsets(parcels, source.note)
        self._producer.send_offsets_to_transaction(offsets, source.membership)
        self._producer.commit_transaction()
        self._sound = not self._wire.cut_off
        source.acknowledged(offsets)

    def _send(self, parcels: Sequence[_Parcel]) -> list[Failure]:
        self._sound = False  # until its end is known
        self._producer.begin_transaction()
        return _publish(self._producer, parcels, self._timeout)

    def _shrink(self, parcels: Sequence[_Parcel], cause: _Parcel, error: Exception) -> None:
        """Replace what is too large, and what is no smaller and goes to the same topic."""
        if not isinstance(error, TOO_LARGE) or not cause.message:
            raise error
        refused = cause.message
        for parcel in parcels:
            if parcel.is_as_large_as(refused):
                parcel.shrink()

    def close(self) -> None:
        self._sound = False
        if self._producer:
            abandon(self._producer)
        self._producer = None


class _AtLeastOnce:
    """Results and dead letters first, then the offsets of what has been published.

    The producer is not idempotent: one that is ends for good with the first message that is too
    large, and takes the others along.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Untyped = None

    def mend(self) -> None:
        if self._producer:
            return
        ours = {
            **_production(self._settings),
            "enable_idempotence": False,
            "max_in_flight_requests_per_connection": 1,  # or a retry overtakes
        }
        self._producer, _ = open_client(KafkaProducer, self._settings, ours)

    def deliver(self, parcels: Sequence[_Parcel], source: _Source) -> None:
        self.mend()
        lost = dict(self._publish(parcels))
        offsets = _offsets(before(parcels, lost), source.note)
        if offsets:
            source.commit(offsets)
        for error in lost.values():
            raise error

    def _publish(self, parcels: Iterable[_Parcel]) -> Iterator[Failure]:
        """Publish each in the largest form that its topic takes; give back what was not."""
        timeout = self._settings.transaction_timeout
        while failed := _publish(self._producer, parcels, timeout):
            parcels = [parcel for parcel, error in failed if isinstance(error, TOO_LARGE)]
            for parcel in parcels:
                parcel.shrink()
            yield from (failure for failure in failed if failure[0] not in parcels)

    def close(self) -> None:
        if self._producer:
            abandon(self._producer)
        self._producer = None


def _production(settings: KafkaSettings) -> dict[str, Any]:
    """What every producer of ours is told; a message that outlives a transaction is no use."""
    timeout = round(settings.transaction_timeout * 1000)
    return {
        "acks": -1,
        "max_request_size": LARGEST,
        "request_timeout_ms": timeout // 2,
        "delivery_timeout_ms": timeout,
        # For some ms after one transaction the next is told to wait; by default it waits 0.1 s.
        "retry_backoff_ms": 20,
    }


class KafkaBroker:
    """A `Broker` between the input topic and the two others, with either promise.

    Raises Stop(69) when the broker or one of the topics is not there. A younger one of the same
    group and instance fences this one: its next commit is Stop(75). `note` goes with each
    committed offset.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        encode: Encode,
        *,
        note: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._backoff = Backoff(clock, sleep)
        self._addressing = _Addressing(settings, encode)
        exactly_once = settings.delivery == "exactly-once"
        self._delivery: _Delivery = (_ExactlyOnce if exactly_once else _AtLeastOnce)(settings)
        with reaching(settings), ExitStack() as undo:
            undo.callback(self._delivery.close)
            self._delivery.mend()
            outcomes = Outcomes(settings, self._addressing.traceable())
            undo.callback(outcomes.close)
            self._source = _Source(settings, outcomes, note)
            undo.pop_all()

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """See `Broker.poll`; nothing comes while a failure is not mended."""
        if not self._mended():
            return ()
        try:
            return [_record(found) for found in self._source.poll(limit, timeout)]
        except KafkaError as error:
            raise self._begin_again(error) from error
        except Rewound:
            self._backoff.wait()
            raise

    def commit(self, settled: Sequence[Settled]) -> None:
        """See `Broker.commit`; what does not fit its topic becomes a dead letter instead."""
        if self._source.membership is None:
            raise Rewound("nothing that was handed out is ours any more")
        parcels = [Parcel(one.record, self._addressing.forms(one), ADVICE) for one in settled]
        try:
            self._delivery.deliver(parcels, self._source)
        except KafkaError as error:
            raise self._begin_again(error) from error
        self._backoff.reset()

    def _begin_again(self, error: KafkaError) -> Rewound:
        """First the producer, since a pending transaction may still move the offsets.

        The next poll goes back to them, or tries to mend the producer again.
        """
        check(error, self._settings)
        log.warning("beginning again: %s", error)
        self._source.membership = None
        self._mended()
        self._backoff.wait()
        return Rewound(str(error))

    def _mended(self) -> bool:
        try:
            self._delivery.mend()
        except KafkaError as error:
            check(error, self._settings)
            log.warning("cannot begin again yet: %s", error)
            return False
        return True

    def lag(self) -> Mapping[Hashable, int]:
        """Records in each lane that are not acknowledged, as far as is known."""
        return self._source.lag()

    def joined(self) -> bool:
        """Say whether the group has given this member its share, and all of it can be read."""
        return self._source.membership is not None

    def close(self) -> None:
        """See `Broker.close`."""
        self._delivery.close()
        self._source.close()


# The two ends of the relay


class _Publisher:
    """Puts images into the input topic; idempotent, so a repeated request counts once."""

    records_out = 1_000
    bytes_out = LARGEST

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        partition_counts(settings, [settings.input_topic])
        with reaching(settings):
            ours = {"max_request_size": LARGEST}
            self._producer, _ = open_client(KafkaProducer, settings, ours)
        self._out: deque[tuple[Untyped, int]] = deque()
        self._bytes = 0

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
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
        future.get(timeout=CALL)

    def flush(self) -> None:
        with self._delivering():
            while self._out:
                self._settle_one()

    @contextmanager
    def _delivering(self) -> Iterator[None]:
        try:
            yield
        except KafkaError as error:
            check(error, self._settings)
            topic = self._settings.input_topic
            raise Stop(f"{topic} did not take a record: {error}", Exit.UNAVAILABLE) from error

    def close(self) -> None:
        abandon(self._producer)


class _Reader:
    """Reads all partitions of one topic, outside any group; commits nothing."""

    def __init__(self, settings: KafkaSettings, topic: str, bound: str) -> None:
        self._settings = settings
        partitions = [
            TopicPartition(topic, number)
            for number in range(partition_counts(settings, [topic])[topic])
        ]
        ours = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
        with reaching(settings):
            self._consumer, _ = open_client(KafkaConsumer, settings, ours)
            self._consumer.assign(partitions)
            # Asked for now: a lazy `seek_to_end` would miss what comes before the first read.
            places = getattr(self._consumer, bound)(partitions, timeout_ms=CALL * 1000)
            for partition, offset in places.items():
                self._consumer.seek(partition, offset)

    def read(self, timeout: float) -> Sequence[Record]:
        with reaching(self._settings):
            fetched = self._consumer.poll(round(timeout * 1000))
        return [_record(found) for records in fetched.values() for found in records]

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=CLOSE * 1000)


def open_publisher(settings: KafkaSettings) -> _Publisher:
    """The sending client's way into `settings.input_topic`."""
    return _Publisher(settings)


def open_reader(settings: KafkaSettings, topic: str, from_beginning: bool) -> _Reader:  # noqa: FBT001 - the same for every broker
    """The listening client's way out of `topic`: from its beginning, or from now on."""
    return _Reader(settings, topic, "beginning_offsets" if from_beginning else "end_offsets")
