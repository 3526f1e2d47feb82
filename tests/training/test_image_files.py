"""What is learned from a file are the pixels that the handler makes of it; all the rest is told."""

from __future__ import annotations

import io
import itertools
import random
import struct
from typing import TYPE_CHECKING, Any

import fmnist_gate
import fmnist_images
import numpy as np
import pytest
import yaml
from PIL import Image

from training.errors import DataError
from training.image_files import LIMITS, ImageSpec, load_files

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


def test_the_limits_of_pixels_are_those_that_the_handler_is_served_with(
    pytestconfig: pytest.Config,
) -> None:
    text = (pytestconfig.rootpath / "handler" / "model-config.yaml").read_text("utf-8")
    settings = yaml.safe_load(text)["handler"]

    assert LIMITS.max_pixels == settings["max_pixels"]
    assert LIMITS.max_heavy_pixels == settings["max_heavy_pixels"]
    assert LIMITS.max_bytes >= settings["max_bytes"]
