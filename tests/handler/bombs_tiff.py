"""Bombs of TIFF: directories of tags, written by hand."""

from __future__ import annotations

import struct
from functools import partial

from tests.handler.bomb import MAX_FILE_BYTES, Bomb, fill, in_json
from tests.handler.bombs_jpeg import Y444, baseline, progressive
from tests.handler.bombs_png import deflate, zeros

TIFF = "image/tiff"
Size = tuple[int, int]
BYTE, ASCII, SHORT, LONG, LONG8 = 1, 2, 3, 4, 16
FORMS = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I"}
NONE, G3, G4, LZW, JPEG, DEFLATE, PACKBITS, ZSTD, LZMA, WEBP = (
    *(1, 3, 4, 5, 7, 8, 32_773, 50_000, 34_925, 50_001),
)
Tag = tuple[int, int, int, int]
"""Number, type, count, and the value or its place."""


def tag(number: int, *values: int, kind: int = LONG) -> Tag:
    """Return a tag of one value, or of two shorts packed into its four bytes."""
    packed = b"".join(struct.pack("<" + FORMS[kind], value) for value in values)
    return (number, kind, len(values), int.from_bytes(packed.ljust(4, b"\0"), "little"))


def directory(tags: list[Tag], following: int = 0) -> bytes:
    """Return a directory, in the order of its numbers."""
    entries = b"".join(struct.pack("<HHII", *each) for each in sorted(tags))
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


def describe(
    size: Size, bits: int = 8, samples: int = 1, packing: int = NONE, colour: int = 1
) -> list[Tag]:
    """Return the tags of an image without its strips; more than two depths lie at 8."""
    depth = tag(258, *([bits] * samples), kind=SHORT) if samples < 3 else (258, SHORT, samples, 8)
    pairs = ((256, size[0]), (257, size[1]), (259, packing), (262, colour), (277, samples))
    return [*(tag(number, value) for number, value in pairs), depth]


def tiff(tags: list[Tag], data: bytes = b"", bits: int = 8, following: int = 0) -> bytes:
    """Return a TIFF: four depths at 8, the data at 16, the directory at the end."""
    start = 16 + len(data) + (len(data) & 1)
    body = struct.pack("<HHHH", *([bits] * 4)) + data + bytes(len(data) & 1)
    return b"II*\0" + struct.pack("<I", start) + body + directory(tags, following)


def one_strip(
    size: Size,
    data: bytes,
    packing: int,
    bits: int = 8,
    samples: int = 1,
    colour: int = 1,
    *more: Tag,
) -> bytes:
    """Return a TIFF whose pixels are one strip."""
    strip = [tag(273, 16), tag(278, size[1]), tag(279, len(data))]
    return tiff([*describe(size, bits, samples, packing, colour), *strip, *more], data, bits)


def black(size: Size, bits: int = 8, samples: int = 1, colour: int = 1, *more: Tag) -> bytes:
    """Return a deflated TIFF of zeros."""
    row = bytes((size[0] * bits * samples + 7) // 8)
    together = max(1, min(size[1], (1 << 20) // len(row)))
    data = deflate((row * together, -(-size[1] // together)))
    return one_strip(size, data, DEFLATE, bits, samples, colour, *more)


def strips(count: int, width: int = 1, rows: int = 1, length: int = 1) -> bytes:
    """Return a TIFF of many strips that all lie at the same place."""
    places = struct.pack("<I", 16) * count
    lengths = struct.pack("<H", length) * count
    start = 16 + max(16, length + (length & 1))
    tags = [(273, LONG, count, start), tag(278, rows), (279, SHORT, count, start + len(places))]
    data = bytes(start - 16) + places + lengths
    return tiff([*describe((width, count * rows)), *tags], data)


def tiles(size: Size, tile: Size, count: int, packing: int = NONE, data: bytes = b"") -> bytes:
    """Return a TIFF of tiles that all lie at 16; their lengths are their places."""
    places = struct.pack("<I", 16) * count
    start = 16 + len(data) + (len(data) & 1)
    table = data + bytes(len(data) & 1) + places
    sides = [tag(322, tile[0]), tag(323, tile[1])]
    where = [
        (324, LONG, count, start if count > 1 else 16),
        (325, LONG, count, start if count > 1 else len(data)),
    ]
    return tiff([*describe(size, packing=packing), *sides, *where], table)


def with_tag(*more: Tag) -> bytes:
    """Return a TIFF of 28 x 28 with more tags."""
    return one_strip((28, 28), bytes(784), NONE, 8, 1, 1, *more)


def replaced(number: int, new: Tag) -> bytes:
    """Return a TIFF of 28 x 28 with one tag in the place of another."""
    strip = [tag(273, 16), tag(278, 28), tag(279, 784)]
    tags = [each for each in (*describe((28, 28)), *strip) if each[0] != number]
    return tiff([*tags, new], bytes(784))


def pages() -> bytes:
    """Return a TIFF of as many pages as fit, each with its directory."""
    length = 2 + 9 * 12 + 4
    tags = [*describe((1, 1)), tag(273, 8), tag(278, 1), tag(279, 1)]
    count = MAX_FILE_BYTES // length - 2
    parts = (directory(tags, 16 + (i + 1) * length if i + 1 < count else 0) for i in range(count))
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + b"".join(parts)


def cyclic() -> bytes:
    """Return a TIFF whose directory is its own next one."""
    plain = with_tag()
    return plain[:-4] + plain[4:8]


def shared(size: Size, rows: int, data: bytes, packing: int) -> bytes:
    """Return a TIFF whose strips of so many rows all are the same bytes."""
    count = -(-size[1] // rows)
    start = 16 + len(data) + (len(data) & 1)
    tables = struct.pack("<I", 16) * count + struct.pack("<I", len(data)) * count
    where = [(273, LONG, count, start), tag(278, rows), (279, LONG, count, start + 4 * count)]
    tags = [*describe(size, packing=packing), *where]
    return tiff(tags, data + bytes(len(data) & 1) + tables)


def overlapping(size: Size, rows: int) -> bytes:
    """Return a TIFF whose strips all are the same deflated pixels."""
    return shared(size, rows, zeros(size[0] * rows), DEFLATE)


def entries(count: int) -> bytes:
    """Return a TIFF with so many private tags."""
    return with_tag(*(tag(32_000 + number % 30_000, 1) for number in range(count)))


def sub_directories() -> bytes:
    """Return a TIFF whose EXIF directory is the first one."""
    plain = with_tag(tag(34_665, 0), tag(34_853, 0))
    start = plain[4:8]
    return plain.replace(
        struct.pack("<HHII", 34_665, 4, 1, 0), struct.pack("<HHI", 34_665, 4, 1) + start
    )


def bombs_inside(file: bytes, size: Size, samples: int = 1) -> bytes:
    """Return a TIFF with a JPEG as its only strip."""
    return one_strip(size, file, JPEG, 8, samples, 1 if samples == 1 else 2)


def inside_often(size: Size, rows: int, scans: int) -> bytes:
    """Return a TIFF whose strips all are the same JPEG of many scans."""
    return shared(size, rows, progressive((size[0], rows), scans), JPEG)


def shared_planes(size: Size) -> bytes:
    """Return an RGB TIFF whose three planes are the same bytes."""
    data = zeros(size[0] * size[1])
    start = 16 + len(data) + (len(data) & 1)
    tables = struct.pack("<6I", 16, 16, 16, *[len(data)] * 3)
    where = [(273, LONG, 3, start), tag(278, size[1]), (279, LONG, 3, start + 12), tag(284, 2)]
    tags = [*describe(size, 8, 3, DEFLATE, 2), *where]
    return tiff(tags, data + bytes(len(data) & 1) + tables)


def bomb(key: str, name: str, make: partial[bytes]) -> Bomb:
    """Return a bomb of one TIFF file."""
    return Bomb(f"tiff-{key}", f"TIFF, {name}", make, TIFF)


BIG = (5000, 5000)
MOST = (3464, 3464)
"""12 Mpx: what a TIFF may have."""
BILLIONS = 0xFFFFFFFF
HUGE = fill(b"\0", 5_900_000)
STRUCTURE = (
    bomb("strips", "990,000 strips in one place", partial(strips, 990_000)),
    bomb(
        "strips-rows", "25 Mpx of 5,000 strips in one place", partial(strips, 5000, 5000, 1, 5000)
    ),
    bomb("strips-few", "the count of strips for one row", partial(replaced, 278, tag(278, 1))),
    bomb("strips-zero", "strips of no rows", partial(replaced, 278, tag(278, 0))),
    bomb("overlap", "60 strips of 25 Mpx that are the same bytes", partial(overlapping, BIG, 84)),
    bomb(
        "tile-huge",
        "a tile of 65,536 x 65,536 for one pixel",
        partial(tiles, (1, 1), (65_536, 65_536), 1, DEFLATE, zeros(4096 << 20)),
    ),
    bomb(
        "tile-5000",
        "a tile of 5,008 x 5,008 for one pixel",
        partial(tiles, (1, 1), (5008, 5008), 1, DEFLATE, zeros(25 << 20)),
    ),
    bomb(
        "tiles",
        "1.4 million tiles of 16 x 16",
        partial(tiles, (16, 16 * 1_400_000), (16, 16), 1_400_000),
    ),
    bomb(
        "tiles-25",
        "97,000 tiles of 16 x 16 in one place",
        partial(tiles, (5000, 4960), (16, 16), 97_030, NONE, bytes(256)),
    ),
    bomb("tiles-wide", "tiles of 1 x 1 in 25 Mpx", partial(tiles, BIG, (1, 1), 1_000_000)),
    bomb("tag-bytes", "a tag of 4 billion bytes", partial(with_tag, (60_000, BYTE, BILLIONS, 16))),
    bomb(
        "tag-longs", "a tag of 4 billion numbers", partial(with_tag, (60_000, LONG, BILLIONS, 16))
    ),
    bomb("tag-text", "a text of 4 billion", partial(with_tag, (270, ASCII, BILLIONS, 16))),
    bomb("tag-strips", "4 billion strips", partial(replaced, 273, (273, LONG, BILLIONS, 16))),
    bomb(
        "tag-lengths",
        "4 billion lengths of strips",
        partial(replaced, 279, (279, LONG, BILLIONS, 16)),
    ),
    bomb("tag-depths", "4 billion depths", partial(replaced, 258, (258, SHORT, BILLIONS, 16))),
    bomb(
        "tag-million",
        "a tag of 1.4 million numbers",
        partial(lambda: one_strip((28, 28), HUGE, NONE, 8, 1, 1, (60_000, LONG, 1_400_000, 16))),
    ),
    bomb(
        "tag-shorts",
        "a tag of 2.9 million shorts",
        partial(lambda: one_strip((28, 28), HUGE, NONE, 8, 1, 1, (60_000, SHORT, 2_900_000, 16))),
    ),
    bomb(
        "tag-rationals",
        "a tag of 730,000 fractions",
        partial(lambda: one_strip((28, 28), HUGE, NONE, 8, 1, 1, (60_000, 5, 730_000, 16))),
    ),
    bomb(
        "tags-overlap",
        "1,000 tags of the same 1.4 million numbers",
        partial(
            lambda: one_strip(
                (28, 28),
                HUGE,
                NONE,
                8,
                1,
                1,
                *((33_000 + n, LONG, 1_400_000, 16) for n in range(1000)),
            )
        ),
    ),
    bomb("entries", "65,000 tags", partial(entries, 65_000)),
    bomb("cyclic", "a directory that is its own next", partial(cyclic)),
    bomb("sub", "EXIF that is the first directory", partial(sub_directories)),
    bomb("pages", "52,000 pages", partial(pages)),
    bomb("samples", "65,535 samples a pixel", partial(replaced, 277, tag(277, 65_535))),
    bomb(
        "far", "a directory behind the end", partial(lambda: b"II*\0\xf0\xff\xff\xff" + bytes(99))
    ),
    bomb(
        "big-tiff",
        "BigTIFF of nothing",
        partial(lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 62) + bytes(99)),
    ),
)
PIXELS = (
    bomb("deflate", "25 Mpx deflated", partial(black, BIG)),
    bomb(
        "deflate-overflow",
        "28 x 28, data that unpack to 5.8 GB",
        partial(lambda: one_strip((28, 28), zeros(5_600 << 20), DEFLATE)),
    ),
    bomb("rgb", "25 Mpx RGB deflated", partial(black, BIG, 8, 3, 2)),
    bomb("rgba-16", "25 Mpx RGBA 16 bit", partial(black, BIG, 16, 4, 2, tag(338, 2))),
    bomb("rgba-16-12", "12 Mpx RGBA 16 bit", partial(black, (3464, 3464), 16, 4, 2, tag(338, 2))),
    bomb("float", "25 Mpx of 32-bit floats", partial(black, BIG, 32, 1, 1, tag(339, 3))),
    bomb(
        "float-12", "12 Mpx of 32-bit floats", partial(black, (3464, 3464), 32, 1, 1, tag(339, 3))
    ),
    bomb(
        "integers", "12 Mpx of 32-bit integers", partial(black, (3464, 3464), 32, 1, 1, tag(339, 2))
    ),
    bomb("grey-16", "12 Mpx of 16 bits", partial(black, (3464, 3464), 16)),
    bomb("predictor", "25 Mpx with a predictor", partial(black, BIG, 8, 1, 1, tag(317, 2))),
    bomb("planes", "25 Mpx in planes", partial(black, BIG, 8, 3, 2, tag(284, 2))),
    bomb("cmyk", "12 Mpx CMYK", partial(black, (3464, 3464), 8, 4, 5)),
    bomb("lab", "12 Mpx LAB", partial(black, (3464, 3464), 8, 3, 8)),
    bomb("tall", "1 x 25,000,000 deflated", partial(black, (1, 25_000_000))),
    bomb("wide", "25,000,000 x 1 deflated", partial(black, (25_000_000, 1))),
    bomb("turned", "25 Mpx with an orientation", partial(black, BIG, 8, 1, 1, tag(274, 6))),
    bomb("g3", "25 Mpx of CCITT G3", partial(lambda: one_strip(BIG, fill(b"\0\x10\x01"), G3, 1))),
    bomb(
        "g3-tall",
        "1 x 25,000,000 of CCITT G3",
        partial(lambda: one_strip((1, 25_000_000), fill(b"\xff"), G3, 1)),
    ),
    bomb("g4", "25 Mpx of CCITT G4", partial(lambda: one_strip(BIG, b"\xff" * 700, G4, 1))),
    bomb(
        "g4-wide",
        "60,000 x 400 of CCITT G4, noise",
        partial(lambda: one_strip((60_000, 400), fill(b"\x26\xa0\x55"), G4, 1)),
    ),
    bomb("lzw", "25 Mpx of LZW, broken", partial(lambda: one_strip(BIG, fill(b"\x80\0\0"), LZW))),
    bomb(
        "packbits",
        "25 Mpx of PackBits",
        partial(lambda: one_strip(BIG, b"\x81\0" * 196_000, PACKBITS)),
    ),
    bomb(
        "packbits-6",
        "5.9 Mpx of PackBits, no-ops",
        partial(lambda: one_strip((2400, 2400), fill(b"\x80"), PACKBITS)),
    ),
    bomb("zstd", "ZSTD", partial(lambda: one_strip((28, 28), bytes(99), ZSTD))),
    bomb("lzma", "LZMA", partial(lambda: one_strip((28, 28), bytes(99), LZMA))),
    bomb("webp", "WebP inside", partial(lambda: one_strip((28, 28), bytes(99), WEBP))),
    bomb("jpeg", "a JPEG of 25 Mpx inside", partial(lambda: bombs_inside(baseline(BIG), BIG))),
    bomb(
        "jpeg-scans",
        "a JPEG of 3,119 scans inside",
        partial(lambda: bombs_inside(progressive(BIG, 3_119), BIG)),
    ),
    bomb(
        "jpeg-colour",
        "a JPEG of scans in colour inside",
        partial(lambda: bombs_inside(progressive(BIG, 3_000, 0, Y444), BIG, 3)),
    ),
    bomb(
        "jpeg-small",
        "a JPEG of 400,000 scans inside",
        partial(lambda: bombs_inside(progressive((28, 28), 400_000), (28, 28))),
    ),
    bomb(
        "jpeg-strips",
        "100 strips of the same JPEG of scans",
        partial(inside_often, (5000, 4800), 48, 40_000),
    ),
    bomb(
        "jpeg-strips-98",
        "100 strips of the same JPEG of 98 scans",
        partial(inside_often, (5000, 4800), 48, 97),
    ),
    bomb(
        "jpeg-larger",
        "a JPEG of 25 Mpx in 28 x 28",
        partial(lambda: bombs_inside(baseline(BIG), (28, 28))),
    ),
    bomb(
        "palette",
        "a palette without ColorMap",
        partial(lambda: one_strip((1, 1), b"x", NONE, 8, 1, 3)),
    ),
    bomb(
        "palette-short",
        "a ColorMap of 3",
        partial(lambda: one_strip((1, 1), b"x" * 9, NONE, 8, 1, 3, (320, SHORT, 3, 16))),
    ),
    bomb(
        "palette-holes",
        "a palette with extra samples",
        partial(lambda: one_strip((1, 1), b"xx", NONE, 8, 2, 3, tag(338, 2))),
    ),
    bomb("no-size", "no width", partial(replaced, 256, tag(60_000, 1))),
    bomb("no-data", "no strips", partial(replaced, 273, tag(60_000, 1))),
    bomb("size-huge", "4 billion x 4 billion", partial(replaced, 256, tag(256, BILLIONS))),
    bomb("in-json", "strips inside JSON", partial(lambda: in_json(strips(700_000)))),
)
PASSING = (
    bomb("12-strips", "12 Mpx of strips in one place", partial(overlapping, MOST, 8)),
    bomb("12-rows", "183 x 65,500, each row a strip", partial(overlapping, (183, 65_500), 1)),
    bomb("12-thin", "1 x 65,500, each row a strip", partial(overlapping, (1, 65_500), 1)),
    bomb("12-wide", "65,500 x 183 deflated", partial(black, (65_500, 183))),
    bomb("12-tall", "183 x 65,500 deflated", partial(black, (183, 65_500))),
    bomb("12-rgb", "12 Mpx RGB", partial(black, MOST, 8, 3, 2)),
    bomb(
        "12-predictor",
        "12 Mpx RGBA 16 bit with a predictor",
        partial(black, MOST, 16, 4, 2, tag(338, 2), tag(317, 2)),
    ),
    bomb(
        "12-float-predictor",
        "12 Mpx of floats with a predictor",
        partial(black, MOST, 32, 1, 1, tag(339, 3), tag(317, 3)),
    ),
    bomb("12-jpeg", "12 Mpx of JPEG", partial(lambda: bombs_inside(baseline(MOST), MOST))),
    bomb(
        "12-scans",
        "12 Mpx of JPEG with 97 scans",
        partial(lambda: bombs_inside(progressive(MOST, 97), MOST)),
    ),
    bomb(
        "12-scans-colour",
        "12 Mpx of JPEG with 96 scans in colour",
        partial(lambda: bombs_inside(progressive(MOST, 96, 0, Y444), MOST, 3)),
    ),
    bomb(
        "12-scans-strips",
        "12 Mpx, 433 strips of one JPEG of 97 scans",
        partial(inside_often, MOST, 8, 97),
    ),
    bomb(
        "12-scans-rows",
        "183 x 65,504, 8,188 strips of one JPEG of 97 scans",
        partial(inside_often, (183, 65_500), 8, 97),
    ),
    bomb(
        "1-scans-rows",
        "8 x 65,500, 8,188 strips of one JPEG of 97 scans",
        partial(inside_often, (8, 65_500), 8, 97),
    ),
    bomb(
        "12-tiles",
        "12 Mpx, 46,000 tiles of 16 x 16",
        partial(tiles, (3456, 3456), (16, 16), 46_656, NONE, bytes(256)),
    ),
    bomb(
        "12-tiles-large",
        "one tile of 3,456 x 3,456 for one pixel",
        partial(tiles, (1, 1), (3456, 3456), 1, DEFLATE, zeros(3456 * 3456)),
    ),
    bomb(
        "12-tiles-thin",
        "tiles of 16 x 65,504 for 1 x 1",
        partial(tiles, (1, 1), (16, 65_504), 1, DEFLATE, zeros(16 * 65_504)),
    ),
    bomb(
        "12-g3", "12 Mpx of CCITT G3", partial(lambda: one_strip(MOST, fill(b"\0\x10\x01"), G3, 1))
    ),
    bomb(
        "12-g3-ones",
        "12 Mpx of CCITT G3, ones",
        partial(lambda: one_strip(MOST, fill(b"\xff"), G3, 1)),
    ),
    bomb(
        "12-g3-tall",
        "183 x 65,500 of CCITT G3",
        partial(lambda: one_strip((183, 65_500), fill(b"\x35\x35"), G3, 1)),
    ),
    bomb(
        "12-g4", "12 Mpx of CCITT G4, white", partial(lambda: one_strip(MOST, b"\xff" * 700, G4, 1))
    ),
    bomb(
        "12-g4-noise",
        "12 Mpx of CCITT G4, noise",
        partial(lambda: one_strip(MOST, fill(b"\x26\xa0\x55"), G4, 1)),
    ),
    bomb(
        "12-lzw",
        "12 Mpx of LZW, clear codes",
        partial(lambda: one_strip(MOST, fill(b"\x80\x40\x20\x10\x08\x04\x02\x01\x00"), LZW)),
    ),
    bomb(
        "12-packbits",
        "12 Mpx of PackBits",
        partial(lambda: one_strip(MOST, b"\x81\0" * 94_000, PACKBITS)),
    ),
    bomb("12-planes", "12 Mpx in three planes", partial(lambda: shared_planes(MOST))),
)
BOMBS = (*STRUCTURE, *PIXELS, *PASSING)
