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
    anything else                 again, for PUBLISH seconds; then a new stream, and Rewound
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from itertools import accumulate, chain, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from google.api_core import exceptions as google_errors
from google.api_core.exceptions import GoogleAPIError
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import ExpirationPolicy, PublishRequest, PubsubMessage, Subscription

from ..errors import Exit, Rewound, Stop
from ..records import Message, Record, Rejection, Settled
from .delivery import ORIGIN, OURS, Backoff, Parcel, before, complaint
from .pubsub_stream import Stream, Subscriber, acknowledge

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from ..records import Headers
    from ..settings import PubSubSettings
    from .delivery import Encode

Untyped = Any  # an object of google.cloud.pubsub_v1, which ships no types

log = logging.getLogger(__name__)

ABSENT = (google_errors.NotFound,)
REFUSED = (google_errors.Forbidden, google_errors.Unauthenticated, GoogleAuthError)
UNFIT = (google_errors.InvalidArgument, google_errors.OutOfRange)
PASSING = (
    google_errors.Aborted,
    google_errors.Cancelled,
    google_errors.DeadlineExceeded,
    google_errors.InternalServerError,
    google_errors.ResourceExhausted,
    google_errors.ServiceUnavailable,
    google_errors.Unknown,
)

CALL = 10.0
"""Seconds for one question to the service."""

PUBLISH, ATTEMPT = 8.0, 5.0
"""Seconds for publishing what is committed, new tries included; and for one try."""

ACKNOWLEDGE = 5.0
"""Seconds for the answers to acknowledgements."""

AGAIN = Retry(if_exception_type(*PASSING), initial=0.1, maximum=1.0, timeout=CALL)

PARALLEL = 16
"""Requests to publish at once: one request takes the messages of one ordering key."""

BATCH, BATCH_BYTES = 500, 4_000_000
"""Messages and bytes of one request; the service takes 1,000 and 10,000,000."""

LARGEST = 10_000_000
"""Bytes of one message; this and the next four: https://cloud.google.com/pubsub/quotas."""

ATTRIBUTES, NAME, VALUE, KEY = 100, 256, 1024, 1024
"""Attributes of one message; bytes of one's name and value; bytes of the ordering key."""

RESERVED = "goog"
"""Names that begin so are the service's; a message that came with one may not be published so."""

EMULATOR = "PUBSUB_EMULATOR_HOST"


class Outgoing(NamedTuple):
    """What is published; `topic` by its id, `key`: the ordering key, empty if there is none."""

    topic: str
    value: bytes
    key: str
    attributes: Mapping[str, str]

    def size(self) -> int:
        """Bytes, but for the few that the format adds."""
        texts = chain.from_iterable(self.attributes.items())
        return len(self.value) + len(self.key.encode()) + sum(len(one.encode()) for one in texts)

    def fits(self) -> bool:
        """Say whether the service takes a message of these sizes; the emulator takes others too."""
        return (
            self.size() + 16 * len(self.attributes) + 1024 <= LARGEST
            and len(self.attributes) <= ATTRIBUTES
            and all(len(name.encode()) <= NAME for name in self.attributes)
            and all(len(value.encode()) <= VALUE for value in self.attributes.values())
            and len(self.key.encode()) <= KEY
        )

    def without(self, names: Iterable[str]) -> Outgoing:
        """The same without these attributes, but for one that says which were left out."""
        left_out = ",".join(sorted(names)).encode()[:VALUE].decode("utf-8", "ignore")
        kept = {name: value for name, value in self.attributes.items() if name not in names}
        return self._replace(attributes=kept | {f"{OURS}left-out": left_out})

    def without_value(self) -> Outgoing:
        """The same, but for the value, of which size and SHA-256 remain."""
        ours = {
            f"{OURS}value-bytes": str(len(self.value)),
            f"{OURS}value-sha256": hashlib.sha256(self.value).hexdigest(),
        }
        return self._replace(value=b"", attributes={**self.attributes, **ours})


# Clients


class Paths:
    """The whole names of what a project has."""

    def __init__(self, project: str) -> None:
        self._project = project

    def topic(self, name: str) -> str:
        """The whole name of a topic."""
        return f"projects/{self._project}/topics/{name}"

    def subscription(self, name: str) -> str:
        """The whole name of a subscription."""
        return f"projects/{self._project}/subscriptions/{name}"


def connect_subscriber() -> Untyped:
    """A client that reads; on the way to the emulator the library takes no more than 4 MiB."""
    emulator = os.environ.get(EMULATOR)
    if not emulator:
        return Subscriber()
    channel = grpc.insecure_channel(emulator, options=[("grpc.max_receive_message_length", -1)])
    return Subscriber(transport=SubscriberGrpcTransport(channel=channel))


def connect_publisher() -> PublisherClient:
    """A client that publishes what it is given, when it is given.

    Not the one that gathers messages: that cannot send attributes that are called as its own
    parameters are (`topic`, `data`, `timeout`, …), and tries for ever once ordering is on.
    """
    return PublisherClient()


def check(error: BaseException, settings: PubSubSettings) -> None:
    """Raise Stop when time will not mend it."""
    if isinstance(error, ABSENT):
        raise Stop(
            f"something is missing in project {settings.project} ({line(error)}): make it, let "
            "--create make it, or correct its name",
            Exit.UNAVAILABLE,
        ) from error
    if isinstance(error, REFUSED):
        raise Stop(
            f"Pub/Sub refuses this client ({line(error)}): correct its credentials or its rights",
            Exit.UNAVAILABLE,
        ) from error


def line(error: BaseException) -> str:
    """What went wrong, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def reaching(settings: PubSubSettings) -> Iterator[None]:
    """Turn what goes wrong at the start into Stop: nothing has been promised yet."""
    try:
        yield
    except (GoogleAPIError, GoogleAuthError) as error:
        check(error, settings)
        where = os.environ.get(EMULATOR)
        fix = f"correct {EMULATOR} or start the emulator" if where else "correct the network"
        raise Stop(
            f"Pub/Sub at {where or 'Google'} does not answer ({line(error)}): {fix}",
            Exit.UNAVAILABLE,
        ) from error


def require_topics(
    client: PublisherClient, settings: PubSubSettings, topics: Iterable[str]
) -> None:
    """Raise Stop when one of these topics is missing."""
    for topic in topics:
        try:
            client.get_topic(topic=Paths(settings.project).topic(topic), retry=AGAIN, timeout=CALL)
        except google_errors.NotFound as error:
            raise Stop(
                f"topic {topic} is not there: make it, let --create make it, or correct its name",
                Exit.UNAVAILABLE,
            ) from error


def require_subscription(client: Untyped, settings: PubSubSettings, name: str) -> None:
    """Raise Stop when this subscription is missing."""
    path = Paths(settings.project).subscription(name)
    try:
        client.get_subscription(subscription=path, retry=AGAIN, timeout=CALL)
    except google_errors.NotFound as error:
        raise Stop(
            f"subscription {name} is not there: make it, let --create make it, or correct its name",
            Exit.UNAVAILABLE,
        ) from error


# What is published


class _Addressing:
    """Says what may be published for a settled record, and where."""

    def __init__(self, settings: PubSubSettings, encode: Encode) -> None:
        self._encode = encode
        self._topics = {False: settings.output_topic, True: settings.dead_letter_topic}

    def forms(self, settled: Settled) -> Iterator[Outgoing]:
        """What may be published, each smaller than the one before; nothing if skipped.

        The result; the dead letter; that without attributes, without its value, without both.
        """
        return (form for form in self._forms(settled) if form.fits())

    def _forms(self, settled: Settled) -> Iterator[Outgoing]:
        message = self._encode(settled)
        if message and not message.dead:
            result = self._address(message, settled)
            yield from _unreserved(result)
            detail = (
                f"{result.topic} takes no result of {result.size()} bytes with "
                f"{len(result.attributes)} attributes"
            )
            settled = Settled(settled.record, Rejection("result_too_large", detail))
            message = self._encode(settled)
        if message:
            yield from _remains(self._address(message, settled))

    def _address(self, message: Message, settled: Settled) -> Outgoing:
        attributes = _attributes(message.headers)
        if message.dead and isinstance(settled.outcome, Rejection):
            attributes |= self._origin(settled.record, settled.outcome)
        key = (message.key or b"").decode()
        return Outgoing(self._topics[message.dead], message.value or b"", key, attributes)

    def _origin(self, record: Record, rejection: Rejection) -> dict[str, str]:
        """The source, in our word and in those that the tools around Kafka Connect read."""
        subscription, _, message = record.id.rpartition("/")
        return {
            f"{OURS}id": record.id,
            f"{ORIGIN}topic": subscription,
            f"{ORIGIN}offset": message,
            f"{ORIGIN}exception.message": complaint(rejection).decode(),
        }


def _attributes(headers: Headers) -> dict[str, str]:
    return {name: (value or b"").decode("utf-8", "replace") for name, value in headers}


def _unreserved(message: Outgoing) -> Iterator[Outgoing]:
    """The message; and without the attributes that the service may keep to itself."""
    yield message
    reserved = [name for name in message.attributes if name.startswith(RESERVED)]
    if reserved:
        yield message.without(reserved)


def _remains(letter: Outgoing) -> Iterator[Outgoing]:
    """A dead letter, and what is left of one that its topic does not take."""
    yield from _unreserved(letter)
    foreign = [name for name in letter.attributes if not name.startswith((ORIGIN, OURS))]
    if foreign:
        yield letter.without(foreign)
    if letter.value:
        yield letter.without_value()
    yield letter.without_value().without(foreign)._replace(key="")


_Parcel = Parcel[Outgoing]
Failure = tuple[_Parcel, Exception]


class _Post:
    """Publishes: each ordering key of a topic in its order, all of them at once."""

    def __init__(self, project: str, clock: Callable[[], float]) -> None:
        self._paths = Paths(project)
        self._clock = clock
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="publish")
        self.client = connect_publisher()

    def publish(self, parcels: Iterable[_Parcel]) -> dict[_Parcel, Exception]:
        """Publish each in the largest form that its topic takes; returns what was not.

        Of an ordering key, nothing after the first failure. Takes PUBLISH seconds and one more
        request at the longest. Raises Stop when a topic takes not even the smallest form.
        """
        deadline = self._clock() + PUBLISH
        failed = self._pool.map(
            lambda lane: list(self._publish_lane(lane, deadline)), _lanes(parcels)
        )
        return dict(chain.from_iterable(failed))

    def _publish_lane(self, lane: Sequence[_Parcel], deadline: float) -> Iterator[Failure]:
        """Publish in order; a request that is refused is cut, a single message made smaller."""
        left, most = list(lane), BATCH
        while left:
            batch = _batch(left, most)
            try:
                self._request(batch, deadline - self._clock())
            except UNFIT as error:
                if len(batch) == 1:
                    log.warning("%s does not go as it is: %s", batch[0].record.id, line(error))
                    batch[0].shrink()
                most = max(1, len(batch) // 2)
            except (GoogleAPIError, GoogleAuthError) as error:
                yield from [(parcel, error) for parcel in left]
                return
            else:
                del left[: len(batch)]
                most = min(BATCH, 2 * most)

    def _request(self, batch: Sequence[_Parcel], timeout: float) -> None:
        messages = [parcel.message for parcel in batch if parcel.message]
        request = PublishRequest(
            topic=self._paths.topic(messages[0].topic),
            messages=[
                PubsubMessage(data=one.value, ordering_key=one.key, attributes=one.attributes)
                for one in messages
            ],
        )
        if timeout <= 0:
            raise google_errors.DeadlineExceeded("no time left")  # type: ignore[no-untyped-call]
        self.client.publish(request, retry=AGAIN.with_timeout(timeout), timeout=ATTEMPT)

    def close(self) -> None:
        """Drop what is not published, in bounded time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.client.transport.close()  # type: ignore[no-untyped-call]


def _lanes(parcels: Iterable[_Parcel]) -> list[list[_Parcel]]:
    """What has to go in order: all of one key and topic; without a key, all that fits a request."""
    lanes: defaultdict[Hashable, list[_Parcel]] = defaultdict(list)
    for count, parcel in enumerate(parcels):
        if parcel.message:
            lanes[parcel.message.topic, parcel.message.key or count // BATCH].append(parcel)
    return list(lanes.values())


def _batch(parcels: Sequence[_Parcel], most: int) -> list[_Parcel]:
    """The first, and those behind it that can go in the same request."""
    messages = [parcel.message for parcel in parcels[:most] if parcel.message]
    sizes = accumulate(message.size() for message in messages)
    alike = (
        message.topic == messages[0].topic and size <= BATCH_BYTES
        for message, size in zip(messages, sizes, strict=True)
    )
    return list(parcels[: max(1, sum(takewhile(bool, alike)))])


# Reading


def record(subscription: str, message: Untyped) -> Record:
    """A message as the library hands it out; its attributes have no order, so by name."""
    key: str = message.ordering_key
    return Record(
        id=f"{subscription}/{message.message_id}",
        value=bytes(message.data),
        key=key.encode() or None,
        headers=tuple((name, text.encode()) for name, text in sorted(message.attributes.items())),
        time=round(message.publish_time.timestamp() * 1000),
        lane=key or None,
        position=message,
    )


class PubSubBroker:
    """A `Broker` between a subscription and two topics.

    Raises Stop(69) when one of them is not there. A poll and a commit belong to one thread; the
    library has threads of its own, and publishing has PARALLEL.
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
        self._backoff = Backoff(clock, sleep)
        self._addressing = _Addressing(settings, encode)
        self._held: dict[str, Untyped] = {}  # what was handed out, by its ack id
        with reaching(settings), ExitStack() as undo:
            self._post = _Post(settings.project, clock)
            undo.callback(self._post.close)
            self._subscriber = connect_subscriber()
            undo.callback(self._subscriber.close)
            topics = [settings.output_topic, settings.dead_letter_topic]
            require_topics(self._post.client, settings, topics)
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
        return [record(self._settings.subscription, message) for message in taken]

    def commit(self, settled: Sequence[Settled]) -> None:
        """See `Broker.commit`; what does not fit its topic becomes a dead letter instead."""
        self._require_stream()  # or what is published could not be acknowledged
        advice = "give --dead-letter-topic one that takes any message, without a schema"
        parcels = [Parcel(one.record, self._addressing.forms(one), advice) for one in settled]
        lost = self._post.publish(parcels)
        done = [parcel.record.position for parcel in before(parcels, lost)]
        failed = [*lost.values(), *acknowledge(done, ACKNOWLEDGE)]
        for message in done:
            self._held.pop(message.ack_id, None)
        for error in failed:
            raise self._begin_again(error) from error
        self._backoff.reset()

    def _require_stream(self, timeout: float = 0.0) -> None:
        """Raise Rewound, or Stop, when the stream is broken or breaks within `timeout` seconds."""
        if error := self._stream.error(timeout):
            raise self._begin_again(error) from error

    def _begin_again(self, error: BaseException) -> Rewound:
        check(error, self._settings)
        log.warning("beginning again: %s", line(error))
        self._stream.close()
        self._held.clear()
        self._backoff.wait()
        self._stream = self._open()
        return Rewound(line(error))

    def close(self) -> None:
        """See `Broker.close`.

        What has no ordering key is given back, so that another daemon has it at once; what has one
        comes again when its lease is over, or its order would be lost. Both count as an attempt
        of the subscription's dead-letter policy, as every delivery does.
        """
        self._stream.close(give_back=self._held.values())
        self._held.clear()
        self._subscriber.close()
        self._post.close()


# The two ends of the relay


class _Publisher:
    """Puts images into the input topic; a request that is repeated may count twice."""

    def __init__(self, settings: PubSubSettings) -> None:
        self._settings = settings
        self._kept: list[_Parcel] = []
        self._bytes = 0
        with reaching(settings), ExitStack() as undo:
            self._post = _Post(settings.project, time.monotonic)
            undo.callback(self._post.close)
            require_topics(self._post.client, settings, [settings.input_topic])
            undo.pop_all()

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        topic = self._settings.input_topic
        message = Outgoing(topic, value, (key or b"").decode(), _attributes(headers))
        if not message.fits():
            raise Stop(f"{topic} takes no message of {message.size()} bytes", Exit.USAGE)
        nobodys = Record(f"a message to {topic}", value, key, headers, 0, None, None)
        self._kept.append(Parcel(nobodys, iter([message]), "leave it out"))
        self._bytes += message.size()
        if len(self._kept) >= BATCH or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        kept, self._kept, self._bytes = self._kept, [], 0
        for error in self._post.publish(kept).values():
            check(error, self._settings)
            topic = self._settings.input_topic
            raise Stop(
                f"{topic} did not take a message: {line(error)}", Exit.UNAVAILABLE
            ) from error

    def close(self) -> None:
        self._post.close()


class _Reader:
    """Reads from a subscription and acknowledges what it has given out before."""

    def __init__(self, settings: PubSubSettings, topic: str) -> None:
        self._settings = settings
        self._shown: list[Untyped] = []
        self._undo = ExitStack()
        with reaching(settings), ExitStack() as undo:
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
            self._subscriber.create_subscription(planned, retry=AGAIN, timeout=CALL)
        except google_errors.NotFound as error:
            raise Stop(
                f"topic {topic} is not there: make it, let --create make it, or correct its name",
                Exit.UNAVAILABLE,
            ) from error
        undo.callback(self._give_up, path)
        return name

    def _give_up(self, path: str) -> None:
        with suppress(GoogleAPIError):
            self._subscriber.delete_subscription(subscription=path, retry=None, timeout=CALL)

    def read(self, timeout: float) -> Sequence[Record]:
        if error := self._stream.error():
            check(error, self._settings)
            raise Stop(f"the subscription {self._name} ended: {line(error)}", Exit.UNAVAILABLE)
        acknowledge(self._shown, ACKNOWLEDGE)
        self._shown = self._stream.take(self._settings.window, timeout)
        return [record(self._name, message) for message in self._shown]

    def close(self) -> None:
        acknowledge(self._shown, ACKNOWLEDGE)
        self._stream.close(give_back=())
        self._undo.close()


def open_publisher(settings: PubSubSettings) -> _Publisher:
    """The sending client's way into `settings.input_topic`."""
    return _Publisher(settings)


def open_reader(settings: PubSubSettings, topic: str, from_beginning: bool) -> _Reader:  # noqa: FBT001 - the same for every broker
    """The listening client's way out of `topic`.

    From `settings.output_subscription`, whose messages it takes away; without one from now on.
    """
    if from_beginning and not settings.output_subscription:
        raise Stop(
            "--from-beginning needs --output-subscription, a subscription that was there when the "
            f"predictions came: Pub/Sub keeps nothing of {topic} for one that is made now",
            Exit.USAGE,
        )
    return _Reader(settings, topic)
