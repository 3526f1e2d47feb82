"""The two ends of the relay: putting images into a topic, reading results from one."""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from google.api_core import exceptions as google_errors
from google.api_core.exceptions import GoogleAPIError
from google.pubsub_v1.types import ExpirationPolicy, Subscription

from ...errors import Exit, Stop
from ...records import Record, SizeLimit
from ...text import decode_text
from ..publishing import PendingMessage
from . import admin
from .broker import ACKNOWLEDGE_TIMEOUT
from .clients import (
    CALL_TIMEOUT,
    RETRY,
    Paths,
    connect_subscriber,
    describe_error,
    raise_if_permanent,
    require_subscription,
    require_topics,
    stop_if_unreachable,
)
from .messages import MAX_MESSAGE_BYTES, Outgoing, make_attributes, make_record
from .producer import MAX_BATCH, MAX_BATCH_BYTES, BatchPublisher, Pending
from .stream import Stream, acknowledge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...records import Headers, Publisher
    from .. import Untyped
    from .settings import ListenPubSub, PubSubSettings, SendPubSub


MESSAGE_OVERHEAD = 2048
"""Bytes that a message of `send` has besides its value, key and headers, rounded up."""


class TopicPublisher:
    """Puts images into the input topic; a request that is repeated may count twice."""

    limit = SizeLimit(
        MAX_MESSAGE_BYTES - MESSAGE_OVERHEAD, "Pub/Sub takes no more, send it smaller"
    )

    def __init__(self, settings: PubSubSettings) -> None:
        self._settings = settings
        self._kept: list[Pending] = []
        self._bytes = 0
        with stop_if_unreachable(settings), ExitStack() as undo:
            self._batch_publisher = BatchPublisher(settings.project, time.monotonic)
            undo.callback(self._batch_publisher.close)
            require_topics(self._batch_publisher.client, settings, [settings.input_topic])
            undo.pop_all()

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """See `Publisher.publish`."""
        topic = self._settings.input_topic
        message = Outgoing(topic, value, decode_text(key or b""), make_attributes(headers))
        if not message.fits():
            raise Stop(f"{topic} takes no message of {message.size()} bytes", Exit.USAGE)
        nobodys = Record(f"a message to {topic}", value, key, headers, 0, None, None)
        self._kept.append(PendingMessage(nobodys, iter([message]), "leave it out"))
        self._bytes += message.size()
        if len(self._kept) >= MAX_BATCH or self._bytes >= MAX_BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """See `Publisher.flush`."""
        kept, self._kept, self._bytes = self._kept, [], 0
        for error in self._batch_publisher.publish(kept).values():
            raise_if_permanent(error, self._settings)
            topic = self._settings.input_topic
            raise Stop(
                f"{topic} did not take a message: {describe_error(error)}", Exit.UNAVAILABLE
            ) from error

    def close(self) -> None:
        """See `Publisher.close`."""
        self._batch_publisher.close()


class TopicReader:
    """Reads from a subscription and acknowledges what it has given out before."""

    def __init__(self, settings: PubSubSettings, topic: str) -> None:
        self._settings = settings
        self._shown: list[Untyped] = []
        self._undo = ExitStack()
        with stop_if_unreachable(settings), ExitStack() as undo:
            self._subscriber = connect_subscriber()
            undo.callback(self._subscriber.close)
            self._name = settings.output_subscription or self._borrow(topic, undo)
            require_subscription(self._subscriber, settings, self._name)
            self._undo = undo.pop_all()
        path = Paths(settings.project).subscription(self._name)
        window = {"window": settings.window, "window_bytes": settings.window_bytes}
        self._stream = Stream(self._subscriber, path, lease=settings.ack_deadline, **window)

    def _borrow(self, topic: str, undo: ExitStack) -> str:
        """Make a subscription for as long as this reader reads; at worst it is gone after a day."""
        name = f"listen-{uuid.uuid4()}"
        paths = Paths(self._settings.project)
        path = paths.subscription(name)
        planned = Subscription(
            name=path,
            topic=paths.topic(topic),
            enable_message_ordering=True,
            message_retention_duration=timedelta(days=1),
            expiration_policy=ExpirationPolicy(ttl=timedelta(days=1)),
        )
        try:
            self._subscriber.create_subscription(planned, retry=RETRY, timeout=CALL_TIMEOUT)
        except google_errors.NotFound as error:
            raise Stop(
                f"topic {topic} is not there: make it, let --create make it, or correct its name",
                Exit.UNAVAILABLE,
            ) from error
        undo.callback(self._give_up, path)
        return name

    def _give_up(self, path: str) -> None:
        with suppress(GoogleAPIError):
            self._subscriber.delete_subscription(
                subscription=path, retry=None, timeout=CALL_TIMEOUT
            )

    def read(self, timeout: float) -> Sequence[Record]:
        """See `Reader.read`."""
        if error := self._stream.error():
            raise_if_permanent(error, self._settings)
            raise Stop(
                f"the subscription {self._name} ended: {describe_error(error)}", Exit.UNAVAILABLE
            )
        acknowledge(self._shown, ACKNOWLEDGE_TIMEOUT)
        self._shown = self._stream.take(self._settings.window, timeout)
        return [make_record(self._name, message) for message in self._shown]

    def close(self) -> None:
        """See `Reader.close`."""
        acknowledge(self._shown, ACKNOWLEDGE_TIMEOUT)
        self._stream.close(give_back=())
        self._undo.close()


class Unordered:
    """A Publisher that sends no keys; a record's key goes along as its header `name`.

    For brokers to which a key is an order to keep, which costs a request for each key.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    @property
    def limit(self) -> SizeLimit | None:
        """See `Publisher.limit`."""
        return self._publisher.limit

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """See `Publisher.publish`."""
        self._publisher.publish(None, value, (*headers, ("name", key)))

    def flush(self) -> None:
        """See `Publisher.flush`."""
        self._publisher.flush()

    def close(self) -> None:
        """See `Publisher.close`."""
        self._publisher.close()


def open_publisher(settings: SendPubSub) -> Publisher:
    """The sending client's way into the input topic; without `--ordering-keys` it sends no keys."""
    admin.create_if_asked(settings)
    publisher = TopicPublisher(settings)
    return publisher if settings.ordering_keys else Unordered(publisher)


def open_reader(settings: ListenPubSub) -> TopicReader:
    """The listening client's way out of the output topic.

    From `settings.output_subscription`, whose messages it takes away; without one from now on.
    """
    if settings.from_beginning and not settings.output_subscription:
        raise Stop(
            "--from-beginning needs --output-subscription, a subscription that was there when the "
            f"predictions came: Pub/Sub keeps nothing of {settings.output_topic} for one that is "
            "made now",
            Exit.USAGE,
        )
    admin.create_if_asked(settings)
    return TopicReader(settings, settings.output_topic)
