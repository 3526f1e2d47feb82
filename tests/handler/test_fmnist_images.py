"""Every kind of image, from bytes or lists to the pixels of a model."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fmnist_images
import numpy as np
import pytest
from fmnist_gate import Refused, inspect
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from tests.encoders import png_chunk, png_header
from tests.handler.torchserve import encode
from tests.handler.unpacking import (
    COLOURS,
    GREY,
    PIXELS,
    PNG,
    RGB,
    SETTINGS,
    code,
    drawn,
    good,
    instance,
    one,
    rng,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fmnist_images import Model, Pixels
    from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "data"
BMP = encode(Image.fromarray(PIXELS), "BMP")
"""A file that Pillow reads from its beginning."""
OWN = PIXELS[..., None]
SMOOTH = np.add.outer(np.arange(28), 3 * np.arange(28)).astype(np.uint8)[..., None]
"""It packs to Huffman codes, where the noise of OWN is stored."""
FLAT = b"".join(b"\0" + row.tobytes() for row in PIXELS)
PAETH = 4
"""The last filter that PNG knows."""

# Lists of pixels


def test_lists_of_pixels_pass_bit_for_bit() -> None:
    assert np.array_equal(drawn(PIXELS.tolist()), PIXELS[None])
    assert np.array_equal(drawn(PIXELS[None].tolist()), PIXELS[None])
    assert np.array_equal(drawn(PIXELS[..., None].tolist()), PIXELS[None])
    wanted = COLOURS.transpose(2, 0, 1)
    assert np.array_equal(drawn(COLOURS.tolist(), RGB), wanted)
    assert np.array_equal(drawn(wanted.tolist(), RGB), wanted)


def test_a_number_with_a_zero_behind_the_point_is_an_integer() -> None:
    assert np.array_equal(drawn(PIXELS.astype(float).tolist()), PIXELS[None])


def test_lists_of_another_size_and_depth_are_converted() -> None:
    assert drawn([[0, 255], [255, 0]]).shape == (1, 28, 28)
    assert drawn(np.full((5, 5, 4), 255).tolist(), RGB).shape == (3, 64, 64)


@pytest.mark.parametrize(
    "pixel", [True, None, "7", 256, -1, 0.5, 10**400, float("nan"), float("inf"), 1e300, {}]
)
def test_a_pixel_that_is_no_byte_is_refused(pixel: object) -> None:
    assert code(instance([[0, pixel], [0, 0]])) == "not_an_image"


@pytest.mark.parametrize(
    "nested",
    [
        [],
        [[]],
        [1, 2],
        [[1], [2, 3]],
        [[1, 2], [3, [4]]],
        [[[[1]]]],
        [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        np.zeros((4, 9, 3), int).tolist(),
    ],
    ids=str,
)
def test_lists_of_no_clear_shape_are_refused(nested: object) -> None:
    assert code(instance(nested)) == "wrong_shape"


def test_in_doubt_lists_have_the_models_own_shape() -> None:
    narrow = replace(RGB, size=(3, 64))
    pixels = rng.integers(0, 256, (3, 64, 3), np.uint8)
    assert np.array_equal(drawn(pixels.tolist(), narrow), pixels)


def test_a_cube_fits_both_ways_and_is_refused() -> None:
    cube = replace(RGB, size=(3, 3))
    assert code(instance(np.zeros((3, 3, 3), int).tolist(), cube)) == "wrong_shape"


# Files


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_an_image_of_the_models_own_size_and_mode_passes_bit_for_bit(kind: str) -> None:
    data = encode(Image.fromarray(PIXELS), kind)
    assert np.array_equal(good(data), PIXELS[None])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG"])
def test_a_colour_image_of_the_models_own_size_passes_bit_for_bit(kind: str) -> None:
    data = encode(Image.fromarray(COLOURS), kind)
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(good(data, model=RGB), decoded.transpose(2, 0, 1))


def test_what_decodes_is_served_under_any_name() -> None:
    for kind in ("image/png", "IMAGE/JPEG; q=1", "application/octet-stream", "text/plain", "x"):
        assert np.array_equal(good(PNG, kind), PIXELS[None])


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("", "not_an_image"),
        ("image/png", "not_an_image"),
        ("application/octet-stream", "not_an_image"),
        ("text/plain", "unsupported_type"),
        ("application/pdf", "unsupported_type"),
    ],
)
def test_bytes_that_nobody_can_read_are_refused_by_their_name(kind: str, word: str) -> None:
    assert code(one(b"I am a boot, trust me", kind)) == word


def test_rare_formats_are_not_even_tried() -> None:
    for kind in ("PPM", "TGA", "PCX", "ICO", "SGI"):
        assert code(one(encode(Image.new("RGB", (32, 32)), kind))) == "not_an_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    data = encode(Image.fromarray(COLOURS), kind)
    assert code(one(data[: len(data) * 2 // 3])) == "not_an_image"


def test_a_file_of_too_many_bytes_is_refused_unread() -> None:
    strict = replace(SETTINGS, max_bytes=len(PNG) - 1)
    assert code(one(PNG, settings=strict)) == "too_large"


@pytest.mark.parametrize("side", [10_000, 20_000], ids=["our limit", "Pillow's limit"])
def test_a_hundred_megapixels_are_refused_undecoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(Image.new("1", (side, side)))
    monkeypatch.delattr(Image.Image, "load")
    assert code(one(data)) == "too_large"


def test_an_image_without_pixels_is_refused() -> None:
    gif = b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b";"
    assert code(one(gif)) == "not_an_image"


@pytest.mark.parametrize(
    ("reader", "kind"), [("open", "BMP"), ("frombytes", "PNG")], ids=["any", "plain"]
)
def test_a_lack_of_memory_is_not_the_senders_fault(
    reader: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starve(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, reader, starve)
    with pytest.raises(MemoryError):
        one(encode(Image.fromarray(PIXELS), kind))


def test_an_image_keeps_its_aspect_on_the_models_background() -> None:
    pixels = good(encode(Image.new("RGB", (200, 100), (200, 0, 0))), model=RGB)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, -1, -1].tolist() == [10, 20, 30]
    assert pixels[:, 32, 0].tolist() == [200, 0, 0]
    assert pixels[:, 16, 32].tolist() == [200, 0, 0]
    assert pixels[:, 15, 32].tolist() == [10, 20, 30]


def test_a_thin_image_keeps_a_pixel() -> None:
    pixels = good(encode(Image.new("L", (5000, 1), 255)))
    assert np.count_nonzero(pixels) == 28


def test_holes_show_the_models_background() -> None:
    holes = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    holes.putpixel((1, 2), (107, 108, 109, 255))
    pixels = good(encode(holes), model=RGB)
    assert pixels[:, 2, 1].tolist() == [107, 108, 109]
    assert pixels[:, 5, 5].tolist() == [10, 20, 30]


def test_half_a_hole_is_half_a_background() -> None:
    assert good(encode(Image.new("LA", (28, 28), (255, 128))))[0, 3, 3] == 128


def test_a_palette_with_a_hole_shows_its_colours_and_the_background() -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([1, 1, 1, 50, 60, 70])
    image.putpixel((0, 0), 0)
    pixels = good(encode(image, transparency=0), model=RGB)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, 9, 9].tolist() == [50, 60, 70]


def test_a_grey_that_stands_for_a_hole_shows_the_background() -> None:
    model = replace(GREY, background=(99,))
    assert good(encode(Image.new("L", (28, 28), 5), transparency=5), model=model)[0, 3, 3] == 99


def garment(background: int, cloth: int, side: int = 280) -> Image.Image:
    """A square in the middle of its background."""
    image = Image.new("L", (side, side), background)
    image.paste(cloth, (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
    return image


BLACK = replace(GREY, background=(0,))
PAPER = replace(GREY, background=(250,))


@pytest.mark.parametrize(
    ("model", "background", "cloth", "shown"),
    [
        (BLACK, 255, 30, (0, 225)),  # a photo on white
        (BLACK, 235, 30, (0, 222)),  # grey paper is no veil
        (BLACK, 0, 200, (0, 200)),  # as in the data set
        (BLACK, 90, 10, (90, 10)),  # a dark background is no white one
        (BLACK, 255, 255, (255, 255)),  # nothing is shown
        (PAPER, 0, 200, (250, 54)),
        (PAPER, 20, 255, (250, 0)),
        (PAPER, 255, 30, (255, 30)),
        (replace(GREY, background=(100,)), 255, 30, (255, 30)),  # the model is on grey
    ],
)
def test_a_larger_image_on_the_opposite_ground_becomes_its_negative(
    model: Model, background: int, cloth: int, shown: tuple[int, int]
) -> None:
    pixels = good(encode(garment(background, cloth)), model=model)
    assert (pixels[0, 1, 1], pixels[0, 14, 14]) == shown


def test_a_colour_image_of_the_right_size_becomes_a_negative_too() -> None:
    photo = garment(255, 30, 28).convert("RGB")
    assert good(encode(photo))[0, 14, 14] == 225


def test_beside_a_negative_the_models_own_background_stands() -> None:
    pixels = good(encode(garment(255, 30).crop((0, 0, 140, 280))))
    assert (pixels[0, :, 0] == 0).all()


def test_colours_are_never_turned_into_their_negatives() -> None:
    model = replace(RGB, background=(0, 0, 0))
    pixels = good(encode(garment(255, 30).convert("RGB")), model=model)
    assert pixels[:, 1, 1].tolist() == [255, 255, 255]


def test_what_has_the_models_own_size_and_mode_is_never_a_negative() -> None:
    image = garment(255, 30, 28)
    assert np.array_equal(good(encode(image))[0], np.asarray(image))


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    deep = Image.fromarray(np.full((28, 28), 257 * 100, np.uint16))
    assert good(encode(deep))[0, 3, 3] == 100
    assert good(encode(deep, "TIFF"))[0, 3, 3] == 100
    integers = Image.fromarray(np.full((28, 28), 257 * 100, np.int32))
    assert good(encode(integers, "TIFF"))[0, 3, 3] == 100


@pytest.mark.parametrize(
    ("mode", "kind", "colour"),
    [
        ("1", "PNG", 1),
        ("CMYK", "JPEG", (0, 0, 0, 0)),
        ("CMYK", "TIFF", (0, 0, 0, 0)),
        ("RGB", "WEBP", (255, 255, 255)),
        ("YCbCr", "TIFF", (255, 128, 128)),
        ("F", "TIFF", 255.0),
        ("P", "GIF", 255),
    ],
)
def test_white_is_white_in_every_mode(mode: str, kind: str, colour: Any) -> None:  # noqa: ANN401
    image = Image.new(mode, (28, 28), colour)
    if mode == "P":
        image.putpalette([255] * 768)
    data = encode(image, kind)
    for model in (GREY, RGB):
        middle = good(data, model=model)[:, 14, 14]
        assert (middle >= 254).all()


def test_a_colour_space_that_pillow_cannot_convert_is_refused() -> None:
    data = encode(Image.new("LAB", (28, 28)), "TIFF")
    assert code(one(data)) == "unsupported_type"


def test_a_photo_is_turned_upright_by_its_exif() -> None:
    photo = Image.new("L", (28, 28), 0)
    photo.paste(255, (0, 0, 28, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = good(encode(photo, exif=exif))
    assert (pixels[0, :, -4:] == 255).all()
    assert (pixels[0, :, :-4] == 0).all()


def test_a_damaged_exif_says_nothing_about_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for damage in (b"", b"Exif\x00\x00", b"MM\x00\x2a\xff\xff\xff\xff", exif.tobytes()[:-9]):
        assert np.array_equal(good(encode(Image.fromarray(PIXELS), exif=damage)), PIXELS[None])


def test_of_a_film_the_first_picture_is_taken() -> None:
    shades = [Image.new("L", (28, 28), shade) for shade in (40, 200)]
    data = encode(shades[0], "GIF", save_all=True, append_images=shades[1:])
    assert (good(data) == 40).all()


def test_a_large_photo_is_decoded_at_the_size_that_is_needed() -> None:
    photo = encode(Image.new("RGB", (4000, 3000), (90, 90, 90)), "JPEG")
    assert good(photo)[0, 14, 14] in range(88, 93)


# Depth


def deep(*values: int, kind: str = "PNG", dtype: str = "uint16", **options: Any) -> list[int]:  # noqa: ANN401 - Pillow's
    """What becomes of these grey values, one row each, in an image of the model's own size."""
    array = np.zeros((28, 28), dtype)
    array[: len(values)] = np.array(values, dtype)[:, None]
    pixels = good(encode(Image.fromarray(array), kind, **options))
    return [int(pixels[0, row, 14]) for row in range(len(values))]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_rounded_as_the_png_specification_says(kind: str) -> None:
    values = [0, 128, 129, 32_768, 33_096, 65_534, 65_535, *range(1_000, 60_000, 4_321)]
    wanted = [int(value * 255 / 65_535 + 0.5) for value in values]
    assert wanted[3:6] == [128, 129, 255]
    assert deep(*values, kind=kind) == wanted


@pytest.mark.parametrize("key", [0, 30_000, 65_535])
def test_a_sixteen_bit_value_that_stands_for_a_hole_is_compared_in_sixteen_bits(key: int) -> None:
    near = key - 1 if key else 1
    array = np.zeros((28, 28), np.uint16)
    array[:3] = np.array([key, near, 50_000], np.uint16)[:, None]
    model = replace(GREY, background=(100,))
    data = encode(Image.fromarray(array), transparency=key)
    shown = good(data, model=model)[0, :3, 14].tolist()
    assert shown[0] == 100
    assert shown[1:] == [round(near / 257), round(50_000 / 257)]


def test_a_transparent_ground_is_no_white_one() -> None:
    eight = garment(255, 117, 28)
    sixteen = Image.fromarray(np.asarray(eight).astype(np.uint16) * 257)
    shown = [
        good(encode(image, transparency=key))[0] for image, key in ((eight, 255), (sixteen, 65_535))
    ]
    assert np.array_equal(*shown)
    assert (shown[0][0, 0], shown[0][14, 14]) == (0, 117)


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_floats_are_a_ramp_from_black_to_white(white: float) -> None:
    ramp = [white * step / 8 for step in range(9)]
    array = np.zeros((28, 28), np.float32)
    array[:9] = np.array(ramp, np.float32)[:, None]
    pixels = good(encode(Image.fromarray(array), "TIFF"))
    assert pixels[0, :9, 0].tolist() == [round(255 * step / 8) for step in range(9)]


@pytest.mark.parametrize("value", [-1.0, 256.0, float("nan"), float("inf"), -float("inf")])
def test_floats_of_no_known_range_are_refused(value: float) -> None:
    array = np.full((28, 28), 7.0, np.float32)
    array[3, 4] = value
    refused = one(encode(Image.fromarray(array), "TIFF"))
    assert (code(refused), "no known range" in str(refused)) == ("unsupported_type", True)


@pytest.mark.parametrize("value", [-1, 65_536, 2**31 - 1])
def test_integers_beyond_sixteen_bits_are_refused(value: int) -> None:
    array = np.full((28, 28), 7, np.int32)
    array[3, 4] = value
    assert code(one(encode(Image.fromarray(array), "TIFF"))) == "unsupported_type"


@pytest.mark.parametrize("value", [1, 200, 255])
def test_integers_that_may_be_eight_bits_as_well_as_sixteen_are_refused(value: int) -> None:
    data = encode(Image.fromarray(np.full((28, 28), value, np.int32)), "TIFF")
    assert code(one(data)) == "unsupported_type"
    assert not good(encode(Image.fromarray(np.zeros((28, 28), np.int32)), "TIFF")).any()


def test_grey_that_is_multiplied_by_its_alpha_is_read() -> None:
    data = encode(Image.new("LA", (28, 28), (50, 128)), "TIFF")
    associated = data.replace(
        b"\x52\x01\x03\x00\x01\x00\x00\x00\x02", b"\x52\x01\x03\x00\x01\x00\x00\x00\x01"
    )
    assert associated != data
    model = replace(GREY, background=(100,))
    assert good(associated, model=model)[0, 9, 9] in {99, 100}  # half of 100, half of the ground


# Transparency


def drawing(mode: str, ink: int, side: int = 56) -> Image.Image:
    """A square of ink in the middle of a transparent ground whose colour is the ink's too."""
    image = Image.new("LA", (side, side), (ink, 0))
    image.paste((ink, 255), (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
    if mode != "P":
        return image.convert(mode)
    indices = Image.fromarray((np.asarray(image)[..., 1] > 0).astype(np.uint8), "P")
    indices.putpalette([ink] * 6)
    indices.info["transparency"] = 0
    return indices


DRAWINGS = [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "WEBP")]
DRAWINGS += [("RGBA", "TIFF")]


@pytest.mark.parametrize(("mode", "kind"), DRAWINGS)
@pytest.mark.parametrize("ink", [0, 30, 60])
@pytest.mark.parametrize("side", [28, 56])
def test_a_dark_drawing_on_transparency_is_seen_as_on_white_paper(
    mode: str, kind: str, ink: int, side: int
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = good(encode(drawing(mode, ink, side), kind, **options))
    paper = good(encode(garment(255, ink, side).convert("RGB")))
    assert np.abs(pixels.astype(int) - paper).max() <= 10  # Lanczos overshoots at edges
    assert (pixels[0, 1, 1], pixels[0, 14, 14]) == (0, 255 - ink)


@pytest.mark.parametrize(("mode", "kind"), DRAWINGS)
@pytest.mark.parametrize("ink", [255, 140, 70])
def test_a_bright_drawing_on_transparency_is_seen_as_on_the_models_black(
    mode: str, kind: str, ink: int
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = good(encode(drawing(mode, ink), kind, **options))
    assert (pixels[0, 1, 1], pixels[0, 14, 14]) == (0, ink)


def test_on_a_white_model_it_is_the_other_way_round() -> None:
    assert good(encode(drawing("RGBA", 0)), model=PAPER)[0, 14, 14] == 0
    assert good(encode(drawing("RGBA", 255)), model=PAPER)[0, 14, 14] < 5


def test_a_grey_background_has_no_opposite() -> None:
    grey = replace(GREY, background=(100,))
    assert good(encode(drawing("RGBA", 90)), model=grey)[0, 1, 1] == 100


@pytest.mark.parametrize(("ink", "ground"), [(0, 255), (30, 255), (90, 10), (255, 10)])
def test_in_colour_only_what_would_be_lost_changes_its_ground(ink: int, ground: int) -> None:
    model = replace(RGB, background=(10, 10, 10))
    pixels = good(encode(drawing("RGBA", ink)), model=model)
    assert pixels[:, 1, 1].tolist() == [ground] * 3
    assert pixels[:, 32, 32].tolist() == [ink] * 3


def test_an_image_of_nothing_but_holes_is_the_background() -> None:
    assert not good(encode(Image.new("LA", (60, 60), (77, 0)))).any()


# Whatever comes


HEADS = [PNG[:29], PNG, encode(Image.fromarray(COLOURS), "JPEG"), b"GIF89a", b"BM", b"II*\x00"]
HEADS += [encode(Image.fromarray(COLOURS), kind)[:400] for kind in ("WEBP", "TIFF", "GIF", "BMP")]


@given(
    head=st.sampled_from(HEADS),
    cut=st.integers(0, 400),
    tail=st.binary(max_size=200),
    kind=st.sampled_from(["", "image/png", "application/json", "text/plain"]),
)
def test_bytes_of_any_kind_are_an_image_or_refused(
    head: bytes, cut: int, tail: bytes, kind: str
) -> None:
    with warnings.catch_warnings(record=True) as said:
        item = one(head[:cut] + tail, kind)
    assert isinstance(item, Refused) or item.shape == GREY.shape
    assert said == []


def test_a_message_shows_no_address_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def complain(stream: object, **_: object) -> None:
        raise UnidentifiedImageError(f"cannot identify image file {stream!r}")

    monkeypatch.setattr(Image, "open", complain)
    assert str(one(BMP)) == "The image is damaged: its head contradicts itself."


def test_a_message_never_repeats_more_than_a_line_of_a_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def complain(*_: object, **__: object) -> None:
        raise KeyError("x" * 5000)

    monkeypatch.setattr(Image, "open", complain)
    refused = one(BMP)
    assert isinstance(refused, Refused)
    assert len(str(refused)) <= 200


# Plain PNGs: what `read_plain_png` reads is what Pillow reads; all else is left to Pillow


def filtered(pixels: Pixels, kinds: Sequence[int]) -> bytes:
    """The rows of [H, W, C] behind their filters, in turn (PNG, 9.2).

    None, Sub, Up, Average, Paeth; what PNG does not know stands before a row as it is.
    """
    height, width, channels = pixels.shape
    wide = np.zeros((height + 1, width + 1, channels), int)
    wide[1:, 1:] = pixels
    left, above, corner = wide[1:, :-1], wide[:-1, 1:], wide[:-1, :-1]
    predicted = [np.zeros_like(left), left, above, (left + above) // 2, paeth(left, above, corner)]
    differences = [(pixels - one).astype(np.uint8).reshape(height, -1) for one in predicted]
    rows = [kinds[row % len(kinds)] for row in range(height)]
    return b"".join(
        bytes([kind]) + differences[kind if kind <= PAETH else 0][row].tobytes()
        for row, kind in enumerate(rows)
    )


def paeth(left: NDArray[Any], above: NDArray[Any], corner: NDArray[Any]) -> NDArray[Any]:
    """The neighbour that is nearest to left + above - corner; in doubt the first one."""
    neighbours = np.stack([left, above, corner])
    nearest = np.abs(left + above - corner - neighbours).argmin(axis=0)
    found: NDArray[Any] = np.take_along_axis(neighbours, nearest[None], axis=0)[0]
    return found


def png_of(flat: bytes, pixels: Pixels, *, interlace: int = 0, parts: int = 1) -> bytes:
    """A PNG with these unpacked bytes, in so many chunks."""
    height, width, channels = pixels.shape
    head = png_header(width, height, 8, {1: 0, 3: 2}[channels], interlace)
    packed = zlib.compress(flat)
    cuts = [len(packed) * part // parts for part in range(parts + 1)]
    data = [png_chunk(b"IDAT", packed[start:end]) for start, end in pairwise(cuts)]
    return b"".join([head, *data, png_chunk(b"IEND", b"")])


def plain(data: bytes, model: Model) -> Pixels | None:
    return fmnist_images.read_plain_png(inspect(data, SETTINGS.limits), model)


@pytest.mark.parametrize(
    "kinds",
    [*((kind,) for kind in range(5)), (0, 1, 2, 3, 4), (4, 3, 2, 1, 0)],
    ids=["none", "sub", "up", "average", "paeth", "all in turn", "all, backwards"],
)
@pytest.mark.parametrize(
    ("pixels", "model"), [(PIXELS[..., None], GREY), (COLOURS, RGB)], ids=["grey", "colours"]
)
def test_a_plain_png_is_read_as_pillow_reads_it(
    kinds: Sequence[int], pixels: Pixels, model: Model
) -> None:
    data = png_of(filtered(pixels, kinds), pixels)
    found = plain(data, model)
    assert found is not None
    assert np.array_equal(found, pixels.transpose(2, 0, 1))
    decoded = fmnist_images.decode(inspect(data, SETTINGS.limits), model)
    assert np.array_equal(found, fmnist_images.to_form(decoded, model))


@given(
    kinds=st.lists(st.integers(0, PAETH), min_size=27, max_size=27),
    last=st.integers(0, 6),
    differences=st.binary(min_size=784, max_size=784),
)
def test_rows_of_any_filter_are_read_as_pillow_reads_them(
    kinds: list[int], last: int, differences: bytes
) -> None:
    parts = (differences[start : start + 28] for start in range(0, 784, 28))
    behind = zip([*kinds, last], parts, strict=True)
    rows = b"".join(bytes([kind]) + part for kind, part in behind)
    assert_as_pillow(png_of(rows, OWN), must_be_read=last <= PAETH)


@given(
    pixels=st.sampled_from([OWN, SMOOTH]),
    cut=st.integers(0, 60),
    place=st.integers(0, 1000),
    changed=st.binary(max_size=3),
    more=st.binary(max_size=3),
)
def test_a_damaged_stream_is_read_as_pillow_reads_it(
    pixels: Pixels, cut: int, place: int, changed: bytes, more: bytes
) -> None:
    whole = zlib.compress(filtered(pixels, (0, 1, 2, 3, 4)))
    stream = bytearray(whole[: len(whole) - cut])
    place %= len(stream)
    stream[place : place + len(changed)] = changed
    assert_as_pillow(png_with(bytes(stream) + more))


STREAM = zlib.compress(FLAT)
EMPTY_BLOCK = bytes.fromhex("000000ffff")
"""Of a stream: stored, and not the last one (RFC 1951, 3.2.4)."""


@pytest.mark.parametrize(
    "stream",
    [
        zlib.compress(FLAT + b"\0"),
        zlib.compress(FLAT + bytes(10_000)),
        STREAM + b"x",
        STREAM + STREAM,
        STREAM[:-4],
        STREAM[:-2],
        zlib.compress(FLAT[: 3 * 29]),
    ],
    ids=[
        *("a byte more", "rows more", "more than the stream", "two streams"),
        *("no sum of the stream", "half of its sum", "three rows"),
    ],
)
def test_what_pillow_passes_over_in_a_stream_is_passed_over(stream: bytes) -> None:
    assert_as_pillow(png_with(stream), must_be_read=True)


def png_with(stream: bytes) -> bytes:
    """A PNG of the form of OWN with this as its packed rows."""
    return PNG[:33] + png_chunk(b"IDAT", stream) + png_chunk(b"IEND", b"")


def assert_as_pillow(data: bytes, *, must_be_read: bool = False) -> None:
    """Whatever is read is what Pillow's own reader makes of the file."""
    file = inspect(data, SETTINGS.limits)
    found = fmnist_images.read_plain_png(file, GREY)
    assert found is not None or not must_be_read
    if found is not None:
        wanted = fmnist_images.to_form(fmnist_images.decode(file, GREY), GREY)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("data", "model"),
    [
        (BMP, GREY),
        (png_of(FLAT, OWN), RGB),
        (png_of(FLAT, OWN), replace(GREY, mode="RGB", background=(0, 0, 0))),
        (png_of(FLAT, OWN, parts=2), GREY),
        (png_of(FLAT, OWN, interlace=1), GREY),
        (png_of(filtered(OWN, (5,)), OWN), GREY),
        (png_of(filtered(OWN, (*(0,) * 27, 255)), OWN), GREY),
        (png_of(FLAT[:-1], OWN), GREY),
        (png_of(FLAT, OWN)[:-1], GREY),
        (png_of(FLAT, OWN)[:33], GREY),
        (png_of(FLAT, OWN)[:29] + bytes(4) + png_of(FLAT, OWN)[33:], GREY),
        (png_of(FLAT, OWN)[:60] + bytes(9) + png_of(FLAT, OWN)[69:], GREY),
        (png_with(b"no stream"), GREY),
        (png_with(STREAM[:-4] + b"sums"), GREY),
        (png_with(EMPTY_BLOCK.join([STREAM[:2], *[b""] * 13_000, STREAM[2:]])), GREY),
    ],
    ids=[
        *("another format", "another size", "another mode", "two chunks", "interlaced"),
        *("no filter of PNG's", "no such filter in the last row", "a byte less", "a cut end"),
        *("only a head", "a wrong sum of the head", "a wrong sum of the data", "no stream"),
        *("a wrong sum of the stream", "more than Pillow decodes at once"),
    ],
)
def test_what_is_no_plain_png_of_the_models_form_is_left_to_pillow(
    data: bytes, model: Model
) -> None:
    try:
        found = plain(data, model)
    except Refused:
        return  # the gate has refused it already
    assert found is None


def test_a_png_that_pillow_wrote_is_a_plain_one() -> None:
    data = (DATA / "ankle-boot.png").read_bytes()
    found = plain(data, GREY)
    assert found is not None
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(found[0], np.asarray(image))


def test_a_plain_png_that_lies_turned_is_left_to_pillow() -> None:
    file = inspect(png_of(FLAT, OWN), SETTINGS.limits)
    assert fmnist_images.read_plain_png(file._replace(orientation=6), GREY) is None
