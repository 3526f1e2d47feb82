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
    a record that cannot be read    Stop 78, once all before it are acknowledged
    one whose codec is missing      Stop 69, likewise
    a message that is refused       its next form, a dead letter at last
    a topic that refuses every one  Stop 69
    a topic that is gone            begin again, and Stop 69 when it is still gone 10 s later
    anything else of kafka-python   begin again, then Rewound
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from kafka.errors import KafkaError

from ...errors import Rewound
from ..publishing import PendingMessage, RetryDelay
from .clients import DeletedTopicDetector, raise_if_permanent, stop_if_unreachable
from .consumer import GroupConsumer, make_record
from .messages import MessageBuilder
from .producer import AtLeastOnce, Delivery, ExactlyOnce
from .published_offsets import PublishedOffsets

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Hashable,
        Mapping,
        Sequence,
    )

    from ...records import Record, Settled
    from ..publishing import Encode
    from .settings import KafkaSettings, RunKafka


_log = logging.getLogger(__name__)

ADVICE = "raise its max.message.bytes"


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
        self._clock = clock
        self._retry_delay = RetryDelay(clock, sleep)
        self._builder = MessageBuilder(settings, encode)
        topics = [settings.input_topic, settings.output_topic, settings.dead_letter_topic]
        self._deleted_topics = DeletedTopicDetector(settings, topics)
        exactly_once = settings.delivery == "exactly-once"
        self._delivery: Delivery = (ExactlyOnce if exactly_once else AtLeastOnce)(settings)
        with stop_if_unreachable(settings), ExitStack() as undo:
            undo.callback(self._delivery.close)
            self._delivery.ensure_ready()
            published_offsets = PublishedOffsets(settings, self._builder.traceable())
            undo.callback(published_offsets.close)
            self._source = GroupConsumer(settings, published_offsets, note)
            undo.pop_all()

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """See `Broker.poll`; nothing comes while a failure is not mended."""
        if not self._ensure_ready():
            return ()
        try:
            records = [make_record(found) for found in self._source.poll(limit, timeout)]
            self._source.require_topic()  # behind the poll, in which the library learns of it
        except KafkaError as error:
            raise self._begin_again(error) from error
        except Rewound:
            self._retry_delay.wait()
            raise
        if not self.joined():  # as for ever, when what is published cannot be read back
            self._deleted_topics.check()
        return records

    def commit(self, settled: Sequence[Settled]) -> None:
        """See `Broker.commit`; what does not fit its topic becomes a dead letter instead."""
        if self._source.group_metadata is None:
            raise Rewound("nothing that was handed out is ours any more")
        try:
            self._source.require_topic()  # or the library would send the offsets for ever
            if self._builder.recount(settled, self._clock()):
                self._delivery.close()  # a producer may not know the new partitions yet
            pending_messages = [
                PendingMessage(one.record, self._builder.fallbacks(one), ADVICE) for one in settled
            ]
            self._delivery.deliver(pending_messages, self._source)
        except KafkaError as error:
            raise self._begin_again(error) from error
        self._retry_delay.reset()

    def _begin_again(self, error: KafkaError) -> Rewound:
        """First the producer, since a pending transaction may still move the offsets.

        The next poll goes back to them, or tries to mend the producer again.
        """
        raise_if_permanent(error, self._settings)
        _log.warning("beginning again: %s", error)
        self._source.group_metadata = None
        if self._ensure_ready():
            self._deleted_topics.check()
        self._retry_delay.wait()
        return Rewound(str(error))

    def _ensure_ready(self) -> bool:
        try:
            self._delivery.ensure_ready()
        except KafkaError as error:
            raise_if_permanent(error, self._settings)
            _log.warning("cannot begin again yet: %s", error)
            return False
        return True

    def lag(self) -> Mapping[Hashable, int]:
        """Records in each lane that are not acknowledged, as far as is known."""
        return self._source.lag()

    def joined(self) -> bool:
        """Say whether the group has given this member its share, and all of it can be read."""
        return self._source.group_metadata is not None

    def close(self) -> None:
        """See `Broker.close`."""
        self._delivery.close()
        self._source.close()


def open_broker(settings: RunKafka, encode: Encode) -> KafkaBroker:
    """Open the daemon's way in and out."""
    return KafkaBroker(settings, encode)
