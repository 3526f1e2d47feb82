"""What an operator asks of Kafka: its dead letters, a replay of them, and whether all is well."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from ...errors import Exit, Stop
from ...records import Advice, Ok
from .broker import KafkaBroker
from .clients import (
    CALL_TIMEOUT,
    advise_library,
    close_now,
    connect_admin,
    describe_configs,
    missing_codecs,
    open_client,
    partition_counts,
    position_of,
    stop_if_unreachable,
)
from .endpoints import TopicReader
from .producer import producer_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ...records import Check, Record
    from .. import Untyped
    from ..publishing import Encode
    from .settings import CheckKafka, DeadKafka, KafkaSettings, ReplayKafka


COORDINATOR_PENDING_ERRORS = (
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.NotCoordinatorError,
)
"""There will be a coordinator in a moment."""

RESULT_BYTES = 16_384
"""Bytes that every result fits in, with the headers of most records."""


# Dead letters


class EndOffsets:
    """How far the partitions of a topic reached at one moment."""

    def __init__(self, consumer: Untyped, topic: str, partitions: int) -> None:
        self._consumer = consumer
        places = [TopicPartition(topic, number) for number in range(partitions)]
        self._ends = consumer.end_offsets(places, timeout_ms=CALL_TIMEOUT * 1000)

    def within(self, records: Iterable[Record]) -> list[Record]:
        """Leave out what came later."""
        return [one for one in records if one.position.offset < self._end(one.position)]

    def _end(self, at: Untyped) -> int:
        """The end of a partition; all of one that was added since came later."""
        return int(self._ends.get(TopicPartition(at.topic, at.partition), 0))

    def is_read(self) -> bool:
        """Say whether all of it was handed out; never, while partitions are somebody else's."""
        return all(position_of(self._consumer, one) >= end for one, end in self._ends.items())


class DeadLetterReader(TopicReader):
    """All dead letters that are there now."""

    def __init__(self, settings: KafkaSettings) -> None:
        topic = settings.dead_letter_topic
        super().__init__(settings, topic, "beginning_offsets")
        with stop_if_unreachable(settings):
            count = len(self._consumer.assignment())
            self._end_offsets = EndOffsets(self._consumer, topic, count)

    def read(self, timeout: float) -> Sequence[Record]:
        """See `dlq.DeadLetterReader.read`."""
        return self._end_offsets.within(super().read(timeout))

    def exhausted(self) -> bool:
        """See `dlq.DeadLetterReader.exhausted`."""
        return self._end_offsets.is_read()


class ReplayBroker(KafkaBroker):
    """The way back: from all dead letters that are there now to the topic they came from.

    A group of its own, which remembers by which conditions it chose. Two of the same name at once
    are one too many: the younger fences the older one (75).
    """

    def __init__(self, settings: KafkaSettings, name: str, note: str, encode: Encode) -> None:
        dead_letters = settings.dead_letter_topic
        back = settings.model_copy(
            update={
                "input_topic": dead_letters,
                "output_topic": settings.input_topic,
                "group": f"{settings.group}.replay.{name}",
                "instance": "replay",
                "delivery": "exactly-once",
                "start": "earliest",
            }
        )
        partitions = partition_counts(back, [dead_letters])[dead_letters]
        _refuse_other_notes(back, note)  # before an older one is fenced
        super().__init__(back, encode, note=note)
        with ExitStack() as undo:
            undo.callback(self.close)
            _refuse_other_notes(back, note)  # and when nothing of an older one is pending
            with stop_if_unreachable(back):
                self._end_offsets = EndOffsets(self._source.consumer, dead_letters, partitions)
            undo.pop_all()

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """See `dlq.ReplayBroker.poll`."""
        return self._end_offsets.within(super().poll(limit, timeout))

    def exhausted(self) -> bool:
        """Say whether all was handed out, and nothing of it is owed again."""
        return self.joined() and self._end_offsets.is_read()


def _refuse_other_notes(settings: KafkaSettings, note: str) -> None:
    """Raise Stop(2) when this group has chosen by other conditions before."""
    for stored in _committed(settings).values():
        if stored.metadata != note:
            raise Stop(
                f"a replay of this name has begun with other conditions ({stored.metadata}): "
                "repeat them, or choose another --name",
                Exit.USAGE,
            )


def _committed(settings: KafkaSettings) -> Mapping[TopicPartition, Untyped]:
    """What the group has committed of its input topic."""
    with _open_admin(settings) as admin:
        found = _await_coordinator(
            lambda: admin.list_group_offsets([settings.group])[settings.group]
        )
    return {one: at for one, at in found.items() if one.topic == settings.input_topic}


def _await_coordinator(ask: Callable[[], Untyped]) -> Untyped:
    """Ask again while the group's coordinator is chosen, as after the start of a cluster."""
    deadline = time.monotonic() + CALL_TIMEOUT
    while True:
        try:
            return ask()
        except COORDINATOR_PENDING_ERRORS:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextmanager
def _open_admin(settings: KafkaSettings) -> Iterator[Untyped]:
    with stop_if_unreachable(settings), connect_admin(settings) as admin:
        yield admin


def open_dead_letters(settings: DeadKafka) -> DeadLetterReader:
    """The way into all dead letters that are there now; commits nothing."""
    return DeadLetterReader(settings)


def open_replay(settings: ReplayKafka, encode: Encode) -> ReplayBroker:
    """The way of the dead letters back to the input topic."""
    return ReplayBroker(settings, settings.name, describe_conditions(settings.where), encode)


def describe_conditions(conditions: Sequence[str]) -> str:
    """What a replay's group remembers: the conditions, in any order, however often repeated."""
    return f"replay of {' and '.join(sorted(set(conditions))) or 'everything'}"


# Checks: each says in one sentence what it found, or raises Stop


def list_checks(settings: CheckKafka) -> list[Check]:
    """What a daemon cannot do without, in the order in which one depends on the other."""
    return [
        ("broker", partial(_broker, settings)),
        ("topics", partial(_topics, settings)),
        ("transactions", partial(_transactions, settings)),
    ]


def list_all_checks(settings: CheckKafka) -> list[Check]:
    """The checks, and what is worth knowing besides."""
    return [
        ("library", _library),
        *list_checks(settings),
        ("sizes", partial(_sizes, settings)),
        ("group", partial(_group, settings)),
    ]


def _library() -> Ok | Advice:
    try:
        fast = version("crc32c")
    except PackageNotFoundError:
        return Advice("install crc32c: without it kafka-python reads and writes at a fifth")
    return Ok(f"kafka-python {version('kafka-python')}, crc32c {fast}")


def _broker(settings: KafkaSettings) -> Ok | Advice:
    with _open_admin(settings) as admin:
        cluster = admin.describe_cluster()
    return Ok(f"{settings.bootstrap_servers}, brokers: {len(cluster['brokers'])}")


def _topics(settings: KafkaSettings) -> Ok | Advice:
    topics = [settings.input_topic, settings.output_topic, settings.dead_letter_topic]
    counts = partition_counts(settings, topics)
    if missing := missing_codecs():
        return Advice(f"{advise_library(' '.join(missing))}, or a record packed so stops a daemon")
    if len(set(counts.values())) > 1:
        counted = ", ".join(f"{topic} {counts[topic]}" for topic in topics)
        return Advice(
            f"give the topics the same number of partitions ({counted}), or records keep their "
            "order by key only"
        )
    return Ok(f"{', '.join(topics)}, {counts[topics[0]]} partitions each")


def _transactions(settings: KafkaSettings) -> Ok | Advice:
    """Under a name that no daemon has, or it would be fenced."""
    if settings.delivery != "exactly-once":
        return Ok("not asked for (--delivery at-least-once)")
    name = f"{settings.group}-{settings.instance}-check"
    timeout = round(settings.transaction_timeout * 1000)
    ours = {"transactional_id": name, "transaction_timeout_ms": timeout}
    with stop_if_unreachable(settings):
        producer, _ = open_client(KafkaProducer, settings, producer_arguments(settings) | ours)
        try:
            producer.init_transactions()
        finally:
            close_now(producer)
    return Ok(f"allowed, as {settings.group}-...")


def _sizes(settings: KafkaSettings) -> Ok | Advice:
    topics = [settings.input_topic, settings.output_topic, settings.dead_letter_topic]
    configs = _read_configs(settings, topics)
    for topic in topics[1:]:
        if "compact" in (policy := configs[topic]["cleanup.policy"]):
            return Advice(
                f"set cleanup.policy of {topic} from {policy} to delete, or it takes no message "
                "without a key, and of those with the same key it keeps the last one only"
            )
    taken, out, dead = (int(configs[topic]["max.message.bytes"]) for topic in topics)
    if dead < taken:
        return Advice(
            f"raise max.message.bytes of {settings.dead_letter_topic} from {dead} to more than "
            f"the {taken} of {settings.input_topic}, or larger dead letters lose their value"
        )
    if out < RESULT_BYTES:
        return Advice(
            f"raise max.message.bytes of {settings.output_topic} from {out} to {RESULT_BYTES} or "
            "more, or results may not fit"
        )
    return Ok(f"max.message.bytes: {taken} in, {out} out, {dead} dead")


def _read_configs(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, dict[str, str]]:
    """What the checks compare of the settings of each topic."""
    names = ["max.message.bytes", "cleanup.policy"]
    with _open_admin(settings) as admin:
        found = describe_configs(admin, topics, names)
    for topic in topics:
        if not found[topic].keys() >= set(names):
            raise Stop(
                f"the settings of {topic} may not be read: grant DescribeConfigs",
                Exit.UNAVAILABLE,
            )
    return found


def _group(settings: KafkaSettings) -> Ok | Advice:
    with _open_admin(settings) as admin:
        group = _await_coordinator(lambda: admin.describe_groups([settings.group])[settings.group])
    members, behind = len(group["members"]), _count_unread(settings)
    state = group["group_state"].replace("Dead", "new")  # Kafka's word for one it has not heard of
    text = f"{settings.group} is {state}, members: {members}, records to read: at most {behind}"
    return Ok(text) if members or not behind else Advice(f"start a daemon: {text}")


def _count_unread(settings: KafkaSettings) -> int:
    """Offsets between what is committed and the end; the ends of transactions count too."""
    topic, committed = settings.input_topic, _committed(settings)
    places = [TopicPartition(topic, n) for n in range(partition_counts(settings, [topic])[topic])]
    with _open_admin(settings) as admin:
        firsts, ends = (
            admin.list_partition_offsets(
                dict.fromkeys(places, spec), IsolationLevel.READ_COMMITTED, CALL_TIMEOUT * 1000
            )
            for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
        )
    start = firsts if settings.start == "earliest" else ends
    return sum(ends[one].offset - committed.get(one, start[one]).offset for one in places)
