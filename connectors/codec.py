"""What lies in topics: a record becomes an image, an outcome becomes a message. Pure functions.

    record -> image          `decode`, when it has been read
    outcome -> message       `encode`, when it is committed

What goes to the inference server and comes back is the matter of `connectors.inference`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Literal

from .headers import strip_earlier
from .records import Image, Message, Prediction, Rejection, Skipped
from .text import MAX_DETAIL_BYTES, truncate_utf8

if TYPE_CHECKING:
    from .records import Headers, Record, Settled

MAX_IMAGE_BYTES = 5_000_000
"""Bytes of one image; TorchServe takes 6,553,500 for a whole request."""

FIELDS = "class", "label", "score", "top", "outputs", "model"
"""Of a prediction, in the order of a result: a class, or the outputs of a foreign server."""

_ENCODER = json.JSONEncoder(separators=(",", ":"))
"""One for all: `json.dumps` would make one for each result, which takes as long as the encoding."""

_NAME = rb"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}"  # RFC 6838, 4.2; half its length is plenty
# The types of one thing (RFC 2046, 3). A server takes `multipart/mixed` for more parts to come, and
# some take a word such as `charset` for a parameter; either fails the whole request.
_KIND = rb"application|audio|example|font|haptics|image|model|text|video"
_MEDIA_TYPE = re.compile(b"(?:" + _KIND + b")/" + _NAME)


def decode(
    record: Record,
    *,
    tombstones: Literal["dead-letter", "skip"] = "dead-letter",
    limit: int = MAX_IMAGE_BYTES,
) -> Image | Rejection | Skipped:
    """What a record asks for: an image to send, or the outcome that needs no service."""
    if record.value is None:
        skip = tombstones == "skip"
        return Skipped() if skip else Rejection("tombstone", "the record has no value")
    if not record.value:
        return Rejection("empty", "the value has no bytes")
    if len(record.value) > limit:
        detail = f"the value has {len(record.value)} bytes, more than {limit}"
        return Rejection("too_large", detail)
    return Image(record.value, find_media_type(record.headers, "content-type"))


def find_media_type(headers: Headers, title: str) -> str | None:
    """The last plausible media type; anything else could break its header line or the parts."""
    for name, value in reversed(headers):
        essence = (value or b"").partition(b";")[0].strip().lower()
        if name.lower() == title and _MEDIA_TYPE.fullmatch(essence):
            return essence.decode("ascii")
    return None


def encode(settled: Settled) -> Message | None:
    """The result or the dead letter of a record; None when it leaves no trace."""
    record, outcome = settled.record, settled.outcome
    if isinstance(outcome, Skipped):
        return None
    if isinstance(outcome, Rejection):
        headers = _dead_headers(record.headers, outcome)
        return Message(record.value, record.key, headers, dead=True)
    return Message(_result(record, outcome), record.key, strip_earlier(record.headers), dead=False)


def _result(record: Record, prediction: Prediction) -> bytes:
    answered = {name: prediction.body[name] for name in FIELDS if name in prediction.body}
    result = {"id": record.id, **answered, "time": record.time}
    return _ENCODER.encode(result).encode("ascii")


def _dead_headers(headers: Headers, rejection: Rejection) -> Headers:
    """As they came, with ours at the end; those of an earlier trip are replaced."""
    ours = [
        ("connector.reason", rejection.reason.encode("ascii")),
        ("connector.detail", truncate_utf8(rejection.detail, MAX_DETAIL_BYTES)),
        ("connector.attempts", b"%d" % rejection.attempts),
    ]
    if rejection.status is not None:
        ours.append(("connector.status", b"%d" % rejection.status))
    return (*strip_earlier(headers), *ours)
