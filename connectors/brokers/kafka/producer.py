"""Publishing and acknowledging: exactly once in a transaction, or at least once."""

from __future__ import annotations

import re
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError

from ...errors import Exit, Stop
from ..publishing import PendingMessage, select_published
from .clients import close_now, open_client
from .messages import Outgoing

if TYPE_CHECKING:
    from collections.abc import (
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from .. import Untyped
    from .consumer import GroupConsumer, Offsets
    from .settings import KafkaSettings


TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)

UNFIT = (kafka_errors.InvalidRecordError,)
"""A topic refuses a message for a reason of its own: no key in a compacted topic, a schema."""

CLOSED = (
    *UNFIT,
    kafka_errors.InvalidTopicError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.PolicyViolationError,
    kafka_errors.UnsupportedForMessageFormatError,
)
"""A topic refuses every message: time will not cure it."""

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

    def note(pending: Pending, _: Exception) -> None:
        noted.append(pending)

    sent: list[tuple[Pending, Untyped]] = []
    failed: dict[Pending, Exception] = {}
    for pending in pending_messages:
        if failed and not all(isinstance(error, TOO_LARGE) for error in failed.values()):
            failed[pending] = kafka_errors.Cancelled("not sent after an earlier failure")
        elif pending.message:
            try:
                future = producer.send(*pending.message)
            except KafkaError as error:
                failed[pending] = error
            else:
                future.add_errback(partial(note, pending))
                sent.append((pending, future))
    failed |= _await_futures(sent, time.monotonic() + timeout)
    return sorted(failed.items(), key=lambda failure: failure[0] not in noted[:1])


def _await_futures(sent: Iterable[tuple[Pending, Untyped]], deadline: float) -> Iterator[Failure]:
    for pending, future in sent:
        if future.succeeded():
            continue
        try:
            future.get(timeout=max(0.0, deadline - time.monotonic()))
        except KafkaError as error:
            yield pending, error


def find_unfit(failed: Iterable[Failure], shared: object = None) -> Mapping[Pending, str]:
    """Those that their topic refuses for a reason of their own, and the reason.

    `shared`: what all that waited in the transaction have failed with. An error that several have
    in common says nothing of one of them.
    """
    failures = list(failed)
    counts = Counter(id(error) for _, error in failures)
    return {
        pending: str(error.args[0] if error.args else error)
        for pending, error in failures
        if isinstance(error, UNFIT)
        and not _is_of_our_clock(error)
        and counts[id(error)] == 1
        and error is not shared
    }


def _is_of_our_clock(error: Exception) -> bool:
    """Say whether a topic refused a timestamp, which our clock gave.

    Of several in a batch the library says only that they are invalid, and Kafka's words.
    """
    if isinstance(error, kafka_errors.InvalidTimestampError):
        return True
    return re.match(r"Timestamp \d+ of message", str(next(iter(error.args), ""))) is not None


def stop_if_closed(pending: Pending, error: Exception) -> None:
    """Raise Stop when a topic takes no message at all."""
    if isinstance(error, CLOSED) and pending.message:
        what = "this machine's clock, or its" if _is_of_our_clock(error) else "its"
        why = f"{pending.message.topic} takes no message ({error}): correct {what} settings"
        raise Stop(f"{why}, then start", Exit.UNAVAILABLE) from error


def next_offsets(pending_messages: Iterable[Pending], note: str) -> Offsets:
    """The offset after the last record of each partition, and the note that goes with it."""
    positions = [pending.record.position for pending in pending_messages]
    last = {(at.topic, at.partition): at for at in positions}
    return {
        TopicPartition(*place): OffsetAndMetadata(at.offset + 1, note, at.leader_epoch)
        for place, at in last.items()
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


class BoundedProducer(KafkaProducer):  # type: ignore[misc]  # kafka-python ships no types
    """Ends its wait for a transaction when the coordinator has given it up.

    The library waits without a deadline for the answers to the offsets and to the end of a
    transaction, and asks again for ever when a connection breaks or a coordinator moves. After the
    transaction's own time-out the coordinator aborts what it has not begun to end, so no answer is
    worth waiting for. What came of it is asked by the next producer (`init_transactions`).
    """

    def begin_transaction(self) -> None:
        """Begin, and let the time for the rest of it run."""
        super().begin_transaction()
        timeout: float = self.config["transaction_timeout_ms"] / 1000
        self._transaction_ends_at = time.monotonic() + timeout

    def send_offsets_to_transaction(self, offsets: Offsets, group_metadata: Untyped) -> None:
        """See the library; raises KafkaTimeoutError as well."""
        manager = self._transaction_manager
        self._wait(manager.send_offsets_to_transaction(offsets, group_metadata), "its offsets")

    def commit_transaction(self) -> None:
        """See the library; raises KafkaTimeoutError as well: whether it is committed, who knows."""
        self._wait(self._transaction_manager.begin_commit(), "its end")

    def _wait(self, result: Untyped, what: str) -> None:
        self._sender.wakeup()
        left = max(0.0, self._transaction_ends_at - time.monotonic())
        if not result.wait(timeout_ms=left * 1000):
            raise kafka_errors.KafkaTimeoutError(f"a transaction timed out before {what} was known")


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
        self._producer, self._net_client = open_client(BoundedProducer, self._settings, ours)
        self._producer.init_transactions()
        self._healthy = True

    def deliver(self, pending_messages: Sequence[Pending], source: GroupConsumer) -> None:
        """1. Send all. 2. Wait for each. 3. Send the offsets. 4. End the transaction.

        A message that its topic does not take is replaced, in a new transaction.
        """
        self.ensure_ready()
        while failed := self._send(pending_messages):
            self._fall_back(pending_messages, failed)
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

    def _fall_back(self, pending_messages: Sequence[Pending], failed: Sequence[Failure]) -> None:
        """Replace what is unfit; what is too large, and no smaller and for the same topic."""
        manager = self._producer._transaction_manager  # noqa: SLF001 - there is no public way; tested
        unfit = find_unfit(failed, manager.last_error)
        for pending, why in unfit.items():
            pending.fall_back(why)
        if not unfit:
            self._replace_large(pending_messages, *failed[0])

    def _replace_large(
        self, pending_messages: Sequence[Pending], cause: Pending, error: Exception
    ) -> None:
        stop_if_closed(cause, error)
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
        for pending, error in lost.items():
            stop_if_closed(pending, error)
            raise error

    def _publish_in_forms(self, pending_messages: Iterable[Pending]) -> Iterator[Failure]:
        """Publish each in the largest form that its topic takes; give back what was not.

        What was in one batch with a message that is unfit is published again: it was innocent.
        """
        timeout = self._settings.transaction_timeout
        while failed := publish_all(self._producer, pending_messages, timeout):
            unfit = find_unfit(failed)
            too_large = [pending for pending, error in failed if isinstance(error, TOO_LARGE)]
            beside = {pending for pending, error in failed if unfit and type(error) is KafkaError}
            for pending in [*unfit, *too_large]:
                pending.fall_back(unfit.get(pending))
            again = {*unfit, *too_large, *beside}
            yield from (failure for failure in failed if failure[0] not in again)
            pending_messages = [pending for pending in pending_messages if pending in again]

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
