"""Bombs of WebP; the lossless ones are written bit by bit."""

from __future__ import annotations

import io
import struct
from functools import partial

from PIL import Image

from tests.handler.bomb import MAX_FILE_BYTES, Bomb, fill

WEBP = "image/webp"
Size = tuple[int, int]


class Bits:
    """Bits, the lowest first."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def put(self, value: int, count: int) -> None:
        """Append `count` bits of a number."""
        self.text.append(format(value, f"0{count}b")[::-1])

    def data(self) -> bytes:
        """Return them as bytes."""
        text = "".join(self.text)
        return int(text[::-1], 2).to_bytes((len(text) + 7) // 8, "little")


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return a chunk, padded to an even length."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) & 1)


def riff(*chunks: bytes) -> bytes:
    """Return a WebP of chunks."""
    return chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def begin(size: Size, *, alpha: bool = True) -> Bits:
    """Return a lossless picture as far as its transforms: none."""
    bits = Bits()
    bits.put(0x2F, 8)
    bits.put(size[0] - 1, 14)
    bits.put(size[1] - 1, 14)
    bits.put(int(alpha), 1)
    bits.put(0, 4)  # the version, and no transform
    return bits


def put_single(bits: Bits, symbols: tuple[int, ...] = (0, 0, 0, 0, 0)) -> None:
    """Append five codes of one symbol each: pixels take no bits."""
    for symbol in symbols:
        bits.put(0b1 if symbol < 2 else 0b101, 3)
        bits.put(symbol, 1 if symbol < 2 else 8)


def lossless(size: Size, *, alpha: bool = True) -> bytes:
    """Return a VP8L chunk of one colour, in 25 bytes."""
    bits = begin(size, alpha=alpha)
    bits.put(0, 2)  # no colour cache, no groups
    put_single(bits, (9, 9, 9, 128, 0))
    return chunk(b"VP8L", bits.data())


def put_bytes_code(bits: Bits, alphabet: int) -> None:
    """Append a code in which the symbols 0 to 255 have 8 bits each."""
    bits.put(0, 1)
    bits.put(8, 4)  # 12 lengths of the code of lengths follow
    for place in range(12):
        bits.put(1 if place in (2, 11) else 0, 3)  # the lengths 0 and 8
    bits.put(0, 1)
    for symbol in range(alphabet):
        bits.put(int(symbol < 256), 1)


def groups(side: int, count: int) -> bytes:
    """Return a VP8L chunk of 4 x 4 pixels a group, up to 65,536 groups."""
    bits = begin((side, side))
    bits.put(0b10, 2)
    bits.put(0, 3)  # groups of 4 x 4
    bits.put(0, 1)
    put_bytes_code(bits, 280)
    put_bytes_code(bits, 256)
    for _ in range(3):
        put_single(bits, (0,))
    for number in range((side // 4) ** 2):
        chosen = min(number, count - 1)  # codes stand with their highest bit first
        bits.text.append(format(chosen & 255, "08b") + format(chosen >> 8, "08b"))
    for _ in range(count):
        put_single(bits)
    return chunk(b"VP8L", bits.data())


def extended(size: Size, flags: int, *chunks: bytes) -> bytes:
    """Return an extended WebP: VP8X, then the chunks."""
    sides = struct.pack("<I", size[0] - 1)[:3] + struct.pack("<I", size[1] - 1)[:3]
    return riff(chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides), *chunks)


def animated(size: Size, frame: Size = (1, 1), count: int = 1 << 20) -> bytes:
    """Return an animation of so many frames, or as many as fit."""
    sides = struct.pack("<I", frame[0] - 1)[:3] + struct.pack("<I", frame[1] - 1)[:3]
    one = chunk(b"ANMF", bytes(6) + sides + bytes(4) + lossless(frame))
    return extended(size, 2, chunk(b"ANIM", bytes(6)), fill(one)[: count * len(one)])


def lossy(side: int) -> bytes:
    """Return the VP8 chunk of a grey picture."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (9, 9, 9)).save(file, "WEBP", method=0)
    return file.getvalue()[12:]


def with_alpha(side: int, alpha: bytes) -> bytes:
    """Return a lossy WebP with an alpha chunk."""
    return extended((side, side), 0x10, chunk(b"ALPH", alpha), lossy(side))


def with_chunks(kind: bytes, data: bytes = b"", flags: int = 0x0C) -> bytes:
    """Return a WebP of 28 x 28 that chunks of one kind fill up."""
    return extended((28, 28), flags, fill(chunk(kind, data)), lossless((28, 28)))


def behind(kind: bytes) -> bytes:
    """Return a WebP of 28 x 28 with empty chunks behind the picture."""
    return extended((28, 28), 0x0C, lossless((28, 28)), fill(chunk(kind)))


def plane(side: int) -> bytes:
    """Return an alpha plane of one value, lossless, without its header of five bytes."""
    bits = Bits()
    bits.put(0, 3)
    put_single(bits, (9, 0, 0, 0, 0))
    assert side
    return b"\1" + bits.data()


def bomb(key: str, name: str, make: partial[bytes], copies: int = 1, row: str = "") -> Bomb:
    """Return a bomb of one WebP file, or of copies of it."""
    return Bomb(f"webp-{key}", f"WebP, {name}", make, WEBP, copies, row)


BOMBS = (
    bomb("big", "25 Mpx lossless", partial(lambda: riff(lossless((5000, 5000)))), row="H1"),
    bomb(
        "four",
        "25 Mpx RGBA lossless, four times in one",
        partial(lambda: riff(lossless((5000, 5000)))),
        4,
        "H2",
    ),
    bomb(
        "opaque",
        "25 Mpx lossless without alpha",
        partial(lambda: riff(lossless((5000, 5000), alpha=False))),
    ),
    bomb("12", "12 Mpx lossless", partial(lambda: riff(lossless((3464, 3464))))),
    bomb(
        "12-eight",
        "12 Mpx lossless, eight times in one",
        partial(lambda: riff(lossless((3464, 3464)))),
        8,
    ),
    bomb("largest", "16,383 x 16,383", partial(lambda: riff(lossless((16_383, 16_383))))),
    bomb("wide", "16,383 x 1,525", partial(lambda: riff(lossless((16_383, 1_525))))),
    bomb("tall", "1 x 16,383", partial(lambda: riff(lossless((1, 16_383))))),
    bomb("groups", "65,536 groups of codes in 1 Mpx", partial(lambda: riff(groups(1024, 65_536)))),
    bomb("groups-16k", "16,384 groups of codes", partial(lambda: riff(groups(512, 16_384)))),
    bomb("groups-largest", "groups for 12 Mpx", partial(lambda: riff(groups(3464, 65_536)))),
    bomb("groups-4k", "4,096 groups of codes", partial(lambda: riff(groups(256, 4_096)))),
    bomb("groups-256", "256 groups of codes", partial(lambda: riff(groups(64, 256)))),
    bomb("groups-few", "12 Mpx of 1,000 groups", partial(lambda: riff(groups(3464, 1_000)))),
    bomb("lossy-12", "12 Mpx lossy", partial(lambda: riff(lossy(3464)))),
    bomb("lossy-alpha-12", "12 Mpx lossy with alpha", partial(with_alpha, 3464, plane(3464))),
    bomb("wide-12", "16,383 x 732", partial(lambda: riff(lossless((16_383, 732))))),
    bomb("tall-12", "732 x 16,383", partial(lambda: riff(lossless((732, 16_383))))),
    bomb("frames-few", "9,000 frames of 28 x 28", partial(animated, (28, 28), (28, 28), 9_000)),
    bomb(
        "frames-12", "9,000 frames of 12 Mpx", partial(animated, (3464, 3464), (3464, 3464), 9_000)
    ),
    bomb("lossy", "25 Mpx lossy", partial(lambda: riff(lossy(5000)))),
    bomb("lossy-alpha", "25 Mpx lossy with alpha", partial(with_alpha, 5000, plane(5000))),
    bomb(
        "lossy-raw",
        "2,400 x 2,400 lossy with a raw alpha",
        partial(with_alpha, 2400, b"\0" + bytes(2400 * 2400)),
    ),
    bomb("alpha-empty", "an empty ALPH", partial(with_alpha, 28, b"")),
    bomb("alpha-cut", "an ALPH that is cut", partial(with_alpha, 28, b"\1")),
    bomb("alpha-odd", "an ALPH of no known kind", partial(with_alpha, 28, b"\xff" * 99)),
    bomb("alphas", "700,000 ALPH", partial(with_chunks, b"ALPH")),
    bomb("frames", "100,000 frames of one pixel", partial(animated, (28, 28))),
    bomb(
        "frames-canvas",
        "frames on a canvas of 16,383 x 16,383",
        partial(animated, (16_383, 16_383)),
    ),
    bomb("frames-24", "frames on a canvas of 2^24 x 1", partial(animated, (1 << 24, 1))),
    bomb("frames-big", "frames of 5,000 x 5,000", partial(animated, (5000, 5000), (5000, 5000))),
    bomb("exif", "700,000 EXIF chunks", partial(with_chunks, b"EXIF")),
    bomb(
        "exif-large",
        "an EXIF chunk of 6 MB",
        partial(with_chunks, b"EXIF", b"MM" * (MAX_FILE_BYTES // 2 - 2000)),
    ),
    bomb("xmp", "700,000 XMP chunks", partial(with_chunks, b"XMP ")),
    bomb("iccp", "700,000 ICCP chunks", partial(with_chunks, b"ICCP", b"", 0x20)),
    bomb(
        "iccp-large",
        "an ICC profile of 6 MB",
        partial(with_chunks, b"ICCP", bytes(MAX_FILE_BYTES - 2000), 0x20),
    ),
    bomb("private", "700,000 unknown chunks", partial(with_chunks, b"ABCD")),
    bomb("private-behind", "unknown chunks behind", partial(behind, b"ABCD")),
    bomb("exif-behind", "EXIF chunks behind", partial(behind, b"EXIF")),
    bomb("length", "a chunk of 4 GB", partial(lambda: riff(b"VP8L\xff\xff\xff\xff" + bytes(99)))),
    bomb("nothing", "no picture", partial(riff)),
)
