"""Clients of Pub/Sub: made, asked, and what their errors mean."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
from google.api_core import exceptions as google_errors
from google.api_core.exceptions import GoogleAPIError
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from ...errors import Exit, Stop
from .stream import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .. import Untyped
    from .settings import PubSubSettings


ABSENT = (google_errors.NotFound,)

REFUSED = (google_errors.Forbidden, google_errors.Unauthenticated, GoogleAuthError)

UNFIT = (google_errors.InvalidArgument, google_errors.OutOfRange)

TRANSIENT = (
    google_errors.Aborted,
    google_errors.Cancelled,
    google_errors.DeadlineExceeded,
    google_errors.InternalServerError,
    google_errors.ResourceExhausted,
    google_errors.ServiceUnavailable,
    google_errors.Unknown,
)

CALL_TIMEOUT = 10.0
"""Seconds for one question to the service."""

RETRY = Retry(if_exception_type(*TRANSIENT), initial=0.1, maximum=1.0, timeout=CALL_TIMEOUT)

EMULATOR = "PUBSUB_EMULATOR_HOST"


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


def raise_if_permanent(error: BaseException, settings: PubSubSettings) -> None:
    """Raise Stop when time will not cure it."""
    if isinstance(error, ABSENT):
        raise Stop(
            f"something is missing in project {settings.project} ({describe_error(error)}): "
            "make it, let --create make it, or correct its name",
            Exit.UNAVAILABLE,
        ) from error
    if isinstance(error, REFUSED):
        raise Stop(
            f"Pub/Sub refuses this client ({describe_error(error)}): correct its credentials or "
            "its rights",
            Exit.UNAVAILABLE,
        ) from error


def describe_error(error: BaseException) -> str:
    """What went wrong, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def stop_if_unreachable(settings: PubSubSettings) -> Iterator[None]:
    """Turn what goes wrong at the start into Stop: nothing has been promised yet."""
    try:
        yield
    except (GoogleAPIError, GoogleAuthError) as error:
        raise_if_permanent(error, settings)
        where = os.environ.get(EMULATOR)
        fix = f"correct {EMULATOR} or start the emulator" if where else "correct the network"
        raise Stop(
            f"Pub/Sub at {where or 'Google'} does not answer ({describe_error(error)}): {fix}",
            Exit.UNAVAILABLE,
        ) from error


def require_topics(
    client: PublisherClient, settings: PubSubSettings, topics: Iterable[str]
) -> None:
    """Raise Stop when one of these topics is missing."""
    for topic in topics:
        try:
            client.get_topic(
                topic=Paths(settings.project).topic(topic), retry=RETRY, timeout=CALL_TIMEOUT
            )
        except google_errors.NotFound as error:
            raise Stop(
                f"topic {topic} is not there: make it, let --create make it, or correct its name",
                Exit.UNAVAILABLE,
            ) from error


def require_subscription(client: Untyped, settings: PubSubSettings, name: str) -> None:
    """Raise Stop when this subscription is missing."""
    path = Paths(settings.project).subscription(name)
    try:
        client.get_subscription(subscription=path, retry=RETRY, timeout=CALL_TIMEOUT)
    except google_errors.NotFound as error:
        raise Stop(
            f"subscription {name} is not there: make it, let --create make it, or correct its name",
            Exit.UNAVAILABLE,
        ) from error
