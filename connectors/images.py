"""Images that the connectors make themselves: a PNG encoder, and the first canary."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from typing import TYPE_CHECKING

from .errors import Exit, Stop
from .records import Image

if TYPE_CHECKING:
    from pathlib import Path

MAX_CANARY_BYTES = 5_000_000
"""As much as an image of a record may have (`codec`)."""


def encode_png(width: int, height: int, pixels: bytes) -> bytes:
    """Encode a greyscale image of 8 bits, given row by row (PNG specification, 5.3, 7.2, 11.2)."""
    rows = (pixels[start : start + width] for start in range(0, width * height, width))
    unfiltered = b"".join(b"\0" + row for row in rows)
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_encode_chunk(*chunk) for chunk in chunks)


def _encode_chunk(name: bytes, data: bytes) -> bytes:
    tagged = name + data
    return struct.pack(">I", len(data)) + tagged + struct.pack(">I", zlib.crc32(tagged))


CANARY = Image(encode_png(28, 28, bytes(28 * 28)), "image/png")
"""A blank image that a healthy service can always read: it tells a bad record from a sick service.

The relay replaces it with the last image that was predicted (see `connectors.relay`).
"""


@cache
def load_canary(path: Path | None) -> Image:
    """Return the operator's image, read once for each process, or CANARY.

    Raises Stop(2) when it cannot be read.
    """
    if path is None:
        return CANARY
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CANARY_BYTES + 1)
    except OSError as error:
        raise Stop(f"--canary {path} cannot be read: {error.strerror}", Exit.USAGE) from None
    if not data or len(data) > MAX_CANARY_BYTES:
        raise Stop(
            f"--canary {path} must be an image of 1 to {MAX_CANARY_BYTES} bytes, such as the model "
            "always answers",
            Exit.USAGE,
        )
    return Image(data)


def pad_canary(size: int) -> Image:
    """The canary in a PNG file of `size` bytes, more than its own.

    What fills it is a private chunk, which every reader steps over (PNG specification, 5.4): such
    a file costs a server no more than its bytes.
    """
    end = CANARY.data.index(b"IEND") - 4
    chunk = _encode_chunk(
        b"fiLl", bytes(size - len(CANARY.data) - len(_encode_chunk(b"fiLl", b"")))
    )
    return Image(CANARY.data[:end] + chunk + CANARY.data[end:], CANARY.content_type)
