"""Bombs of GIF and BMP."""

from __future__ import annotations

import struct
from functools import partial

from tests.handler.bomb import MAX_FILE_BYTES, Bomb, fill

GIF, BMP = "image/gif", "image/bmp"
Size = tuple[int, int]
COLOURS = bytes(range(256)) * 3
CLEAR_8, END_8 = 256, 257


def screen(size: Size, *, palette: bool = True) -> bytes:
    """Return signature and screen; 256 colours, or none."""
    flags = 0xF7 if palette else 0x70
    head = b"GIF89a" + struct.pack("<HHBBB", *size, flags, 0, 0)
    return head + (COLOURS if palette else b"")


def sub_blocks(data: bytes, length: int = 255) -> bytes:
    """Return the data in sub-blocks of at most so many bytes, ended by the empty one."""
    parts = (data[at : at + length] for at in range(0, len(data), length))
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def lzw(pixels: int) -> bytes:
    """Return the code stream of so many pixels 0, packed as densely as it goes."""
    bits, width, place, length, code = 0, 9, 0, 0, CLEAR_8
    codes, left, free = [(CLEAR_8, 9)], pixels, END_8 + 1
    while left > 0:
        length = min(length + 1, left) if free < 4096 else min(length, left)
        code = 0 if length == 1 else END_8 + length - 1
        codes.append((code, width))
        left -= length
        free = min(4096, free + (len(codes) > 2))
        width = min(12, max(9, free.bit_length()))
    codes.append((END_8, width))
    for value, size in codes:
        bits |= value << place
        place += size
    return bits.to_bytes((place + 7) // 8, "little")


def picture(size: Size, data: bytes, flags: int = 0, corner: Size = (0, 0), code: int = 8) -> bytes:
    """Return an image block; `data` are sub-blocks."""
    return b"," + struct.pack("<HHHHB", *corner, *size, flags) + bytes([code]) + data


def gif(size: Size, before: bytes = b"", behind: bytes = b"", flags: int = 0) -> bytes:
    """Return a GIF of one colour with blocks before and behind its picture."""
    data = sub_blocks(lzw(size[0] * size[1]))
    return screen(size) + before + picture(size, data, flags) + behind + b";"


def tiny_blocks(side: int, tail: int = 0) -> bytes:
    """Return a GIF whose data come in sub-blocks of one byte, 8-bit codes that never grow."""
    line = bytes([128]) + bytes(100)
    codes = line * (side * side // 100) + bytes([128]) + bytes(side * side % 100) + b"\x81"
    blocks = (
        (b"\1%c" * 1000)
        if not codes
        else b"".join(b"\1" + codes[i : i + 1] for i in range(len(codes)))
    )
    return (
        screen((side, side)) + picture((side, side), blocks + b"\1\0" * tail + b"\0", code=7) + b";"
    )


def extension(label: int, data: bytes) -> bytes:
    """Return an extension block; `data` are sub-blocks."""
    return b"!" + bytes([label]) + data


def large_frame(inside: Size, size: Size) -> bytes:
    """Return a GIF whose first picture is larger than its screen."""
    return screen(inside) + picture(size, sub_blocks(lzw(size[0] * size[1]))) + b";"


DOT = picture((1, 1), sub_blocks(lzw(1)))
DELAY = extension(0xF9, sub_blocks(b"\1\0\0\0"))
LONG = (MAX_FILE_BYTES - 3000) // 2


def gif_bomb(key: str, name: str, make: partial[bytes]) -> Bomb:
    """Return a bomb of one GIF file."""
    return Bomb(f"gif-{key}", f"GIF, {name}", make, GIF)


GIFS = (
    gif_bomb("tiny-blocks", "2 million sub-blocks of one byte", partial(tiny_blocks, 1400)),
    gif_bomb("tail", "3 million sub-blocks behind the end", partial(tiny_blocks, 28, LONG - 1000)),
    gif_bomb(
        "comment",
        "a comment of 3 million sub-blocks",
        partial(gif, (28, 28), extension(0xFE, b"\1c" * LONG + b"\0")),
    ),
    gif_bomb(
        "comments", "a million comments", partial(gif, (28, 28), fill(extension(0xFE, b"\1c\0")))
    ),
    gif_bomb(
        "comments-empty",
        "2 million empty comments",
        partial(gif, (28, 28), fill(extension(0xFE, b"\0"))),
    ),
    gif_bomb(
        "application",
        "an application block of 3 million",
        partial(gif, (28, 28), extension(0xFF, b"\1c" * LONG + b"\0")),
    ),
    gif_bomb(
        "netscape",
        "NETSCAPE blocks",
        partial(
            gif, (28, 28), fill(extension(0xFF, sub_blocks(b"NETSCAPE2.0")[:-1] + b"\3\1\0\0\0"))
        ),
    ),
    gif_bomb("delays", "750,000 delays", partial(gif, (28, 28), fill(DELAY))),
    gif_bomb(
        "unknown", "extensions of no known kind", partial(gif, (28, 28), fill(extension(7, b"\0")))
    ),
    gif_bomb(
        "behind",
        "comments behind the picture",
        partial(gif, (28, 28), b"", fill(extension(0xFE, b"\1c\0"))),
    ),
    gif_bomb("junk", "6 MB of nothing between blocks", partial(gif, (28, 28), fill(b"\0"))),
    gif_bomb("junk-behind", "6 MB of nothing behind", partial(gif, (28, 28), b"", fill(b"\0"))),
    gif_bomb("frames", "370,000 pictures of one pixel", partial(gif, (28, 28), b"", fill(DOT))),
    gif_bomb(
        "frames-delayed",
        "240,000 pictures, each with a delay",
        partial(gif, (28, 28), b"", fill(DELAY + DOT)),
    ),
    gif_bomb(
        "frame-larger",
        "a picture of 25 Mpx on a screen of one",
        partial(large_frame, (1, 1), (5000, 5000)),
    ),
    gif_bomb(
        "frame-huge",
        "a picture of 4 Gpx on a screen of one",
        partial(lambda: screen((1, 1)) + picture((65_535, 65_535), sub_blocks(lzw(9))) + b";"),
    ),
    gif_bomb(
        "screen-huge",
        "a screen of 4 Gpx with one pixel",
        partial(lambda: screen((65_535, 65_535)) + DOT + b";"),
    ),
    gif_bomb(
        "screen-25",
        "a screen of 25 Mpx with one pixel",
        partial(lambda: screen((5000, 5000)) + DOT + b";"),
    ),
    gif_bomb(
        "far",
        "a picture far outside of its screen",
        partial(
            lambda: (
                screen((1, 1)) + picture((9, 9), sub_blocks(lzw(81)), 0, (65_000, 65_000)) + b";"
            )
        ),
    ),
    gif_bomb("big", "25 Mpx", partial(gif, (5000, 5000))),
    gif_bomb("interlaced", "25 Mpx interlaced", partial(gif, (5000, 5000), flags=0x40)),
    gif_bomb("holes", "25 Mpx with a transparent colour", partial(gif, (5000, 5000), DELAY)),
    gif_bomb("wide", "65,535 x 381", partial(gif, (65_535, 381))),
    gif_bomb("tall", "381 x 65,535", partial(gif, (381, 65_535))),
    gif_bomb(
        "no-palette",
        "no palette at all",
        partial(lambda: screen((1, 1), palette=False) + DOT + b";"),
    ),
    gif_bomb(
        "no-palette-hole",
        "a transparent colour without a palette",
        partial(lambda: screen((1, 1), palette=False) + DELAY + DOT + b";"),
    ),
    gif_bomb("no-picture", "no picture", partial(lambda: screen((28, 28)) + b";")),
    gif_bomb(
        "no-data",
        "a picture without data",
        partial(lambda: screen((5000, 5000)) + picture((5000, 5000), b"\0") + b";"),
    ),
    gif_bomb(
        "code-13",
        "codes of 13 bits",
        partial(lambda: screen((1, 1)) + picture((1, 1), b"\1\0\0", code=13) + b";"),
    ),
    gif_bomb(
        "clears",
        "3.9 million clear codes",
        partial(
            lambda: (
                screen((28, 28)) + picture((28, 28), sub_blocks(b"\x80" * 5_900_000), code=7) + b";"
            )
        ),
    ),
)


def bmp(
    size: Size, bits: int, kind: int = 0, data: bytes = b"", colours: int = 256, used: int = 0
) -> bytes:
    """Return a BMP: `kind` is its compression, `colours` are there, `used` it says."""
    palette = b"".join(bytes([i & 255] * 3) + b"\0" for i in range(colours)) if bits <= 8 else b""
    head = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, kind, len(data), 2835, 2835, used, 0)
    start = 14 + len(head) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + head + palette + data


def plain(size: Size, bits: int) -> bytes:
    """Return an uncompressed black BMP."""
    return bmp(size, bits, 0, bytes((size[0] * bits + 31) // 32 * 4 * abs(size[1])))


def odd(place: int, kind: str, value: int) -> bytes:
    """Return a small BMP with one field of its header changed."""
    data = bytearray(plain((28, 28), 8))
    struct.pack_into(f"<{kind}", data, place, value)
    return bytes(data)


def bmp_bomb(key: str, name: str, make: partial[bytes], row: str = "") -> Bomb:
    """Return a bomb of one BMP file."""
    return Bomb(f"bmp-{key}", f"BMP, {name}", make, BMP, row=row)


ONE, LINE, DELTA, DONE = b"\1\1", b"\0\0", b"\0\2\1\0", b"\0\1"
FULL = MAX_FILE_BYTES - 3000
BMPS = (
    bmp_bomb(
        "rle8-wide", "RLE8, 25,000,000 x 1", partial(bmp, (25_000_000, 1), 8, 1, ONE + LINE), "H1"
    ),
    bmp_bomb(
        "rle8-square",
        "RLE8, 5,000 x 5,000, one pixel a row",
        partial(bmp, (5000, 5000), 8, 1, (ONE + LINE) * 5000),
        "H1",
    ),
    bmp_bomb(
        "rle8-tall", "RLE8, 1 x 25,000,000", partial(bmp, (1, 25_000_000), 8, 1, LINE * (FULL // 2))
    ),
    bmp_bomb(
        "rle4-wide", "RLE4, 25,000,000 x 1", partial(bmp, (25_000_000, 1), 4, 2, ONE + LINE, 16)
    ),
    bmp_bomb(
        "rle4-square",
        "RLE4, 5,000 x 5,000",
        partial(bmp, (5000, 5000), 4, 2, (ONE + LINE) * 5000, 16),
    ),
    bmp_bomb(
        "rle4-tall",
        "RLE4, 1 x 25,000,000",
        partial(bmp, (1, 25_000_000), 4, 2, LINE * (FULL // 2), 16),
    ),
    bmp_bomb(
        "rle8-small",
        "RLE8, 1 Mpx, one pixel a row",
        partial(bmp, (1000, 1000), 8, 1, (ONE + LINE) * 1000),
    ),
    bmp_bomb(
        "rle8-1x1m",
        "RLE8, 1 x 1,000,000",
        partial(bmp, (1, 1_000_000), 8, 1, (ONE + LINE) * 1_000_000),
    ),
    bmp_bomb("rle8-999k", "RLE8, 999,999 x 1", partial(bmp, (999_999, 1), 8, 1, ONE + LINE)),
    bmp_bomb(
        "rle8-lines",
        "RLE8, 28 x 28, 3 million ends of line",
        partial(bmp, (28, 28), 8, 1, LINE * (FULL // 2)),
    ),
    bmp_bomb(
        "rle8-deltas",
        "RLE8, 1.5 million deltas",
        partial(bmp, (1000, 1000), 8, 1, DELTA * (FULL // 4)),
    ),
    bmp_bomb(
        "rle8-jump",
        "RLE8, deltas of 255 x 255",
        partial(bmp, (1000, 1000), 8, 1, b"\0\2\xff\xff" * (FULL // 4)),
    ),
    bmp_bomb(
        "rle8-absolute",
        "RLE8, 1 Mpx in threes",
        partial(bmp, (1000, 1000), 8, 1, b"\0\3abc\0" * (FULL // 6)),
    ),
    bmp_bomb(
        "rle8-zero", "RLE8, runs of one pixel", partial(bmp, (1000, 1000), 8, 1, ONE * (FULL // 2))
    ),
    bmp_bomb("rle8-end", "RLE8, 25 Mpx, ended at once", partial(bmp, (5000, 5000), 8, 1, DONE)),
    bmp_bomb(
        "rle8-negative", "RLE8, a negative height", partial(bmp, (5000, -5000), 8, 1, ONE + LINE)
    ),
    bmp_bomb("rle24", "an RLE of 24 bits", partial(bmp, (5000, 5000), 24, 4, ONE + LINE)),
    bmp_bomb("wide", "25,000,000 x 1, 1 bit", partial(plain, (25_000_000, 1), 1)),
    bmp_bomb("tall", "1 x 1,490,000, 8 bits", partial(plain, (1, 1_490_000), 8)),
    bmp_bomb("tall-25", "1 x 25,000,000, cut", partial(bmp, (1, 25_000_000), 8, 0, bytes(99))),
    bmp_bomb("big", "25 Mpx, 1 bit", partial(plain, (5000, 5000), 1)),
    bmp_bomb("cut", "25 Mpx, 24 bits, no data", partial(bmp, (5000, 5000), 24)),
    bmp_bomb("colours-huge", "4 billion colours", partial(odd, 46, "I", 0xFFFFFFFF)),
    bmp_bomb(
        "colours-million",
        "a million colours",
        partial(bmp, (28, 28), 8, 0, bytes(784), 1_000_000, 1_000_000),
    ),
    bmp_bomb(
        "colours-32",
        "4 billion colours of 32 bits",
        partial(bmp, (28, 28), 32, 0, bytes(3136), 0, 0xFFFFFFFF),
    ),
    bmp_bomb("colours-none", "no colours", partial(bmp, (1, 1), 8, 0, bytes(4), 0, 0)),
    bmp_bomb("colours-none-1", "no colours, 1 bit", partial(bmp, (1, 1), 1, 0, bytes(4), 0, 0)),
    bmp_bomb("colours-257", "257 colours", partial(odd, 46, "I", 257)),
    bmp_bomb("offset-huge", "pixels far behind the end", partial(odd, 10, "I", 0xFFFFFFF0)),
    bmp_bomb("header-huge", "a header of 2 GB", partial(odd, 14, "I", 0x7FFFFFFF)),
    bmp_bomb("header-12", "a header of 12 bytes", partial(odd, 14, "I", 12)),
    bmp_bomb("header-124", "a header of 124 bytes", partial(odd, 14, "I", 124)),
    bmp_bomb("jpeg-inside", "a JPEG inside", partial(bmp, (28, 28), 24, 4, bytes(99))),
    bmp_bomb("masks", "no bit masks", partial(bmp, (28, 28), 32, 3, bytes(3136))),
)
BOMBS = (*GIFS, *BMPS)
