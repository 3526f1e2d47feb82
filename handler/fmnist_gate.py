"""A structural gate on the bytes of an image file, before any decoder sees them.

Width times height does not bound what a file costs. A decoder also walks over chunks, segments,
scans, strips, tiles, frames and metadata, and a few kilobytes can hold a million of them. So each
format's outline is read here, by its specification and without decoding a pixel, and three things
come of it:

- a refusal, where there is more of anything than a picture needs, or a codec that is not offered;
- clean bytes: only what decides the pixels. A damaged colour profile, a comment or the second frame
  lies beside the pixels and never decides whether they are read;
- what decoding will cost at most, and whether that is known.

Pure: bytes in, a `File` out; standard library only. Each step costs as much as what it walks over,
and what it walks over is counted. One unknown remains, what a decoder does with entropy-coded data:
`File.known` says where it has a bound by the number of pixels.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from struct import Struct, error, iter_unpack, unpack_from
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Format = Literal["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]
Code = Literal[
    "not_an_image",
    "too_large",
    "wrong_shape",
    "bad_request",
    "unsupported_type",
    "internal",
    "busy",
]

FORMATS: tuple[Format, ...] = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
"""What is read; Pillow's rarer parsers are never shown a stranger's bytes."""

MAX_SIDE = 65_500
"""Pixels; JPEG's own limit. A decoder pays for each row, however short."""
MAX_PARTS = 20_000
"""Chunks of a PNG or a WebP, segments and scans of a JPEG, blocks of a GIF beside its pixels. A
6 MB PNG whose IDAT chunks have 1,024 bytes holds 6,000."""
MAX_SUB_BLOCKS = 100_000
"""Of a GIF's pixels; each holds up to 255 bytes, so 6 MB need 24,000."""
MAX_STRIPS = 65_536
"""Strips or tiles of a TIFF: one for each row of the highest image."""
MAX_TAGS = 4_096
MAX_TAG_VALUES = 3 * 65_536
"""Values of one TIFF tag: the colour map of 16 bits."""
MAX_COLOURS = 65_536
"""Of a BMP's palette."""
MAX_RLE_PIXELS = 1_000_000
"""Of a run-length BMP, which Pillow decodes pixel by pixel in Python."""
MAX_SMALL_LOSSLESS = 64 * 64
"""Pixels of a lossless WebP whose Huffman tables, one for each 4 x 4 pixels at most, stay small."""
HUFFMAN_S = 14e-6
"""Seconds for each of these tables."""
MAX_DECODING_S = 2.0
"""Seconds of CPU that one file may cost by the estimate."""

NS = 1e-9
ROW_S = 80e-9
"""Seconds that a decoder pays for a row, however short."""


class Refused(Exception):
    """What stands in the place of a prediction.

    `code` is a word for programs, the message a sentence for people. All but `internal` and `busy`
    are the sender's mistake.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one file: bytes; pixels; pixels where each takes more memory or two passes.

    The last holds for transparency, 16 and 32 bits, WebP and TIFF.
    """

    max_bytes: int
    max_pixels: int
    max_heavy_pixels: int


class File(NamedTuple):
    """An image file that passed.

    `data`: what the decoder gets. `width`, `height`: pixels as stored; `orientation`: 1 to 8, as
    EXIF numbers them, how to turn them upright. `cost`: seconds of CPU to decode it, estimated on
    a 2-core Xeon. `known`: the cost and the memory have bounds; where not, decode in a process that
    may die.
    """

    format: Format
    data: bytes | bytearray
    width: int
    height: int
    orientation: int
    cost: float
    known: bool


class Outline(NamedTuple):
    """What a format's reader found, before limits are looked at.

    `cost`: seconds. `heavy`: the lower limit of pixels holds. `decoded`: pixels of the decoder's
    own canvas, where that is larger than the picture.
    """

    data: bytes | bytearray
    width: int
    height: int
    cost: float
    orientation: int = 1
    heavy: bool = False
    known: bool = True
    decoded: int = 0


def inspect(data: bytes | bytearray, limits: Limits) -> File:
    """Read the outline of an image file. Raises Refused."""
    if len(data) > limits.max_bytes:
        raise Refused(
            "too_large",
            f"The image file has {len(data)} bytes: send at most {limits.max_bytes}.",
        )
    name = find_format(data)
    try:
        outline = READERS[name](data)
    except (error, IndexError, OverflowError):
        raise damaged(f"it ends inside the head of a {name}") from None
    cost = outline.cost + ROW_S * outline.height
    check_size(outline, limits)
    check_cost(cost)
    _, width, height, _, orientation, _, known, _ = outline
    return File(name, outline.data, width, height, orientation, cost, known)


def find_format(data: bytes | bytearray) -> Format:
    """Tell the format by its first bytes. Raises Refused."""
    for name, magic in MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise Refused("not_an_image", f"The bytes are none of {', '.join(FORMATS)}.")


def check_size(outline: Outline, limits: Limits) -> None:
    """Raise Refused for an image without pixels, or with too many."""
    width, height = outline.width, outline.height
    if not width * height:
        raise Refused("not_an_image", "The image has no pixels.")
    if max(width, height) > MAX_SIDE:
        raise Refused(
            "too_large",
            f"The image has {width} x {height} pixels: each side may have at most {MAX_SIDE}.",
        )
    most = limits.max_heavy_pixels if outline.heavy else limits.max_pixels
    if max(width * height, outline.decoded) > most:
        raise Refused(
            "too_large",
            f"The image has {width} x {height} pixels"
            + (f", decoded as {outline.decoded}" if outline.decoded > width * height else "")
            + f": send at most {most}"
            + (" with transparency, 16 bits, as WebP or as TIFF." if outline.heavy else "."),
        )


def check_cost(cost: float) -> None:
    """Raise Refused for a file whose structure makes it too dear, whatever its size."""
    if cost > MAX_DECODING_S:
        raise Refused(
            "too_large",
            f"Decoding the image would take about {cost:.0f} s: save it anew, as a plain "
            "PNG or JPEG.",
        )


def damaged(what: str) -> Refused:
    """Return the refusal of a file that contradicts its format."""
    return Refused("not_an_image", f"The image is damaged: {what}.")


def count_parts(count: int, most: int, what: str) -> None:
    """Raise Refused when a file has more parts of a kind than a picture needs."""
    if count > most:
        raise Refused("too_large", f"The image file has more than {most} {what}: save it anew.")


# PNG: https://www.w3.org/TR/png-3, chapters 5 and 11

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_HEAD = Struct(">II5B")
PNG_HEAD_END = 33
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits of a sample that each colour type may have."""
GREY, RGB, PALETTE = 0, 2, 3
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KEY_SCALES = {(GREY, 2): 85, (GREY, 4): 17, (RGB, 16): 1 / 256}
"""By colour type and depth: what brings a transparent colour to the scale that Pillow decodes to.
16-bit grey is compared in 16 bits."""


class Chunk(NamedTuple):
    """A part of a PNG: its name, and where its length and its data begin, and its end."""

    name: bytes
    start: int
    body: int
    end: int


def read_png(data: bytes | bytearray) -> Outline:
    """Keep IHDR, PLTE, tRNS, IDAT and IEND; read the orientation of eXIf."""
    chunks = list(walk_png(data))
    if not chunks or chunks[0].name != b"IHDR" or chunks[0].end != PNG_HEAD_END:
        raise damaged("it does not begin with IHDR")
    width, height, depth, colour, compression, method, interlace = PNG_HEAD.unpack_from(data, 16)
    if depth not in PNG_DEPTHS.get(colour, ()) or compression or method or interlace > 1:
        raise damaged("its IHDR names a form that PNG does not have")
    kept = keep_png(data, chunks, colour)
    if b"IDAT" not in (chunk.name for chunk in kept):
        raise damaged("it has no IDAT")
    clear = any(chunk.name == b"tRNS" for chunk in kept)
    heavy = depth > 8 or colour > PALETTE or clear  # noqa: PLR2004 - a byte has 8 bits
    cost = cost_png(width * height, depth * PNG_SAMPLES[colour], len(data), interlace)
    parts = [data[chunk.start : chunk.end] for chunk in kept]
    if clear and colour in {GREY, RGB}:
        at = [chunk.name for chunk in kept].index(b"tRNS")
        parts[at] = scale_key(data, kept[at], colour, depth)
    clean = b"".join([PNG_MAGIC, *parts])
    return Outline(clean, width, height, cost, read_png_orientation(data, chunks), heavy)


def cost_png(pixels: int, bits: int, length: int, interlace: int) -> float:
    """Return seconds: of unpacking the file, undoing the filters, and converting the pixels.

    The dearest bytes to unpack are tables of Huffman codes that no data follow.
    """
    return NS * (pixels * (bits * 3 / 4 + 10) * (1 + interlace) + 140 * length)


def walk_png(data: bytes | bytearray) -> Iterator[Chunk]:
    """Yield the chunks up to IEND; the last may be cut."""
    position, end, count = 8, len(data), 0
    while position + 8 <= end:
        (length,) = unpack_from(">I", data, position)
        name = bytes(data[position + 4 : position + 8])
        after = position + 12 + length
        yield Chunk(name, position, position + 8, min(after, end))
        if name == b"IEND":
            return
        position, count = after, count + 1
        count_parts(count, MAX_PARTS, "chunks")


def keep_png(data: bytes | bytearray, chunks: list[Chunk], colour: int) -> list[Chunk]:
    """Return the chunks that decide the pixels. Raises Refused for an unknown critical one."""
    kept: list[Chunk] = []
    colours, begun = 0, False
    for chunk in chunks:
        name = chunk.name
        if name == b"IDAT" or (name == b"IHDR" and not kept) or name == b"IEND":
            begun = begun or name == b"IDAT"
            kept.append(chunk)
        elif name == b"PLTE":
            if colour == PALETTE and not colours and not begun:
                colours = count_colours(chunk)
                kept.append(chunk)
        elif name == b"tRNS":
            if not begun and is_transparency(data, chunk, colour, colours):
                kept.append(chunk)
        elif not name[0] & 0x20:
            raise damaged(f"its chunk {ascii(name)[2:-1]} is critical and not known there")
    if colour == PALETTE and not colours:
        raise damaged("it has a palette image and no palette")
    return kept


def count_colours(palette: Chunk) -> int:
    """Return the number of colours in PLTE. Raises Refused."""
    colours, rest = divmod(palette.end - 4 - palette.body, 3)
    if rest or not 1 <= colours <= 256:  # noqa: PLR2004 - an index is a byte
        raise damaged("its palette has no whole number of colours from 1 to 256")
    return colours


def is_transparency(data: bytes | bytearray, chunk: Chunk, colour: int, colours: int) -> bool:
    """Tell whether tRNS means anything; where not, every reader passes over it, as libpng does."""
    length = chunk.end - 4 - chunk.body
    fits = {GREY: length == 2, RGB: length == 6, PALETTE: 1 <= length <= colours}  # noqa: PLR2004 - bytes, by the specification
    return fits.get(colour, False) and is_whole(data, chunk)


def scale_key(data: bytes | bytearray, chunk: Chunk, colour: int, depth: int) -> bytes:
    """Return tRNS with the transparent colour in the scale in which Pillow will compare it.

    Of a sample only the lowest bits count, as many as the depth has.
    """
    body = data[chunk.body : chunk.end - 4]
    scale = KEY_SCALES.get((colour, depth), 1)
    samples = (int((s & (1 << depth) - 1) * scale) for (s,) in iter_unpack(">H", body))
    named = b"tRNS" + b"".join(sample.to_bytes(2, "big") for sample in samples)
    return len(body).to_bytes(4, "big") + named + zlib.crc32(named).to_bytes(4, "big")


def is_whole(data: bytes | bytearray, chunk: Chunk) -> bool:
    """Tell whether the checksum of a chunk is right."""
    (sum_,) = unpack_from(">I", data, chunk.end - 4)
    return zlib.crc32(data[chunk.start + 4 : chunk.end - 4]) == int(sum_)


def read_png_orientation(data: bytes | bytearray, chunks: list[Chunk]) -> int:
    """Return the orientation of the first whole eXIf, 1 without."""
    for chunk in chunks:
        if chunk.name == b"eXIf" and chunk.end - chunk.body >= 4 and is_whole(data, chunk):  # noqa: PLR2004 - its checksum
            return read_exif(data[chunk.body : chunk.end - 4])
    return 1


# JPEG: ITU-T T.81, annex B

JPEG_MARKER = re.compile(rb"\xff[^\xff\x00]")
JPEG_AFTER_SCAN = re.compile(rb"\xff[^\xff\x00\xd0-\xd7]")
"""Between scans lie markers; FF 00 is data, D0 to D7 are restarts."""
SOI, EOI, SOS, TEM = 0xD8, 0xD9, 0xDA, 0x01
JPEG_ALONE = frozenset({*range(0xD0, 0xD8), SOI, EOI, TEM})
"""Markers without a length: restarts, and such as have no place between segments."""
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
JPEG_KEPT = frozenset({BASELINE, EXTENDED, PROGRESSIVE, 0xC4, 0xDB, 0xDD, SOS, EOI})
"""Frames, tables of Huffman codes and of quantisation, the restart interval, scans."""
EXIF, EXIF_NAME = 0xE1, b"Exif\x00\x00"
JPEG_COLOURS = {0xE0: (b"JFIF\x00", 16), 0xEE: (b"Adobe", 14)}
"""Segments of applications that decide what the components mean: name and least length."""
MAX_COMPONENTS = 4
EIGHT_BITS = 8


@dataclass(slots=True)
class Frame:
    """SOF: size, and how many 8 x 8 blocks each component has, by its identifier."""

    width: int
    height: int
    progressive: bool
    blocks: dict[int, int]


def read_jpeg(data: bytes | bytearray) -> Outline:
    """Keep frame, tables, scans, JFIF and Adobe; read the orientation of Exif."""
    frame: Frame | None = None
    kept: list[bytes | bytearray] = [b"\xff\xd8"]
    position, count, scanned, orientation = 2, 0, 0.0, 0
    while position < len(data) and (found := JPEG_MARKER.search(data, position)):
        marker, body = data[found.end() - 1], found.end()
        position = body if marker in JPEG_ALONE else body + max(2, read_length(data, body))
        if marker == SOS:
            scanned += cost_scan(data, body, frame)
            position = find_scan_end(data, body, position, frame)
        elif marker in JPEG_FRAMES:
            frame = read_frame(data, marker, body, frame)
        elif marker == EXIF and not orientation and data[body + 2 : body + 8] == EXIF_NAME:
            orientation = read_exif(data[body + 8 : position])
        if is_kept(data, marker, body):
            kept.append(data[body - 2 : position])
        if marker == EOI:
            break
        count += 1
        count_parts(count, MAX_PARTS, "segments")
    if frame is None:
        raise damaged("it has no frame")
    clean = b"".join(kept)
    cost = cost_jpeg(frame, scanned, len(clean))
    return Outline(clean, frame.width, frame.height, cost, orientation or 1)


def read_length(data: bytes | bytearray, body: int) -> int:
    """Return the bytes of a segment behind its marker."""
    return data[body] << 8 | data[body + 1]


def is_kept(data: bytes | bytearray, marker: int, body: int) -> bool:
    """Tell whether a segment decides the pixels."""
    if marker in JPEG_COLOURS:
        name, least = JPEG_COLOURS[marker]
        return data.startswith(name, body + 2) and read_length(data, body) >= least
    return marker in JPEG_KEPT


def cost_jpeg(frame: Frame, scanned: float, length: int) -> float:
    """Return seconds, of them `scanned` for the blocks of all scans."""
    pixel, byte = (10, 110) if frame.progressive else (6, 25)
    return NS * (pixel * frame.width * frame.height + byte * length) + scanned


def find_scan_end(data: bytes | bytearray, body: int, position: int, frame: Frame | None) -> int:
    """Return where the data of a scan end, or the file where no other scan can follow.

    Inside them FF is followed by 00 or by a restart. One scan of all components completes a
    baseline image; the decoder stops there.
    """
    if frame is not None and not frame.progressive and data[body + 2] == len(frame.blocks):
        return len(data)
    after = JPEG_AFTER_SCAN.search(data, position)
    return after.start() if after else len(data)


def read_frame(data: bytes | bytearray, marker: int, body: int, earlier: Frame | None) -> Frame:
    """Return what SOF says. Raises Refused."""
    if earlier is not None:
        raise damaged("it has two frames")
    if marker not in {BASELINE, EXTENDED, PROGRESSIVE}:
        raise Refused(
            "unsupported_type",
            "This is a lossless, hierarchical or arithmetic JPEG: send a baseline or progressive "
            "one.",
        )
    bits, height, width, components = unpack_from(">BHHB", data, body + 2)
    if bits != EIGHT_BITS:
        raise Refused("unsupported_type", f"The JPEG has {bits} bits: send one of 8.")
    if not 1 <= components <= MAX_COMPONENTS:
        raise damaged(f"it has {components} components")
    table = unpack_from(f"{3 * components}B", data, body + 8)  # name, sampling factors, table
    blocks = count_blocks(width, height, table[0::3], table[1::3])
    return Frame(width, height, marker == PROGRESSIVE, blocks)


def count_blocks(
    width: int, height: int, names: tuple[int, ...], factors: tuple[int, ...]
) -> dict[int, int]:
    """Return how many 8 x 8 blocks each component has; a factor holds across and down."""
    across, down = 8 * (max(factors) >> 4 or 1), 8 * (max([f & 15 for f in factors]) or 1)
    return {
        name: ceil_div(width * (f >> 4), across) * ceil_div(height * (f & 15), down)
        for name, f in zip(names, factors, strict=True)
    }


def ceil_div(value: int, by: int) -> int:
    """Divide and round up."""
    return -(-value // by)


def cost_scan(data: bytes | bytearray, body: int, frame: Frame | None) -> float:
    """Return the seconds in which a scan passes over its blocks, however few bytes it has.

    A refinement of coefficients visits each of them in each block. Raises Refused.
    """
    if frame is None:
        raise damaged("it has a scan before its frame")
    components = data[body + 2]
    names = data[body + 3 : body + 3 + 2 * components : 2]
    first, last, approximation = unpack_from("3B", data, body + 3 + 2 * components)
    visited = last - first + 1 if frame.progressive and first and approximation >> 4 else 0
    return NS * (14 + 1.5 * max(0, visited)) * sum([frame.blocks.get(name, 0) for name in names])


# GIF: https://www.w3.org/Graphics/GIF/spec-gif89a.txt

GIF_IMAGE, GIF_EXTENSION, GIF_END = 0x2C, 0x21, 0x3B
GIF_CONTROL = b"\xf9\x04"
"""The label of the block before a frame, and the length that it must have."""


def read_gif(data: bytes | bytearray) -> Outline:
    """Keep the screen, the palettes, the first frame and the control block before it."""
    width, height, flags = unpack_from("<HHB", data, 6)
    position = 13 + palette_length(flags)
    kept = [data[:position]]
    control: bytes | bytearray = b""
    count = 0
    while data[position] == GIF_EXTENSION:
        end, count = skip_sub_blocks(data, position + 2, count, MAX_PARTS, "blocks")
        if data[position + 1 : position + 3] == GIF_CONTROL:
            control = data[position:end]
        position = end
    if data[position] != GIF_IMAGE:
        raise damaged("it has no frame")
    left, top, across, down, local = unpack_from("<HHHHB", data, position + 1)
    start = position + 10 + palette_length(local)
    end, _ = skip_sub_blocks(data, start + 1, 0, MAX_SUB_BLOCKS, "blocks of pixels")
    kept += (control, data[position:end], b";")
    width, height = max(width, left + across), max(height, top + down)
    cost = NS * (10 * (width * height + across * down) + 20 * (end - position))
    return Outline(b"".join(kept), width if across * down else 0, height, cost)


def palette_length(flags: int) -> int:
    """Return the bytes of the palette that these flags announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def skip_sub_blocks(
    data: bytes | bytearray, position: int, count: int, most: int, what: str
) -> tuple[int, int]:
    """Return the place behind a chain of sub-blocks, and the count; cut data end the chain."""
    end = len(data)
    while position < end and (length := data[position]) and count <= most:
        position += length + 1
        count += 1
    count_parts(count, most, what)
    return min(position + 1, end), count + 1


# BMP: https://learn.microsoft.com/windows/win32/gdi/bitmap-storage

BMP_CORE = 12
BMP_HEADS = frozenset({BMP_CORE, 40, 52, 56, 64, 108, 124})
BMP_RAW, BMP_RLE8, BMP_RLE4, BMP_FIELDS = range(4)
BMP_WITH_ALPHA = 56
"""Bytes of the first head that may name an alpha channel."""


def read_bmp(data: bytes | bytearray) -> Outline:
    """Take the bytes as they are; nothing in a BMP lies beside the pixels that a decoder reads."""
    (size,) = unpack_from("<I", data, 14)
    if size not in BMP_HEADS:
        raise Refused("unsupported_type", f"The BMP has a head of {size} bytes: convert it to PNG.")
    if size == BMP_CORE:
        width, height, bits = unpack_from("<HH2xH", data, 18)
        return Outline(data, width, height, cost_bmp(width * height, len(data), rle=False))
    width, height, bits, compression = unpack_from("<Ii2xHI", data, 18)
    (colours,) = unpack_from("<I", data, 46)
    if compression > BMP_FIELDS:
        raise Refused(
            "unsupported_type", "The BMP is packed in a way that is not read: convert it to PNG."
        )
    if bits <= EIGHT_BITS and colours > MAX_COLOURS:
        raise damaged(f"its palette has {colours} colours")
    rle = compression in {BMP_RLE8, BMP_RLE4}
    height = abs(height)
    if rle and width * height > MAX_RLE_PIXELS:
        raise Refused(
            "too_large",
            f"The run-length BMP has {width} x {height} pixels: send at most {MAX_RLE_PIXELS}, or "
            "an unpacked one.",
        )
    alpha = compression == BMP_FIELDS and size >= BMP_WITH_ALPHA and bits == 32  # noqa: PLR2004 - bits of a pixel with alpha
    cost = cost_bmp(width * height, len(data), rle=rle)
    return Outline(data, width, height, cost, heavy=alpha)


def cost_bmp(pixels: int, length: int, *, rle: bool) -> float:
    """Return seconds; Pillow unpacks run lengths in Python."""
    return NS * (300 * pixels + 450 * length if rle else 10 * pixels + length)


# WebP: https://developers.google.com/speed/webp/docs/riff_container

WEBP_ALPHA, WEBP_ANIMATION = 0x10, 0x02
WEBP_STILL = frozenset({b"VP8 ", b"VP8L"})
ANMF_HEAD = 16


class Part(NamedTuple):
    """A chunk of a WebP: its name and its bytes, without padding."""

    name: bytes
    body: bytes | bytearray


def read_webp(data: bytes | bytearray) -> Outline:
    """Keep the picture, its alpha, or the first frame; read the orientation of EXIF."""
    parts = list(walk_riff(data, 12))
    if not parts:
        raise damaged("it has no chunk")
    first = parts[0]
    kept = parts[:1] if first.name in WEBP_STILL else keep_extended(parts)
    width, height = measure_webp(first)
    picture = kept[-1]
    lossless = b"VP8L" in picture.body[: ANMF_HEAD + 4] or any(map(is_packed_alpha, kept))
    lossless = lossless or picture.name == b"VP8L"
    exif = next((part.body for part in parts if part.name == b"EXIF"), b"")
    known = not lossless or width * height <= MAX_SMALL_LOSSLESS
    cost = NS * (40 * width * height + 130 * sum(len(part.body) for part in kept))
    cost += HUFFMAN_S * ceil_div(width, 4) * ceil_div(height, 4) if lossless and known else 0
    return Outline(
        join_riff(kept),
        width,
        height,
        cost,
        read_exif(exif),
        heavy=True,
        known=known,
    )


def walk_riff(data: bytes | bytearray, position: int) -> Iterator[Part]:
    """Yield the chunks; the last may be cut."""
    count = 0
    while position + 8 <= len(data):
        (length,) = unpack_from("<I", data, position + 4)
        start = position + 8
        yield Part(bytes(data[position : position + 4]), data[start : start + length])
        position, count = start + length + length % 2, count + 1
        count_parts(count, MAX_PARTS, "chunks")


def keep_extended(parts: list[Part]) -> list[Part]:
    """Return VP8X with what belongs to the first picture. Raises Refused."""
    if parts[0].name != b"VP8X":
        raise damaged("its first chunk is none of VP8, VP8L and VP8X")
    flags = parts[0].body[0]
    if flags & WEBP_ANIMATION:
        kept = [first_of(parts, b"ANIM"), first_of(parts, b"ANMF")]
        kept[1] = Part(b"ANMF", keep_frame(kept[1].body))
    else:
        alpha = [part for part in parts if part.name == b"ALPH"][:1]
        kept = [*alpha, first_of(parts, *WEBP_STILL)]
    head = bytes((flags & (WEBP_ALPHA | WEBP_ANIMATION),)) + bytes(parts[0].body[1:10])
    return [Part(b"VP8X", head), *kept]


def keep_frame(body: bytes | bytearray) -> bytes:
    """Return a frame of an animation without what is not known in it."""
    parts = list(walk_riff(body, ANMF_HEAD))
    alpha = [part for part in parts if part.name == b"ALPH"][:1]
    return bytes(body[:ANMF_HEAD]) + join_chunks([*alpha, first_of(parts, *WEBP_STILL)])


def first_of(parts: list[Part], *names: bytes) -> Part:
    """Return the first chunk of one of these names. Raises Refused."""
    for part in parts:
        if part.name in names:
            return part
    raise damaged(f"it has no {names[0].decode().strip()}")


def measure_webp(first: Part) -> tuple[int, int]:
    """Return (width, height) of the canvas. Raises Refused."""
    body = first.body
    if first.name == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        return width, height
    if first.name == b"VP8L":
        (bits,) = unpack_from("<I", body, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def is_packed_alpha(part: Part) -> bool:
    """Tell whether an alpha channel, alone or inside a frame, is coded as lossless WebP is."""
    body = part.body
    if part.name == b"ANMF":
        return any(map(is_packed_alpha, walk_riff(body, ANMF_HEAD)))
    return part.name == b"ALPH" and bool(body[:1]) and bool(body[0] & 3)


def join_riff(parts: list[Part]) -> bytes:
    """Return a WebP file of these chunks."""
    body = b"WEBP" + join_chunks(parts)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def join_chunks(parts: list[Part]) -> bytes:
    """Return chunks with their lengths, padded to an even number of bytes."""
    return b"".join(
        part.name
        + len(part.body).to_bytes(4, "little")
        + part.body
        + b"\x00" * (len(part.body) % 2)
        for part in parts
    )


# TIFF 6.0, and BigTIFF: https://www.awaresystems.be/imaging/tiff.html

TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
"""Bytes of a value of each type; 16 is BigTIFF's."""
SHORT, LONG, LONG8 = 3, 4, 16
TIFF_WHOLE = {SHORT: "H", LONG: "I", LONG8: "Q"}
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
TIFF_FIRST = frozenset({BITS, SAMPLE_FORMAT})
"""Tags with a value for each sample, which are equal in every file that is read."""
TIFF_BITS = frozenset({1, 2, 4, 8, 16, 32})
WHITE_IS_ZERO, UNSIGNED, SIGNED, FLOAT, DEEPEST = 0, 1, 2, 3, 32
WIDTH, LENGTH, COMPRESSION, ORIENTATION, ROWS_PER_STRIP = 256, 257, 259, 274, 278
STRIPS, TILE_WIDTH, TILE_LENGTH, TILES, SAMPLES, PLANAR = 273, 322, 323, 324, 277, 284
TIFF_KEPT = frozenset(
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
    | {332, 338, 339, 347, 530, 532}
)
"""The tags that decide the pixels, from the width to the reference black and white."""
TIFF_RAW = 1
BIG_TIFF = 43
TIFF_CODECS = {TIFF_RAW: "none", 2: "CCITT RLE", 3: "CCITT G3", 4: "CCITT G4", 5: "LZW", 7: "JPEG"}
TIFF_CODECS |= {8: "Deflate", 32773: "PackBits", 32946: "Deflate"}
MAX_SAMPLES = 8


class Tag(NamedTuple):
    """An entry of a TIFF directory.

    `raw`: as it stands there, `length` values; `value`: the one whole number that it holds, of
    TIFF_FIRST the first, else 0.
    """

    number: int
    length: int
    value: int
    raw: bytes


class Directory(NamedTuple):
    """How the directories of a TIFF are written: byte order, and BigTIFF or not."""

    order: str
    big: bool
    start: int


def read_tiff(data: bytes | bytearray) -> Outline:
    """Keep the first directory, with the tags that decide the pixels; read the orientation."""
    form = read_tiff_head(data)
    tags: dict[int, Tag] = {}
    for tag in walk_tags(data, form):
        tags.setdefault(tag.number, tag)

    def value(number: int, default: int = 0) -> int:
        return tags[number].value if number in tags else default

    width, height = value(WIDTH), value(LENGTH)
    codec = value(COMPRESSION, TIFF_RAW)
    check_tiff(tags, codec, value(SAMPLES, 1))
    check_samples(value)
    pieces, decoded = count_pieces(width, height, value)
    kept = [tags[number] for number in sorted(tags) if number in TIFF_KEPT]
    cost = NS * (40 * decoded + 30 * len(data)) + 15e-6 * pieces
    known = codec == TIFF_RAW
    orientation = value(ORIENTATION, 1)
    return Outline(
        rewrite_tiff(data, form, kept),
        width,
        height,
        cost,
        orientation if orientation in range(1, 9) else 1,
        heavy=True,
        known=known,
        decoded=decoded,
    )


def read_tiff_head(data: bytes | bytearray) -> Directory:
    """Return byte order, kind and place of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    (magic,) = unpack_from(order + "H", data, 2)
    big = magic == BIG_TIFF
    if big and order == ">":
        raise Refused(
            "unsupported_type", "A big-endian BigTIFF is not read: send a TIFF of the usual kind."
        )
    (start,) = unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    return Directory(order, big, start)


def walk_tags(data: bytes | bytearray, form: Directory) -> Iterator[Tag]:
    """Yield the entries of the first directory; one whose type is not known is passed over."""
    order, big, start = form
    (count,) = unpack_from(order + ("Q" if big else "H"), data, start)
    count_parts(count, MAX_TAGS, "tags")
    entry = Struct(order + ("HHQ" if big else "HHI"))
    start, length = start + (8 if big else 2), 20 if big else 12
    for at in range(start, start + count * length, length):
        number, kind, values = entry.unpack_from(data, at)
        if kind in TIFF_SIZES:
            place = find_values(data, form, at, values * TIFF_SIZES[kind])
            first = values == 1 or (number in TIFF_FIRST and values)
            value = read_whole(data, order, kind, place) if first else 0
            yield Tag(number, values, value, bytes(data[at : at + length]))


def find_values(data: bytes | bytearray, form: Directory, at: int, length: int) -> int:
    """Return where the values of an entry lie: in it, or where it points to."""
    inside = 8 if form.big else 4
    place = at + (12 if form.big else 8)
    if length <= inside:
        return place
    (pointer,) = unpack_from(form.order + ("Q" if form.big else "I"), data, place)
    return int(pointer)


def read_whole(data: bytes | bytearray, order: str, kind: int, place: int) -> int:
    """Return a whole number of an entry, 0 where it is of another type."""
    if kind not in TIFF_WHOLE:
        return 0
    (value,) = unpack_from(order + TIFF_WHOLE[kind], data, place)
    return int(value)


def check_tiff(tags: dict[int, Tag], codec: int, samples: int) -> None:
    """Raise Refused for a codec that is not offered, or more values than a picture needs."""
    if codec not in TIFF_CODECS:
        raise Refused(
            "unsupported_type",
            f"The TIFF is packed in way {codec}: send it unpacked or as LZW, Deflate, PackBits, "
            "JPEG or CCITT.",
        )
    for tag in tags.values():
        if tag.number in TIFF_KEPT:
            count_parts(tag.length, MAX_TAG_VALUES, f"values of tag {tag.number}")
    if samples > MAX_SAMPLES:
        raise damaged(f"it has {samples} samples a pixel")


def check_samples(value: Callable[..., int]) -> None:
    """Raise Refused for numbers that the decoder would read as others than they are."""
    bits, form, samples = value(BITS, 1), value(SAMPLE_FORMAT, UNSIGNED), value(SAMPLES, 1)
    # A photometric of 0 is written in inverse; the decoder undoes that for up to 8 bits only.
    inverse = value(PHOTOMETRIC) == WHITE_IS_ZERO and bits > EIGHT_BITS
    # Of signed numbers and floats those of 32 bits are read, and refused later if one is negative.
    strange = form not in {UNSIGNED, SIGNED, FLOAT} or (form != UNSIGNED and bits != DEEPEST)
    if bits not in TIFF_BITS or inverse or strange or (bits > EIGHT_BITS and samples == 2):  # noqa: PLR2004 - grey and alpha
        kind = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "floating-point"}.get(
            form, "unknown"
        )
        raise Refused(
            "unsupported_type",
            f"The TIFF has {kind} samples of {bits} bits{', white being 0' * inverse}, which are "
            "not read: convert it to 8 bits.",
        )


def count_pieces(width: int, height: int, value: Callable[..., int]) -> tuple[int, int]:
    """Return how many strips or tiles are decoded, and how many pixels they have together."""
    if value(TILE_WIDTH) and value(TILE_LENGTH):
        across, down = value(TILE_WIDTH), value(TILE_LENGTH)
    else:
        across, down = max(1, width), max(1, min(value(ROWS_PER_STRIP, height), height))
    columns, rows = ceil_div(width, across), ceil_div(height, down)
    planes = value(SAMPLES, 1) if value(PLANAR, 1) == 2 else 1  # noqa: PLR2004 - one plane a sample
    count_parts(columns * rows * planes, MAX_STRIPS * MAX_SAMPLES, "strips or tiles")
    return columns * rows * planes, columns * rows * across * down


def rewrite_tiff(data: bytes | bytearray, form: Directory, tags: list[Tag]) -> bytes:
    """Return the file with a new first directory behind it, of these tags, and no other."""
    order, big, _ = form
    start = len(data) + len(data) % 2
    head = len(tags).to_bytes(8 if big else 2, "little" if order == "<" else "big")
    pointer = start.to_bytes(8 if big else 4, "little" if order == "<" else "big")
    at = 8 if big else 4
    return b"".join(
        [
            data[:at],
            pointer,
            data[at + len(pointer) :],
            bytes(start - len(data)),
            head,
            *(tag.raw for tag in tags),
            bytes(len(pointer)),
        ]
    )


def read_exif(exif: bytes | bytearray) -> int:
    """Return the orientation that EXIF names, 1 to 8; 1 if it is damaged or names none."""
    exif = exif[6:] if exif[:6] == b"Exif\x00\x00" else exif
    try:
        form = read_tiff_head(exif)
        for tag in walk_tags(exif, form):
            if tag.number == ORIENTATION:
                return tag.value if tag.value in range(1, 9) else 1
    except (error, OverflowError, Refused):
        pass
    return 1


MAGIC: tuple[tuple[Format, bytes], ...] = (
    ("PNG", PNG_MAGIC),
    ("JPEG", b"\xff\xd8"),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("BMP", b"BM"),
    ("TIFF", b"II*\x00"),
    ("TIFF", b"MM\x00*"),
    ("TIFF", b"II+\x00"),
    ("TIFF", b"MM\x00+"),
)
READERS: dict[Format, Callable[[bytes | bytearray], Outline]] = {
    "PNG": read_png,
    "JPEG": read_jpeg,
    "GIF": read_gif,
    "BMP": read_bmp,
    "WEBP": read_webp,
    "TIFF": read_tiff,
}
