"""What is published for a settled record, and where."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from ...headers import ORIGIN, OURS, is_ours
from ...records import Message, Record, Rejection, Settled
from ..publishing import error_message, replace_headers
from .clients import partition_counts
from .published_offsets import SOURCE, SourceRecord

if TYPE_CHECKING:
    from collections.abc import (
        Iterable,
        Iterator,
    )

    from ...records import Headers
    from ..publishing import Encode
    from .settings import KafkaSettings


class Outgoing(NamedTuple):
    """What `KafkaProducer.send` takes; `partition` None: by key."""

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
        counts = partition_counts(settings, [self._input, *self._topics.values()])
        self._alike = {topic for topic in counts if counts[topic] == counts[self._input]}
        self._group = settings.group if settings.delivery == "exactly-once" else None

    def traceable(self) -> set[str]:
        """The topics in which every outcome says of which record it is, in that one's order."""
        return self._alike & set(self._topics.values()) if self._group else set()

    def fallbacks(self, settled: Settled) -> Iterator[Outgoing]:
        """What may be published, each smaller than the one before; nothing if skipped.

        The result; the dead letter; that without its value; and without key and headers, too.
        """
        message = self._encode(settled)
        if message and not message.dead:
            result = self._build(message, settled)
            yield result
            detail = f"{result.topic} takes no result of {result.size()} bytes"
            settled = Settled(settled.record, Rejection("result_too_large", detail))
            message = self._encode(settled)
        if message:
            dead_letter = self._build(message, settled)
            yield dead_letter
            yield from _shrink_dead_letter(dead_letter)

    def _build(self, message: Message, settled: Settled) -> Outgoing:
        topic = self._topics[message.dead]
        partition = settled.record.position.partition if topic in self._alike else None
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


def _shrink_dead_letter(dead_letter: Outgoing) -> Iterator[Outgoing]:
    """What is left of a dead letter that its topic does not take."""
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
