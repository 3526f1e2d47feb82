"""Text of others: decoded, made harmless for a terminal, and cut. Pure; never raises."""

from __future__ import annotations

from typing import overload

MAX_DETAIL_BYTES = 1024
"""Of a header that says why a record has no prediction."""


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
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def truncate_utf8(text: str, limit: int) -> bytes:
    """Encode at most `limit` bytes of UTF-8, cut between characters."""
    whole = text.encode("utf-8", "replace")[:limit]
    return whole.decode("utf-8", "ignore").encode("utf-8")
