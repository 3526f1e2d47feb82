"""What is learned from a file are the pixels that the handler makes of it; all the rest is told."""

from __future__ import annotations

import io
import itertools
import os
import random
import struct
import zlib
from typing import TYPE_CHECKING, Any

import fmnist_gate
import fmnist_images
import numpy as np
import pytest
import yaml
from PIL import Image

from training.data import relabel, split
from training.errors import DataError
from training.image_files import LIMITS, ImageSpec, load_files
from training.sources import load_training_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

HANDLER_LIMITS = fmnist_gate.Limits(6_000_000, 25_000_000, 12_000_000)
ROUNDS = 1
"""Images of each kind; more find more, and take longer."""
GROUNDS = {"black": 0, "white": 255, "grey": 128, "transparent": 0}
TRANSPARENT_MODES = ("LA", "P", "RGBA", "L", "I;16", "RGB")
"""Which may have holes; the last three by a colour that stands for transparency, as PNG has it."""

FILES = {
    "1": ("PNG", "TIFF", "BMP", "GIF"),
    "L": ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"),
    "LA": ("PNG", "TIFF", "WEBP"),
    "I;16": ("PNG", "TIFF"),
    "I": ("TIFF",),
    "F": ("TIFF",),
    "P": ("PNG", "GIF", "BMP", "TIFF", "WEBP"),
    "RGB": ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"),
    "RGBA": ("PNG", "GIF", "TIFF", "WEBP", "BMP"),
    "CMYK": ("JPEG", "TIFF"),
    "YCbCr": ("JPEG", "TIFF"),
    "LAB": ("TIFF",),
}
"""Formats that hold each of Pillow's modes."""


def drawing(ground: str, generator: random.Random) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make grey [H, W] and alpha of something on a ground, of any small size."""
    height, width = generator.randint(1, 24), generator.randint(1, 24)
    rng = np.random.default_rng(generator.randrange(2**32))
    grey = np.full((height, width), GROUNDS[ground], np.uint8)
    alpha = np.full_like(grey, 0 if ground == "transparent" else 255)
    inside = (slice(height // 4, height - height // 5), slice(width // 4, width - width // 4))
    low = generator.choice((0, 40, 100, 200))
    grey[inside] = rng.integers(low, low + 56, grey[inside].shape)
    alpha[inside] = generator.choice((255, 255, 130))
    return grey, alpha


def paint(
    mode: str, grey: NDArray[np.uint8], alpha: NDArray[np.uint8], generator: random.Random
) -> Image.Image:
    """Make an image of a mode."""
    flat = Image.fromarray(grey)
    colours = Image.merge("RGB", (flat, flat.point(lambda v: v * 2 // 3), flat))
    if mode in NUMBERS:
        return Image.fromarray(NUMBERS[mode](grey, generator))
    if mode == "LA":
        return Image.merge("LA", (flat, Image.fromarray(alpha)))
    if mode == "RGBA":
        return Image.merge("RGBA", (*colours.split(), Image.fromarray(alpha)))
    if mode == "P":
        return generator.choice((flat, colours)).convert("P")
    return (flat if mode in "1L" else colours).convert("RGB" if mode == "LAB" else mode)


NUMBERS: dict[str, Callable[[NDArray[np.uint8], random.Random], NDArray[Any]]] = {
    "I;16": lambda grey, _: (grey.astype(np.uint16) * 257) ^ 77,
    "I": lambda grey, choose: grey.astype(np.int32) * 257 + choose.choice((0, 0, 99, -99)),
    "F": lambda grey, choose: (grey / choose.choice((1.0, 255.0, 255.0, 0.1))).astype(np.float32),
}
"""Grey of more than 8 bits; some of the numbers have no known range."""


def key_of(image: Image.Image) -> Any:  # noqa: ANN401 - an integer, a colour, or bytes
    """Return the colour in the corner, as PNG writes what stands for transparency."""
    if image.mode == "P":
        return bytes(255 - 50 * (index == image.getpixel((0, 0))) * 5 for index in range(256))
    return image.getpixel((0, 0))


def encode(
    image: Image.Image, form: str, orientation: int, key: object, generator: random.Random
) -> bytes:
    """Write an image file; GIF and BMP know no orientation."""
    options: dict[str, Any] = {}
    if form in {"PNG", "JPEG", "WEBP"}:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if form == "TIFF":
        options |= {"tiffinfo": {274: orientation}}
        options |= {"compression": generator.choice((None, "tiff_lzw", "tiff_adobe_deflate"))}
    if form == "WEBP":
        options["lossless"] = generator.random() < 0.5
    if key is not None and form in {"PNG", "GIF"}:
        options["transparency"] = key if form == "PNG" else 0
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def models(upright: tuple[int, int], generator: random.Random) -> Iterator[fmnist_images.Model]:
    """Yield models, grey and in colour, of any background, of the image's size and of another."""
    for mode in ("L", "RGB"):
        size = generator.choice((upright, (12, 17)))
        background = (generator.choice((0, 255, 100, 20, 230)),) * len(mode)
        yield fmnist_images.Model("m", "1", mode, size, background, ("x", "y"))


def served(content: bytes, model: fmnist_images.Model) -> NDArray[np.uint8] | None:
    """Return the handler's pixels, None if it refuses."""
    try:
        file = fmnist_gate.inspect(content, HANDLER_LIMITS)
        return fmnist_images.to_pixels(file, model)
    except fmnist_gate.Refused:
        return None


def learned(path: Path, model: fmnist_images.Model) -> NDArray[np.uint8] | None:
    """Return the pixels that are learned, None if the file is refused."""
    width, height = model.size
    spec = ImageSpec((height, width), len(model.background), model.background[0])
    try:
        images, _ = load_files([path], spec)
    except DataError:
        return None
    pixels: NDArray[np.uint8] = images[0].numpy()
    return pixels


@pytest.mark.parametrize(
    ("mode", "form"), [(mode, form) for mode, forms in FILES.items() for form in forms]
)
def test_of_every_mode_format_orientation_and_ground_the_pixels_served_are_learned(
    tmp_path: Path, mode: str, form: str
) -> None:
    generator = random.Random(f"{mode} {form}")
    path = tmp_path / "image"
    taken = 0
    for orientation, ground in itertools.product([*range(1, 9)] * ROUNDS, GROUNDS):
        if ground == "transparent" and mode not in TRANSPARENT_MODES:
            continue
        image = paint(mode, *drawing(ground, generator), generator)
        key = key_of(image) if ground == "transparent" and "A" not in mode else None
        content = encode(image, form, orientation, key, generator)
        if mode == "LAB":
            content = content.replace(PHOTOMETRIC_RGB, PHOTOMETRIC_LAB)
        path.write_bytes(content)
        across = orientation >= 5 and form not in {"GIF", "BMP"}
        for model in models(image.size[::-1] if across else image.size, generator):
            expected, found = served(content, model), learned(path, model)
            assert (expected is None) == (found is None), (orientation, ground, image, model)
            assert np.array_equal(found, expected), (orientation, ground, image, model)  # type: ignore[arg-type] # both None, or neither
            taken += found is not None
    assert taken or mode == "LAB"


PHOTOMETRIC_RGB, PHOTOMETRIC_LAB = (struct.pack("<HHIHH", 262, 3, 1, how, 0) for how in (2, 8))


def save(path: Path, image: Image.Image, **options: Any) -> Path:  # noqa: ANN401 - Pillow's
    image.save(path, **options)
    return path


def square(ground: int, value: int, size: int = 40) -> Image.Image:
    """Make a grey image of a square in the middle."""
    image = Image.new("L", (size, size), ground)
    image.paste(value, (size // 4, size // 4, size - size // 4, size - size // 4))
    return image


@pytest.mark.parametrize(("ground", "value"), [(0, 255), (255, 0), (10, 230), (250, 30)])
def test_in_a_folder_of_both_polarities_the_rarer_ones_are_learned_as_negatives(
    tmp_path: Path, ground: int, value: int
) -> None:
    images = [square(ground, value)] * 6 + [square(255 - ground, 255 - value)] * 4
    files = [save(tmp_path / f"{at}.png", image) for at, image in enumerate(images)]

    loaded, background = load_files(files, ImageSpec((28, 28)))

    assert background == ground
    far = (loaded[:, 0, 0, 0].int() - ground).abs()
    assert far.max() <= 1
    assert ((loaded[:, 0, 14, 14].int() > 127) == (value > 127)).all()


@pytest.mark.parametrize("ground", [0, 255, 128])
def test_an_image_of_the_wanted_size_is_never_a_negative(tmp_path: Path, ground: int) -> None:
    files = [
        save(tmp_path / f"{at}.png", image)
        for at, image in enumerate([square(ground, 90), square(255 - ground, 90)])
    ]

    loaded, _ = load_files(files, ImageSpec((40, 40), 1, ground))

    for file, pixels in zip(files, loaded, strict=True):
        assert np.array_equal(pixels[0].numpy(), np.asarray(Image.open(file)))


def hole(value: int, mode: str) -> Image.Image:
    alpha = square(0, 255)
    return Image.merge("RGBA", (*[Image.new("L", alpha.size, value)] * 3, alpha)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("RGBA", "png"), ("LA", "png"), ("RGBA", "webp"), ("RGBA", "gif"), ("LA", "tif")],
)
@pytest.mark.parametrize(("value", "ground"), [(0, 255), (255, 0), (30, 255), (200, 0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_drawings_on_a_transparent_ground_lie_on_the_one_that_shows_them(
    tmp_path: Path, mode: str, form: str, value: int, ground: int, channels: int
) -> None:
    options = {"lossless": True} if form == "webp" else {}
    file = save(tmp_path / f"0.{form}", hole(value, mode), **options)

    loaded, background = load_files([file], ImageSpec((28, 28), channels))

    assert background == ground
    assert loaded[0, :, 0, 0].tolist() == [ground] * channels
    assert abs(int(loaded[0, 0, 14, 14]) - value) <= 1


@pytest.mark.parametrize(("given", "expected"), [(65534, 255), (32768, 128), (33096, 129), (0, 0)])
@pytest.mark.parametrize("form", ["png", "tif"])
def test_16_bits_are_rounded_to_8(tmp_path: Path, given: int, expected: int, form: str) -> None:
    file = save(tmp_path / f"0.{form}", Image.fromarray(np.full((9, 9), given, np.uint16)))

    assert (load_files([file], ImageSpec((8, 8), 1, 128))[0] == expected).all()


@pytest.mark.parametrize(("clear", "centre"), [(65535, 30000), (0, 30000), (40000, 50000)])
def test_what_16_bits_name_transparent_is_transparent(
    tmp_path: Path, clear: int, centre: int
) -> None:
    deep = np.full((40, 40), clear, np.uint16)
    deep[10:30, 10:30] = centre
    file = save(tmp_path / "0.png", Image.fromarray(deep), transparency=clear)

    loaded, _ = load_files([file], ImageSpec((20, 20), 1, 0))

    assert loaded[0, 0, 0, 0] == 0
    assert loaded[0, 0, 10, 10] == (centre * 255 + 32767) // 65535


@pytest.mark.parametrize("most", [1.0, 255.0, 0.5, 200.0])
def test_floats_are_read_by_their_range(tmp_path: Path, most: float) -> None:
    ramp = np.linspace(0, most, 64, dtype=np.float32).reshape(8, 8)
    file = save(tmp_path / "0.tif", Image.fromarray(ramp))

    loaded, _ = load_files([file], ImageSpec((8, 8), 1, 100))

    expected = np.rint(ramp.astype(np.float64) * (255 if most <= 1 else 1))
    assert np.array_equal(loaded[0, 0].numpy(), expected)


@pytest.mark.parametrize("wrong", [-0.1, 256.0, 65535.0, np.nan, np.inf])
def test_floats_without_a_known_range_are_refused(tmp_path: Path, wrong: float) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[3, 3] = wrong
    file = save(tmp_path / "0.tif", Image.fromarray(values))

    with pytest.raises(DataError, match=r"0.tif cannot be used \(its numbers have no known range"):
        load_files([file], ImageSpec((8, 8), 1, 100))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["tif", "png", "jpg", "webp"])
def test_images_stored_on_their_side_have_their_upright_size(
    tmp_path: Path, form: str, orientation: int
) -> None:
    how: dict[str, Any] = {"tiffinfo": {274: orientation}}
    if form != "tif":
        how = {"exif": Image.Exif()}
        how["exif"][274] = orientation
    file = save(tmp_path / f"0.{form}", Image.new("RGB", (40, 20), 99), **how)

    shape = load_files([file], ImageSpec())[0].shape

    assert shape == ((1, 3, 40, 20) if orientation >= 5 else (1, 3, 20, 40))


@pytest.mark.parametrize(
    ("kind", "value"), [(2, b"6\0"), (7, b"\6\0"), (5, bytes(8)), (12, bytes(8))]
)
def test_an_orientation_that_is_no_number_turns_nothing(
    tmp_path: Path, kind: int, value: bytes
) -> None:
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    length = len(value) // {5: 8, 12: 8}.get(kind, 1)
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, 274, kind, length) + place + bytes(4)
    file = save(tmp_path / "0.jpg", Image.new("RGB", (40, 20), 99), exif=exif + value)

    assert load_files([file], ImageSpec())[0].shape == (1, 3, 20, 40)


@pytest.mark.parametrize("form", ["png", "gif", "bmp", "tif"])
@pytest.mark.parametrize(("colour", "channels"), [((9, 9, 9), 1), ((9, 9, 10), 3)])
def test_a_palette_without_colours_is_grey(
    tmp_path: Path, form: str, colour: tuple[int, int, int], channels: int
) -> None:
    image = Image.new("P", (9, 9), 1)
    image.putpalette([80, 80, 80, *colour, 200, 200, 200])
    image.putpixel((0, 0), 2)
    files = [save(tmp_path / f"0.{form}", image), save(tmp_path / "1.png", square(0, 255, 9))]

    assert load_files(files, ImageSpec())[0].shape[1] == channels


@pytest.mark.parametrize(
    ("size", "mode"), [((65_501, 1), "L"), ((5_001, 5_000), "L"), ((4_000, 3_001), "RGBA")]
)
def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], mode: str
) -> None:
    file = save(tmp_path / "0.png", Image.new(mode, (1, 1)))
    head = b"IHDR" + struct.pack(">II", *size) + file.read_bytes()[24:29]
    content = file.read_bytes()[:12] + head + struct.pack(">I", zlib.crc32(head))
    file.write_bytes(content + file.read_bytes()[33:])
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))

    with pytest.raises(DataError, match=r"0.png cannot be used \(The image has .* at most .*\): c"):
        load_files([file], ImageSpec((8, 8)))


@pytest.mark.parametrize("surplus", [1, 10**6, 10**10])
def test_a_file_of_too_many_bytes_is_refused_before_it_is_read_to_its_end(
    tmp_path: Path, surplus: int
) -> None:
    file = save(tmp_path / "0.png", Image.new("L", (9, 9)))
    os.truncate(file, LIMITS.max_bytes + surplus)

    with pytest.raises(DataError, match=r"0.png cannot be used \(it has more than 64,000,000 byt"):
        load_files([file], ImageSpec((8, 8)))


@pytest.mark.parametrize("background", [0, 100, 255])
def test_what_images_were_laid_on_is_the_background_that_is_served(
    tmp_path: Path, background: int
) -> None:
    for at, name in itertools.product(range(3), "xy"):
        (tmp_path / name).mkdir(exist_ok=True)
        save(tmp_path / name / f"{at}.png", square(40, 200))
    spec = ImageSpec((20, 21), 1, background)

    images = load_training_images(f"folder:{tmp_path}", tmp_path, spec)

    for each in (images, *split(images), relabel(images, ("y", "x"))):
        assert each.background() == background


def test_the_limits_of_pixels_are_those_that_the_handler_is_served_with(
    pytestconfig: pytest.Config,
) -> None:
    text = (pytestconfig.rootpath / "handler" / "model-config.yaml").read_text("utf-8")
    settings = yaml.safe_load(text)["handler"]

    assert LIMITS.max_pixels == settings["max_pixels"]
    assert LIMITS.max_heavy_pixels == settings["max_heavy_pixels"]
    assert LIMITS.max_bytes >= settings["max_bytes"]
