"""TorchServe's dialect, with the handler of this project: multipart out, JSON back.

The handler answers 200 with `{"predictions": [...], "model": {"name", "version"}}`: for each image
`{"class", "label", "score", "top": [{"class", "label", "score"}, ...]}`, or in its place
`{"error": {"code", "message"}}`, whose code `internal` is no mistake of the sender's. TorchServe
itself answers `{"code", "type", "message"}`.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any, cast, get_args

from ..records import Busy, Failed, Image, Prediction, Reason, Rejection
from ..text import decode_text, replace_control_characters
from .dialect import Call, parse_retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ..records import Answer

_EXCERPT_BYTES = 200
_FAILURE = "InternalServerException"  # a worker died, a handler raised, no memory: 500, 503, 507
_UNTYPED = "application/octet-stream"


class TorchServe:
    """A `Dialect`; the operator's URL is the whole path of the predictions.

    `wall_clock`: seconds since the epoch, against which a date in Retry-After is read.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock

    def encode(self, images: Sequence[Image]) -> Call:
        """See `Dialect.encode`."""
        content_type, body = encode_multipart(images)
        return Call("", {"Content-Type": content_type}, body)

    def interpret(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> Answer:
        """See `Dialect.interpret`."""
        after = parse_retry_after(headers.get("Retry-After"), self._wall_clock())
        return interpret_reply(status, body, count, after)


def encode_multipart(images: Sequence[Image]) -> tuple[str, bytes]:
    """Return content type and bytes of multipart/form-data; the parts are named by their position.

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


def interpret_reply(status: int, content: bytes, count: int, after: float | None = None) -> Answer:
    """What a reply to `count` images, at least one, means; `after`: seconds, from Retry-After.

    Judged by the JSON that came, since one status has several causes: 503 is a full queue as well
    as a handler that raised. Only a known answer is evidence against a record; whatever is
    unknown is Busy, a proxy's 400, 403, 404, 408, 429, 502, 503 and 504 among it.
    """
    reply = _json_object(content)
    if status == HTTPStatus.OK:
        return _outcomes(reply, count) or Busy(_excerpt("not our handler's answer", content), after)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:  # of the server, a proxy or the handler
        detail = _excerpt("413: too large", content)
        return Failed(detail, final=True, status=status, reason="too_large")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and reply.get("type") == _FAILURE:
        return Failed(_excerpt(f"{status}", content), status=status)
    return Busy(_excerpt(f"{status}", content), after)


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _excerpt(what: str, content: bytes) -> str:
    text = " ".join(decode_text(content[:_EXCERPT_BYTES]).split())
    return f"{what}: {replace_control_characters(text)}" if content else what


def _outcomes(reply: dict[str, Any], count: int) -> list[Prediction | Rejection] | Failed | None:
    """One outcome per image; None when the reply is not in our handler's form.

    Failed where the handler itself failed on an image: no mistake of the sender's, so the image is
    found by trials as one that kills the worker is.
    """
    items, model = reply.get("predictions"), reply.get("model")
    if not isinstance(items, list) or len(items) != count or not _is_model(model):
        return None
    if any(map(_is_failure, items)):
        return Failed("the handler failed on an image", status=HTTPStatus.OK)
    outcomes = [_outcome(item, model) for item in items]
    known = [outcome for outcome in outcomes if outcome is not None]
    return known if len(known) == count else None


def _is_failure(item: object) -> bool:
    match item:
        case {"error": {"code": "internal"}}:
            return True
    return False


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


class KeyFile:
    """TorchServe's inference key, as its file holds it now. A renewed key voids the old at once."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: int | None = None
        self._value = ""

    def header(self) -> dict[str, str]:
        """Raises OSError or ValueError when the file has no key."""
        if self._path is None:
            return {}
        changed = self._path.stat().st_mtime_ns
        if changed != self._seen:
            self._value = _inference_key(self._path)
            self._seen = changed
        return {"Authorization": f"Bearer {self._value}"}

    def forget(self) -> None:
        """Read the file again, though it may look unchanged."""
        self._seen = None


def _inference_key(path: Path) -> str:
    """TorchServe 0.12 writes `{"inference": {"key": ..., "expiration time": ...}, ...}`."""
    match json.loads(path.read_text(encoding="utf-8")):
        case {"inference": {"key": str(key)}} if key.isascii() and key.isprintable():
            return key
    raise ValueError(f"{path} is not a key file of TorchServe")
