"""A streaming pull of google-cloud-pubsub without its callbacks: an inbox to take messages from.

The library extends the leases of what it has received, also of what waits in the inbox, and takes
no more than its flow control allows until something is acknowledged. With ordering keys it hands
out one message of a key at a time, the next when that is acknowledged.
"""

from __future__ import annotations

import math
import queue
import time
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from google.api_core.exceptions import Cancelled, GoogleAPIError
from google.cloud.pubsub_v1 import SubscriberClient
from google.cloud.pubsub_v1.subscriber._protocol.requests import NackRequest
from google.cloud.pubsub_v1.subscriber.scheduler import Scheduler
from google.cloud.pubsub_v1.types import FlowControl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .. import Untyped


CLOSE_TIMEOUT = 5.0
"""Seconds for closing a stream: two clients of the service may be in the middle of a request."""

SPARE = 200
"""What the inbox holds beyond the window: flow control may overshoot by a batch of requests."""


class Subscriber(SubscriberClient):  # type: ignore[misc]  # the library ships no types
    """A client of which a call that comes after the end fails as one that the end cuts off.

    The library's threads may outlive a stream by a minute of trying again. They do not expect what
    gRPC raises then: it ended them with a stack trace.
    """

    _ended = False

    def streaming_pull(self, *arguments: object, **named: object) -> Untyped:
        """See the library."""
        with self._cut_off():
            return super().streaming_pull(*arguments, **named)

    def acknowledge(self, *arguments: object, **named: object) -> None:
        """See the library."""
        with self._cut_off():
            super().acknowledge(*arguments, **named)

    def modify_ack_deadline(self, *arguments: object, **named: object) -> None:
        """See the library."""
        with self._cut_off():
            super().modify_ack_deadline(*arguments, **named)

    def close(self) -> None:
        """See the library."""
        self._ended = True
        super().close()

    @contextmanager
    def _cut_off(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if self._ended:
                raise Cancelled(str(error)) from error  # type: ignore[no-untyped-call]
            raise


class Overfull(Exception):
    """More came than flow control allows, as when the library has lost leases of what is held."""


class _Requests(queue.Queue[Any]):
    """What is asked of the library: to acknowledge, to give back.

    When a stream is closed the library gives back what it has not handed out, and thereby lets the
    later messages of an ordering key overtake those that were handed out. So what has a key is not
    given back: its lease runs out, and the service sends it again from the first on.
    """

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:  # noqa: ANN401, FBT001, FBT002 - the queue's own
        if not (isinstance(item, NackRequest) and item.ordering_key):
            super().put(item, block, timeout)


class _Inline(Scheduler):  # type: ignore[misc]  # the library ships no types
    """Runs the callback where the library is, under its lock: it must not block.

    When the stream is closed, and nothing more can come, the library gives back what `undelivered`
    returns.
    """

    def __init__(self, undelivered: Callable[[], list[Untyped]]) -> None:
        self._requests = _Requests()
        self._undelivered = undelivered

    @property
    def queue(self) -> _Requests:
        return self._requests

    def schedule(self, callback: Callable[..., Any], *arguments: object, **named: object) -> None:
        callback(*arguments, **named)

    def shutdown(self, await_msg_callbacks: bool = False) -> list[Any]:  # noqa: ARG002, FBT001, FBT002 - the library's own
        return self._undelivered()


class Stream:
    """Messages of one subscription, by its whole name.

    `window` and `window_bytes` bound what is received and not acknowledged; `lease` is for how
    many seconds a message is ours at a time, and so how long it stays so when we are gone.
    """

    def __init__(
        self,
        client: SubscriberClient,
        subscription: str,
        *,
        window: int,
        window_bytes: int,
        lease: int,
    ) -> None:
        self._inbox: queue.Queue[Untyped] = queue.Queue(window + SPARE)
        self._overfull = False
        self._returned: list[Untyped] | None = None  # None: nothing is to be given back
        flow = FlowControl(
            max_messages=window,
            max_bytes=window_bytes,
            max_lease_duration=math.inf,  # or, by the wall clock, they would end under the relay
            min_duration_per_lease_extension=lease,
            max_duration_per_lease_extension=lease,
        )
        self._future: Untyped = client.subscribe(
            subscription, self._receive, flow_control=flow, scheduler=_Inline(self._undelivered)
        )

    def _receive(self, message: Untyped) -> None:
        try:
            self._inbox.put_nowait(message)
        except queue.Full:
            self._overfull = True

    def error(self, timeout: float = 0.0) -> BaseException | None:
        """Why nothing more will come, if that is so within `timeout` seconds."""
        if self._overfull:
            return Overfull("more messages came than the window takes")
        try:
            error: BaseException | None = self._future.exception(timeout=timeout)
        except NotInTime:
            return None
        return error or RuntimeError("the stream was closed")

    def take(self, limit: int, timeout: float) -> list[Untyped]:
        """At most `limit` messages, waiting at most `timeout` seconds for the first."""
        taken: list[Untyped] = []
        with suppress(queue.Empty):
            while len(taken) < limit:
                taken.append(self._inbox.get(timeout=0 if taken else timeout))
        return taken

    def close(self, give_back: Iterable[Untyped] | None = None) -> None:
        """Let go of everything, in bounded time; what was acknowledged before is still sent.

        With `give_back`, others get at once these messages and those that were not taken; but see
        `_Requests`. Not before the stream has ended, or they would come back to it.
        """
        self._returned = None if give_back is None else list(give_back)
        self._future.cancel()
        with suppress(NotInTime):
            self._future.exception(timeout=CLOSE_TIMEOUT)

    def _undelivered(self) -> list[Untyped]:
        if self._returned is None:
            return []
        return [*self._returned, *self.take(self._inbox.maxsize, 0)]


def acknowledge(messages: Iterable[Untyped], timeout: float) -> list[Exception]:
    """Acknowledge, and wait for the answers where exactly-once delivery gives some.

    Returns what failed: those may come again, with the same ids.
    """
    deadline = time.monotonic() + timeout
    failed: list[Exception] = []
    for answer in [message.ack_with_response() for message in messages]:
        try:
            answer.result(timeout=max(0.0, deadline - time.monotonic()))
        except (NotInTime, GoogleAPIError) as error:
            failed.append(error)
    return failed
