"""The kind and the size of an image file, read from its first bytes; nothing is decoded. Pure.

What lies in topics goes to a browser only if this module knows it: a browser that is told a type
keeps to it, and a small file of very many pixels would cost the viewer his memory.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG that a size follows (ISO/IEC 10918-1, table B.1)."""

SEGMENT_START = 0xFF


class ImageHeader(NamedTuple):
    """Media type, and sides in pixels."""

    content_type: str
    width: int
    height: int


def read_image_header(data: bytes) -> ImageHeader | None:
    """Return what a file says of itself; None: it is none of PNG, JPEG, GIF, BMP and WebP."""
    for magic, content_type, read_size in _KINDS:
        if data.startswith(magic):
            try:
                size = read_size(data)
            except struct.error:  # it ends too early
                return None
            return ImageHeader(content_type, *size) if size else None
    return None


def _read_png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">2I", data, 16)
    return width, height


def _read_gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<2H", data, 6)
    return width, height


def _read_bmp(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<2i", data, 18)
    return abs(width), abs(height)  # a negative height: from top to bottom


def _read_jpeg(data: bytes) -> tuple[int, int] | None:
    """Walk over the segments; a frame's has precision, height and width."""
    at = 2
    while True:
        start, marker, length = struct.unpack_from(">2BH", data, at)
        if start != SEGMENT_START:
            return None
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">2H", data, at + 5)
            return width, height
        at += 2 + max(length, 2)  # of the two bytes themselves, at least


def _read_webp(data: bytes) -> tuple[int, int] | None:
    match data[8:16]:
        case b"WEBPVP8X":
            low = struct.unpack_from("<2HBHB", data, 22)  # the two sides begin at 24, of 24 bits
            return low[1] + (low[2] << 16) + 1, low[3] + (low[4] << 16) + 1
        case b"WEBPVP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"WEBPVP8 ":
            width, height = struct.unpack_from("<2H", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


_KINDS: tuple[tuple[bytes, str, Callable[[bytes], tuple[int, int] | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png", _read_png),
    (b"\xff\xd8\xff", "image/jpeg", _read_jpeg),
    (b"GIF87a", "image/gif", _read_gif),
    (b"GIF89a", "image/gif", _read_gif),
    (b"BM", "image/bmp", _read_bmp),
    (b"RIFF", "image/webp", _read_webp),
)
