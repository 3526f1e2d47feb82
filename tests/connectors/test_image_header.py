"""Kind and size of image files, by their first bytes, against what Pillow writes."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from connectors.image_header import ImageHeader, read_image_header
from connectors.images import CANARY

TYPES = {"PNG": "png", "JPEG": "jpeg", "GIF": "gif", "BMP": "bmp", "WEBP": "webp"}


def encode(
    form: str, size: tuple[int, int] = (300, 7), mode: str = "L", **options: object
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", TYPES)
def test_kind_and_size_are_those_of_the_file(form: str) -> None:
    assert read_image_header(encode(form)) == ImageHeader(f"image/{TYPES[form]}", 300, 7)


@pytest.mark.parametrize(
    "options",
    [{"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}, {"mode": "RGBA"}],
)
def test_each_kind_of_webp_has_its_size(options: dict[str, object]) -> None:
    data = encode("WEBP", (1000, 70), **options)  # type: ignore[arg-type] # mode is a text
    assert read_image_header(data) == ImageHeader("image/webp", 1000, 70)


def test_the_metadata_of_a_jpeg_are_stepped_over() -> None:
    data = encode("JPEG", comment=b"\xff\xc0 no frame" * 99)
    assert read_image_header(data) == ImageHeader("image/jpeg", 300, 7)


def test_a_bmp_from_top_to_bottom_has_a_positive_height() -> None:
    data = bytearray(encode("BMP"))
    data[22:26] = struct.pack("<i", -7)
    assert read_image_header(bytes(data)) == ImageHeader("image/bmp", 300, 7)


@pytest.mark.parametrize("form", TYPES)
def test_a_file_that_ends_in_its_head_has_none(form: str) -> None:
    data = encode(form)
    assert all(read_image_header(data[:end]) is None for end in range(10))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        encode("TIFF"),
        b"RIFF\x24\0\0\0WAVEfmt " + bytes(99),
        b"\xff\xd8\xff" + bytes(99),
        b"\xff\xd8" + b"\xff\xe0\0\0" * 3,
    ],
)
def test_what_no_browser_should_be_told_an_image_is_none(data: bytes) -> None:
    assert read_image_header(data) is None


def test_the_canary_is_small() -> None:
    assert read_image_header(CANARY.data) == ImageHeader("image/png", 28, 28)
