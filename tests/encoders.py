"""Writers of small image files from numbers, without an image library.

They say exactly what stands in a file, the wrong things too. Arrays are integers, [H, W] or
[H, W, C]; everything returns bytes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Grid = NDArray[Any]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""x, y, step across and step down of each pass."""


def pack_row(row: Grid, depth: int) -> bytes:
    """Return the samples of a row, the highest bit first; 16 bits big-endian."""
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()


def png_chunk(name: bytes, body: bytes = b"", *, right: bool = True) -> bytes:
    """Return a chunk; its checksum is off by one bit unless `right`."""
    checksum = zlib.crc32(name + body) ^ (not right)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def png_header(width: int, height: int, depth: int, colour: int, interlaced: int = 0) -> bytes:
    """Return the signature and IHDR."""
    body = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return PNG_SIGNATURE + png_chunk(b"IHDR", body)


def png_rows(pixels: Grid, depth: int, *, interlaced: bool) -> bytes:
    """Return the rows of all passes, filtered by the pixel to the left: ramps stay small."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [pixels[y::down, x::across] for x, y, across, down in passes]
    return b"".join(filter_row(row, depth) for part in parts if part.size for row in part)


def filter_row(row: Grid, depth: int) -> bytes:
    """Return a filter's number and the row by it: Sub, or None below 8 bits."""
    packed = pack_row(row, depth)
    if depth < 8:
        return b"\0" + packed
    values = np.frombuffer(packed, np.uint8)
    step = len(packed) // len(row)
    left = np.concatenate([np.zeros(step, np.uint8), values[:-step]])
    return b"\1" + bytes(values - left)


def png(
    pixels: Grid,
    depth: int = 8,
    colour: int = 0,
    *,
    before: bytes = b"",
    after: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Return a PNG with the chunks `before` and `after` its one IDAT."""
    data = zlib.compress(png_rows(pixels, depth, interlaced=interlaced), 9)
    height, width = pixels.shape[:2]
    head = png_header(width, height, depth, colour, int(interlaced))
    return head + before + png_chunk(b"IDAT", data) + after + png_chunk(b"IEND", b"")


def pack_codes(codes: Iterable[int], bits: int, *, low_first: bool) -> bytes:
    """Return codes of equal length as bytes, the lowest bit first (GIF) or the highest (TIFF)."""
    order = np.arange(bits) if low_first else np.arange(bits)[::-1]
    table = (np.fromiter(codes, np.int64)[:, None] >> order) & 1
    flat = table.astype(np.uint8).reshape(-1)
    return bytes(np.packbits(flat, bitorder="little") if low_first else np.packbits(flat))


def lzw_codes(values: bytes) -> Iterable[int]:
    """Yield 9-bit LZW codes that never use the table: it is cleared before it would grow."""
    for start in range(0, len(values), 240):
        yield 256
        yield from values[start : start + 240]
    yield 257


def sub_blocks(data: bytes) -> bytes:
    """Return GIF's sub-blocks with their end."""
    parts = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def gif_frame(
    indices: Grid, corner: tuple[int, int] = (0, 0), *, interlaced: bool = False
) -> bytes:
    """Return an image descriptor and its data, 8 bits a pixel, with the global palette."""
    height, width = indices.shape
    order = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4), *range(1, height, 2)]
    rows = indices[order] if interlaced else indices
    data = pack_codes(lzw_codes(rows.astype(np.uint8).tobytes()), 9, low_first=True)
    flags = 0x40 if interlaced else 0
    return b"," + struct.pack("<HHHHB", *corner, width, height, flags) + b"\x08" + sub_blocks(data)


def gif_control(transparent: int | None = None, delay: int = 0) -> bytes:
    """Return a graphic control extension."""
    flags = 0 if transparent is None else 1
    return b"!\xf9\x04" + struct.pack("<BHB", flags, delay, transparent or 0) + b"\0"


def gif(
    palette: Grid, blocks: bytes, size: tuple[int, int] = (28, 28), version: bytes = b"89a"
) -> bytes:
    """Return a GIF with a global palette of 256 colours."""
    screen = struct.pack("<HHBBB", *size, 0xF7, 0, 0)
    return b"GIF" + version + screen + palette.astype(np.uint8).tobytes() + blocks + b";"


@dataclass(frozen=True)
class BmpHeader:
    """The fields of a BMP's information header that the tests change."""

    bits: int
    compression: int = 0
    masks: bytes = b""
    extra: bytes = b""
    palette: bytes = b""


def bmp(header: BmpHeader, width: int, height: int, data: bytes) -> bytes:
    """Return a BMP; a negative height means top-down. `extra` makes the header V4 or V5."""
    start = 14 + 40 + len(header.masks) + len(header.extra) + len(header.palette)
    inner_masks = len(header.masks) if header.extra else 0
    size = 40 + inner_masks + len(header.extra)
    info = struct.pack(
        "<IiiHHIIiiII",
        *(size, width, height, 1, header.bits, header.compression, len(data), 2835, 2835),
        *(len(header.palette) // 4, 0),
    )
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return head + info + header.masks + header.extra + header.palette + data


def bmp_rows(pixels: Grid, bits: int, *, top_down: bool = False) -> bytes:
    """Return rows padded to four bytes; colours are given in BMP's order."""
    rows = pixels if top_down else pixels[::-1]
    if bits == 16:
        packed = [row.astype("<u2").tobytes() for row in rows]
    else:
        packed = [pack_row(row, min(bits, 8)) for row in rows]
    return b"".join(row + bytes(-len(row) % 4) for row in packed)


def riff(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return a WebP of its chunks."""
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a WebP."""
    chunks, place = [], 12
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    return chunks


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """Return a marker segment with its length."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
"""Bytes of one value, by TIFF's type."""
TIFF_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q"}

Tag = tuple[int, "Sequence[float] | bytes"]
"""Type and values of one entry; bytes stand as they are."""


@dataclass(frozen=True)
class Tiff:
    """A TIFF to be: its tags and the strips or tiles of each directory."""

    order: str = "<"
    big: bool = False
    pages: list[tuple[Mapping[int, Tag], list[bytes]]] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the file: header, then each page's data, long values and directory."""
        mark = b"II" if self.order == "<" else b"MM"
        head = mark + struct.pack(self.order + ("HHH" if self.big else "H"), *self._version())
        body = bytearray(head + bytes(8 if self.big else 4))
        link = len(head)
        for tags, parts in self.pages:
            link = self._add_page(body, link, tags, parts)
        return bytes(body)

    def _version(self) -> tuple[int, ...]:
        return (43, 8, 0) if self.big else (42,)

    def _add_page(
        self, body: bytearray, link: int, tags: Mapping[int, Tag], parts: list[bytes]
    ) -> int:
        """Append a page, point `link` at it and return the place of its own link."""
        offsets = []
        for part in parts:
            offsets.append(len(body))
            body += part + bytes(len(part) % 2)
        places = (324, 325) if 322 in tags else (273, 279)
        lengths = [len(part) for part in parts]
        full = {**tags, places[0]: (4, offsets), places[1]: (4, lengths)}
        entries = [self._encode_entry(body, tag, *full[tag]) for tag in sorted(full)]
        body[link : link + self._word()] = self._pack_word(len(body))
        count = struct.pack(self.order + ("Q" if self.big else "H"), len(entries))
        body += count + b"".join(entries)
        body += bytes(self._word())
        return len(body) - self._word()

    def _encode_entry(
        self, body: bytearray, tag: int, kind: int, values: Sequence[float] | bytes
    ) -> bytes:
        if isinstance(values, bytes):
            count, data = len(values) // TIFF_SIZES[kind], values
        else:
            count = len(values)
            data = struct.pack(f"{self.order}{count}{TIFF_FORMATS[kind]}", *values)
        if len(data) > self._word():
            place = len(body)
            body += data + bytes(len(data) % 2)
            data = self._pack_word(place)
        head = struct.pack(self.order + "HH", tag, kind) + self._pack_word(count)
        return head + data.ljust(self._word(), b"\0")

    def _word(self) -> int:
        return 8 if self.big else 4

    def _pack_word(self, value: int) -> bytes:
        return struct.pack(self.order + ("Q" if self.big else "I"), value)


def pack_bits(data: bytes) -> bytes:
    """Return PackBits in literal runs of at most 128 bytes."""
    parts = (data[start : start + 128] for start in range(0, len(data), 128))
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def exif(kind: int, value: bytes) -> bytes:
    """Return an EXIF block (a little TIFF) whose only tag is the orientation."""
    count = len(value) // TIFF_SIZES[kind]
    entry = struct.pack("<HHI", 0x0112, kind, count) + value.ljust(4, b"\0")
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)
