"""What an operator asks of Pub/Sub: make what is missing, its dead letters, is all well."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from google.api_core.exceptions import AlreadyExists, DeadlineExceeded, GoogleAPIError, NotFound
from google.pubsub_v1.types import ExpirationPolicy, PubsubMessage, Subscription

from ...errors import Exit, Stop
from ...headers import REPLAY
from ...records import Advice, Ok, Prediction
from ..publishing import PendingMessage, select_published
from .clients import (
    CALL_TIMEOUT,
    EMULATOR,
    RETRY,
    Paths,
    connect_publisher,
    connect_subscriber,
    describe_error,
    raise_if_permanent,
    require_topics,
    stop_if_unreachable,
)
from .messages import MessageBuilder, make_record
from .producer import BatchPublisher

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ...records import Check, Record, Settled
    from ..publishing import Encode
    from .settings import CheckPubSub, DeadPubSub, PubSubSettings, ReplayPubSub

LEASE = 600
"""Seconds for which a dead letter is nobody else's; the longest that Pub/Sub gives."""

PULL_TIMEOUT = 5.0
"""Seconds in which a dead letter that is there comes.

A pull is not cut shorter: what it was about to bring would be nobody's until its lease is over.
"""

MAX_BATCH = 500
"""Most dead letters of one pull, and most ids in one request (which has at most 512 KiB)."""

MAX_HELD = 200_000
"""Dead letters held at once: all that a listing looks at, all that a replay leaves out."""

MIN_DELIVERY_ATTEMPTS = 20
"""Attempts of the service's own dead-letter policy that an outage may use up."""

DELETED = "_deleted-topic_"
"""What a subscription calls its topic when that is gone."""


class _Wanted(NamedTuple):
    """A subscription that is needed, and what it is made of."""

    name: str
    topic: str
    ordering: bool


class _Service:
    """Pub/Sub, asked for one thing at a time, by ids instead of whole names."""

    def __init__(self, project: str) -> None:
        self._paths = Paths(project)
        with ExitStack() as undo:
            self._publisher = connect_publisher()
            undo.callback(self._publisher.transport.close)
            self._subscriber = connect_subscriber()
            undo.callback(self._subscriber.close)
            self._undo = undo.pop_all()

    def has_topic(self, name: str) -> bool:
        topic = self._paths.topic(name)
        try:
            self._publisher.get_topic(topic=topic, retry=RETRY, timeout=CALL_TIMEOUT)
        except NotFound:
            return False
        return True

    def create_topic(self, name: str) -> None:
        with suppress(AlreadyExists):  # somebody else was quicker
            self._publisher.create_topic(
                name=self._paths.topic(name), retry=RETRY, timeout=CALL_TIMEOUT
            )

    def found(self, name: str) -> Subscription | None:
        """A subscription as it is; None: it is not there."""
        path = self._paths.subscription(name)
        try:
            found: Subscription = self._subscriber.get_subscription(
                subscription=path, retry=RETRY, timeout=CALL_TIMEOUT
            )
        except NotFound:
            return None
        return found

    def planned(self, wanted: _Wanted, ack_deadline: int) -> Subscription:
        """It never expires: by default it is gone when nobody has asked for 31 days."""
        return Subscription(
            name=self._paths.subscription(wanted.name),
            topic=self._paths.topic(wanted.topic) if wanted.topic else "",
            enable_message_ordering=wanted.ordering,
            ack_deadline_seconds=ack_deadline,
            expiration_policy=ExpirationPolicy(),
        )

    def create_subscription(self, planned: Subscription) -> None:
        with suppress(AlreadyExists):
            self._subscriber.create_subscription(planned, retry=RETRY, timeout=CALL_TIMEOUT)

    def pull(self, name: str, most: int) -> Mapping[str, PubsubMessage]:
        """Messages by their ack ids, none if nothing came; nobody else's for LEASE seconds."""
        path = self._paths.subscription(name)
        try:
            pulled = self._subscriber.pull(
                subscription=path, max_messages=most, timeout=PULL_TIMEOUT
            )
        except DeadlineExceeded:
            return {}
        found = {one.ack_id: one.message for one in pulled.received_messages}
        self.extend(name, list(found), LEASE)
        return found

    def extend(self, name: str, ack_ids: Sequence[str], seconds: int) -> None:
        """Let messages come again after so many seconds; 0: give them back."""
        for some in _chunks(ack_ids):
            self._subscriber.modify_ack_deadline(
                subscription=self._paths.subscription(name),
                ack_ids=some,
                ack_deadline_seconds=seconds,
                retry=RETRY,
                timeout=CALL_TIMEOUT,
            )

    def acknowledge(self, name: str, ack_ids: Sequence[str]) -> None:
        path = self._paths.subscription(name)
        for some in _chunks(ack_ids):
            self._subscriber.acknowledge(
                subscription=path, ack_ids=some, retry=RETRY, timeout=CALL_TIMEOUT
            )

    def close(self) -> None:
        self._undo.close()


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), MAX_BATCH):
        yield ids[start : start + MAX_BATCH]


@contextmanager
def _open_service(settings: PubSubSettings) -> Iterator[_Service]:
    with stop_if_unreachable(settings):
        service = _Service(settings.project)
        try:
            yield service
        finally:
            service.close()


# What is missing


def _topics(settings: PubSubSettings) -> list[str]:
    """Those that are named."""
    topics = (settings.input_topic, settings.output_topic, settings.dead_letter_topic)
    return [topic for topic in topics if topic]


def _subscriptions(settings: PubSubSettings) -> list[_Wanted]:
    """Those that are named.

    Dead letters are kept without ordering: with it, those of a key that were taken hide the later
    ones until they are acknowledged.
    """
    wanted = (
        _Wanted(settings.subscription, settings.input_topic, ordering=True),
        _Wanted(settings.dead_letter_subscription, settings.dead_letter_topic, ordering=False),
        _Wanted(settings.output_subscription, settings.output_topic, ordering=True),
    )
    return [one for one in wanted if one.name]


def ensure_resources(settings: PubSubSettings) -> None:
    """Make what is missing, if --create says so; raise Stop when something is, or does not fit."""
    create_if_asked(settings)
    _topics_are_there(settings)
    _subscriptions_are_there(settings)


def create_if_asked(settings: PubSubSettings) -> None:
    """Make what is missing, if --create says so."""
    if settings.create:
        create(settings)


def create(settings: PubSubSettings) -> None:
    """Make the topics and subscriptions that are named and missing."""
    with _open_service(settings) as service:
        for topic in _topics(settings):
            if not service.has_topic(topic):
                service.create_topic(topic)
        for wanted in _subscriptions(settings):
            if wanted.topic and service.found(wanted.name) is None:
                service.create_subscription(service.planned(wanted, settings.ack_deadline))


# Dead letters


class DeadLetterSubscription:
    """The subscription that keeps the dead letters: what is taken from it goes back at the end."""

    def __init__(self, settings: PubSubSettings) -> None:
        self.empty = False
        self._settings = settings
        self._name = settings.dead_letter_subscription
        self._held: dict[str, str] = {}  # ack ids by message ids
        with stop_if_unreachable(settings), ExitStack() as undo:
            self._service = _Service(settings.project)
            undo.callback(self._service.close)
            if self._service.found(self._name) is None:
                raise _missing("subscription", self._name)
            undo.pop_all()

    def take(self, most: int) -> list[Record]:
        """Dead letters that were not taken before, even if their lease ran out meanwhile."""
        with stop_if_unreachable(self._settings):
            pulled = self._service.pull(self._name, most)
        self.empty = not pulled
        fresh = [one for one in pulled.values() if one.message_id not in self._held]
        self._held |= {one.message_id: ack_id for ack_id, one in pulled.items()}
        if len(self._held) > MAX_HELD:
            raise Stop(
                f"{self._name} holds more than {MAX_HELD} dead letters, too many to be held at "
                "once: take some by --limit, or send some back",
                Exit.USAGE,
            )
        return [make_record(self._name, one) for one in fresh]

    def remove(self, dead_letters: Sequence[Record]) -> None:
        """Acknowledge these."""
        ids = [dead_letter.position.message_id for dead_letter in dead_letters]
        with stop_if_unreachable(self._settings):
            self._service.acknowledge(self._name, [self._held[one] for one in ids])
        for one in ids:
            del self._held[one]

    def close(self) -> None:
        """Give back what was not removed."""
        with suppress(GoogleAPIError):  # at the latest, the end of the lease does it
            self._service.extend(self._name, list(self._held.values()), 0)
        self._service.close()


class DeadLetterReader:
    """All dead letters that are there now."""

    def __init__(self, settings: PubSubSettings) -> None:
        self._subscription = DeadLetterSubscription(settings)

    def read(self, timeout: float) -> Sequence[Record]:  # noqa: ARG002 - see PULL_TIMEOUT
        """See `dlq.DeadLetterReader.read`."""
        return self._subscription.take(MAX_BATCH)

    def exhausted(self) -> bool:
        """See `dlq.DeadLetterReader.exhausted`."""
        return self._subscription.empty

    def close(self) -> None:
        """See `dlq.DeadLetterReader.close`."""
        self._subscription.close()


class ReplayBroker:
    """The way back: from all dead letters that are there now to the topic they came from.

    At least once: what was published is acknowledged afterwards. A dead letter that carries the
    mark of this very replay came back dead from it, and is left out.
    """

    def __init__(self, settings: PubSubSettings, name: str, encode: Encode) -> None:
        back = settings.model_copy(update={"output_topic": settings.input_topic})
        self._settings = back
        self._mark = (REPLAY, name.encode())
        self._builder = MessageBuilder(back, encode)
        with ExitStack() as undo:
            self._subscription = DeadLetterSubscription(back)
            undo.callback(self._subscription.close)
            with stop_if_unreachable(back):
                self._batch_publisher = BatchPublisher(back.project, time.monotonic)
                undo.callback(self._batch_publisher.close)
                require_topics(self._batch_publisher.client, back, [back.output_topic])
            self._undo = undo.pop_all()

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:  # noqa: ARG002 - see PULL_TIMEOUT
        """See `dlq.ReplayBroker.poll`."""
        dead_letters = self._subscription.take(limit)
        return [
            dead_letter for dead_letter in dead_letters if self._mark not in dead_letter.headers
        ]

    def commit(self, settled: Sequence[Settled]) -> None:
        """Send back what has a Prediction, and hold the others; raises Stop when one cannot go."""
        chosen = [one for one in settled if isinstance(one.outcome, Prediction)]
        pending_messages = [
            PendingMessage(one.record, self._builder.fallbacks(one), "") for one in chosen
        ]
        lost = self._batch_publisher.publish(pending_messages)
        self._subscription.remove(
            [pending.record for pending in select_published(pending_messages, lost)]
        )
        for pending, error in lost.items():
            raise_if_permanent(error, self._settings)
            raise Stop(
                f"{pending.record.id} could not be sent back ({describe_error(error)}): begin "
                "again with the same --name",
                Exit.UNAVAILABLE,
            )

    def exhausted(self) -> bool:
        """See `dlq.ReplayBroker.exhausted`."""
        return self._subscription.empty

    def close(self) -> None:
        """See `dlq.ReplayBroker.close`."""
        self._undo.close()


def open_dead_letters(settings: DeadPubSub) -> DeadLetterReader:
    """The way into all dead letters that are there now; acknowledges nothing."""
    create_if_asked(settings)
    return DeadLetterReader(settings)


def open_replay(settings: ReplayPubSub, encode: Encode) -> ReplayBroker:
    """The way of the dead letters back to the input topic."""
    create_if_asked(settings)
    return ReplayBroker(settings, settings.name, encode)


# Checks: each says in one sentence what it found, or raises Stop


def list_checks(settings: CheckPubSub) -> list[Check]:
    """What a daemon cannot do without, in the order in which one depends on the other."""
    return [
        ("broker", partial(_broker, settings)),
        ("topics", partial(_topics_are_there, settings)),
        ("subscriptions", partial(_subscriptions_are_there, settings)),
    ]


def list_all_checks(settings: CheckPubSub) -> list[Check]:
    """The checks, and what is worth knowing besides."""
    return [
        ("library", _library),
        *list_checks(settings),
        ("ordering", partial(_ordering, settings)),
        ("delivery", partial(_delivery, settings)),
        ("policy", partial(_policy, settings)),
        ("letters", partial(_keeping, settings)),
    ]


def _library() -> Ok | Advice:
    return Ok(f"google-cloud-pubsub {version('google-cloud-pubsub')}, grpcio {version('grpcio')}")


def _broker(settings: PubSubSettings) -> Ok | Advice:
    with _open_service(settings) as service:
        service.has_topic(settings.output_topic)  # or not: the next check says so
    return Ok(f"{_where()}, project {settings.project}")


def _topics_are_there(settings: PubSubSettings) -> Ok | Advice:
    topics = _topics(settings)
    with _open_service(settings) as service:
        absent = [topic for topic in topics if not service.has_topic(topic)]
    return _verdict("topic", topics, absent, settings)


def _subscriptions_are_there(settings: PubSubSettings) -> Ok | Advice:
    """And read the topics that they should."""
    wanted = _subscriptions(settings)
    with _open_service(settings) as service:
        found = {one.name: service.found(one.name) for one in wanted}
        for one in wanted:
            _refuse_misfit(found[one.name], service.planned(one, settings.ack_deadline))
    absent = [name for name, subscription in found.items() if subscription is None]
    return _verdict("subscription", list(found), absent, settings)


def _where() -> str:
    emulator = os.environ.get(EMULATOR)
    return f"the emulator at {emulator}" if emulator else "pubsub.googleapis.com"


def _verdict(
    kind: str, names: Sequence[str], absent: Sequence[str], settings: PubSubSettings
) -> Ok | Advice:
    if not absent:
        return Ok(", ".join(names))
    if settings.create:
        return Ok(f"{', '.join(names)}; --create would make {', '.join(absent)}")
    raise _missing(kind, absent[0])


def _missing(kind: str, name: str) -> Stop:
    return Stop(
        f"{kind} {name} is not there: make it, let --create make it, or correct its name",
        Exit.UNAVAILABLE,
    )


def _refuse_misfit(found: Subscription | None, planned: Subscription) -> None:
    """Raise Stop when a subscription hands out nothing, or something else."""
    if found is None:
        return
    name = _id(found.name)
    if found.topic == DELETED:
        raise Stop(f"the topic of {name} was deleted: make both anew", Exit.UNAVAILABLE)
    if planned.topic and found.topic != planned.topic:
        raise Stop(
            f"the subscription {name} is one of {found.topic}, not of {planned.topic}: correct "
            "the flag of either",
            Exit.USAGE,
        )
    away = found.push_config.push_endpoint, found.bigquery_config.table
    if any(away) or found.cloud_storage_config.bucket or found.detached:
        raise Stop(f"{name} cannot be pulled from: make it a pull subscription", Exit.USAGE)


def _id(name: str) -> str:
    return name.rpartition("/")[2]


def _source(settings: PubSubSettings) -> Subscription:
    """The subscription with the images, or what --create would make of it."""
    return _as_it_is(settings, _subscriptions(settings)[0])


def _as_it_is(settings: PubSubSettings, wanted: _Wanted) -> Subscription:
    with _open_service(settings) as service:
        found = service.found(wanted.name)
        return found or service.planned(wanted, settings.ack_deadline)


def _ordering(settings: PubSubSettings) -> Ok | Advice:
    if _source(settings).enable_message_ordering:
        return Ok("records of one ordering key are answered in their order")
    return Advice(
        f"make {settings.subscription} anew, with message ordering, or records of one ordering key "
        "are answered in any order; it cannot be changed later"
    )


def _delivery(settings: PubSubSettings) -> Ok | Advice:
    confirmed = "" if _source(settings).enable_exactly_once_delivery else "not "
    return Ok(
        f"at least once, acknowledgements are {confirmed}confirmed; what a daemon held that died "
        f"comes again within {settings.ack_deadline} s"
    )


def _policy(settings: PubSubSettings) -> Ok | Advice:
    """The service's own way with records that are delivered again and again."""
    policy = _source(settings).dead_letter_policy
    if not policy.dead_letter_topic:
        return Ok("none of the service's own: records stay until they are answered")
    attempts, topic = policy.max_delivery_attempts, _id(policy.dead_letter_topic)
    if attempts < MIN_DELIVERY_ATTEMPTS:
        return Advice(
            f"raise max_delivery_attempts of {settings.subscription} from {attempts} to "
            f"{MIN_DELIVERY_ATTEMPTS} or more: each daemon that dies is an attempt of all it "
            f"held, and the service moves records to {topic} that were never bad"
        )
    return Ok(f"the service moves a record to {topic} after {attempts} deliveries")


def _keeping(settings: PubSubSettings) -> Ok | Advice:
    """How long dead letters are kept, and whether all of them can be seen."""
    name = settings.dead_letter_subscription
    subscription = _as_it_is(settings, _subscriptions(settings)[1])
    if subscription.enable_message_ordering:
        return Advice(
            f"make {name} anew, without message ordering, or `dlq` may miss later dead letters of "
            "a key"
        )
    days = subscription.message_retention_duration.days
    if subscription.expiration_policy.ttl:
        return Advice(
            f"let {name} never expire, or all dead letters are lost when nobody has asked for "
            f"them for {subscription.expiration_policy.ttl.days} days"
        )
    return Ok(f"kept for {days} days" if days else "kept as long as Pub/Sub does by default")
