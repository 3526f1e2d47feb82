"""Files taken apart and put together again: chunks, markers, blocks, fields, entries.

A file is a list of parts. Each knows how its length and its checksum are written, so a changed part
can be repaired, or left a lie.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Kind = Literal["bytes", "png", "jpeg", "riff", "blocks"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file: `head` names it, `body` is inside it.

    `whole`: the bytes as they stood, which is what a part that was not repaired keeps of its
    length and its checksum.
    """

    kind: Kind
    head: bytes
    body: bytes
    whole: bytes

    def change(self, body: bytes, *, repair: bool) -> Part:
        """Return the part with another body; its frame is repaired or keeps lying."""
        if repair:
            return replace(self, body=body, whole=FRAMES[self.kind](self.head, body))
        start = self.whole.find(self.body) if self.body else len(self.whole)
        tail = self.whole[start + len(self.body) :]
        return replace(self, body=body, whole=self.whole[:start] + body + tail)


def frame_png(head: bytes, body: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(body)) + head + body + struct.pack(">I", zlib.crc32(head + body))


def frame_jpeg(head: bytes, body: bytes) -> bytes:
    """Return a JPEG segment; `head` is FF and the marker."""
    return head + struct.pack(">H", min(len(body) + 2, 0xFFFF)) + body


def frame_riff(head: bytes, body: bytes) -> bytes:
    """Return a RIFF chunk."""
    return head + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def frame_blocks(head: bytes, body: bytes) -> bytes:
    """Return a GIF extension or the data of a frame."""
    parts = (body[start : start + 255] for start in range(0, len(body), 255))
    return head + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


FRAMES: dict[Kind, Callable[[bytes, bytes], bytes]] = {
    "bytes": lambda _, body: body,
    "png": frame_png,
    "jpeg": frame_jpeg,
    "riff": frame_riff,
    "blocks": frame_blocks,
}


def plain(data: bytes) -> Part:
    """Return bytes without a frame."""
    return Part("bytes", b"", data, data)


def split(data: bytes) -> list[Part]:
    """Take a file apart; the rest that has no structure is one part."""
    for magic, splitter in SPLITTERS.items():
        if data.startswith(magic):
            return list(splitter(data))
    return [plain(data)]


def join(parts: list[Part], *, repair: bool) -> bytes:
    """Put a file together; the length of a whole WebP or BMP is repaired too."""
    data = b"".join(part.whole for part in parts)
    if repair and data[:4] == b"RIFF" and len(data) >= 8:
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    return data


def split_png(data: bytes) -> Iterator[Part]:
    """Yield the signature and the chunks."""
    yield plain(data[:8])
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 12 + length
        whole = data[place:end]
        yield Part("png", whole[4:8], whole[8 : 8 + length], whole)
        place = end
    if place < len(data):
        yield plain(data[place:])


def split_jpeg(data: bytes) -> Iterator[Part]:
    """Yield SOI, the segments and the data of the scans."""
    yield plain(data[:2])
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and 0xC0 <= data[place + 1] < 0xFF:
        (length,) = struct.unpack_from(">H", data, place + 2)
        end = place + 2 + length
        whole = data[place:end]
        yield Part("jpeg", whole[:2], whole[4:], whole)
        place = end
        if whole[1] == 0xDA:
            end = find_marker(data, place)
            yield plain(data[place:end])
            place = end
    yield plain(data[place:])


def find_marker(data: bytes, place: int) -> int:
    """Return where the data of a scan end."""
    while (found := data.find(b"\xff", place)) >= 0 and found + 1 < len(data):
        if data[found + 1] and not 0xD0 <= data[found + 1] <= 0xD7:
            return found
        place = found + 2
    return len(data)


def split_gif(data: bytes) -> Iterator[Part]:
    """Yield head and palette, extensions, frames, trailer."""
    place = 13 + (6 << (data[10] & 7) if len(data) > 10 and data[10] & 0x80 else 0)
    yield plain(data[:place])
    while place < len(data) and data[place] in b"!,":
        start = place + (2 if data[place] == 0x21 else 11)
        end, body = read_blocks(data, start)
        yield Part("blocks", data[place:start], body, data[place:end])
        place = end
    yield plain(data[place:])


def read_blocks(data: bytes, place: int) -> tuple[int, bytes]:
    """Return the end of a chain of sub-blocks, and what they hold."""
    parts = []
    while place < len(data) and data[place]:
        parts.append(data[place + 1 : place + 1 + data[place]])
        place += 1 + data[place]
    return min(place + 1, len(data)), b"".join(parts)


def split_bmp(data: bytes) -> Iterator[Part]:
    """Yield file head, information head, palette, pixels."""
    size = int.from_bytes(data[14:18], "little")
    start = int.from_bytes(data[10:14], "little")
    cuts = sorted({0, 14, min(14 + size, len(data)), min(start, len(data)), len(data)})
    for begin, end in pairwise(cuts):
        yield plain(data[begin:end])


def split_webp(data: bytes) -> Iterator[Part]:
    """Yield the head and the chunks."""
    yield plain(data[:12])
    place = 12
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        end = place + 8 + length + length % 2
        whole = data[place:end]
        yield Part("riff", whole[:4], whole[8 : 8 + length], whole)
        place = end


def split_tiff(data: bytes) -> Iterator[Part]:
    """Yield what lies before the first directory, each of its entries, and what lies behind."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    place = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[place : place + 2], order)
    yield plain(data[: place + 2])
    begin = place + 2
    for start in range(begin, min(begin + 12 * count, len(data)), 12):
        yield plain(data[start : start + 12])
        begin = start + 12
    yield plain(data[begin:])


SPLITTERS: dict[bytes, Callable[[bytes], Iterator[Part]]] = {
    b"\x89PNG": split_png,
    b"\xff\xd8": split_jpeg,
    b"GIF8": split_gif,
    b"BM": split_bmp,
    b"RIFF": split_webp,
    b"II*\0": split_tiff,
    b"MM\0*": split_tiff,
}
