"""Text, numbers, times and JSON of others: read, made harmless, and cut. Pure; never raises.

Whatever a record or a server says passes here on its way to a terminal, a log or a label. What
cannot be read is None: "not known".
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from sys import float_info
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DETAIL_BYTES = 1024
"""Of a header that says why a record has no prediction."""

MAX_DIGITS = 18
"""Of a number that is believed; any longer one is in no header of ours."""

MAX_DEPTH = 64
"""Arrays and objects within each other in a document that is read."""


@overload
def decode_text(value: bytes) -> str: ...
@overload
def decode_text(value: None) -> None: ...
@overload
def decode_text(value: bytes | None) -> str | None: ...
def decode_text(value: bytes | None) -> str | None:
    """Decode UTF-8; what is none becomes U+FFFD."""
    return None if value is None else value.decode("utf-8", "replace")


def replace_control_characters(text: str) -> str:
    """Replace what a terminal would obey by U+FFFD."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def truncate_utf8(text: str, limit: int) -> bytes:
    """Encode at most `limit` bytes of UTF-8, cut between characters."""
    whole = text.encode("utf-8", "replace")[:limit]
    return whole.decode("utf-8", "ignore").encode("utf-8")


def parse_count(value: bytes | None) -> int | None:
    """Read a number of at most MAX_DIGITS decimal digits."""
    return int(value) if value and value.isdigit() and len(value) <= MAX_DIGITS else None


def render_time(milliseconds: int) -> str:
    """Give a time since the epoch in ISO 8601; "not known" for one that no calendar has."""
    time = _find_time(milliseconds)
    return time.isoformat(timespec="seconds") if time else "not known"


def render_timestamp(milliseconds: int) -> str | None:
    """Give a time since the epoch as RFC 3339 has it, for programs."""
    time = _find_time(milliseconds)
    return f"{time.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z" if time else None


def _find_time(milliseconds: int) -> datetime | None:
    try:
        time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return time if milliseconds >= 0 else None


def parse_json(value: bytes | None) -> Any:  # noqa: ANN401 - a document of any kind
    """Read a document that can be written again as JSON: finite numbers, at most MAX_DEPTH deep."""
    try:
        document = json.loads(value or b"")
    except (ValueError, RecursionError):
        return None
    return document if _is_plain(document) else None


def is_finite(number: float) -> bool:
    """Say whether it is a finite number that a float can hold; JSON's integers have no end."""
    return abs(number) <= float_info.max


def _is_plain(document: object) -> bool:
    level, depth = [document], 0
    while level and depth <= MAX_DEPTH:
        if any(isinstance(one, int | float) and not is_finite(one) for one in level):
            return False
        level, depth = [inner for one in level for inner in _list_nested(one)], depth + 1
    return not level


def _list_nested(value: object) -> Iterable[object]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
    return ()
