"""CloudEvents 1.0 in binary mode: the value is the data, headers are the attributes. Pure.

    record -> image      as `codec` has it, with the media type that the event names
    outcome -> result    an event of this daemon's own, caused by the record
    outcome -> dead      the record as it came, set aside: the sender's event, if it was one

Attributes of a record are read one by one, and only those that are valid: whatever comes in, a
result is a valid event. Which attribute is whose stands in docs/messages.md and decision 044.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import codec
from .records import Image, Rejection
from .text import render_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from .records import Headers, Message, Record, Settled, Skipped

    Decode = Callable[[Record], Image | Rejection | Skipped]

RESULT_TYPE = "fmnist.prediction"
"""The attribute `type` of every result."""

MAX_SUBJECT_BYTES = 1024
"""Of a key that becomes a subject; Pub/Sub takes no longer attribute."""

STRUCTURED = (
    "the record is a CloudEvent in structured mode: send it in binary mode, with the image as the "
    "value and the attributes as headers"
)

# Of an event that a record was, these tell of that event or of its data, not of what it caused.
# The others are extensions, and go along as other headers do.
_NOT_CARRIED = frozenset(
    ("specversion", "type", "source", "id", "time", "subject", "datacontenttype", "dataschema")
) | {"data", "dataref", "sequence", "sequencetype", "recordedtime", "dssematerial", "causationid"}

_NAME = re.compile("[a-z0-9]+")

_PLANES = range(0x10000, 0x120000, 0x10000)
_NO_TEXT = re.compile(  # what a String may not hold: control characters and noncharacters
    "[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(end - 2) + chr(end - 1) for end in _PLANES)
    + "]"
)


@dataclass(frozen=True, slots=True)
class CloudEvents:
    """The format of one daemon.

    `prefix`: how the names of headers begin that are attributes, as its broker's binding has it.
    `source`: the attribute of its results, a URI reference; no other daemons' with records of the
    same ids, for source and id tell events apart.
    """

    prefix: str
    source: str

    def decode(self, decode: Decode, record: Record) -> Image | Rejection | Skipped:
        """Decode; the header content-type goes before the attribute datacontenttype."""
        found = decode(record)
        if not isinstance(found, Image):
            return found
        name = f"{self.prefix}datacontenttype"
        kind = found.content_type or codec.find_media_type(record.headers, name)
        if kind and kind.startswith("application/cloudevents"):
            return Rejection("unsupported_type", STRUCTURED)
        return replace(found, content_type=kind)

    def encode(self, settled: Settled) -> Message | None:
        """Encode, and make an event of a result; a dead letter stays the record that it was."""
        message = codec.encode(settled)
        if message is None or message.dead:
            return message
        attributes = self._describe(settled.record, self._read_attributes(message.headers))
        headers = (
            *(header for header in message.headers if not self._is_of_event(header[0])),
            *((self.prefix + name, text.encode()) for name, text in attributes.items()),
            ("content-type", b"application/json"),
        )
        return message._replace(headers=headers)

    def _is_of_event(self, name: str) -> bool:
        """Say whether a reader takes a header for a part of the event; some heed no case."""
        return name.lower() == "content-type" or name.lower().startswith(self.prefix)

    def _read_attributes(self, headers: Headers) -> dict[str, str]:
        """Return the valid attributes by name; of repeated ones the last."""
        pairs = (
            (name.removeprefix(self.prefix), _read_text(value))
            for name, value in headers
            if name.startswith(self.prefix)
        )
        return {name: text for name, text in pairs if text and _NAME.fullmatch(name)}

    def _describe(self, record: Record, given: dict[str, str]) -> dict[str, str]:
        """Return the attributes of a result; `given`: those of its record."""
        key = record.key if len(record.key or b"") <= MAX_SUBJECT_BYTES else None
        ours = {
            "specversion": "1.0",
            "type": RESULT_TYPE,
            "source": self.source,
            "id": record.id,
            "time": render_timestamp(record.time),
            "subject": given.get("subject") or _read_text(key),
            "causationid": given.get("id"),
        }
        extensions = {name: text for name, text in given.items() if name not in _NOT_CARRIED}
        return {**extensions, **{name: text for name, text in ours.items() if text}}


def _read_text(value: bytes | None) -> str | None:
    """Read a String of CloudEvents; None for what is none."""
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        return None
    return None if _NO_TEXT.search(text) else text or None
