"""The gate in front of the decoders: what it drops, what it refuses, what it estimates."""

from __future__ import annotations

import io
import zlib
from contextlib import suppress
from dataclasses import replace
from struct import pack
from typing import Any

import fmnist_gate as gate
import numpy as np
import pytest
from fmnist_gate import File, Limits, Refused, inspect
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.handler.torchserve import encode

LIMITS = Limits(max_bytes=6_000_000, max_pixels=25_000_000, max_heavy_pixels=12_000_000)
GREY = Image.fromarray(np.arange(28 * 28, dtype=np.uint32).astype(np.uint8).reshape(28, 28))
COLOUR = Image.merge("RGB", (GREY, GREY.transpose(Image.Transpose.ROTATE_90), GREY))
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
SIDEWAYS = 6


def refusal(data: bytes, limits: Limits = LIMITS) -> Refused:
    with pytest.raises(Refused) as caught:
        inspect(data, limits)
    return caught.value


def code(data: bytes, limits: Limits = LIMITS) -> str:
    return refusal(data, limits).code


def pixels(file: File | bytes) -> np.ndarray[Any, Any]:
    data = file if isinstance(file, bytes) else bytes(file.data)
    return np.asarray(Image.open(io.BytesIO(data)))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def chunk(name: bytes, body: bytes = b"", *, whole: bool = True) -> bytes:
    checksum = zlib.crc32(name + body) ^ (not whole)
    return pack(">I", len(body)) + name + body + pack(">I", checksum)


def png(*chunks: bytes, colour: int = 0, depth: int = 8, side: int = 2, rows: bytes = b"") -> bytes:
    """A PNG with these chunks between IHDR and IDAT."""
    head = chunk(b"IHDR", pack(">II5B", side, side, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows or bytes(side * (1 + 8 * side))))
    return gate.PNG_MAGIC + head + b"".join(chunks) + body + chunk(b"IEND")


def segment(marker: int, body: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + pack(">H", len(body) + 2) + body


def jpeg_with(*segments: bytes, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    data = encode(COLOUR, "JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def riff(*parts: tuple[bytes, bytes]) -> bytes:
    return gate.join_riff([gate.Part(*part) for part in parts])


def webp_parts(image: Image.Image, **options: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401 - Pillow's
    data = encode(image, "WEBP", **options)
    return [(name, bytes(body)) for name, body in gate.walk_riff(data, 12)]


def tiff(tags: dict[int, tuple[int, int, int]], body: bytes = b"", order: str = "<") -> bytes:
    """A TIFF whose tags are number -> (type, count, value or place)."""
    head = (b"II" if order == "<" else b"MM") + pack(order + "HI", 42, 8)
    kinds = {number: "HHIHxx" if kind == 3 else "HHII" for number, (kind, _, _) in tags.items()}
    entries = b"".join(
        pack(order + kinds[number], number, *tags[number]) for number in sorted(tags)
    )
    return head + pack(order + "H", len(tags)) + entries + bytes(4) + body


SMALL = {256: (3, 1, 2), 257: (3, 1, 2), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
SMALL |= {273: (4, 1, 134), 277: (3, 1, 1), 278: (3, 1, 2), 279: (4, 1, 4)}


# What passes


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_clean_bytes_have_the_pixels_of_the_file(kind: str, image: Image.Image) -> None:
    data = encode(image, kind)
    file = inspect(data, LIMITS)
    assert (file.format, file.width, file.height) == (kind, 28, 28)
    assert np.array_equal(pixels(file), pixels(data))
    assert 0 < file.cost < 0.01


@pytest.mark.parametrize("kind", FORMATS)
def test_cleaning_what_is_clean_changes_nothing_more(kind: str) -> None:
    once = inspect(encode(COLOUR, kind), LIMITS)
    twice = inspect(bytes(once.data), LIMITS)
    assert np.array_equal(pixels(once), pixels(twice))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_read_and_then_dropped(kind: str, orientation: int) -> None:
    file = inspect(encode(COLOUR, kind, exif=exif(orientation)), LIMITS)
    assert (file.orientation, file.width, file.height) == (orientation, 28, 28)
    assert inspect(bytes(file.data), LIMITS).orientation == 1


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_orientation_that_does_not_exist_is_none(kind: str, orientation: int) -> None:
    assert inspect(encode(COLOUR, kind, exif=exif(orientation)), LIMITS).orientation == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"Exif\x00\x00",
        b"II*\x00",
        b"II*\x00\xff\xff\xff\xff",
        b"II*\x00\x08\x00\x00\x00\xff\xff",
        tiff({0x0112: (2, 2, 0x36)}),  # the text "6"
        tiff({0x0112: (7, 1, 6)}),  # undefined bytes
        tiff({0x0112: (3, 2, 6)}),
        tiff({0x010F: (99, 1, 6), 0x0110: (3, 1, 6)}),
        bytes(range(256)),
    ],
    ids=lambda damage: repr(damage[:16]),
)
def test_a_damaged_exif_names_no_orientation(damage: bytes) -> None:
    assert gate.read_exif(damage) == 1
    assert inspect(jpeg_with(segment(0xE1, b"Exif\x00\x00" + damage)), LIMITS).orientation == 1
    assert inspect(png(chunk(b"eXIf", damage)), LIMITS).orientation == 1


def test_exif_may_be_of_either_byte_order() -> None:
    for order in "<>":
        assert gate.read_exif(tiff({0x0112: (3, 1, SIDEWAYS)}, order=order)) == SIDEWAYS


# PNG


@pytest.mark.parametrize(
    "beside",
    [
        chunk(b"pHYs", bytes(9), whole=False),
        chunk(b"pHYs", bytes(4)),
        chunk(b"tIME", bytes(7), whole=False),
        chunk(b"iCCP", b"name\x00\x09nothing"),
        chunk(b"iCCP", b"name\x00\x00nothing", whole=False),
        chunk(b"eXIf", b"II", whole=False),
        chunk(b"prVt", bytes(5)) * 300,
        chunk(b"tRNS", bytes(3)),
        chunk(b"tRNS", bytes(2), whole=False),
        chunk(b"PLTE", bytes(3)),
    ],
    ids=lambda beside: repr(beside[4:8]),
)
def test_what_lies_beside_the_pixels_of_a_png_does_not_decide_about_them(beside: bytes) -> None:
    clean = inspect(png(beside), LIMITS).data
    assert clean == inspect(png(), LIMITS).data == png()


def test_what_follows_the_end_of_a_png_is_not_looked_at() -> None:
    assert inspect(png() + b"\x00" * 100_000, LIMITS).data == png()


def test_a_png_whose_end_is_missing_is_left_to_the_decoder() -> None:
    assert inspect(png()[:-12], LIMITS).data == png()[:-12]
    assert inspect(png()[:-20], LIMITS).data == png()[:-20]


@pytest.mark.parametrize(("colour", "key"), [(0, bytes(2)), (2, bytes(6)), (3, b"\x00")])
def test_a_whole_transparency_is_kept_and_makes_the_image_heavy(colour: int, key: bytes) -> None:
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    data = png(palette, chunk(b"tRNS", key), colour=colour)
    assert inspect(data, LIMITS).data == data
    assert code(data, replace(LIMITS, max_heavy_pixels=3)) == "too_large"
    assert inspect(png(palette, colour=colour), replace(LIMITS, max_heavy_pixels=3))


@pytest.mark.parametrize(
    ("depth", "colour", "key", "compared"),
    [(2, 0, (2,), (170,)), (4, 0, (9,), (153,)), (16, 2, (65_535, 256, 3), (255, 1, 0))],
)
def test_a_transparent_colour_is_in_the_scale_in_which_it_is_compared(
    depth: int, colour: int, key: tuple[int, ...], compared: tuple[int, ...]
) -> None:
    data = png(chunk(b"tRNS", pack(f">{len(key)}H", *key)), colour=colour, depth=depth)
    wanted = chunk(b"tRNS", pack(f">{len(key)}H", *compared))
    assert wanted in inspect(data, LIMITS).data


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (gate.PNG_MAGIC, "does not begin with IHDR"),
        (gate.PNG_MAGIC + chunk(b"IDAT"), "does not begin with IHDR"),
        (gate.PNG_MAGIC + chunk(b"IHDR", bytes(12)), "does not begin with IHDR"),
        (png(depth=3), "form that PNG does not have"),
        (png(colour=5), "form that PNG does not have"),
        (png(colour=3), "no palette"),
        (png(chunk(b"PLTE", bytes(4)), colour=3), "no whole number of colours"),
        (png(chunk(b"PLTE"), colour=3), "no whole number of colours"),
        (png(chunk(b"PLTE", bytes(257 * 3)), colour=3), "no whole number of colours"),
        (png(chunk(b"CgBI", bytes(4))), "CgBI is critical"),
        (png()[:33], "has no IDAT"),
    ],
    ids=range(11),
)
def test_a_png_that_contradicts_itself_is_refused(data: bytes, word: str) -> None:
    assert word in str(refusal(data))


@pytest.mark.parametrize(
    "twice",
    [
        chunk(b"IHDR", pack(">II5B", 7_000, 7_000, 8, 6, 0, 0, 0)),
        chunk(b"IHDR", pack(">II5B", 2, 2, 8, 3, 0, 0, 0)),
        chunk(b"IHDR"),
    ],
    ids=["larger", "of a palette", "empty"],
)
def test_a_png_has_one_head(twice: bytes) -> None:
    assert "IHDR is critical and not known there" in str(refusal(png(twice)))


@pytest.mark.parametrize("late", [chunk(b"PLTE", bytes(6)), chunk(b"tRNS", bytes(2))])
def test_what_comes_behind_the_pixels_of_a_png_decides_nothing(late: bytes) -> None:
    end = chunk(b"IEND")
    data = png()[: -len(end)] + late + end
    assert inspect(data, LIMITS).data == png()
    assert "no palette" in str(refusal(png(colour=3)[: -len(end)] + late + end))


@pytest.mark.parametrize(("depth", "wanted"), [(1, 1), (2, 255), (4, 255), (8, 255)])
def test_of_a_transparent_grey_only_the_bits_of_the_depth_count(depth: int, wanted: int) -> None:
    data = png(chunk(b"tRNS", b"\xff\xff"), depth=depth)
    assert chunk(b"tRNS", pack(">H", wanted)) in inspect(data, LIMITS).data


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_rows_cost_however_short_they_are(kind: str) -> None:
    high = inspect(encode(Image.new("L", (1, 16_000)), kind), LIMITS).cost
    wide = inspect(encode(Image.new("L", (16_000, 1)), kind), LIMITS).cost
    assert high - wide > 0.9 * 16_000 * gate.ROW_S - 1e-4


# JPEG


@pytest.mark.parametrize(
    "beside",
    [
        segment(0xE2, b"ICC_PROFILE\x00\x01\x01nothing"),
        segment(0xE2, b"MPF\x00nothing"),
        segment(0xED, b"Photoshop 3.0\x00nothing"),
        segment(0xE1, b"Exif\x00\x00nothing"),
        segment(0xEE, b"other"),
        segment(0xEE, b"Adobe\x00\x64"),
        segment(0xE0, b"JFIF\x00"),
        segment(0xE0, b"JFXX\x00"),
        segment(0xFE, bytes(70)) * 100,
        b"\xff" * 5_000,
        b"\xff\xd0\xff\x01",
    ],
    ids=lambda beside: repr(beside[:12]),
)
def test_what_lies_beside_the_pixels_of_a_jpeg_does_not_decide_about_them(beside: bytes) -> None:
    file = inspect(jpeg_with(beside), LIMITS)
    assert np.array_equal(pixels(file), pixels(encode(COLOUR, "JPEG")))
    assert len(file.data) == len(encode(COLOUR, "JPEG"))


def test_colours_of_adobe_stay_as_they_are() -> None:
    data = encode(COLOUR.convert("CMYK"), "JPEG")
    assert np.array_equal(pixels(inspect(data, LIMITS)), pixels(data))


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC9, 0xCF])
def test_a_rare_jpeg_is_refused_with_what_to_send(marker: int) -> None:
    refused = refusal(jpeg_with(segment(marker, pack(">BHHB", 8, 2, 2, 1) + bytes(3))))
    assert (refused.code, "send a baseline" in str(refused)) == ("unsupported_type", True)


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (segment(0xC0, pack(">BHHB", 12, 2, 2, 1) + bytes(3)), "12 bits"),
        (segment(0xC0, pack(">BHHB", 8, 2, 2, 9) + bytes(27)), "9 components"),
        (segment(0xC0, pack(">BHHB", 8, 2, 2, 1) + b"\x01\x11\x00"), "two frames"),
        (segment(0xDA, b"\x01\x01\x00\x00\x3f\x00"), "a scan before its frame"),
    ],
)
def test_a_jpeg_that_contradicts_itself_is_refused(head: bytes, word: str) -> None:
    assert word in str(refusal(jpeg_with(head)))


def test_a_jpeg_without_a_frame_is_refused() -> None:
    assert "no frame" in str(refusal(b"\xff\xd8" + segment(0xFE, b"hello") + b"\xff\xd9"))
    assert "no frame" in str(refusal(b"\xff\xd8\xff"))


def scans(data: bytes, count: int) -> bytes:
    """The JPEG with its last scan so many times."""
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


def test_each_scan_of_a_progressive_jpeg_costs_what_its_blocks_cost() -> None:
    data = encode(Image.new("RGB", (1600, 1600)), "JPEG", progressive=True)
    few, many = (inspect(scans(data, count), LIMITS).cost for count in (1, 100))
    blocks = 200 * 200
    assert many - few > 99 * blocks * 10e-9
    assert code(scans(data, 5_000)) == "too_large"


# GIF


def gif(before: bytes = b"", frame: bytes = b"", screen: tuple[int, int] = (2, 2)) -> bytes:
    pixels = b"\x02\x02\x44\x01\x00"
    frame = frame or pack("<HHHHB", 0, 0, 2, 2, 0)
    return b"GIF89a" + pack("<HH3B", *screen, 0, 0, 0) + before + b"," + frame + pixels + b";"


@pytest.mark.parametrize(
    "beside",
    [
        b"!\xfe\x03abc\x00",
        b"!\xff\x0bNETSCAPE2.0\x02\x00\x01\x00",
        b"!\x01\x02ab\x00",
        b"!\xfe" + b"\x01a" * 5_000 + b"\x00",
        b"!\xf9\x00",
        b"!\xf9\x01\x01\x00",
    ],
    ids=lambda beside: repr(beside[:8]),
)
def test_what_lies_beside_the_pixels_of_a_gif_is_dropped(beside: bytes) -> None:
    assert inspect(gif(beside), LIMITS).data == inspect(gif(), LIMITS).data == gif()


def test_the_control_before_the_first_frame_is_kept() -> None:
    control = b"!\xf9\x04\x01\x00\x00\x01\x00"
    assert inspect(gif(b"!\xfe\x00" + control), LIMITS).data == gif(control)


def test_of_a_film_the_first_frame_stays() -> None:
    shades = [GREY, GREY.rotate(90), GREY.rotate(180)]
    data = encode(shades[0], "GIF", save_all=True, append_images=shades[1:])
    file = inspect(data, LIMITS)
    assert len(file.data) < len(data)
    assert getattr(Image.open(io.BytesIO(bytes(file.data))), "n_frames", 0) == 1


def test_a_first_frame_beyond_the_screen_counts() -> None:
    wide = pack("<HHHHB", 10, 0, 60_000, 2, 0)
    assert inspect(gif(frame=wide), LIMITS).width == 60_010
    assert code(gif(frame=pack("<HHHHB", 0, 0, 60_000, 60_000, 0))) == "too_large"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (gif(frame=pack("<HHHHB", 0, 0, 0, 2, 0)), "no pixels"),
        (gif()[:13] + b";", "no frame"),
        (gif()[:13], "ends inside the head"),
        (gif()[:9], "ends inside the head"),
    ],
)
def test_a_gif_without_a_picture_is_refused(data: bytes, word: str) -> None:
    assert word in str(refusal(data))


def test_a_gif_that_is_cut_is_left_to_the_decoder() -> None:
    assert inspect(gif()[:-3], LIMITS).data == gif()[:-3] + b";"


# BMP


def bmp(size: int = 40, bits: int = 8, compression: int = 0, **fields: int) -> bytes:
    width, height = fields.get("width", 2), fields.get("height", 2)
    head = pack("<IiiHHIIiiII", size, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    head = head[:32] + pack("<I", fields.get("colours", 0)) + head[36:]
    return b"BM" + pack("<IHHI", 0, 0, 0, 54) + head.ljust(size, b"\x00") + bytes(64)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (bmp(size=41), "unsupported_type"),
        (bmp(compression=4), "unsupported_type"),
        (bmp(colours=65_537), "not_an_image"),
        (bmp(compression=1, width=1001, height=1000), "too_large"),
        (bmp(compression=2, width=1001, height=-1000, bits=4), "too_large"),
        (bmp(width=0), "not_an_image"),
        (bmp(width=-5), "too_large"),
        (bmp()[:30], "not_an_image"),
    ],
    ids=range(8),
)
def test_a_bmp_that_is_not_read_is_refused(data: bytes, word: str) -> None:
    assert code(data) == word


def test_a_bmp_may_stand_on_its_head_or_have_the_oldest_head() -> None:
    assert inspect(bmp(height=-2), LIMITS).height == 2
    core = b"BM" + pack("<IHHI", 0, 0, 0, 26) + pack("<IHHHH", 12, 3, 4, 1, 24) + bytes(48)
    assert (inspect(core, LIMITS).width, inspect(core, LIMITS).height) == (3, 4)


def test_run_lengths_and_alpha_have_a_price() -> None:
    plain = inspect(bmp(width=900, height=900), LIMITS)
    packed = inspect(bmp(width=900, height=900, compression=1), LIMITS)
    assert packed.cost > 10 * plain.cost
    alpha = bmp(size=56, bits=32, compression=3, width=4000, height=4000)
    assert code(alpha) == "too_large"
    assert inspect(bmp(bits=32, width=4000, height=4000), LIMITS)


# WebP


@pytest.mark.parametrize("options", [{}, {"lossless": True}], ids=["lossy", "lossless"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_keeps_its_picture_and_its_alpha_only(options: dict[str, Any], mode: str) -> None:
    image = COLOUR.convert(mode)
    if mode == "RGBA":
        image.putpixel((3, 3), (1, 2, 3, 99))
    parts = webp_parts(image, exif=exif(SIDEWAYS), icc_profile=b"nothing", **options)
    data = riff(*parts, (b"XMP ", b"<x>"), (b"odd ", b"1"))
    file = inspect(data, LIMITS)
    assert file.orientation == SIDEWAYS
    assert not {b"EXIF", b"ICCP", b"XMP ", b"odd "} & {
        p.name for p in gate.walk_riff(file.data, 12)
    }
    assert np.array_equal(pixels(file), pixels(data))


def test_of_an_animation_the_first_frame_stays() -> None:
    frames = [COLOUR.convert("RGBA"), GREY.convert("RGBA")]
    for options in ({}, {"lossless": True}):
        data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], **options)
        file = inspect(data, LIMITS)
        assert len(file.data) < len(data)
        assert np.array_equal(pixels(file), pixels(data))


def test_a_large_lossless_webp_is_not_known_to_be_cheap() -> None:
    for side, known in ((64, True), (65, False)):
        image = Image.new("RGBA", (side, side), (1, 2, 3, 4))
        assert inspect(encode(image, "WEBP", lossless=True), LIMITS).known is known
        assert inspect(encode(image.convert("RGB"), "WEBP"), LIMITS).known
        assert inspect(encode(image, "WEBP"), LIMITS).known is known  # its alpha is lossless
        film = encode(image, "WEBP", save_all=True, append_images=[image.rotate(90)])
        assert inspect(film, LIMITS).known is known


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"RIFF\x04\x00\x00\x00WEBP", "no chunk"),
        (riff((b"ABCD", b"12")), "none of VP8, VP8L and VP8X"),
        (riff((b"VP8X", b"\x00\x00\x00\x00\x01\x00\x00\x01\x00\x00")), "no VP8"),
        (riff((b"VP8X", b"\x02\x00\x00\x00\x01\x00\x00\x01\x00\x00")), "no ANIM"),
        (riff((b"VP8X", b"")), "ends inside the head"),
        (riff((b"VP8L", b"/")), "ends inside the head"),
        (riff((b"VP8 ", bytes(10))), "no pixels"),
    ],
    ids=range(7),
)
def test_a_webp_that_contradicts_itself_is_refused(data: bytes, word: str) -> None:
    assert word in str(refusal(data))


# TIFF


def test_a_tiff_of_ours_is_read() -> None:
    for order in "<>":
        file = inspect(tiff(SMALL, bytes(64), order), LIMITS)
        assert (file.width, file.height, file.known) == (2, 2, True)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}, {"tiffinfo": {270: "a note", 305: "me"}}],
    ids=str,
)
def test_a_tiff_keeps_the_tags_that_decide_the_pixels(options: dict[str, Any]) -> None:
    data = encode(COLOUR, "TIFF", **options)
    file = inspect(data, LIMITS)
    form = gate.read_tiff_head(file.data)
    assert {tag.number for tag in gate.walk_tags(file.data, form)} <= gate.TIFF_KEPT
    assert np.array_equal(pixels(file), pixels(data))
    assert file.known is ("compression" not in options)


def test_of_several_pages_the_first_stays() -> None:
    data = encode(COLOUR, "TIFF", save_all=True, append_images=[GREY, GREY])
    file = inspect(data, LIMITS)
    assert np.array_equal(pixels(file), np.asarray(COLOUR))
    assert getattr(Image.open(io.BytesIO(bytes(file.data))), "n_frames", 0) == 1


def test_of_a_tag_that_comes_twice_the_first_counts() -> None:
    data = bytearray(tiff(SMALL | {300: (3, 1, 9)}, bytes(64)))
    at = data.index(pack("<HHI", 300, 3, 1))
    data[at : at + 2] = pack("<H", 256)
    assert inspect(bytes(data), LIMITS).width == 2


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ({256: (3, 1, 0)}, "not_an_image"),
        ({256: (5, 1, 8)}, "not_an_image"),
        ({256: (3, 2, 8)}, "not_an_image"),
        ({259: (3, 1, 34_925)}, "unsupported_type"),
        ({277: (3, 1, 9)}, "not_an_image"),
        ({320: (3, 200_000, 8)}, "too_large"),
        ({256: (3, 1, 60_000), 257: (3, 1, 60_000)}, "too_large"),
        ({322: (3, 1, 60_000), 323: (3, 1, 60_000)}, "too_large"),
        ({257: (4, 1, 10_000_000), 278: (4, 1, 1)}, "too_large"),
        ({256: (4, 1, 3_000), 257: (4, 1, 4_000), 322: (3, 1, 1), 323: (3, 1, 1)}, "too_large"),
    ],
    ids=str,
)
def test_a_tiff_of_too_much_or_of_nothing_is_refused(
    tags: dict[int, tuple[int, int, int]], word: str
) -> None:
    assert code(tiff(SMALL | tags, bytes(64))) == word


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({258: (3, 1, 12)}, "unsigned samples of 12 bits"),
        ({258: (3, 1, 64), 339: (3, 1, 3)}, "floating-point samples of 64 bits"),
        ({258: (3, 1, 16), 339: (3, 1, 3)}, "floating-point samples of 16 bits"),
        ({339: (3, 1, 2)}, "signed samples of 8 bits"),
        ({258: (3, 1, 16), 262: (3, 1, 0)}, "samples of 16 bits, white being 0"),
        ({258: (3, 1, 32), 262: (3, 1, 0), 339: (3, 1, 3)}, "32 bits, white being 0"),
        ({258: (3, 2, 0x00100010), 277: (3, 1, 2)}, "samples of 16 bits"),
    ],
    ids=str,
)
def test_numbers_that_the_decoder_would_read_as_others_are_refused(
    tags: dict[int, tuple[int, int, int]], words: str
) -> None:
    kinds = {
        number: (4 if count == 2 else kind, 1 if count == 2 else count, value)
        for number, (kind, count, value) in tags.items()
    }
    data = bytearray(tiff(SMALL | kinds, bytes(64)))
    for number, (kind, count, _) in tags.items():
        if count == 2:
            at = data.index(pack("<HHI", number, 4, 1))
            data[at : at + 8] = pack("<HHI", number, kind, count)
    refused = refusal(bytes(data))
    assert (refused.code, words in str(refused)) == ("unsupported_type", True)


def test_planes_are_counted_one_by_one() -> None:
    planes = {284: (3, 1, 2), 277: (3, 1, 3)}
    together = inspect(tiff(SMALL, bytes(64)), LIMITS).cost
    assert inspect(tiff(SMALL | planes, bytes(64)), LIMITS).cost > together + 20e-6


def test_a_tiff_of_too_many_tags_is_refused() -> None:
    data = bytearray(tiff(SMALL, bytes(64)))
    data[8:10] = pack("<H", 5_000)
    assert code(bytes(data)) == "too_large"
    assert code(bytes(data[:40])) == "too_large"
    assert code(tiff(SMALL)[:60]) == "not_an_image"
    assert code(b"II+\x00\x08\x00\x00\x00" + b"\xff" * 60) == "not_an_image"
    assert code(b"MM\x00+\x00\x08\x00\x00" + bytes(60)) == "unsupported_type"


# Limits of all


def test_a_file_of_too_many_bytes_is_refused() -> None:
    assert code(png(), replace(LIMITS, max_bytes=20)) == "too_large"


@pytest.mark.parametrize("data", [b"", b"BOOT", b"RIFF....AVI ", b"GIF88a", b"\x89PNG\r\n", b"II"])
def test_bytes_of_no_format_are_refused(data: bytes) -> None:
    assert "none of PNG, JPEG" in str(refusal(data))


@pytest.mark.parametrize(
    "data",
    [
        png(*[chunk(b"teXt")] * 20_001),
        jpeg_with(*[segment(0xFE)] * 20_001),
        gif(b"!\xfe" + b"\x01a" * 20_001 + b"\x00"),
        gif(b"!\xfe\x00" * 20_002),
        gif().replace(b"\x02\x44\x01\x00;", b"\x01a" * 100_001 + b"\x00;"),
        riff(*webp_parts(COLOUR), *[(b"none", b"")] * 20_001),
    ],
    ids=["PNG", "JPEG", "GIF blocks", "GIF extensions", "GIF pixels", "WebP"],
)
def test_more_parts_than_a_picture_needs_are_refused(data: bytes) -> None:
    refused = refusal(data)
    assert (refused.code, "more than" in str(refused)) == ("too_large", True)


@pytest.mark.parametrize("side", [65_501, 2**31 - 1])
def test_a_side_has_a_limit_of_its_own(side: int) -> None:
    head = chunk(b"IHDR", pack(">II5B", side, 1, 8, 0, 0, 0, 0))
    refused = refusal(gate.PNG_MAGIC + head + chunk(b"IDAT"))
    assert (refused.code, "each side" in str(refused)) == ("too_large", True)


@given(
    kind=st.sampled_from(FORMATS),
    cuts=st.lists(st.tuples(st.integers(0, 2_000), st.binary(max_size=6)), max_size=4),
)
def test_whatever_the_bytes_are_they_pass_or_are_refused(
    kind: str, cuts: list[tuple[int, bytes]]
) -> None:
    data = bytearray(encode(COLOUR, kind))
    for at, piece in cuts:
        data[at : at + len(piece)] = piece
    with suppress(Refused):
        assert inspect(bytes(data), LIMITS).format in FORMATS
