"""Bombs of PNG, chunk by chunk."""

from __future__ import annotations

import struct
import zlib
from functools import partial

from tests.encoders import png_chunk as chunk
from tests.handler.bomb import MAX_FILE_BYTES, Bomb, fill

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
CODE_LENGTHS = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
"""The order in which a block names the lengths of the codes of lengths."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MEGABYTE = bytes(1 << 20)


def deflate(*pieces: tuple[bytes, int]) -> bytes:
    """Return the zlib stream of pieces, each so many times, packing each only once."""
    packer, parts, low, high = zlib.compressobj(9, wbits=-15), [b"\x78\xda"], 1, 0
    for piece, times in pieces:
        parts.append((packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)) * times)
        sums = zlib.adler32(piece)
        for _ in range(times):  # the checksum of both, as of one
            high = (high + (sums >> 16) + len(piece) * (low - 1)) % 65_521
            low = (low + (sums & 0xFFFF) - 1) % 65_521
    return b"".join(parts) + b"\3\0" + struct.pack(">HH", high, low)


def zeros(size: int) -> bytes:
    """Return the zlib stream of so many zeros."""
    return deflate((MEGABYTE, size >> 20), (bytes(size & 0xFFFFF), 1))


def rows(width: int, height: int, bits: int, scan_filter: int = 0) -> bytes:
    """Return the stream of a black image whose rows all have one filter."""
    row = bytes([scan_filter]) + bytes((width * bits + 7) // 8)
    together = max(1, min(height, (1 << 20) // len(row)))
    whole, rest = divmod(height, together)
    return deflate((row * together, whole), (row, rest))


def header(
    width: int, height: int, depth: int = 8, colour: int = GREY, interlace: int = 0
) -> bytes:
    """Return the signature and IHDR."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return SIGNATURE + chunk(b"IHDR", head)


def png(
    size: tuple[int, int] = (28, 28),
    depth: int = 8,
    colour: int = GREY,
    before: bytes = b"",
    after: bytes = b"",
    scan_filter: int = 0,
) -> bytes:
    """Return a black PNG with chunks before and after IDAT."""
    data = rows(*size, depth * CHANNELS[colour], scan_filter)
    end = chunk(b"IDAT", data) + after + chunk(b"IEND")
    return header(*size, depth, colour) + before + end


def interlaced(width: int, height: int, depth: int, colour: int) -> bytes:
    """Return a black interlaced PNG: seven passes, each with its own rows."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    size = 0
    for x, y, dx, dy in (*passes, (0, 1, 1, 2)):
        columns, lines = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
        size += lines * (1 + (columns * depth * CHANNELS[colour] + 7) // 8) * bool(columns)
    data = chunk(b"IDAT", zeros(size))
    return header(width, height, depth, colour, 1) + data + chunk(b"IEND")


def filled(kind: bytes, data: bytes = b"", *, after: bool = False, prefix: bytes = b"") -> bytes:
    """Return a small PNG that one chunk, repeated, fills up."""
    many = prefix + fill(chunk(kind, data))
    return png(after=many) if after else png(before=many)


def split_idat(size: tuple[int, int], length: int, empty: int = 0) -> bytes:
    """Return a PNG whose data lie in chunks of `length` bytes, behind so many empty ones."""
    packer = zlib.compressobj(0)
    data = packer.compress(bytes((size[0] + 1) * size[1])) + packer.flush()
    pieces = (chunk(b"IDAT", data[at : at + length]) for at in range(0, len(data), length))
    return header(*size) + chunk(b"IDAT") * empty + b"".join(pieces) + chunk(b"IEND")


def tables() -> bytes:
    """Return a small PNG whose data are tables of Huffman codes, and no rows (RFC 1951, 3.2.7).

    Each block has 256 codes of 9 bits, and one of 1 bit for its end, which comes at once.
    """
    lengths = "".join(low_first({16: 1, 1: 2, 9: 2}.get(one, 0), 3) for one in CODE_LENGTHS)
    literals = "11" + ("0" + low_first(3, 2)) * 42 + "0" + low_first(0, 2)
    block = "0" + low_first(2, 2) + low_first(15 << 10, 14) + lengths + literals + "10" + "10" + "0"
    eight = int((8 * block)[::-1], 2).to_bytes(len(block), "little")
    stream = b"\x78\1" + eight * (MAX_FILE_BYTES // len(eight) - 1)
    return header(28, 28) + chunk(b"IDAT", stream) + chunk(b"IEND")


def low_first(value: int, count: int) -> str:
    """Return so many bits of a number, the lowest first."""
    return f"{value:0{count}b}"[::-1]


def overflowing() -> bytes:
    """Return a small PNG whose data unpack to gigabytes."""
    data = zeros(5_700 << 20)
    return header(28, 28) + chunk(b"IDAT", data) + chunk(b"IEND")


def animated() -> bytes:
    """Return an APNG of as many frames of one pixel as fit."""
    control = struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 1, 0, 0)
    frame = chunk(b"fcTL", control) + chunk(b"fdAT", bytes(4) + zlib.compress(bytes(2)))
    return png((1, 1), before=chunk(b"acTL", struct.pack(">II", 1 << 30, 0)), after=fill(frame))


PIECE = b"x\0\0" + zlib.compress(MEGABYTE, 9)
ITXT = b"x\0\1\0\0\0" + zlib.compress(MEGABYTE, 9)
PLTE = chunk(b"PLTE", bytes(768))
PNG = "image/png"


def bomb(key: str, name: str, make: partial[bytes], row: str = "") -> Bomb:
    """Return a bomb of one PNG file."""
    return Bomb(f"png-{key}", f"PNG, {name}", make, PNG, row=row)


METADATA = (
    bomb("iccp", "5,800 iCCP chunks of 1 MB unpacked", partial(filled, b"iCCP", PIECE), "H1"),
    bomb("iccp-after", "iCCP chunks behind IDAT", partial(filled, b"iCCP", PIECE, after=True)),
    bomb("ztxt", "zTXt chunks of 1 MB unpacked", partial(filled, b"zTXt", PIECE)),
    bomb("ztxt-after", "zTXt chunks behind IDAT", partial(filled, b"zTXt", PIECE, after=True)),
    bomb("itxt", "compressed iTXt chunks", partial(filled, b"iTXt", ITXT)),
    bomb("text", "tEXt chunks of one letter", partial(filled, b"tEXt", b"x\0y")),
    bomb("text-after", "tEXt behind IDAT", partial(filled, b"tEXt", b"x\0y", after=True)),
    bomb("exif", "eXIf chunks", partial(filled, b"eXIf", b"MM\0*\0\0\0\x08\0\0")),
    bomb("exif-after", "eXIf behind IDAT", partial(filled, b"eXIf", b"MM\0*", after=True)),
    bomb("exif-large", "an eXIf chunk of 6 MB", partial(filled, b"eXIf", b"MM" * 2_990_000)),
    bomb("private", "500,000 empty private chunks before IDAT", partial(filled, b"prVt"), "H1"),
    bomb(
        "private-after",
        "500,000 empty private chunks behind IDAT",
        partial(filled, b"prVt", after=True),
        "H1",
    ),
    bomb("phys", "pHYs chunks", partial(filled, b"pHYs", bytes(9))),
    bomb("gamma", "gAMA chunks", partial(filled, b"gAMA", bytes(4))),
    bomb("plte", "PLTE chunks", partial(filled, b"PLTE", bytes(768))),
    bomb("trns", "tRNS chunks", partial(filled, b"tRNS", bytes(2))),
    bomb("animated", "an animation of 60,000 frames", partial(animated)),
    bomb("critical", "unknown critical chunks", partial(filled, b"ABCD")),
)
DATA = (
    bomb("empty-idat", "490,000 empty IDAT chunks", partial(split_idat, (28, 28), 99, 490_000)),
    bomb("tiny-idat", "IDAT chunks of one byte", partial(split_idat, (670, 670), 1)),
    bomb("tables", "28 x 28, 228,000 tables of Huffman codes without data", partial(tables)),
    bomb("overflow", "28 x 28, data that unpack to 5.8 GB", partial(overflowing)),
    bomb("interlaced", "25 Mpx interlaced", partial(interlaced, 5000, 5000, 8, RGB)),
    bomb("interlaced-16", "25 Mpx interlaced RGBA 16 bit", partial(interlaced, 5000, 5000, 16, 6)),
    bomb("interlaced-1", "25 Mpx interlaced, 1 bit", partial(interlaced, 5000, 5000, 1, GREY)),
    bomb("tall", "1 x 25,000,000", partial(png, (1, 25_000_000))),
    bomb("wide", "25,000,000 x 1", partial(png, (25_000_000, 1))),
    bomb("tall-interlaced", "1 x 2,000,000 interlaced", partial(interlaced, 1, 2_000_000, 8, 0)),
    bomb("tall-side", "381 x 65,500", partial(png, (381, 65_500), 8, RGB)),
    bomb("rgba-16", "25 Mpx, RGBA 16 bit", partial(png, (5000, 5000), 16, RGBA), "H1"),
    bomb("rgb-16", "25 Mpx, RGB 16 bit, Paeth", partial(png, (5000, 5000), 16, RGB, b"", b"", 4)),
    bomb("rgba-paeth", "25 Mpx, RGBA, Paeth", partial(png, (5000, 5000), 8, RGBA, b"", b"", 4)),
    bomb("la-16", "25 Mpx, grey 16 bit with alpha", partial(png, (5000, 5000), 16, GREY_ALPHA)),
    bomb(
        "key-16",
        "25 Mpx, grey 16 bit with a transparent value",
        partial(png, (5000, 5000), 16, GREY, chunk(b"tRNS", bytes(2))),
    ),
    bomb(
        "palette-holes",
        "25 Mpx, palette with holes",
        partial(png, (5000, 5000), 8, PALETTE, PLTE + chunk(b"tRNS", bytes(256))),
    ),
    bomb("rgb-paeth", "25 Mpx, RGB, Paeth", partial(png, (5000, 5000), 8, RGB, b"", b"", 4)),
    bomb("rgb", "25 Mpx, RGB", partial(png, (5000, 5000), 8, RGB)),
    bomb("wide-side", "65,500 x 381", partial(png, (65_500, 381), 8, RGB)),
    bomb(
        "tall-12", "183 x 65,500, RGBA 16 bit", partial(png, (183, 65_500), 16, RGBA, b"", b"", 4)
    ),
    bomb(
        "interlaced-12", "12 Mpx interlaced RGBA 16 bit", partial(interlaced, 3464, 3464, 16, RGBA)
    ),
    bomb("thin", "1 x 65,500", partial(png, (1, 65_500))),
    bomb("thin-16", "1 x 65,500, RGBA 16 bit", partial(png, (1, 65_500), 16, RGBA)),
    bomb("idat-20k", "IDAT in 19,900 chunks", partial(split_idat, (670, 670), 23)),
    bomb("stored", "5.9 Mpx, not packed", partial(split_idat, (2400, 2400), 65_536)),
    bomb(
        "key-12",
        "12 Mpx, grey 16 bit with a transparent value",
        partial(png, (3464, 3464), 16, GREY, chunk(b"tRNS", bytes(2))),
    ),
    bomb(
        "palette-12",
        "12 Mpx, palette with holes",
        partial(png, (3464, 3464), 8, PALETTE, PLTE + chunk(b"tRNS", bytes(256))),
    ),
    bomb(
        "rgba-12",
        "12 Mpx, RGBA 16 bit, Paeth: about the largest that may pass",
        partial(png, (3464, 3464), 16, RGBA, b"", b"", 4),
    ),
)
DAMAGED = (
    bomb("no-plte", "a palette without PLTE, 1 x 1", partial(png, (1, 1), 8, PALETTE), "H3"),
    bomb(
        "trns-first",
        "tRNS before PLTE",
        partial(png, (1, 1), 8, PALETTE, chunk(b"tRNS", bytes(4)) + PLTE),
    ),
    bomb(
        "trns-alone",
        "a palette without PLTE, with tRNS",
        partial(png, (1, 1), 8, PALETTE, chunk(b"tRNS", bytes(4))),
    ),
    bomb(
        "trns-long",
        "tRNS of 300 values",
        partial(png, (1, 1), 8, PALETTE, PLTE + chunk(b"tRNS", bytes(300))),
    ),
    bomb("trns-short", "grey, tRNS of 1 byte", partial(png, (1, 1), 8, GREY, chunk(b"tRNS", b"x"))),
    bomb("trns-rgb", "RGB, tRNS of 2 bytes", partial(png, (1, 1), 8, RGB, chunk(b"tRNS", b"xx"))),
    bomb("trns-rgba", "RGBA with tRNS", partial(png, (1, 1), 8, RGBA, chunk(b"tRNS", bytes(6)))),
    bomb("plte-empty", "an empty PLTE", partial(png, (1, 1), 8, PALETTE, chunk(b"PLTE"))),
    bomb("plte-odd", "PLTE of 4 bytes", partial(png, (1, 1), 8, PALETTE, chunk(b"PLTE", b"abcd"))),
    bomb("plte-long", "PLTE of 300", partial(png, (1, 1), 8, PALETTE, chunk(b"PLTE", bytes(900)))),
    bomb("plte-grey", "grey with PLTE and tRNS", partial(png, (1, 1), 8, GREY, PLTE)),
    bomb("no-idat", "no IDAT", partial(header, 28, 28)),
    bomb("depth-3", "a depth of 3 bits", partial(png, (28, 28), 3, GREY)),
)
BOMBS = (*METADATA, *DATA, *DAMAGED)
