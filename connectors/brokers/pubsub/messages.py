"""Messages of Pub/Sub: what is published for a settled record, and what is read."""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from ...headers import ORIGIN, OURS, is_ours
from ...records import Message, Record, Rejection, Settled
from ..publishing import error_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ...records import Headers
    from .. import Untyped
    from ..publishing import Encode
    from .settings import PubSubSettings


MAX_MESSAGE_BYTES = 10_000_000
"""Bytes of one message; this and the next four: https://cloud.google.com/pubsub/quotas."""

MAX_ATTRIBUTES, MAX_NAME_BYTES, MAX_VALUE_BYTES, MAX_KEY_BYTES = 100, 256, 1024, 1024
"""Attributes of one message; bytes of one's name and value; bytes of the ordering key."""

RESERVED_PREFIX = "goog"
"""Names that begin so are the service's; a message that came with one may not be published so."""


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
            self.size() + 16 * len(self.attributes) + 1024 <= MAX_MESSAGE_BYTES
            and len(self.attributes) <= MAX_ATTRIBUTES
            and all(len(name.encode()) <= MAX_NAME_BYTES for name in self.attributes)
            and all(len(value.encode()) <= MAX_VALUE_BYTES for value in self.attributes.values())
            and len(self.key.encode()) <= MAX_KEY_BYTES
        )

    def without(self, names: Iterable[str]) -> Outgoing:
        """The same without these attributes, but for one that says which were left out."""
        left_out = ",".join(sorted(names)).encode()[:MAX_VALUE_BYTES].decode("utf-8", "ignore")
        kept = {name: value for name, value in self.attributes.items() if name not in names}
        return self._replace(attributes=kept | {f"{OURS}left-out": left_out})

    def without_value(self) -> Outgoing:
        """The same, but for the value, of which size and SHA-256 remain."""
        ours = {
            f"{OURS}value-bytes": str(len(self.value)),
            f"{OURS}value-sha256": hashlib.sha256(self.value).hexdigest(),
        }
        return self._replace(value=b"", attributes={**self.attributes, **ours})


class MessageBuilder:
    """Says what may be published for a settled record, and where."""

    def __init__(self, settings: PubSubSettings, encode: Encode) -> None:
        self._encode = encode
        self._topics = {False: settings.output_topic, True: settings.dead_letter_topic}

    def fallbacks(self, settled: Settled) -> Iterator[Outgoing]:
        """What may be published, each smaller than the one before; nothing if skipped.

        The result; the dead letter; that without attributes, without its value, without both.
        """
        return (form for form in self._fallbacks(settled) if form.fits())

    def _fallbacks(self, settled: Settled) -> Iterator[Outgoing]:
        message = self._encode(settled)
        if message and not message.dead:
            result = self._build(message, settled)
            yield from _unreserved(result)
            detail = (
                f"{result.topic} takes no result of {result.size()} bytes with "
                f"{len(result.attributes)} attributes"
            )
            settled = Settled(settled.record, Rejection("result_too_large", detail))
            message = self._encode(settled)
        if message:
            yield from _shrink_dead_letter(self._build(message, settled))

    def _build(self, message: Message, settled: Settled) -> Outgoing:
        attributes = make_attributes(message.headers)
        if message.dead and isinstance(settled.outcome, Rejection):
            attributes |= self._origin_headers(settled.record, settled.outcome)
        key = (message.key or b"").decode()
        return Outgoing(self._topics[message.dead], message.value or b"", key, attributes)

    def _origin_headers(self, record: Record, rejection: Rejection) -> dict[str, str]:
        """The source, in our word and in those that the tools around Kafka Connect read."""
        subscription, _, message = record.id.rpartition("/")
        return {
            f"{OURS}id": record.id,
            f"{ORIGIN}topic": subscription,
            f"{ORIGIN}offset": message,
            f"{ORIGIN}exception.message": error_message(rejection).decode(),
        }


def make_attributes(headers: Headers) -> dict[str, str]:
    """Make attributes of headers: text, and of repeated names the last."""
    return {name: (value or b"").decode("utf-8", "replace") for name, value in headers}


def _unreserved(message: Outgoing) -> Iterator[Outgoing]:
    """The message; and without the attributes that the service may keep to itself."""
    yield message
    reserved = [name for name in message.attributes if name.startswith(RESERVED_PREFIX)]
    if reserved:
        yield message.without(reserved)


def _shrink_dead_letter(dead_letter: Outgoing) -> Iterator[Outgoing]:
    """A dead letter, and what is left of one that its topic does not take."""
    yield from _unreserved(dead_letter)
    foreign = [name for name in dead_letter.attributes if not is_ours(name)]
    if foreign:
        yield dead_letter.without(foreign)
    if dead_letter.value:
        yield dead_letter.without_value()
    yield dead_letter.without_value().without(foreign)._replace(key="")


def make_record(subscription: str, message: Untyped) -> Record:
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
