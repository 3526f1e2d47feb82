"""Every byte of the wire, and nothing else: pure functions.

    record -> image    images -> body    (status, body) -> answer    outcome -> message

The handler answers 200 with `{"predictions": [...], "model": {"name", "version"}}`: for each image
`{"class", "label", "score", "top": [{"class", "label", "score"}, ...]}`, or in its place
`{"error": {"code", "message"}}`. TorchServe itself answers `{"code", "type", "message"}`.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from email.utils import mktime_tz, parsedate_tz
from hashlib import blake2b
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from .records import Busy, Failed, Image, Message, Prediction, Reason, Rejection, Skipped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .records import Answer, Headers, Record, Settled

LIMIT = 5_000_000
"""Bytes of one image; TorchServe takes 6,553,500 for a whole request."""

PATIENCE = 60.0
"""Seconds; a Retry-After that asks for more is taken as this much."""

_DETAIL = 1024
_EXCERPT = 200
_FAILURE = "InternalServerException"  # a worker died, a handler raised, no memory: 500, 503, 507
_UNTYPED = "application/octet-stream"
_NAME = rb"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}"  # RFC 6838, 4.2; half its length is plenty
_MEDIA_TYPE = re.compile(_NAME + b"/" + _NAME)
_OURS = {"connector.reason", "connector.detail", "connector.status", "connector.attempts"}


def decode(
    record: Record,
    *,
    tombstones: Literal["dead-letter", "skip"] = "dead-letter",
    limit: int = LIMIT,
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
    return Image(record.value, _content_type(record.headers))


def _content_type(headers: Headers) -> str | None:
    """The last plausible media type; anything else could break out of its header line."""
    for name, value in reversed(headers):
        essence = (value or b"").partition(b";")[0].strip().lower()
        if name.lower() == "content-type" and _MEDIA_TYPE.fullmatch(essence):
            return essence.decode("ascii")
    return None


def body(images: Sequence[Image]) -> tuple[str, bytes]:
    """Content type and bytes of multipart/form-data; the parts are named by their position.

    The same images give the same bytes. The boundary is a digest of the data, so to occur in it
    the data would have to contain its own digest.
    """
    boundary = _boundary(images)
    parts = [_part(boundary, *numbered) for numbered in enumerate(images)]
    content = b"".join([*parts, b"--", boundary, b"--\r\n"])
    return f"multipart/form-data; boundary={boundary.decode('ascii')}", content


def _boundary(images: Sequence[Image]) -> bytes:
    digest = blake2b(digest_size=16)
    for image in images:
        digest.update(image.data)
    return digest.hexdigest().encode("ascii")


def _part(boundary: bytes, position: int, image: Image) -> bytes:
    head = (
        f'Content-Disposition: form-data; name="{position:05}"; filename="{position:05}"\r\n'
        f"Content-Type: {image.content_type or _UNTYPED}\r\n\r\n"
    )
    return b"".join([b"--", boundary, b"\r\n", head.encode("ascii"), image.data, b"\r\n"])


def answer(status: int, content: bytes, count: int, after: float | None = None) -> Answer:
    """What a reply to `count` images, at least one, means; `after`: seconds, from Retry-After.

    Judged by the JSON that came, since one status has several causes: 503 is a full queue as well
    as a handler that raised. Only a known answer is evidence against a record; whatever is
    unknown is Busy.
    """
    reply = _json_object(content)
    if status == HTTPStatus.OK:
        return _outcomes(reply, count) or Busy(_excerpt("not our handler's answer", content), after)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:  # bytes (the server) or pixels (the handler)
        return Failed(_excerpt("413: too large", content), final=True, status=status)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and reply.get("type") == _FAILURE:
        return Failed(_excerpt(f"{status}", content), status=status)
    return Busy(_excerpt(f"{status}", content), after)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date), at most PATIENCE.

    `now`: seconds since the epoch.
    """
    if value is None:
        return None
    seconds = float(value) if value.isdecimal() and value.isascii() else _until(value, now)
    return None if seconds is None else max(0.0, min(seconds, PATIENCE))


def _until(date: str, now: float) -> float | None:
    parsed = parsedate_tz(date)
    try:
        return mktime_tz(parsed) - now if parsed else None
    except (ValueError, OverflowError):  # a date that no calendar has
        return None


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _excerpt(what: str, content: bytes) -> str:
    text = content[:_EXCERPT].decode("utf-8", "replace")
    return f"{what}: {' '.join(text.split())}" if text else what


def _outcomes(reply: dict[str, Any], count: int) -> list[Prediction | Rejection] | None:
    """One outcome per image; None when the reply is not in our handler's form."""
    items, model = reply.get("predictions"), reply.get("model")
    if not isinstance(items, list) or len(items) != count or not _is_model(model):
        return None
    outcomes = [_outcome(item, model) for item in items]
    known = [outcome for outcome in outcomes if outcome is not None]
    return known if len(known) == count else None


def _outcome(item: object, model: object) -> Prediction | Rejection | None:
    match item:
        case {"error": {"code": str(code), "message": str(message)}}:
            return _rejection(code, message)
        case {"top": [*top]} if isinstance(item, dict) and all(map(_is_ranked, [item, *top])):
            return Prediction({**item, "model": model})
    return None


def _rejection(code: str, message: str) -> Rejection:
    if code in get_args(Reason):
        return Rejection(cast("Reason", code), message, status=200)
    return Rejection("rejected", f"{code}: {message}", status=200)


def _is_model(value: object) -> bool:
    match value:
        case {"name": str(), "version": str()}:
            return True
    return False


def _is_ranked(value: object) -> bool:
    match value:
        case {"class": int(), "label": str(), "score": float() | int() as score}:
            return -inf < score < inf  # a NaN is none of both, and JSON has no word for it
    return False


def encode(settled: Settled) -> Message | None:
    """The result or the dead letter of a record; None when it leaves no trace."""
    record, outcome = settled.record, settled.outcome
    if isinstance(outcome, Skipped):
        return None
    if isinstance(outcome, Rejection):
        headers = _dead_headers(record.headers, outcome)
        return Message(record.value, record.key, headers, dead=True)
    return Message(_result(record, outcome), record.key, record.headers, dead=False)


def _result(record: Record, prediction: Prediction) -> bytes:
    answered = {n: prediction.body[n] for n in ("class", "label", "score", "top", "model")}
    result = {"id": record.id, **answered, "time": record.time}
    return json.dumps(result, separators=(",", ":")).encode("ascii")


def _dead_headers(headers: Headers, rejection: Rejection) -> Headers:
    """As they came, with ours at the end; those of an earlier trip are replaced."""
    ours = [
        ("connector.reason", rejection.reason.encode("ascii")),
        ("connector.detail", _cut(rejection.detail)),
        ("connector.attempts", b"%d" % rejection.attempts),
    ]
    if rejection.status is not None:
        ours.append(("connector.status", b"%d" % rejection.status))
    return (*(header for header in headers if header[0] not in _OURS), *ours)


def _cut(text: str) -> bytes:
    """At most 1 KiB of UTF-8, cut between characters."""
    whole = text.encode("utf-8", "replace")[:_DETAIL]
    return whole.decode("utf-8", "ignore").encode("utf-8")


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A greyscale image of 8 bits, row by row (PNG specification, 5.3, 7.2 and 11.2)."""
    rows = (pixels[start : start + width] for start in range(0, width * height, width))
    unfiltered = b"".join(b"\0" + row for row in rows)
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    tagged = name + data
    return struct.pack(">I", len(data)) + tagged + struct.pack(">I", zlib.crc32(tagged))


WITNESS = Image(png(28, 28, bytes(28 * 28)), "image/png")
"""An image that a healthy service can always read: what it says tells record from service."""
