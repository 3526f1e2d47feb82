"""What is published for a settled record, and where."""

from __future__ import annotations

import hashlib
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from ...headers import ORIGIN, OURS, is_ours
from ...records import Message, Record, Rejection, Settled
from ..publishing import error_message, replace_headers
from .clients import partition_counts, recount_partitions
from .published_offsets import SOURCE, SourceRecord

if TYPE_CHECKING:
    from collections.abc import (
        Generator,
        Iterable,
        Iterator,
        Sequence,
    )

    from ...records import Headers
    from ..publishing import Encode
    from .settings import KafkaSettings


RECOUNT_INTERVAL = 300.0
"""Seconds between two counts of the partitions while the topics have different numbers."""


class Outgoing(NamedTuple):
    """What `KafkaProducer.send` takes, in its order; `partition` None: by key."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int | None

    def size(self) -> int:
        """Bytes, but for the few that the format adds."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.value or b"") + len(self.key or b"") + headers


class MessageBuilder:
    """Says what may be published for a settled record, and where."""

    def __init__(self, settings: KafkaSettings, encode: Encode) -> None:
        self._encode = encode
        self._input = settings.input_topic
        self._topics = {False: settings.output_topic, True: settings.dead_letter_topic}
        self._settings = settings
        self._counts = partition_counts(settings, [self._input, *self._topics.values()])
        self._counted_at = -inf
        self._group = settings.group if settings.delivery == "exactly-once" else None

    def traceable(self) -> set[str]:
        """The topics in which every outcome says of which record it is, in that one's order."""
        return (
            {one for one in self._topics.values() if self._is_alike(one)} if self._group else set()
        )

    def _is_alike(self, topic: str) -> bool:
        """Say whether a topic has as many partitions as the input, so that numbers are kept."""
        return self._counts[topic] == self._counts[self._input]

    def recount(self, settled: Sequence[Settled], now: float) -> bool:
        """Count the partitions anew if they may have become more; say whether they have.

        The input's have if a record came from a new one. While the topics differ somebody may be
        about to bring them to the same number. Raises KafkaError when they cannot be counted.
        """
        new = any(one.record.position.partition >= self._counts[self._input] for one in settled)
        waiting = len(set(self._counts.values())) > 1 and now - self._counted_at > RECOUNT_INTERVAL
        if not new and not waiting:
            return False
        counts = recount_partitions(self._settings, list(self._counts))
        changed, self._counts, self._counted_at = counts != self._counts, counts, now
        return changed

    def fallbacks(self, settled: Settled) -> Generator[Outgoing, str | None, None]:
        """What may be published, each smaller than the one before; nothing if skipped.

        The result; the dead letter; that without its value; and without key and headers, too. What
        is sent back is why a topic refused the last one, if not for its size.
        """
        message = self._encode(settled)
        if message and not message.dead:
            result = self._build(message, settled)
            why = yield result
            settled = Settled(settled.record, _refusal(result, why))
            message = self._encode(settled)
        if message:
            for form in _shrink_dead_letter(self._build(message, settled)):
                if (yield form):
                    return  # a smaller one helps nobody

    def _build(self, message: Message, settled: Settled) -> Outgoing:
        topic = self._topics[message.dead]
        partition = settled.record.position.partition if self._is_alike(topic) else None
        headers = message.headers
        if self._group:
            at = settled.record.position
            source = SourceRecord(self._input, at.partition, at.offset, self._group)
            headers = replace_headers(headers, {SOURCE: source.encoded()})
        if message.dead and isinstance(settled.outcome, Rejection):
            headers = replace_headers(
                headers, self._origin_headers(settled.record, settled.outcome)
            )
        return _make_outgoing(topic, message, headers, partition)

    def _origin_headers(self, record: Record, rejection: Rejection) -> dict[str, bytes]:
        """The headers by which the tools around Kafka Connect find the source."""
        return {
            f"{ORIGIN}topic": self._input.encode(),
            f"{ORIGIN}partition": b"%d" % record.position.partition,
            f"{ORIGIN}offset": b"%d" % record.position.offset,
            f"{ORIGIN}exception.message": error_message(rejection),
        }


def _make_outgoing(
    topic: str, message: Message, headers: Headers, partition: int | None
) -> Outgoing:
    """What `send` can take: it refuses a null header, and null for both key and value.

    Those become empty bytes, and `connector.nulls` says which.
    """
    nulls = [f"headers[{place}]" for place, (_, value) in enumerate(headers) if value is None]
    value = message.value
    if value is None and message.key is None:
        value = b""
        nulls.append("value")
    filled: Iterable[tuple[str, bytes]] = [(name, content or b"") for name, content in headers]
    if nulls:
        filled = replace_headers(filled, {f"{OURS}nulls": ",".join(nulls).encode()})
    return Outgoing(topic, value, message.key, list(filled), partition)


def _refusal(result: Outgoing, why: str | None) -> Rejection:
    """Say that a topic does not take a result: for its size, or for another reason."""
    if why:
        return Rejection("result_refused", f"{result.topic} does not take the result: {why}")
    detail = f"{result.topic} takes no result of {result.size()} bytes"
    return Rejection("result_too_large", detail)


def _shrink_dead_letter(dead_letter: Outgoing) -> Iterator[Outgoing]:
    """A dead letter, and what is left of it when its topic does not take it."""
    yield dead_letter
    if dead_letter.value:
        digest = hashlib.sha256(dead_letter.value).hexdigest()
        size = b"%d" % len(dead_letter.value)
        ours = {f"{OURS}value-bytes": size, f"{OURS}value-sha256": digest.encode()}
        dead_letter = dead_letter._replace(
            value=b"", headers=list(replace_headers(dead_letter.headers, ours))
        )
        yield dead_letter
    ours_only = [header for header in dead_letter.headers if is_ours(header[0])]
    yield dead_letter._replace(value=b"", key=None, headers=ours_only)
