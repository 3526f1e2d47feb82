"""Publishing and acknowledging: exactly once in a transaction, or at least once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError

from ..publishing import PendingMessage, select_published
from .clients import close_now, open_client
from .messages import Outgoing

if TYPE_CHECKING:
    from collections.abc import (
        Iterable,
        Iterator,
        Sequence,
    )

    from .. import Untyped
    from .consumer import GroupConsumer, Offsets
    from .settings import KafkaSettings


TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)

MAX_REQUEST_BYTES = 64 << 20
"""Bytes of one request; a broker hangs up at 100 MiB (`socket.request.max.bytes`)."""

Pending = PendingMessage[Outgoing]

Failure = tuple[Pending, Exception]


def publish_all(
    producer: Untyped, pending_messages: Iterable[Pending], timeout: float
) -> list[Failure]:
    """Send in the order given and wait; return what failed, the cause of all first.

    In a transaction, kafka-python lets everything that waits fail with the first error. It runs
    the callbacks of one failure before it makes the next, so the first one noted is the cause.
    """
    noted: list[Pending] = []
    sent: list[tuple[Pending, Untyped]] = []
    failed: dict[Pending, Exception] = {}
    for pending in pending_messages:
        if failed and not all(isinstance(error, TOO_LARGE) for error in failed.values()):
            failed[pending] = kafka_errors.Cancelled("not sent after an earlier failure")
        elif pending.message:
            try:
                future = producer.send(**pending.message._asdict())
            except KafkaError as error:
                failed[pending] = error
            else:
                future.add_errback(lambda pending, _: noted.append(pending), pending)
                sent.append((pending, future))
    failed |= _await_futures(sent, time.monotonic() + timeout)
    return sorted(failed.items(), key=lambda failure: failure[0] not in noted[:1])


def _await_futures(sent: Iterable[tuple[Pending, Untyped]], deadline: float) -> Iterator[Failure]:
    for pending, future in sent:
        try:
            future.get(timeout=max(0.0, deadline - time.monotonic()))
        except KafkaError as error:
            yield pending, error


def next_offsets(pending_messages: Iterable[Pending], note: str) -> Offsets:
    """The offset after the last record of each partition, and the note that goes with it."""
    positions = [pending.record.position for pending in pending_messages]
    return {
        TopicPartition(at.topic, at.partition): OffsetAndMetadata(
            at.offset + 1, note, at.leader_epoch
        )
        for at in positions
    }


class Delivery(Protocol):
    """One of the two promises."""

    def ensure_ready(self) -> None:
        """Make up for whatever went wrong last; nothing is delivered or read before that."""
        ...

    def deliver(self, pending_messages: Sequence[Pending], source: GroupConsumer) -> None:
        """Publish, then acknowledge; raises KafkaError when not all of it is known to be done."""
        ...

    def close(self) -> None:
        """Drop what is not done, in bounded time."""
        ...


class ExactlyOnce:
    """Results, dead letters and offsets in one transaction, never open across anything else."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._timeout = settings.transaction_timeout
        self._producer: Untyped = None
        self._healthy = False

    def ensure_ready(self) -> None:
        """See `Delivery.ensure_ready`."""
        if not self._healthy:
            self._renew()

    def _renew(self) -> None:
        """A new producer; the coordinator ends what the old one left open, and bumps the epoch."""
        self.close()
        ours = {
            **producer_arguments(self._settings),
            "transactional_id": f"{self._settings.group}-{self._settings.instance}",
            "transaction_timeout_ms": round(self._timeout * 1000),
        }
        self._producer, self._net_client = open_client(KafkaProducer, self._settings, ours)
        self._producer.init_transactions()
        self._healthy = True

    def deliver(self, pending_messages: Sequence[Pending], source: GroupConsumer) -> None:
        """1. Send all. 2. Wait for each. 3. Send the offsets. 4. End the transaction.

        A message that its topic does not take is replaced, in a new transaction.
        """
        self.ensure_ready()
        while failed := self._send(pending_messages):
            self._fall_back(pending_messages, *failed[0])
            self._renew()
        offsets = next_offsets(pending_messages, source.note)
        self._producer.send_offsets_to_transaction(offsets, source.group_metadata)
        self._producer.commit_transaction()
        self._healthy = not self._net_client.cut_off
        source.note_committed(offsets)

    def _send(self, pending_messages: Sequence[Pending]) -> list[Failure]:
        self._healthy = False  # until its end is known
        self._producer.begin_transaction()
        return publish_all(self._producer, pending_messages, self._timeout)

    def _fall_back(
        self, pending_messages: Sequence[Pending], cause: Pending, error: Exception
    ) -> None:
        """Replace what is too large, and what is no smaller and goes to the same topic."""
        if not isinstance(error, TOO_LARGE) or not cause.message:
            raise error
        refused = cause.message
        for pending in pending_messages:
            if pending.is_as_large_as(refused):
                pending.fall_back()

    def close(self) -> None:
        """See `Delivery.close`."""
        self._healthy = False
        if self._producer:
            close_now(self._producer)
        self._producer = None


class AtLeastOnce:
    """Results and dead letters first, then the offsets of what has been published.

    The producer is not idempotent: one that is ends for good with the first message that is too
    large, and takes the others along.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Untyped = None

    def ensure_ready(self) -> None:
        """See `Delivery.ensure_ready`."""
        if self._producer:
            return
        ours = {
            **producer_arguments(self._settings),
            "enable_idempotence": False,
            "max_in_flight_requests_per_connection": 1,  # or a retry overtakes
        }
        self._producer, _ = open_client(KafkaProducer, self._settings, ours)

    def deliver(self, pending_messages: Sequence[Pending], source: GroupConsumer) -> None:
        """See `Delivery.deliver`."""
        self.ensure_ready()
        lost = dict(self._publish_in_forms(pending_messages))
        offsets = next_offsets(select_published(pending_messages, lost), source.note)
        if offsets:
            source.commit(offsets)
        for error in lost.values():
            raise error

    def _publish_in_forms(self, pending_messages: Iterable[Pending]) -> Iterator[Failure]:
        """Publish each in the largest form that its topic takes; give back what was not."""
        timeout = self._settings.transaction_timeout
        while failed := publish_all(self._producer, pending_messages, timeout):
            pending_messages = [
                pending for pending, error in failed if isinstance(error, TOO_LARGE)
            ]
            for pending in pending_messages:
                pending.fall_back()
            yield from (failure for failure in failed if failure[0] not in pending_messages)

    def close(self) -> None:
        """See `Delivery.close`."""
        if self._producer:
            close_now(self._producer)
        self._producer = None


def producer_arguments(settings: KafkaSettings) -> dict[str, Any]:
    """What every producer of ours is told; a message that outlives a transaction is no use."""
    timeout = round(settings.transaction_timeout * 1000)
    return {
        "acks": -1,
        "max_request_size": MAX_REQUEST_BYTES,
        "request_timeout_ms": timeout // 2,
        "delivery_timeout_ms": timeout,
        # For some ms after one transaction the next is told to wait; by default it waits 0.1 s.
        "retry_backoff_ms": 20,
    }
