"""Google Pub/Sub, through google-cloud-pubsub: read, publish, then acknowledge.

At least once: a record is acknowledged when its result, or its dead letter, has been published.
What is published and then not acknowledged (a daemon killed in between, an acknowledgement lost)
comes again, and its second result carries the same id, `<subscription>/<message id>`.

Ordering keys are lanes, and go along to the output. The service keeps their order, also when it
sends again, as long as nobody gives back what has a key: see `Stream`.

Rewound is a new stream. What the old one handed out is neither acknowledged nor given back; its
leases run out, and within `ack_deadline` seconds of the last extension the service sends it again.

Beside the subscription's own dead-letter policy, if it has one: that one moves a message away
after so many deliveries, whatever the reason, also when daemons were killed or the service of
ours was away; the dead-letter topic here takes what was found wanting, with the reason.

Which errors mean what:

    not there, or not allowed     Stop 69
    a message that is refused     its next smaller form
    anything else                 again, for 8 seconds; then a new stream, and Rewound
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ...errors import Rewound
from ..publishing import PendingMessage, RetryDelay, select_published
from . import admin
from .clients import (
    Paths,
    connect_subscriber,
    describe_error,
    raise_if_permanent,
    require_subscription,
    require_topics,
    stop_if_unreachable,
)
from .messages import MessageBuilder, make_record
from .producer import BatchPublisher
from .stream import Stream, acknowledge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...records import Record, Settled
    from .. import Untyped
    from ..publishing import Encode
    from .settings import PubSubSettings, RunPubSub


_log = logging.getLogger(__name__)

ACKNOWLEDGE_TIMEOUT = 5.0
"""Seconds for the answers to acknowledgements."""


class PubSubBroker:
    """A `Broker` between a subscription and two topics.

    Raises Stop(69) when one of them is not there. A poll and a commit belong to one thread; the
    library has threads of its own, and publishing has some, too.
    """

    def __init__(
        self,
        settings: PubSubSettings,
        encode: Encode,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._retry_delay = RetryDelay(clock, sleep)
        self._builder = MessageBuilder(settings, encode)
        self._held: dict[str, Untyped] = {}  # what was handed out, by its ack id
        with stop_if_unreachable(settings), ExitStack() as undo:
            self._batch_publisher = BatchPublisher(settings.project, clock)
            undo.callback(self._batch_publisher.close)
            self._subscriber = connect_subscriber()
            undo.callback(self._subscriber.close)
            topics = [settings.output_topic, settings.dead_letter_topic]
            require_topics(self._batch_publisher.client, settings, topics)
            require_subscription(self._subscriber, settings, settings.subscription)
            undo.pop_all()
        self._stream = self._open()

    def _open(self) -> Stream:
        return Stream(
            self._subscriber,
            Paths(self._settings.project).subscription(self._settings.subscription),
            window=self._settings.window,
            window_bytes=self._settings.window_bytes,
            lease=self._settings.ack_deadline,
        )

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """See `Broker.poll`; leases are extended whether it is called or not."""
        self._require_stream(0.0 if limit else timeout)
        taken = self._stream.take(limit, timeout)
        self._held |= {message.ack_id: message for message in taken}
        return [make_record(self._settings.subscription, message) for message in taken]

    def commit(self, settled: Sequence[Settled]) -> None:
        """See `Broker.commit`; what does not fit its topic becomes a dead letter instead."""
        self._require_stream()  # or what is published could not be acknowledged
        advice = "give --dead-letter-topic one that takes any message, without a schema"
        pending_messages = [
            PendingMessage(one.record, self._builder.fallbacks(one), advice) for one in settled
        ]
        lost = self._batch_publisher.publish(pending_messages)
        done = [pending.record.position for pending in select_published(pending_messages, lost)]
        failed = [*lost.values(), *acknowledge(done, ACKNOWLEDGE_TIMEOUT)]
        for message in done:
            self._held.pop(message.ack_id, None)
        for error in failed:
            raise self._begin_again(error) from error
        self._retry_delay.reset()

    def _require_stream(self, timeout: float = 0.0) -> None:
        """Raise Rewound, or Stop, when the stream is broken or breaks within `timeout` seconds."""
        if error := self._stream.error(timeout):
            raise self._begin_again(error) from error

    def _begin_again(self, error: BaseException) -> Rewound:
        raise_if_permanent(error, self._settings)
        _log.warning("beginning again: %s", describe_error(error))
        self._stream.close()
        self._held.clear()
        self._retry_delay.wait()
        self._stream = self._open()
        return Rewound(describe_error(error))

    def lag(self) -> None:
        """Pub/Sub does not tell a subscriber how much is left."""

    def joined(self) -> bool:
        """Say yes: a broken stream is noticed, and opened anew, by `poll` and `commit`."""
        return True

    def close(self) -> None:
        """See `Broker.close`.

        What has no ordering key is given back, so that another daemon has it at once; what has one
        comes again when its lease is over, or its order would be lost. Both count as an attempt
        of the subscription's dead-letter policy, as every delivery does.
        """
        self._stream.close(give_back=self._held.values())
        self._held.clear()
        self._subscriber.close()
        self._batch_publisher.close()


def open_broker(settings: RunPubSub, encode: Encode) -> PubSubBroker:
    """Open the daemon's way in and out, once all that it needs is there (--create makes it)."""
    admin.ensure_resources(settings)
    return PubSubBroker(settings, encode)
