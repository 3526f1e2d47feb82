"""What `watch` sees of Kafka: results, dead letters, source records, and how far a group is.

No group is joined, nothing is committed, nothing is produced: partitions are assigned by hand, and
the group's offsets are asked for as an operator asks for them.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from ...records import Progress, Sighting
from .clients import (
    CALL_TIMEOUT,
    CLOSE_TIMEOUT,
    connect_admin,
    open_client,
    partition_counts,
    position_of,
    raise_if_permanent,
    stop_if_unreachable,
)
from .endpoints import TopicReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ...records import Record
    from .settings import KafkaSettings, WatchKafka

EARLIER_RESULTS, EARLIER_DEAD_LETTERS = 24, 8
"""Offsets of each partition before its end that are read at first; dead letters may be large."""

FETCH_TIMEOUT = 2.0
"""Seconds for the source records of one round."""

RECORD_TIMEOUT = 0.5
"""Seconds for one of them."""

BATCH_BYTES = 1 << 16
"""Bytes asked for at once of source records; one of more comes whole, and alone."""


class TopicTail(TopicReader):
    """Reads a topic from `earlier` offsets before the end that it has now."""

    def __init__(self, settings: KafkaSettings, topic: str, earlier: int) -> None:
        super().__init__(settings, topic, "end_offsets")
        partitions = list(self._consumer.assignment())
        self._ends = {one: position_of(self._consumer, one) for one in partitions}
        with stop_if_unreachable(settings):
            firsts = self._consumer.beginning_offsets(partitions, timeout_ms=CALL_TIMEOUT * 1000)
        for partition, end in self._ends.items():
            self._consumer.seek(partition, max(firsts[partition], end - earlier))

    def poll(self, timeout: float) -> Sequence[Record]:
        """As `read`; raises KafkaError while the broker is away."""
        return self._poll(timeout)

    def is_earlier(self, record: Record) -> bool:
        """Say whether a record was there before this reader."""
        at = record.position
        return bool(at.offset < self._ends.get(TopicPartition(at.topic, at.partition), 0))


class SourceReader:
    """Finds records of the input topic by their ids."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._id = re.compile(rf"{re.escape(settings.input_topic)}/([0-9]{{1,9}})/([0-9]{{1,18}})")
        self._topic = settings.input_topic
        ours = {
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",
            "enable_auto_commit": False,
            "group_id": None,
            "max_partition_fetch_bytes": BATCH_BYTES,
            "max_poll_records": 1,
        }
        self._consumer, _ = open_client(KafkaConsumer, settings, ours)

    def find(self, ids: Sequence[str], partitions: int) -> Iterator[tuple[str, bytes]]:
        """Give what is there, in at most FETCH_TIMEOUT seconds; raises KafkaError.

        Whoever writes results chooses their ids: one that cannot be is passed over.
        """
        deadline = time.monotonic() + FETCH_TIMEOUT
        for one in ids:
            found = self._id.fullmatch(one)
            if found and int(found[1]) < partitions and time.monotonic() < deadline:
                value = self._read(TopicPartition(self._topic, int(found[1])), int(found[2]))
                if value is not None:
                    yield one, value

    def _read(self, partition: TopicPartition, offset: int) -> bytes | None:
        """Return the value at an offset; None: there is none, or none any more."""
        self._consumer.assign([partition])
        self._consumer.seek(partition, offset)
        try:
            polled = self._consumer.poll(round(RECORD_TIMEOUT * 1000))
        except OffsetOutOfRangeError:
            return None
        records = polled.get(partition, ())
        return next((one.value for one in records if one.offset == offset), None)

    def close(self) -> None:
        """Return in bounded time."""
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT * 1000)


class KafkaWatcher:
    """Looks at the topics of one group of daemons."""

    def __init__(self, settings: WatchKafka) -> None:
        self._settings = settings
        self._troubles: dict[str, str] = {}  # by question
        topics = [settings.input_topic, settings.output_topic, settings.dead_letter_topic]
        self._partitions = partition_counts(settings, topics)[settings.input_topic]
        with stop_if_unreachable(settings), ExitStack() as undo:
            self._results = TopicTail(settings, settings.output_topic, EARLIER_RESULTS)
            undo.callback(self._results.close)
            self._dead = TopicTail(settings, settings.dead_letter_topic, EARLIER_DEAD_LETTERS)
            undo.callback(self._dead.close)
            self._sources = SourceReader(settings)
            undo.callback(self._sources.close)
            self._admin = undo.enter_context(connect_admin(settings))
            self._undo = undo.pop_all()

    def read(self, timeout: float) -> Sequence[Sighting]:
        """See `Watcher.read`."""
        found: list[Sighting] = []
        with self._asking("read"):
            for tail, dead, wait in ((self._dead, True, 0.0), (self._results, False, timeout)):
                records = tail.poll(wait)
                found += [Sighting(one, dead, tail.is_earlier(one)) for one in records]
        return found

    def measure(self) -> Progress | None:
        """See `Watcher.measure`; without a committed offset a partition counts from its first."""
        with self._asking("measure"):
            topic, group = self._settings.input_topic, self._settings.group
            self._partitions = self._count_partitions()
            places = [TopicPartition(topic, number) for number in range(self._partitions)]
            firsts, ends = (
                self._admin.list_partition_offsets(
                    dict.fromkeys(places, spec), IsolationLevel.READ_COMMITTED, CALL_TIMEOUT * 1000
                )
                for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
            )
            committed = self._admin.list_group_offsets([group])[group]
            members = len(self._admin.describe_groups([group])[group]["members"])
            return Progress(
                {
                    f"{topic}/{one.partition}": max(
                        0, ends[one].offset - committed.get(one, firsts[one]).offset
                    )
                    for one in places
                },
                members,
            )
        return None

    def _count_partitions(self) -> int:
        found = self._admin.describe_topics([self._settings.input_topic])
        return len(found[0]["partitions"]) or self._partitions

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """See `Watcher.fetch`."""
        found: dict[str, bytes] = {}
        with self._asking("fetch"):
            found.update(self._sources.find(ids, self._partitions))
        return found

    @contextmanager
    def _asking(self, question: str) -> Iterator[None]:
        """Keep why the broker does not answer; raises Stop when time will not cure that."""
        self._troubles.pop(question, None)
        try:
            yield
        except KafkaError as error:
            raise_if_permanent(error, self._settings)
            self._troubles[question] = f"Kafka does not answer ({type(error).__name__}: {error})"

    def trouble(self) -> str:
        """See `Watcher.trouble`."""
        return next(iter(self._troubles.values()), "")

    def close(self) -> None:
        """See `Watcher.close`."""
        self._undo.close()


def open_watcher(settings: WatchKafka) -> KafkaWatcher:
    """The way of `watch` to topics and group."""
    return KafkaWatcher(settings)
