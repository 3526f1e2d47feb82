"""Writes small files of every format, and what each must become: `python -m tests.formats`.

The files are those that people run into and that strangers send. The pictures are ramps and squares
of 28 x 28, so the right pixels follow from their definition and from no reader. The manifest has a
line for each file: the sentence, the row of the list of cases that it stands for, the model it is
read for, and the picture or the codes of a refusal. Deterministic; no network.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.encoders import (
    BmpHeader,
    Grid,
    Tiff,
    bmp,
    bmp_rows,
    exif,
    gif,
    gif_control,
    gif_frame,
    jpeg_segment,
    lzw_codes,
    pack_bits,
    pack_codes,
    pack_row,
    png,
    png_chunk,
    png_header,
    riff,
    riff_chunks,
    sub_blocks,
)

FOLDER = Path(__file__).parent / "data" / "formats"
MANIFEST = FOLDER / "manifest.json"
MAX_BYTES = 5_000
"""Of one file."""

ROWS, COLUMNS = np.mgrid[0:28, 0:28]
RAMP = 8 * COLUMNS + ROWS
INSIDE = (abs(ROWS - 13.5) < 6) & (abs(COLUMNS - 13.5) < 6)
SQUARE = np.where(INSIDE, 255, 0)
COLOUR = np.stack([RAMP, 8 * ROWS + COLUMNS, 243 - RAMP], axis=-1)
PALETTE = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=-1)
GREY_PALETTE = np.stack([np.arange(256)] * 3, axis=-1)
CHECKS = (COLUMNS // 4 + ROWS // 4) % 2
TALL = RAMP[:, :14]
LEVELS = np.choose(COLUMNS // 10, [65534, 32768, 33096])


def widen(picture: Grid) -> Grid:
    """Return a picture of half the width in the middle of a black one."""
    return np.pad(picture, ((0, 0), (7, 7)))


def paint(picture: Grid) -> Grid:
    """Return the grey picture in three equal channels."""
    return np.stack([picture] * 3, axis=-1)


PICTURES: dict[str, Grid] = {
    "ramp": RAMP,
    "square": SQUARE,
    "checks": 255 * CHECKS,
    "four levels": 85 * (COLUMNS // 7),
    "sixteen levels": 17 * (COLUMNS * 16 // 28),
    "tall": widen(TALL),
    "key": np.where(INSIDE, 117, 0),
    "three levels": np.choose(COLUMNS // 10, [255, 128, 129]),
    "half ramp": RAMP // 2,
    "flipped checks": 255 - 255 * CHECKS,
    "colour": COLOUR,
    "palette": PALETTE[RAMP],
    "grey": paint(RAMP),
    "black square on white": paint(255 - SQUARE),
    "white square on black": paint(SQUARE),
    "five bits": (COLOUR // 8 * 255 + 15) // 31,
    "white": paint(np.full((28, 28), 255)),
    "black": paint(np.zeros((28, 28), int)),
}
"""What the models see, by name: [28, 28] the grey one, [28, 28, 3] the coloured one; both lay
images on black."""


@dataclass(frozen=True)
class Case:
    """A file, the row it stands for, and its picture with a tolerance, or the codes of a refusal.

    Without both only the answer and its cost are bounded. `raw`: the picture is what the file
    holds, before ground, place and negative, so another decoder can be asked for it.
    """

    name: str
    row: str
    sentence: str
    data: bytes
    picture: str = ""
    codes: tuple[str, ...] = ()
    tolerance: int = 0
    raw: bool = True


Cases = Iterator[Case]
DAMAGED = ("not_an_image",)
NO_TYPE = ("unsupported_type", "not_an_image")
LARGE = ("too_large",)


def stored(picture: Grid, orientation: int) -> Grid:
    """Return the pixels that EXIF's orientation turns into the picture."""
    turns: dict[int, Callable[[Grid], Grid]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    return turns[orientation](picture)


def with_alpha(colours: Grid, alpha: Grid) -> Grid:
    """Return the colours with one more channel."""
    first = colours if colours.ndim > alpha.ndim else colours[..., None]
    return np.concatenate([first, alpha[..., None]], axis=-1)


PLTE = png_chunk(b"PLTE", PALETTE.astype(np.uint8).tobytes())
GREY_PLTE = png_chunk(b"PLTE", GREY_PALETTE.astype(np.uint8).tobytes())
ICC_OF_NO_USE = b"icc\0\0" + zlib.compress(bytes(128))


def png_damage() -> Cases:
    """Ancillary chunks that are wrong: every other reader passes over them."""
    chunks = {
        "pHYs": struct.pack(">IIB", 2835, 2835, 1),
        "tIME": struct.pack(">HBBBBB", 2026, 11, 28, 12, 0, 0),
        "iCCP": ICC_OF_NO_USE,
        "gAMA": struct.pack(">I", 45455),
        "cHRM": bytes(32),
        "sRGB": b"\0",
        "tEXt": b"Comment\0hello",
        "zTXt": b"Comment\0\0" + zlib.compress(b"hello"),
        "iTXt": b"Comment\0\0\0\0\0hello",
        "sBIT": b"\x08",
        "bKGD": b"\0\xff",
        "hIST": b"\0\0",
        "eXIf": exif(3, b"\x06\0"),
        "sPLT": b"p\0\x08",
        "prVt": b"private",
    }
    for name, body in chunks.items():
        wrong = png_chunk(name.encode(), body, right=False)
        sentence = f"A PNG with a {name} chunk of wrong checksum before IDAT"
        yield Case(f"crc-{name}.png", "D1", sentence, png(RAMP, before=wrong), "ramp")
        sentence = f"A PNG with a {name} chunk of wrong checksum after IDAT"
        yield Case(f"crc-after-{name}.png", "D1", sentence, png(RAMP, after=wrong), "ramp")
    for name in chunks:
        if name not in {"eXIf", "prVt"}:
            short = png_chunk(name.encode(), b"\1")
            sentence = f"A PNG with a {name} chunk of one byte"
            yield Case(f"short-{name}.png", "D1", sentence, png(RAMP, before=short), "ramp")


def png_oddities() -> Cases:
    """PNG files of odd structure with a good picture."""
    odd = {
        "iccp-method": png_chunk(b"iCCP", b"icc\0\x07" + zlib.compress(bytes(128))),
        "iccp-garbage": png_chunk(b"iCCP", b"icc\0\0garbage"),
        "iccp-endless": png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_000_000))),
        "iccp-four": png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(900_000), 9)) * 4,
        "phys-short": png_chunk(b"pHYs", bytes(4)),
        "private": png_chunk(b"prVt", bytes(100)),
        "private-many": png_chunk(b"prVt", b"") * 300,
        "text-many": png_chunk(b"tEXt", b"a\0b") * 200,
        "ztxt-bomb": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000), 9)),
        "exif-broken": png_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        "exif-loop": png_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\x08"),
        "apng": png_chunk(b"acTL", struct.pack(">II", 2, 0))
        + png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 28, 28, 0, 0, 1, 10, 0, 0)),
        "apng-broken": png_chunk(b"acTL", b"\0"),
        "plte-of-grey": png_chunk(b"sPLT", b""),
    }
    for name, chunks in odd.items():
        row = "H1" if name.endswith(("many", "four", "endless", "bomb")) else "D1"
        sentence = f"A PNG with {name.replace('-', ' ')} before IDAT"
        yield Case(f"{name}.png", row, sentence, png(RAMP, before=chunks), "ramp")
    good = png(RAMP)
    yield Case("trailing.png", "D1", "Bytes follow IEND", good + b"\0trailing" * 20, "ramp")
    yield Case("no-iend.png", "D2", "The IEND chunk is lost", good[:-12], "ramp")
    split = split_idat(good, 1)
    yield Case("idat-many.png", "H1", "Each byte of data in its own IDAT", split, "ramp")
    empty = good[:33] + png_chunk(b"IDAT", b"") * 50 + good[33:]
    yield Case("idat-empty.png", "H1", "Fifty empty IDAT come first", empty, "ramp")
    yield Case("crc-idat.png", "D1", "IDAT has a wrong checksum: libpng refuses", wrong_idat())
    unknown = png(RAMP, before=png_chunk(b"ABCD", b""))
    sentence = "A critical chunk that nobody knows"
    yield Case("critical.png", "D1", sentence, unknown, codes=NO_TYPE)
    head = png_header(1, 1, 8, 3) + png_chunk(b"IDAT", zlib.compress(b"\0\0"))
    sentence = "A palette of 1 x 1 without PLTE"
    yield Case("no-plte.png", "H3", sentence, head + png_chunk(b"IEND", b""), codes=DAMAGED)


def wrong_idat() -> bytes:
    """Return a PNG whose IDAT has a wrong checksum."""
    data = zlib.compress(b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in RAMP), 9)
    idat = png_chunk(b"IDAT", data, right=False)
    return png_header(28, 28, 8, 0) + idat + png_chunk(b"IEND", b"")


def split_idat(data: bytes, length: int) -> bytes:
    """Return the PNG with its one IDAT in parts of so many bytes."""
    (size,) = struct.unpack_from(">I", data, 33)
    body = data[41 : 41 + size]
    parts = (body[start : start + length] for start in range(0, size, length))
    return data[:33] + b"".join(png_chunk(b"IDAT", part) for part in parts) + data[45 + size :]


def png_depths() -> Cases:
    """Every colour type and depth, straight and interlaced."""
    deep = 257 * COLOUR
    full = np.full((28, 28), 255)
    kinds: list[tuple[str, Grid, int, int, bytes, str]] = [
        ("grey-1", CHECKS, 1, 0, b"", "checks"),
        ("grey-2", COLUMNS // 7, 2, 0, b"", "four levels"),
        ("grey-4", COLUMNS * 16 // 28, 4, 0, b"", "sixteen levels"),
        ("grey-8", RAMP, 8, 0, b"", "ramp"),
        ("grey-16", 257 * RAMP, 16, 0, b"", "ramp"),
        ("la-8", with_alpha(RAMP, full), 8, 4, b"", "ramp"),
        ("la-16", 257 * with_alpha(RAMP, full), 16, 4, b"", "ramp"),
        ("rgb-8", COLOUR, 8, 2, b"", "colour"),
        ("rgb-16", deep, 16, 2, b"", "colour"),
        ("rgba-8", with_alpha(COLOUR, full), 8, 6, b"", "colour"),
        ("rgba-16", 257 * with_alpha(COLOUR, full), 16, 6, b"", "colour"),
        ("palette-8", RAMP, 8, 3, PLTE, "palette"),
        ("palette-4", COLUMNS * 16 // 28, 4, 3, ramp_palette(16), "sixteen levels"),
        ("palette-2", COLUMNS // 7, 2, 3, ramp_palette(4), "four levels"),
        ("palette-1", CHECKS, 1, 3, ramp_palette(2), "checks"),
        ("palette-grey", RAMP, 8, 3, GREY_PLTE, "ramp"),
    ]
    for name, pixels, depth, colour, palette, picture in kinds:
        for interlaced in (False, True):
            way = "-interlaced" if interlaced else ""
            data = png(pixels, depth, colour, before=palette, interlaced=interlaced)
            sentence = f"PNG {name}{way}"
            yield Case(f"{name}{way}.png", "B", sentence, data, picture, tolerance=depth // 16)
    levels = png(LEVELS, 16)
    yield Case("grey-16-levels.png", "B4", "16-bit 65534, 32768, 33096", levels, "three levels")


def ramp_palette(count: int) -> bytes:
    """Return PLTE of grey levels from black to white."""
    levels = (np.arange(count) * 255 // (count - 1)).astype(np.uint8)
    return png_chunk(b"PLTE", np.repeat(levels, 3).tobytes())


def png_holes() -> Cases:
    """Transparency of every kind; a drawing in ink is shown as on paper, then as its negative."""
    ink = np.zeros((28, 28), int)
    key8 = np.where(INSIDE, 0, 255)
    inked = np.where(INSIDE, 0, 1)
    kinds = {
        "la": png(with_alpha(ink, SQUARE), 8, 4),
        "rgba": png(with_alpha(paint(ink), SQUARE), 8, 6),
        "la-16": png(257 * with_alpha(ink, SQUARE), 16, 4),
        "rgba-16": png(257 * with_alpha(paint(ink), SQUARE), 16, 6),
        "key-l": png(key8, before=png_chunk(b"tRNS", b"\0\xff")),
        "key-1": png(inked, 1, before=png_chunk(b"tRNS", b"\0\1")),
        "key-2": png(3 * inked, 2, before=png_chunk(b"tRNS", b"\0\3")),
        "key-4": png(15 * inked, 4, before=png_chunk(b"tRNS", b"\0\x0f")),
        "key-16": png(257 * key8, 16, before=png_chunk(b"tRNS", b"\xff\xff")),
        "key-rgb": png(paint(key8), 8, 2, before=png_chunk(b"tRNS", b"\0\xff" * 3)),
        "key-rgb-16": png(257 * paint(key8), 16, 2, before=png_chunk(b"tRNS", b"\xff" * 6)),
        "palette": png(inked, 8, 3, before=ramp_palette(2) + png_chunk(b"tRNS", b"\xff\0")),
        "palette-1": png(inked, 1, 3, before=ramp_palette(2) + png_chunk(b"tRNS", b"\xff\0")),
        "palette-short": png(1 - inked, 8, 3, before=zero_first()),
    }
    for name, data in kinds.items():
        sentence = f"A black square on a transparent ground, PNG {name}"
        yield Case(f"ink-{name}.png", "B2", sentence, data, "square", raw=False)
    for name in ("rgba", "key-rgb", "palette"):
        sentence = f"The same in colour, PNG {name}"
        picture = "black square on white"
        yield Case(f"ink-rgb-{name}.png", "B2", sentence, kinds[name], picture, raw=False)
    white = png(with_alpha(np.full((28, 28), 255), SQUARE), 8, 4)
    yield Case("chalk-la.png", "B2", "A white square on holes", white, "square", raw=False)
    deep = png(np.where(INSIDE, 30000, 65535), 16, before=png_chunk(b"tRNS", b"\xff\xff"))
    yield Case("key-30000.png", "B5", "16 bits, 65535 transparent", deep, "key", raw=False)
    near = png(np.where(INSIDE, 65280, 30000), 16, before=png_chunk(b"tRNS", b"\xff\xff"))
    sentence = "A 16-bit key that only its high byte would meet"
    yield Case("key-near.png", "B5", sentence, near)
    for length in (0, 1, 7):
        body = png_chunk(b"tRNS", bytes(length))
        sentence = f"tRNS of {length} bytes for grey"
        yield Case(f"trns-{length}.png", "D1", sentence, png(RAMP, before=body), "ramp")


def zero_first() -> bytes:
    """Return a palette whose first colour is clear white and whose second is black."""
    palette = png_chunk(b"PLTE", b"\xff\xff\xff\0\0\0")
    return palette + png_chunk(b"tRNS", b"\0")


def png_orientations() -> Cases:
    """Files of eXIf, square and tall, and those that name no orientation."""
    for number in range(1, 9):
        block = png_chunk(b"eXIf", exif(3, struct.pack("<H", number)))
        data = png(stored(RAMP, number), before=block)
        yield Case(f"exif-{number}.png", "B6", f"eXIf orientation {number}", data, "ramp")
        data = png(stored(TALL, number), before=block)
        sentence = f"eXIf orientation {number}, 14 x 28 upright"
        yield Case(f"exif-tall-{number}.png", "B6", sentence, data, "tall", raw=False)
    for name, kind, value in NO_ORIENTATIONS:
        data = png(RAMP, before=png_chunk(b"eXIf", exif(kind, value)))
        yield Case(f"exif-{name}.png", "B7", f"eXIf orientation {name}", data, "ramp")


NO_ORIENTATIONS = (
    ("text", 2, b"6\0"),
    ("undefined", 7, b"\6\0\0\0"),
    ("zero", 3, b"\0\0"),
    ("nine", 3, b"\x09\0"),
    ("two-values", 3, b"\6\0\6\0"),
)


def png_refusals() -> Cases:
    """PNG files that must be refused, or cost little."""
    large = ((25_000_000, 1, 8, 0), (5_000, 5_001, 8, 0), (5_000, 5_000, 16, 6), (65_501, 1, 8, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    for width, height, depth, colour in large:
        head = png_header(width, height, depth, colour)
        name = f"large-{width}x{height}-{depth}-{colour}.png"
        sentence = f"A PNG of {width} x {height}, {depth} bits, colour type {colour}"
        yield Case(name, "H1", sentence, head + data, codes=LARGE)
    for name, head in {
        "width-0": png_header(0, 28, 8, 0),
        "depth-3": png_header(28, 28, 3, 0),
        "colour-5": png_header(28, 28, 8, 5),
        "interlace-2": png_header(28, 28, 8, 0, 2),
        "rgb-4-bits": png_header(28, 28, 4, 2),
    }.items():
        sentence = f"A PNG whose head says {name}"
        yield Case(f"{name}.png", "H1", sentence, head + data, codes=DAMAGED)
    for length in (8, 20, 33, 50):
        sentence = f"The first {length} bytes of a PNG"
        yield Case(f"cut-{length}.png", "D2", sentence, png(RAMP)[:length], codes=DAMAGED)


def save(picture: Grid, kind: str, mode: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    """Return the picture as Pillow's encoder writes it."""
    body = io.BytesIO()
    channels = len(mode) if mode != "CMYK" else 4
    shape = (*picture.shape[:2], channels) if channels > 1 else picture.shape[:2]
    raw = np.ascontiguousarray(picture).astype(np.uint8).reshape(shape)
    size = (raw.shape[1], raw.shape[0])
    Image.frombytes(mode, size, raw.tobytes()).save(body, kind, **options)
    return body.getvalue()


def jpeg(picture: Grid = RAMP, mode: str = "L", extra: bytes = b"", **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    """Return a fine JPEG with segments behind SOI."""
    data = save(picture, "JPEG", mode, quality=96, **options)
    return data[:2] + extra + data[2:]


def exif_segment(kind: int, value: bytes) -> bytes:
    """Return APP1 with an orientation."""
    return jpeg_segment(0xE1, b"Exif\0\0" + exif(kind, value))


def jpeg_kinds() -> Cases:
    """Every colour space, process and sampling."""
    key = np.zeros((28, 28, 4), int)
    key[..., 3] = 255 - RAMP
    ycck = key.copy()
    ycck[..., :3] = [255, 127, 127]
    adobe = jpeg(ycck, "CMYK")
    at = adobe.index(b"Adobe") + 11
    kinds: list[tuple[str, str, bytes]] = [
        ("baseline", "ramp", jpeg()),
        ("progressive", "ramp", jpeg(progressive=True)),
        ("optimised", "ramp", jpeg(optimize=True)),
        ("restarts", "ramp", jpeg(restart_marker_rows=1)),
        ("rgb-444", "colour", jpeg(COLOUR, "RGB", subsampling=0)),
        ("rgb-422", "colour", jpeg(COLOUR, "RGB", subsampling=1)),
        ("rgb-420", "colour", jpeg(COLOUR, "RGB", subsampling=2)),
        ("rgb-progressive", "colour", jpeg(COLOUR, "RGB", progressive=True)),
        ("rgb-kept", "colour", jpeg(COLOUR, "RGB", keep_rgb=True)),
        ("cmyk", "ramp", jpeg(key, "CMYK")),
        ("ycck", "ramp", adobe[:at] + b"\2" + adobe[at + 1 :]),
    ]
    for name, picture, data in kinds:
        tolerance = 12 if "42" in name or name == "rgb-progressive" else 4
        yield Case(f"{name}.jpg", "B", f"JPEG {name}", data, picture, tolerance=tolerance)


def jpeg_oddities() -> Cases:
    """Metadata, fill bytes and lost ends; the pixels are good."""
    icc = b"ICC_PROFILE\0\1\1" + bytes(128)
    mpf = b"MPF\0II*\0\x08\0\0\0\0\0\0\0\0\0"
    endless = b"II*\0\x08\0\0\0" + b"\xff\xff" + bytes(30)
    odd = {
        "exif-broken": jpeg_segment(0xE1, b"Exif\0\0broken"),
        "exif-empty": jpeg_segment(0xE1, b"Exif\0\0"),
        "exif-endless": jpeg_segment(0xE1, b"Exif\0\0" + endless),
        "icc": jpeg_segment(0xE2, icc),
        "icc-of-nine": jpeg_segment(0xE2, b"ICC_PROFILE\0\7\x09"),
        "icc-short": jpeg_segment(0xE2, b"ICC_PROFILE\0"),
        "mpf": jpeg_segment(0xE2, mpf),
        "mpf-broken": jpeg_segment(0xE2, b"MPF\0"),
        "photoshop": jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
        "comment": jpeg_segment(0xFE, b"hello" * 40),
        "xmp": jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        "app-many": jpeg_segment(0xE5, b"") * 900,
        "fill-long": b"\xff" * 3_500,
        "jfif-short": jpeg_segment(0xE0, b"JFIF"),
        "adobe-short": jpeg_segment(0xEE, b"Adobe"),
    }
    for name, segments in odd.items():
        row = "H1" if name.endswith(("many", "long")) else "D1"
        sentence = f"JPEG with {name.replace('-', ' ')}"
        yield Case(f"{name}.jpg", row, sentence, jpeg(extra=segments), "ramp", tolerance=4)
    good = jpeg()
    sentence = "JPEG without its last two bytes"
    yield Case("no-eoi.jpg", "D2", sentence, good[:-2])
    yield Case("trailing.jpg", "D1", "Bytes follow EOI", good + b"trailing", "ramp", tolerance=4)
    sentence = "A second JPEG follows, as in MPO"
    yield Case("mpo.jpg", "D1", sentence, good + jpeg(255 - RAMP), "ramp", tolerance=4)
    both = exif_segment(3, b"\6\0") + exif_segment(3, b"\3\0")
    sentence = "The first of two EXIF blocks holds"
    data = jpeg(stored(RAMP, 6), extra=both)
    yield Case("exif-two.jpg", "B7", sentence, data, "ramp", tolerance=4)


def jpeg_orientations() -> Cases:
    """EXIF in JPEG."""
    for number in range(1, 9):
        block = exif_segment(3, struct.pack("<H", number))
        data = jpeg(stored(RAMP, number), extra=block)
        sentence = f"JPEG orientation {number}"
        yield Case(f"exif-{number}.jpg", "B6", sentence, data, "ramp", tolerance=4)
    for name, kind, value in NO_ORIENTATIONS:
        data = jpeg(extra=exif_segment(kind, value))
        sentence = f"JPEG orientation {name}"
        yield Case(f"exif-{name}.jpg", "B7", sentence, data, "ramp", tolerance=4)


def jpeg_refusals() -> Cases:
    """JPEG that no one should decode, and scans without end."""
    good = jpeg()
    at = good.index(b"\xff\xc0")
    for number in (3, 5, 9, 10, 11, 13):
        other = good[: at + 1] + bytes([0xC0 + number]) + good[at + 2 :]
        sentence = f"JPEG of process SOF{number}"
        yield Case(f"sof{number}.jpg", "H1", sentence, other, codes=NO_TYPE)
    sentence = "JPEG of 12 bits"
    twelve = good[: at + 4] + b"\x0c" + good[at + 5 :]
    yield Case("twelve-bits.jpg", "H1", sentence, twelve, codes=NO_TYPE)
    huge = good[: at + 5] + struct.pack(">HH", 5_001, 5_000) + good[at + 9 :]
    yield Case("large.jpg", "H1", "JPEG of 5,000 x 5,001", huge, codes=LARGE)
    wide = good[: at + 5] + struct.pack(">HH", 0, 28) + good[at + 9 :]
    yield Case("height-0.jpg", "H1", "JPEG without a height", wide, codes=DAMAGED)
    sentence = "470 scans over 25 megapixels"
    yield Case("scans.jpg", "C1", sentence, progressive_bomb(470, b""), codes=LARGE)
    yield Case("scans-few.jpg", "C1", "Five scans over 25 megapixels", progressive_bomb(5))
    for length in (2, 4, 20, 160):
        sentence = f"The first {length} bytes of a JPEG"
        yield Case(f"cut-{length}.jpg", "D2", sentence, good[:length], codes=DAMAGED)


def progressive_bomb(scans: int, runs: bytes = bytes(12), side: int = 5_000) -> bytes:
    """Return a grey progressive JPEG: a cut DC scan, then AC scans of end-of-band runs.

    Of `runs` a bit 0 and 14 more stand for 16,384 to 32,767 blocks; behind them libjpeg reads 0.
    """
    tables = jpeg_segment(0xDB, b"\0" + b"\1" * 64)
    frame = jpeg_segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    one = bytes([1]) + bytes(15)
    codes = jpeg_segment(0xC4, b"\0" + one + b"\0") + jpeg_segment(0xC4, b"\x10" + one + b"\xe0")
    first = jpeg_segment(0xDA, b"\1\1\0\0\0\0") + bytes(16)
    scan = jpeg_segment(0xDA, b"\1\1\0\1\x3f\0") + runs
    return b"\xff\xd8" + tables + frame + codes + first + scan * scans + b"\xff\xd9"


def gif_kinds() -> Cases:
    """GIF of both versions, frames of every place, holes."""
    ramp, ink = gif_frame(RAMP), gif_frame(np.where(INSIDE, 0, 255))
    small = gif_frame(np.full((12, 12), 255), (8, 8))
    second = gif_control(delay=10) + gif_frame(255 - RAMP)
    loop = b"!\xff\x0bNETSCAPE2.0" + sub_blocks(b"\1\0\0")
    kinds: list[tuple[str, str, str, bytes]] = [
        ("87a", "B8", "ramp", gif(GREY_PALETTE, ramp, version=b"87a")),
        ("89a", "B8", "ramp", gif(GREY_PALETTE, gif_control() + ramp)),
        ("colour", "B8", "palette", gif(PALETTE, ramp)),
        ("interlaced", "B", "ramp", gif(GREY_PALETTE, gif_frame(RAMP, interlaced=True))),
        ("ink", "B2", "square", gif(GREY_PALETTE, gif_control(255) + ink)),
        ("small-frame", "B", "square", gif(GREY_PALETTE, small)),
        ("small-frame-clear", "B", "square", gif(GREY_PALETTE, gif_control(0) + small)),
        ("large-frame", "B", "ramp", gif(GREY_PALETTE, ramp, (20, 20))),
        ("screen-0", "B", "ramp", gif(GREY_PALETTE, ramp, (0, 0))),
        ("animated", "H1", "ramp", gif(GREY_PALETTE, loop + gif_control(delay=5) + ramp + second)),
        ("comment", "D1", "ramp", gif(GREY_PALETTE, b"!\xfe" + sub_blocks(b"hello") + ramp)),
        ("unknown-extension", "D1", "ramp", gif(GREY_PALETTE, b"!\x42\x01x\0" + ramp)),
        ("control-short", "D1", "ramp", gif(GREY_PALETTE, b"!\xf9\x01\0\0" + ramp)),
        ("control-empty", "D1", "ramp", gif(GREY_PALETTE, b"!\xf9\0" + ramp)),
        ("application-short", "D1", "ramp", gif(GREY_PALETTE, b"!\xff\x01N\0" + ramp)),
        ("second-broken", "H1", "ramp", gif(GREY_PALETTE, ramp + b",\0\0")),
        ("no-trailer", "D2", "ramp", gif(GREY_PALETTE, ramp)[:-1]),
        ("trailing", "D1", "ramp", gif(GREY_PALETTE, ramp) + b"trailing"),
        ("extensions-many", "H1", "ramp", gif(GREY_PALETTE, b"!\xfe\0" * 900 + ramp)),
    ]
    for name, row, picture, data in kinds:
        raw = picture != "square" and not name.startswith(("large", "screen"))
        yield Case(f"{name}.gif", row, f"GIF {name.replace('-', ' ')}", data, picture, raw=raw)
    yield from gif_refusals()


def gif_refusals() -> Cases:
    """GIF that must be refused."""
    frame = gif_frame(RAMP)
    large = gif(GREY_PALETTE, frame, (65_535, 65_535))
    yield Case("large.gif", "H1", "A screen of 65,535 x 65,535", large, codes=LARGE)
    empty = gif(GREY_PALETTE, b"")
    yield Case("no-frame.gif", "D2", "A GIF without a frame", empty, codes=DAMAGED)
    for length in (6, 13, 400, 800):
        sentence = f"The first {length} bytes of a GIF"
        yield Case(
            f"cut-{length}.gif", "D2", sentence, gif(GREY_PALETTE, frame)[:length], codes=DAMAGED
        )


def bmp_kinds() -> Cases:
    """BMP of every depth and head."""
    blue_first = COLOUR[..., ::-1]
    five = COLOUR // 8
    packed = (five[..., 0] << 10) | (five[..., 1] << 5) | five[..., 2]
    grey, levels = grey_quads(256), grey_quads(16)
    square = with_alpha(paint(np.zeros((28, 28), int)), SQUARE)
    padded = with_alpha(blue_first, np.zeros((28, 28), int))
    fields = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    v4, v5 = masks[12:] + b"BGRs" + bytes(48), masks[12:] + b"BGRs" + bytes(64)
    down = bmp_rows(RAMP, 8, top_down=True)
    kinds: list[tuple[str, str, BmpHeader, int, bytes]] = [
        ("1", "checks", BmpHeader(1, palette=grey_quads(2)), 28, bmp_rows(CHECKS, 1)),
        ("1-flipped", "flipped checks", BmpHeader(1, palette=flipped()), 28, bmp_rows(CHECKS, 1)),
        ("4", "sixteen levels", BmpHeader(4, palette=levels), 28, four_bits()),
        ("8", "ramp", BmpHeader(8, palette=grey), 28, bmp_rows(RAMP, 8)),
        ("8-top-down", "ramp", BmpHeader(8, palette=grey), -28, down),
        ("16", "five bits", BmpHeader(16), 28, bmp_rows(packed, 16)),
        ("24", "colour", BmpHeader(24), 28, bmp_rows(blue_first, 24)),
        ("32", "colour", BmpHeader(32), 28, bmp_rows(padded, 32)),
        ("32-fields", "colour", BmpHeader(32, 3, masks=fields), 28, bmp_rows(padded, 32)),
        ("v4-ink", "square", BmpHeader(32, 3, masks[:12], v4), 28, bmp_rows(square, 32)),
        ("v5-ink", "square", BmpHeader(32, 3, masks[:12], v5), 28, bmp_rows(square, 32)),
        ("rle", "ramp", BmpHeader(8, 1, palette=grey), 28, run_lengths(RAMP)),
    ]
    for name, picture, header, height, data in kinds:
        tolerance = 1 if name == "16" else 0
        body = bmp(header, 28, height, data)
        sentence = f"BMP {name.replace('-', ' ')}"
        row = "B2" if name.endswith("ink") else "H1" if name == "rle" else "B"
        yield Case(
            f"bits-{name}.bmp", row, sentence, body, picture, tolerance=tolerance, raw=row != "B2"
        )
    yield from bmp_refusals()


def grey_quads(count: int) -> bytes:
    """Return a BMP palette of grey levels."""
    levels = (np.arange(count) * 255 // (count - 1)).astype(np.uint8)
    return b"".join(bytes([level] * 3 + [0]) for level in levels)


def flipped() -> bytes:
    """Return a palette of white and black."""
    return b"\xff\xff\xff\0\0\0\0\0"


def four_bits() -> bytes:
    """Return the sixteen levels as BMP rows of 4 bits."""
    rows = [pack_row(row, 4) for row in (COLUMNS * 16 // 28)[::-1]]
    return b"".join(row + bytes(-len(row) % 4) for row in rows)


def run_lengths(picture: Grid) -> bytes:
    """Return RLE8 of runs of one pixel."""
    rows = (
        b"".join(bytes((1, value)) for value in row.tolist()) + b"\0\0" for row in picture[::-1]
    )
    return b"".join(rows) + b"\0\1"


def bmp_refusals() -> Cases:
    """Run lengths over many pixels, and heads that lie."""
    grey = BmpHeader(8, 1, palette=grey_quads(256))
    row = b"\1\1\0\0"
    for width, height in ((25_000_000, 1), (5_000, 5_000), (1, 1_000_001), (1_001, 1_000)):
        sentence = f"Run-length BMP of {width} x {height}"
        data = bmp(grey, width, height, row)
        yield Case(f"rle-{width}x{height}.bmp", "H1", sentence, data, codes=LARGE)
    small = bmp(grey, 1_000, 1_000, row * 900)
    yield Case("rle-megapixel.bmp", "H1", "Run-length BMP of a megapixel", small)
    for bits in (0, 3, 64):
        sentence = f"BMP of {bits} bits"
        data = bmp(BmpHeader(bits), 28, 28, bytes(784))
        yield Case(f"depth-{bits}.bmp", "H1", sentence, data, codes=NO_TYPE)
    for number in (4, 5, 11):
        sentence = f"BMP of compression {number}"
        data = bmp(BmpHeader(24, number), 28, 28, bytes(784))
        yield Case(f"compression-{number}.bmp", "H1", sentence, data, codes=NO_TYPE)
    flat = bmp(BmpHeader(24), 28, 28, bmp_rows(COLOUR[..., ::-1], 24))
    for length in (2, 14, 40, 2_000):
        sentence = f"The first {length} bytes of a BMP"
        yield Case(f"cut-{length}.bmp", "D2", sentence, flat[:length], codes=DAMAGED)


def webp(picture: Grid, mode: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    """Return a WebP."""
    return save(picture, "WEBP", mode, **options)


def webp_kinds() -> Cases:
    """WebP lossy, lossless, with holes, with metadata."""
    fine = riff_chunks(webp(COLOUR, "RGB", lossless=True))
    ink = with_alpha(paint(np.zeros((28, 28), int)), SQUARE)
    head = bytes([0x08]) + bytes(3) + b"\x1b\0\0\x1b\0\0"
    turned = riff_chunks(webp(stored(COLOUR, 6), "RGB", lossless=True))
    turn = [(b"VP8X", head), *turned, (b"EXIF", exif(3, b"\6\0"))]
    kinds: list[tuple[str, str, str, int, bytes]] = [
        ("lossless", "B", "colour", 0, riff(fine)),
        ("lossy", "B", "grey", 6, webp(paint(RAMP), "RGB", quality=95)),
        ("ink-lossless", "B2", "square", 0, webp(ink, "RGBA", lossless=True, exact=True)),
        ("ink-lossy", "B2", "square", 2, webp(ink, "RGBA", quality=95)),
        ("exif", "B6", "colour", 0, riff(turn)),
        ("exif-jpeg-style", "B6", "colour", 0, riff([*turn[:2], (b"EXIF", jpeg_exif())])),
        ("exif-broken", "B7", "colour", 0, riff([(b"VP8X", head), *fine, (b"EXIF", b"II*")])),
        ("exif-garbage", "B7", "colour", 0, riff([(b"VP8X", head), *fine, (b"EXIF", b"x" * 50)])),
        ("icc-garbage", "D1", "colour", 0, riff([(b"VP8X", head), (b"ICCP", b"x"), *fine])),
        ("xmp-garbage", "D1", "colour", 0, riff([(b"VP8X", head), *fine, (b"XMP ", b"<x")])),
        ("private", "D1", "colour", 0, riff([(b"VP8X", head), *fine, (b"zzzz", b"x")])),
        (
            "private-many",
            "H1",
            "colour",
            0,
            riff([(b"VP8X", head), *fine, *[(b"zzzz", b"")] * 400]),
        ),
        ("trailing", "D1", "colour", 0, riff(fine) + b"trailing"),
        ("animated", "H1", "colour", 0, animated()),
    ]
    for name, row, picture, tolerance, data in kinds:
        sentence = f"WebP {name.replace('-', ' ')}"
        raw = "ink" not in name
        yield Case(f"{name}.webp", row, sentence, data, picture, (), tolerance, raw)
    yield from webp_refusals()


def jpeg_exif() -> bytes:
    """Return EXIF with the prefix that JPEG gives it."""
    return b"Exif\0\0" + exif(3, b"\6\0")


def animated() -> bytes:
    """Return a lossless WebP of two frames."""
    frames = [Image.fromarray(each.astype(np.uint8)) for each in (COLOUR, 255 - COLOUR)]
    body = io.BytesIO()
    frames[0].save(body, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return body.getvalue()


def webp_refusals() -> Cases:
    """WebP of too many pixels, and cut ones."""
    for width, height, alpha in ((5_000, 5_000, 1), (16_383, 16_383, 1), (4_000, 3_001, 0)):
        bits = (width - 1) | (height - 1) << 14 | alpha << 28
        body = b"\x2f" + struct.pack("<I", bits) + bytes(40)
        sentence = f"Lossless WebP of {width} x {height}"
        data = riff([(b"VP8L", body)])
        yield Case(f"large-{width}x{height}.webp", "H2", sentence, data, codes=LARGE)
    fine = webp(COLOUR, "RGB", lossless=True)
    for length in (12, 20, 30, len(fine) // 2):
        sentence = f"The first {length} bytes of a WebP"
        yield Case(f"cut-{length}.webp", "D2", sentence, fine[:length], codes=DAMAGED)


GREY_TAGS: dict[int, tuple[int, Any]] = {
    256: (3, [28]),
    257: (3, [28]),
    258: (3, [8]),
    259: (3, [1]),
    262: (3, [1]),
    277: (3, [1]),
    278: (3, [28]),
}
RAW = RAMP.astype(np.uint8).tobytes()


def tiff(
    data: bytes | list[bytes], tags: dict[int, tuple[int, Any]] | None = None, order: str = "<"
) -> bytes:
    """Return a TIFF of one page: a grey one but for `tags`."""
    parts = data if isinstance(data, list) else [data]
    return Tiff(order, pages=[({**GREY_TAGS, **(tags or {})}, parts)]).encode()


def samples(picture: Grid, kind: str, order: str = "<") -> bytes:
    """Return the numbers of a picture in NumPy's type `kind`."""
    return picture.astype(order + kind).tobytes()


def tiff_kinds() -> Cases:
    """Byte orders, depths, number formats."""
    inverse = {262: (3, [0])}
    for order, name in (("<", "little"), (">", "big")):
        yield Case(f"{name}.tif", "B", f"TIFF {name}-endian", tiff(RAW, order=order), "ramp")
        page = Tiff(order, big=True, pages=[(GREY_TAGS, [RAW])]).encode()
        wanted, codes = ("ramp", ()) if order == "<" else ("", ("unsupported_type",))
        yield Case(f"bigtiff-{name}.tif", "B", f"BigTIFF {name}-endian", page, wanted, codes)
        data = samples(257 * RAMP, "u2", order)
        deep = tiff(data, {258: (3, [16])}, order)
        yield Case(f"16-{name}.tif", "B4", f"16 bits, {name}-endian", deep, "ramp")
        tags = {258: (3, [32]), 339: (3, [3])}
        data = tiff(samples(RAMP / 255, "f4", order), tags, order)
        yield Case(f"float-{name}.tif", "B3", f"float32 0..1, {name}-endian", data, "ramp")
        data = tiff(samples(RAMP, "f4", order), tags, order)
        yield Case(f"float-255-{name}.tif", "B3", f"float32 0..255, {name}-endian", data, "ramp")
        signed = {258: (3, [32]), 339: (3, [2])}
        data = tiff(samples(257 * RAMP, "i4", order), signed, order)
        yield Case(f"int32-{name}.tif", "B4", f"int32 to 65535, {name}-endian", data, "ramp")
    bits = b"".join(pack_row(row, 1) for row in CHECKS)
    yield Case("1-bit.tif", "B", "TIFF of 1 bit", tiff(bits, {258: (3, [1])}), "checks")
    flat = tiff(bits, {258: (3, [1]), **inverse})
    yield Case("1-bit-white.tif", "B", "1 bit, white is zero", flat, "flipped checks")
    flat = tiff((255 - RAMP).astype(np.uint8).tobytes(), inverse)
    yield Case("white-is-zero.tif", "B", "8 bits, white is zero", flat, "ramp")
    four = b"".join(pack_row(row, 4) for row in COLUMNS * 16 // 28)
    yield Case("4-bit.tif", "B", "TIFF of 4 bits", tiff(four, {258: (3, [4])}), "sixteen levels")


EIGHT: dict[int, tuple[int, Any]] = {256: (3, [8]), 257: (3, [8]), 278: (3, [8])}
"""The size of a part of a picture."""


def tiff_numbers() -> Cases:
    """Numbers whose range nobody knows."""
    tags = {258: (3, [32]), 339: (3, [3])}
    for name, picture in {
        "float-1000": RAMP * 10.0,
        "float-negative": RAMP / 255 - 0.5,
        "float-nan": np.where(INSIDE, np.nan, 0.5),
        "float-infinite": np.where(INSIDE, np.inf, 0.5),
    }.items():
        data = tiff(samples(picture[8:16, 8:16], "f4"), {**tags, **EIGHT})
        sentence = f"{name} has no known range"
        yield Case(f"{name}.tif", "B3", sentence, data, codes=NO_TYPE)
    signed = {258: (3, [32]), 339: (3, [2])}
    for name, picture in {"int32-large": RAMP * 100_000, "int32-negative": RAMP - 100}.items():
        data = tiff(samples(picture[8:16, 8:16], "i4"), {**signed, **EIGHT})
        yield Case(f"{name}.tif", "B4", f"{name} is no 16-bit grey", data, codes=NO_TYPE)
    signed = {339: (3, [2])}
    data = tiff(RAW, signed)
    yield Case("int8.tif", "B3", "Signed 8 bits", data)
    data = tiff(samples(257 * RAMP // 2, "i2"), {258: (3, [16]), **signed})
    yield Case("int16.tif", "B3", "Signed 16 bits", data)


def lzw(data: bytes) -> bytes:
    """Return TIFF's LZW."""
    return pack_codes(lzw_codes(data), 9, low_first=False)


def tiff_codecs() -> Cases:
    """Every compression that is offered, in strips and tiles; predictor and planes."""
    encoders: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
        "none": (1, bytes),
        "lzw": (5, lzw),
        "deflate": (8, zlib.compress),
        "deflate-old": (32946, zlib.compress),
        "packbits": (32773, pack_bits),
    }
    padded = np.pad(RAMP, ((0, 4), (0, 4)))
    tiles = [
        padded[y : y + 16, x : x + 16].astype(np.uint8).tobytes() for y in (0, 16) for x in (0, 16)
    ]
    tile = {322: (3, [16]), 323: (3, [16])}
    difference = np.diff(RAMP, axis=1, prepend=0).astype(np.uint8).tobytes()
    for name, (number, encode) in encoders.items():
        codec = {259: (3, [number])}
        data = tiff([encode(RAW[start : start + 140]) for start in range(0, 784, 140)],
                    {**codec, 278: (3, [5])})  # fmt: skip
        yield Case(f"strips-{name}.tif", "B", f"Strips, {name}", data, "ramp")
        data = tiff([encode(each) for each in tiles], {**codec, **tile})
        yield Case(f"tiles-{name}.tif", "H1", f"Tiles, {name}", data, "ramp")
        planes = [encode(COLOUR[..., index].astype(np.uint8).tobytes()) for index in range(3)]
        tags = {**codec, 258: (3, [8] * 3), 262: (3, [2]), 277: (3, [3]), 284: (3, [2])}
        data = tiff(planes, tags)
        yield Case(f"planes-{name}.tif", "B", f"Planes, {name}", data, "colour")
        if name not in {"none", "packbits"}:
            data = tiff(encode(difference), {**codec, 317: (3, [2])})
            yield Case(f"predictor-{name}.tif", "B", f"Predictor, {name}", data, "ramp")
    bits = Image.fromarray((255 * CHECKS).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    for name in ("tiff_ccitt", "group3", "group4"):
        body = io.BytesIO()
        bits.save(body, "TIFF", compression=name)
        yield Case(f"{name}.tif", "B", f"TIFF {name}", body.getvalue(), "checks")
    data = save(RAMP, "TIFF", "L", compression="jpeg", quality=95)
    yield Case("jpeg.tif", "B", "JPEG in TIFF", data, "ramp", tolerance=4)
    for number in (6, 34712, 34925, 50000, 50001, 34676):
        data = tiff(RAW, {259: (3, [number])})
        sentence = f"TIFF compression {number}"
        yield Case(f"compression-{number}.tif", "H1", sentence, data, codes=NO_TYPE)


def tiff_colours() -> Cases:
    """RGB, palette, CMYK, alpha of both kinds, LAB."""
    three, four = {258: (3, [8] * 3), 277: (3, [3])}, {258: (3, [8] * 4), 277: (3, [4])}
    rgb = {262: (3, [2])}
    flat = COLOUR.astype(np.uint8).tobytes()
    yield Case("rgb.tif", "B", "TIFF RGB", tiff(flat, {**three, **rgb}), "colour")
    colour_map = (PALETTE.T.reshape(-1) * 257).tolist()
    mapped = tiff(RAW, {262: (3, [3]), 320: (3, colour_map)})
    yield Case("palette.tif", "B8", "TIFF palette", mapped, "palette")
    key = with_alpha(paint(np.zeros((28, 28), int)), 255 - RAMP).astype(np.uint8).tobytes()
    yield Case("cmyk.tif", "B", "TIFF CMYK", tiff(key, {**four, 262: (3, [5])}), "ramp")
    ink = with_alpha(paint(np.zeros((28, 28), int)), SQUARE).astype(np.uint8).tobytes()
    for name, number in (("associated", 1), ("unassociated", 2)):
        data = tiff(ink, {**four, **rgb, 338: (3, [number])})
        sentence = f"A black square, alpha {name}"
        yield Case(f"ink-{name}.tif", "B2", sentence, data, "square", raw=False)
    full = with_alpha(COLOUR, np.full((28, 28), 255)).astype(np.uint8).tobytes()
    data = tiff(full, {**four, **rgb, 338: (3, [2])})
    yield Case("rgba.tif", "B", "TIFF RGBA, nothing transparent", data, "colour")
    deep = samples(257 * COLOUR, "u2")
    data = tiff(deep, {258: (3, [16] * 3), 277: (3, [3]), **rgb})
    yield Case("rgb-16.tif", "B4", "TIFF RGB of 16 bits", data, "colour", tolerance=1)
    data = tiff(flat, {**three, 262: (3, [8])})
    yield Case("lab.tif", "B", "TIFF LAB is not read", data, codes=NO_TYPE)


def tiff_structure() -> Cases:
    """Orientations, tags that are broken, pages, and what must be refused."""
    for number in range(1, 9):
        data = tiff(stored(RAMP, number).astype(np.uint8).tobytes(), {274: (3, [number])})
        yield Case(f"orientation-{number}.tif", "B6", f"TIFF orientation {number}", data, "ramp")
        across = stored(TALL, number)
        size = {256: (3, [across.shape[1]]), 257: (3, [across.shape[0]])}
        data = tiff(across.astype(np.uint8).tobytes(), {**size, 274: (3, [number])})
        sentence = f"TIFF orientation {number}, 14 x 28 upright"
        yield Case(f"orientation-tall-{number}.tif", "B6", sentence, data, "tall", raw=False)
    broken: dict[str, dict[int, tuple[int, Any]]] = {
        "orientation-text": {274: (2, b"6\0")},
        "orientation-9": {274: (3, [9])},
        "exif-pointer": {34665: (4, [0xFFFFFFF0])},
        "icc-garbage": {34675: (7, b"garbage" * 20)},
        "description": {270: (2, b"hello\0")},
        "private": {65000: (1, bytes(500))},
        "resolution": {282: (5, bytes(8)), 283: (5, bytes(8))},
        "xmp-garbage": {700: (1, b"<x:xmp")},
        "sub-ifd": {330: (4, [8])},
        "date-number": {306: (3, [7])},
        "software-float": {305: (11, [1.5])},
    }
    for name, tag in broken.items():
        sentence = f"TIFF with {name.replace('-', ' ')}"
        yield Case(f"tag-{name}.tif", "D1", sentence, tiff(RAW, tag), "ramp")
    second = (255 - RAMP).astype(np.uint8).tobytes()
    pages = Tiff("<", pages=[(GREY_TAGS, [RAW]), (GREY_TAGS, [second])]).encode()
    yield Case("pages.tif", "H1", "TIFF of two pages", pages, "ramp")
    strips = [RAW[start : start + 28] for start in range(0, 784, 28)]
    data = tiff(strips, {278: (3, [1])})
    yield Case("strips-28.tif", "H1", "A strip for each row", data, "ramp")
    yield Case("trailing.tif", "D1", "Bytes follow the directory", tiff(RAW) + b"trail", "ramp")
    loop = bytearray(tiff(RAW))
    loop[-4:] = loop[4:8]
    yield Case("loop.tif", "H1", "The second directory is the first", bytes(loop), "ramp")
    yield from tiff_refusals()


def tiff_refusals() -> Cases:
    """TIFF of too many pixels, strips, samples, tags; cut ones."""
    wide = {256: (4, [5_000]), 257: (4, [5_000])}
    yield Case("large.tif", "H1", "TIFF of 25 megapixels", tiff(RAW, wide), codes=LARGE)
    tile = {322: (4, [60_000]), 323: (4, [60_000])}
    yield Case("tile-large.tif", "H1", "A tile of 60,000 x 60,000", tiff(RAW, tile), codes=LARGE)
    many = {277: (3, [60_000])}
    yield Case("samples.tif", "H1", "60,000 samples a pixel", tiff(RAW, many), codes=NO_TYPE)
    zero = {256: (3, [0])}
    yield Case("width-0.tif", "H1", "TIFF without a width", tiff(RAW, zero), codes=DAMAGED)
    count = bytearray(tiff(RAW))
    place = int.from_bytes(count[4:8], "little")
    count[place : place + 2] = b"\xff\xff"
    yield Case("entries.tif", "H1", "65,535 entries", bytes(count), codes=("too_large", *DAMAGED))
    for length in (4, 8, 500, len(count) - 30):
        sentence = f"The first {length} bytes of a TIFF"
        yield Case(f"cut-{length}.tif", "D2", sentence, tiff(RAW)[:length], codes=DAMAGED)


def no_images() -> Cases:
    """What is none of the six formats, whatever its name."""
    for name, body in {
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\nshowpage\n",
        "pdf.png": b"%PDF-1.7\n",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="28" height="28"/>',
        "html.jpg": b"<!DOCTYPE html><title>404</title>",
        "ppm.png": b"P5 28 28 255\n" + RAW,
        "ico.png": b"\0\0\1\0\1\0" + bytes(60),
        "zip.png": b"PK\3\4" + bytes(40),
        "text.png": b"no image\n",
        "jpeg2000.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        "avif.webp": b"\0\0\0\x1cftypavif" + bytes(40),
        "psd.png": b"8BPS\0\1" + bytes(30),
        "fits.tif": b"SIMPLE  =                    T" + bytes(60),
        "gzip.png": b"\x1f\x8b\x08" + bytes(20),
        "one-byte.png": b"\x89",
    }.items():
        yield Case(name, "M12", f"{name} is no image of the six formats", body, codes=DAMAGED)


GROUPS = (
    png_damage,
    png_oddities,
    png_depths,
    png_holes,
    png_orientations,
    png_refusals,
    jpeg_kinds,
    jpeg_oddities,
    jpeg_orientations,
    jpeg_refusals,
    gif_kinds,
    bmp_kinds,
    webp_kinds,
    tiff_kinds,
    tiff_numbers,
    tiff_codecs,
    tiff_colours,
    tiff_structure,
    no_images,
)


def make_cases() -> list[Case]:
    """Return all cases."""
    return [case for group in GROUPS for case in group()]


POINTS = ((0, 0), (0, 27), (13, 13))
"""Row and column of the values that the manifest names."""


def describe(case: Case) -> dict[str, Any]:
    """Return the manifest's line of a case."""
    line: dict[str, Any] = {"file": case.name, "row": case.row, "sentence": case.sentence}
    if case.picture:
        picture = PICTURES[case.picture].astype(np.uint8)
        line |= {
            "picture": case.picture,
            "model": "rgb" if picture.ndim == 3 else "grey",
            "sha256": hashlib.sha256(picture.tobytes()).hexdigest()[:16],
            "points": [picture[point].tolist() for point in POINTS],
        }
        line |= {"tolerance": case.tolerance} if case.tolerance else {}
        return line | ({} if case.raw else {"raw": False})
    return line | ({"refused": list(case.codes)} if case.codes else {"bounded": True})


def read_manifest() -> list[dict[str, Any]]:
    """Return the manifest's lines."""
    lines: list[dict[str, Any]] = json.loads(MANIFEST.read_text())
    return lines


def main(argv: list[str] | None = None) -> int:
    """Write the files and the manifest; return the exit code."""
    argparse.ArgumentParser(prog="python -m tests.formats", description=__doc__).parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    cases = make_cases()
    for stale in FOLDER.iterdir():
        stale.unlink()
    for case in cases:
        if len(case.data) > MAX_BYTES:
            raise SystemExit(f"{case.name} has {len(case.data)} bytes, more than {MAX_BYTES}")
        (FOLDER / case.name).write_bytes(case.data)
    lines = ",\n".join(json.dumps(describe(case)) for case in cases)
    MANIFEST.write_text(f"[\n{lines}\n]\n")
    size = sum(len(case.data) for case in cases)
    print(f"formats: {len(cases)} files of {size:,} bytes in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
