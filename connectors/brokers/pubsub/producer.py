"""Publishing: each ordering key in its order, all of them at once."""

from __future__ import annotations

import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain, takewhile
from typing import TYPE_CHECKING

from google.api_core import exceptions as google_errors
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from google.pubsub_v1.types import PublishRequest, PubsubMessage

from ..publishing import PendingMessage
from .clients import RETRY, UNFIT, Paths, connect_publisher, describe_error
from .messages import Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence


_log = logging.getLogger(__name__)

PUBLISH_TIMEOUT, ATTEMPT_TIMEOUT = 8.0, 5.0
"""Seconds for publishing what is committed, new tries included; and for one try."""

MAX_PARALLEL_REQUESTS = 16
"""Requests to publish at once: one request takes the messages of one ordering key."""

MAX_BATCH, MAX_BATCH_BYTES = 500, 4_000_000
"""Messages and bytes of one request; the service takes 1,000 and 10,000,000."""

Pending = PendingMessage[Outgoing]

Failure = tuple[Pending, Exception]


class BatchPublisher:
    """Publishes: each ordering key of a topic in its order, all of them at once."""

    def __init__(self, project: str, clock: Callable[[], float]) -> None:
        self._paths = Paths(project)
        self._clock = clock
        self._pool = ThreadPoolExecutor(MAX_PARALLEL_REQUESTS, thread_name_prefix="publish")
        self.client = connect_publisher()

    def publish(self, pending_messages: Iterable[Pending]) -> dict[Pending, Exception]:
        """Publish each in the largest form that its topic takes; returns what was not.

        Of an ordering key, nothing after the first failure. Takes PUBLISH_TIMEOUT seconds and one
        more request at the longest. Raises Stop when a topic takes not even the smallest form.
        """
        deadline = self._clock() + PUBLISH_TIMEOUT
        failed = self._pool.map(
            lambda lane: list(self._publish_lane(lane, deadline)), _group_by_lane(pending_messages)
        )
        return dict(chain.from_iterable(failed))

    def _publish_lane(self, lane: Sequence[Pending], deadline: float) -> Iterator[Failure]:
        """Publish in order; a request that is refused is cut, a single message made smaller."""
        left, most = list(lane), MAX_BATCH
        while left:
            batch = _take_batch(left, most)
            try:
                self._request(batch, deadline - self._clock())
            except UNFIT as error:
                if len(batch) == 1:
                    _log.warning(
                        "%s does not go as it is: %s", batch[0].record.id, describe_error(error)
                    )
                    batch[0].fall_back()
                most = max(1, len(batch) // 2)
            except (GoogleAPIError, GoogleAuthError) as error:
                yield from [(pending, error) for pending in left]
                return
            else:
                del left[: len(batch)]
                most = min(MAX_BATCH, 2 * most)

    def _request(self, batch: Sequence[Pending], timeout: float) -> None:
        messages = [pending.message for pending in batch if pending.message]
        request = PublishRequest(
            topic=self._paths.topic(messages[0].topic),
            messages=[
                PubsubMessage(data=one.value, ordering_key=one.key, attributes=one.attributes)
                for one in messages
            ],
        )
        if timeout <= 0:
            raise google_errors.DeadlineExceeded("no time left")  # type: ignore[no-untyped-call]
        self.client.publish(request, retry=RETRY.with_timeout(timeout), timeout=ATTEMPT_TIMEOUT)

    def close(self) -> None:
        """Drop what is not published, in bounded time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.client.transport.close()  # type: ignore[no-untyped-call]


def _group_by_lane(pending_messages: Iterable[Pending]) -> list[list[Pending]]:
    """What has to go in order: all of one key and topic; without a key, all that fits a request."""
    lanes: defaultdict[Hashable, list[Pending]] = defaultdict(list)
    for count, pending in enumerate(pending_messages):
        if pending.message:
            lanes[pending.message.topic, pending.message.key or count // MAX_BATCH].append(pending)
    return list(lanes.values())


def _take_batch(pending_messages: Sequence[Pending], most: int) -> list[Pending]:
    """The first, and those behind it that can go in the same request."""
    messages = [pending.message for pending in pending_messages[:most] if pending.message]
    sizes = accumulate(message.size() for message in messages)
    alike = (
        message.topic == messages[0].topic and size <= MAX_BATCH_BYTES
        for message, size in zip(messages, sizes, strict=True)
    )
    return list(pending_messages[: max(1, sum(takewhile(bool, alike)))])
