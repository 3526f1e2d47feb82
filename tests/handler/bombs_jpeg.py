"""Bombs of JPEG, marker by marker; their pixels are grey everywhere."""

from __future__ import annotations

import io
import struct
from functools import partial

import numpy as np
from PIL import Image

from tests.handler.bomb import MAX_FILE_BYTES, Bomb, fill

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, ARITHMETIC = 0xC0, 0xC1, 0xC2, 0xC3, 0xC9
JPEG = "image/jpeg"
Size = tuple[int, int]


def segment(marker: int, data: bytes = b"") -> bytes:
    """Return a whole segment: marker, length, data."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def frame(kind: int, size: Size, sampling: tuple[int, ...] = (0x11,), bits: int = 8) -> bytes:
    """Return the frame header; a byte of sampling factors for each component."""
    parts = b"".join(bytes([number, each, 0]) for number, each in enumerate(sampling, 1))
    width, height = size
    return segment(kind, struct.pack(">BHHB", bits, height, width, len(sampling)) + parts)


def table(kind: int, symbol: int) -> bytes:
    """Return a Huffman table with one code, of one bit: 0."""
    return segment(0xC4, bytes([kind << 4, 1, *bytes(15), symbol]))


DQT = segment(0xDB, b"\0" + b"\1" * 64)
EOB_RUN = 0xE0
"""The symbol of a run of 16,384 empty blocks and more; 14 bits follow."""
TABLES = DQT + table(0, 0) + table(1, EOB_RUN)


def scan(
    components: int = 1, band: tuple[int, int] = (0, 0), bits: int = 0, first: int = 1
) -> bytes:
    """Return the head of a scan; `bits` are the old and the new position of a bit."""
    chosen = b"".join(bytes([first + index, 0]) for index in range(components))
    return segment(0xDA, bytes([components]) + chosen + bytes([*band, bits]))


def blocks(size: Size) -> int:
    """Return how many blocks of 8 x 8 cover the image."""
    return -(-size[0] // 8) * -(-size[1] // 8)


def empty_dc(size: Size, per_block: int = 1) -> bytes:
    """Return the data of a scan in which each block takes so many bits, all 0."""
    return bytes((blocks(size) * per_block + 7) // 8)


def empty_ac(size: Size) -> bytes:
    """Return the data of a scan of runs of 27,306 empty blocks: 0, then 10101010101010."""
    runs = -(-blocks(size) // 27_306)
    bits = "010101010101010" * runs
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def progressive(
    size: Size, scans: int, refine: int = 0, sampling: tuple[int, ...] = (0x11,)
) -> bytes:
    """Return a progressive JPEG: a DC scan, then `scans` AC scans of empty runs, as many as fit."""
    count = len(sampling)
    head = SOI + TABLES + frame(PROGRESSIVE, size, sampling)
    dc = scan(count) + empty_dc(size, count)
    each = [scan(1, (1, 63), refine, first) + empty_ac(size) for first in range(1, count + 1)]
    many = b"".join(each) * (scans // count)
    return head + dc + many[: MAX_FILE_BYTES - len(head) - len(dc) - 9] + EOI


def dc_refinements(size: Size, scans: int) -> bytes:
    """Return a progressive JPEG of DC scans that each refine nothing."""
    refine = scan(bits=0x10) + empty_dc(size)
    first = SOI + TABLES + frame(PROGRESSIVE, size) + scan(bits=1) + empty_dc(size)
    return first + refine * min(scans, (MAX_FILE_BYTES - len(first)) // len(refine) - 1) + EOI


def baseline(
    size: Size = (28, 28),
    sampling: tuple[int, ...] = (0x11,),
    before: bytes = b"",
    behind: bytes = b"",
    kind: int = BASELINE,
    repeat: int = 1,
) -> bytes:
    """Return a sequential JPEG with bytes before the frame and behind the scans."""
    count = len(sampling)
    units = sum((each >> 4) * (each & 15) for each in sampling)
    data = scan(count, (0, 63)) + bytes(blocks(size) * (units if count > 1 else 1) // 4 + 2)
    head = SOI + before + DQT + table(0, 0) + table(1, 0) + frame(kind, size, sampling)
    return head + data * repeat + behind + EOI


def restarts(size: Size) -> bytes:
    """Return a baseline JPEG with a restart marker behind each block."""
    cycle = b"".join(bytes([0, 0xFF, 0xD0 + number]) for number in range(8))
    head = SOI + DQT + table(0, 0) + table(1, 0) + segment(0xDD, b"\0\1")
    data = cycle * (blocks(size) // 8) + b"\0"
    return head + frame(BASELINE, size) + scan(1, (0, 63)) + data + EOI


def exif(entries: int = 65_000 // 12, loop: bool = False) -> bytes:  # noqa: FBT001, FBT002 - a table
    """Return an EXIF block of many entries, or of a directory that is its own next one."""
    tags = b"".join(struct.pack("<HHII", tag, 2, 60_000, 8) for tag in range(entries))
    after = struct.pack("<I", 8 if loop else 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries) + tags + after


def multi_picture(count: int) -> bytes:
    """Return the APP2 of a multi-picture file that names so many pictures."""
    entry = struct.pack("<H", 3) + struct.pack("<HHI4s", 0xB000, 7, 4, b"0100")
    entry += struct.pack("<HHII", 0xB001, 4, 1, count) + struct.pack("<HHII", 0xB002, 7, 64, 60)
    return segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + entry + bytes(4) + bytes(100))


def noise(side: int, options: dict[str, bool]) -> bytes:
    """Return a grey JPEG of noise, every coefficient of which is there."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


BIG = (5000, 5000)
Y420 = (0x22, 0x11, 0x11)
Y444 = (0x11, 0x11, 0x11)


def bomb(key: str, name: str, make: partial[bytes], row: str = "") -> Bomb:
    """Return a bomb of one JPEG file."""
    return Bomb(f"jpeg-{key}", f"JPEG, {name}", make, JPEG, row=row)


SCANS = (
    bomb("scans-2500", "25 Mpx grey, 2,500 AC scans", partial(progressive, BIG, 2_500), "C1"),
    bomb("scans-3119", "25 Mpx, 3,119 progressive scans", partial(progressive, BIG, 3_119), "H1"),
    bomb("scans-22643", "25 Mpx, 22,643 scans", partial(progressive, BIG, 22_643), "H1"),
    bomb("scans-139000", "25 Mpx, 139,000 scans", partial(progressive, BIG, 139_000)),
    bomb("scans-200", "25 Mpx, 200 scans", partial(progressive, BIG, 200)),
    bomb("scans-400", "25 Mpx, 400 scans", partial(progressive, BIG, 400)),
    bomb(
        "scans-cmyk-100",
        "25 Mpx, 100 scans of four",
        partial(progressive, BIG, 100, 0, (0x11,) * 4),
    ),
    bomb("scans-1000", "1 Mpx, 9,000 scans", partial(progressive, (1000, 1000), 9_000)),
    bomb("scans-19000", "28 x 28, 19,000 scans", partial(progressive, (28, 28), 19_000)),
    bomb("scans-64", "25 Mpx, 64 scans", partial(progressive, BIG, 64)),
    bomb("scans-refine", "AC scans that refine", partial(progressive, BIG, 3_000, 0x10)),
    bomb("scans-colour", "scans of three colours", partial(progressive, BIG, 3_000, 0, Y444)),
    bomb("scans-cmyk", "scans of four colours", partial(progressive, BIG, 3_000, 0, (0x11,) * 4)),
    bomb("scans-10-colour", "25 Mpx, 10 scans in colour", partial(progressive, BIG, 12, 0, Y444)),
    bomb("scans-small", "28 x 28, 400,000 scans", partial(progressive, (28, 28), 400_000)),
    bomb("scans-wide", "65,500 x 381, 3,000 scans", partial(progressive, (65_500, 381), 3_000)),
    bomb("scans-tall", "381 x 65,500, 3,000 scans", partial(progressive, (381, 65_500), 3_000)),
    bomb("scans-1mpx", "1 Mpx, 60,000 scans", partial(progressive, (1000, 1000), 60_000)),
    bomb("dc-refine", "120 DC scans that refine", partial(dc_refinements, BIG, 200)),
    bomb("sequential", "baseline, 60 scans of 25 Mpx", partial(baseline, BIG, repeat=60)),
)
FRAME = frame(BASELINE, (28, 28))
SEGMENTS = (
    bomb("fill", "28 x 28, 6 MB of FF", partial(baseline, before=fill(b"\xff")), "H1"),
    bomb("fill-behind", "6 MB of FF behind the scan", partial(baseline, behind=fill(b"\xff"))),
    bomb("zero", "6 MB of 00 between markers", partial(baseline, before=fill(b"\0"))),
    bomb(
        "app", "1.5 million empty APP segments", partial(baseline, before=fill(segment(0xE5))), "H1"
    ),
    bomb("app0", "empty APP0", partial(baseline, before=fill(segment(0xE0)))),
    bomb("app-behind", "empty APP1 behind the scan", partial(baseline, behind=fill(segment(0xE1)))),
    bomb("com", "empty comments", partial(baseline, before=fill(segment(0xFE)))),
    bomb(
        "com-text",
        "comments of 60 KB",
        partial(baseline, before=fill(segment(0xFE, b"c" * 60_000))),
    ),
    bomb("dqt", "90,000 quantisation tables", partial(baseline, before=fill(DQT))),
    bomb("dht", "270,000 Huffman tables", partial(baseline, before=fill(table(0, 0)))),
    bomb("dri", "a million DRI", partial(baseline, before=fill(segment(0xDD, b"\0\0")))),
    bomb("sof", "many frame headers", partial(baseline, before=fill(FRAME))),
    bomb("soi", "3 million SOI", partial(baseline, before=fill(SOI))),
    bomb("rst", "3 million RST", partial(baseline, before=fill(b"\xff\xd0"))),
    bomb("rst-behind", "RST behind the scan", partial(baseline, behind=fill(b"\xff\xd0"))),
    bomb("restarts", "25 Mpx, a restart each block", partial(restarts, (5000, 5000))),
    bomb(
        "exif-pieces",
        "EXIF in 400,000 pieces",
        partial(baseline, before=fill(segment(0xE1, b"Exif\0\0xx"))),
    ),
    bomb(
        "exif-tags", "EXIF of 5,400 tags of 60 KB", partial(baseline, before=segment(0xE1, exif()))
    ),
    bomb(
        "exif-loop",
        "EXIF that is its own next",
        partial(baseline, before=segment(0xE1, exif(9, True))),
    ),
    bomb(
        "exif-60kb", "EXIF blocks of 64 KB", partial(baseline, before=fill(segment(0xE1, exif())))
    ),
    bomb(
        "xmp",
        "XMP blocks",
        partial(baseline, before=fill(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<"))),
    ),
    bomb("icc", "ICC pieces", partial(baseline, before=fill(segment(0xE2, b"ICC_PROFILE\0\1\1")))),
    bomb(
        "photoshop",
        "8BIM blocks",
        partial(baseline, before=fill(segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\0"))),
    ),
    bomb(
        "adobe",
        "Adobe segments",
        partial(baseline, before=fill(segment(0xEE, b"Adobe\0d\0\0\0\0\0"))),
    ),
    bomb("mpf", "2 billion pictures in one", partial(baseline, before=multi_picture(1 << 31))),
    bomb("mpf-many", "many MPF blocks", partial(baseline, before=fill(multi_picture(2)))),
)
FORMS = (
    bomb("sampling-22", "25 Mpx, 4:2:0", partial(baseline, BIG, Y420)),
    bomb("noise", "6 Mpx of noise", partial(noise, 2450, {})),
    bomb(
        "noise-progressive",
        "4 Mpx of noise, progressive",
        partial(noise, 2000, {"progressive": True}),
    ),
    bomb("noise-small", "250 x 250 of noise", partial(noise, 250, {"progressive": True})),
    bomb("colour", "25 Mpx in colour, 4:4:4", partial(baseline, BIG, Y444)),
    bomb("sampling-44", "25 Mpx, sampling 4 x 4", partial(baseline, BIG, (0x44, 0x11, 0x11))),
    bomb("sampling-41", "25 Mpx, 4 x 1, 1 x 4", partial(baseline, BIG, (0x41, 0x14, 0x11))),
    bomb("sampling-32", "25 Mpx, 3 x 2 beside 1 x 1", partial(baseline, BIG, (0x32, 0x11, 0x11))),
    bomb("sampling-ff", "sampling 15 x 15", partial(baseline, (500, 500), (0xFF, 0x11, 0x11))),
    bomb("cmyk", "25 Mpx of four colours", partial(baseline, BIG, (0x11,) * 4)),
    bomb("two", "two components", partial(baseline, (28, 28), (0x11, 0x11))),
    bomb("wide", "65,500 x 381", partial(baseline, (65_500, 381), Y420)),
    bomb("tall", "381 x 65,500", partial(baseline, (381, 65_500), Y420)),
    bomb("thin", "1 x 65,500", partial(baseline, (1, 65_500), Y420)),
    bomb("arithmetic", "25 Mpx, arithmetic", partial(baseline, BIG, kind=ARITHMETIC)),
    bomb("lossless", "25 Mpx, lossless", partial(baseline, BIG, kind=LOSSLESS)),
    bomb("no-height", "a height of 0", partial(baseline, (5000, 0))),
    bomb("cut", "25 Mpx, no data", partial(lambda: baseline(BIG)[:300])),
)
BOMBS = (*SCANS, *SEGMENTS, *FORMS)
