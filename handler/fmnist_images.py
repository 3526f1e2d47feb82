"""Images of any kind to pixels of the model's form: decoding, geometry, background.

The lower of the handler's two pure modules: `fmnist_wire` imports it, and it imports neither torch
nor TorchServe. Pixels are uint8 [channels, height, width], as the model takes them. What the sender
did wrong is raised as `Refused`.

An image file takes four steps: `open_image` reads its header and refuses what is too large before
a pixel is decoded; `to_pixels` decodes it and turns it upright; `fit` scales it to the model's size
and mode; `match_background` makes a negative of it where it lies on the opposite background. An
image of the model's own size and mode skips the last two: it passes bit for bit.
"""

from __future__ import annotations

import io
import warnings
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

Pixels = NDArray[np.uint8]
Code = Literal["not_an_image", "too_large", "wrong_shape", "bad_request", "unsupported_type"]

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
"""What Pillow may try; its rarer parsers are never shown a stranger's bytes."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for 8-bit pixels of so many channels."""

BYTES = frozenset(range(256))
MAX_DETAIL = 200
"""Characters of a message that quotes a parser."""

WHITE = 255
BACKGROUND_TOLERANCE = 32
"""Grey values from black or white within which a background counts as black or white: noise and
shadow."""
MIN_OPPOSITE_SHARE = 2 / 3
"""The share of the border that must lie on the other side of grey for an image to have the opposite
background. Of the 70,000 images of Fashion-MNIST the highest is 0.57, by a garment that fills
it."""


class Refused(Exception):
    """The sender's mistake: `code` is a word for programs, the message a sentence for people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Settings:
    """The `handler:` table of model-config.yaml, where each number has its reason."""

    threads: int
    chunk: int
    top_k: int
    max_bytes: int
    max_images: int
    max_pixels: int
    max_request_pixels: int


@dataclass(frozen=True, slots=True)
class Model:
    """What the handler must know of the model; `size` is (width, height), as Pillow has it."""

    name: str
    version: str
    mode: str
    size: tuple[int, int]
    background: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (len(self.background), self.size[1], self.size[0])

    @property
    def tag(self) -> dict[str, str]:
        """Who answered, for every good answer."""
        return {"name": self.name, "version": self.version}


def open_image(data: object, media_type: str, settings: Settings) -> Image.Image:
    """Open an image file by its header, decoding nothing; `media_type` is "" if nobody named it.

    It is only a hint: what decodes is served under any name. Raises Refused.
    """
    encoded = data.encode() if isinstance(data, str) else data
    if not isinstance(encoded, (bytes, bytearray)):
        raise Refused("unsupported_type", f"This is {media_type}: send an image file.")
    if not encoded:
        raise Refused("bad_request", "There are no bytes: send an image file.")
    if len(encoded) > settings.max_bytes:
        raise Refused(
            "too_large",
            f"The image file has {len(encoded)} bytes: send at most {settings.max_bytes}.",
        )
    with refuse_undecodable(media_type):
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    return check_size(image, settings)


@contextmanager
def refuse_undecodable(media_type: str = "") -> Iterator[None]:
    """Turn whatever Pillow says about bytes into a Refused, and silence its warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise Refused("too_large", "The image has far too many pixels.") from None
    except UnidentifiedImageError:
        raise choose_refusal(media_type) from None
    except Exception as reason:  # noqa: BLE001 - a parser raises anything on bytes not made for it
        raise Refused("not_an_image", f"The image is damaged: {reason}"[:MAX_DETAIL]) from None


def choose_refusal(media_type: str) -> Refused:
    """Return the refusal of bytes that no parser knows; their media type decides whose fault."""
    if (
        not media_type
        or media_type.startswith("image/")
        or media_type == "application/octet-stream"
    ):
        return Refused("not_an_image", f"The bytes are none of {', '.join(FORMATS)}.")
    return Refused("unsupported_type", f"This is {media_type}: send one of {', '.join(FORMATS)}.")


def check_size(image: Image.Image, settings: Settings) -> Image.Image:
    """Return the image, undecoded. Raises Refused when it has no pixels, or too many."""
    pixels = image.width * image.height
    if not pixels:
        raise Refused("not_an_image", "The image has no pixels.")
    if pixels > settings.max_pixels:
        raise Refused(
            "too_large",
            f"The image has {image.width} x {image.height} pixels: send at most "
            f"{settings.max_pixels}.",
        )
    return image


def draw(nested: list[Any], model: Model) -> Image.Image:
    """Make an image of lists of integers 0 to 255: [H][W], [C][H][W] or [H][W][C].

    Raises Refused.
    """
    array = np.array(nested, dtype=object)
    kinds = set(map(type, array.flat))
    if array.ndim not in (2, 3) or not array.size or list in kinds:
        raise Refused("wrong_shape", "The pixels must be a full [H][W], [C][H][W] or [H][W][C].")
    # bool is an int to Python, but not to whoever wrote true; 7.0 is how some languages write 7.
    if not kinds <= {int, float} or not all(value in BYTES for value in array.flat):
        raise Refused("not_an_image", "Each pixel must be an integer from 0 to 255.")
    return Image.fromarray(move_channels_last(array.astype(np.uint8), model))


def move_channels_last(array: Pixels, model: Model) -> Pixels:
    """Return [H, W] or [H, W, C]; in doubt as the model's own shape. Raises Refused."""
    if array.ndim == 2:  # noqa: PLR2004 - no channel axis
        return array
    channels, height, width = model.shape
    own = {0: (channels, height, width), 2: (height, width, channels)}
    axes = [axis for axis in own if array.shape[axis] in MODES]
    if len(axes) > 1:
        axes = [axis for axis in axes if array.shape == own[axis]]
    if len(axes) != 1:
        raise Refused(
            "wrong_shape",
            f"The pixels have the shape {list(array.shape)}: one axis, the first or the last, "
            "must be 1, 3 or 4 channels.",
        )
    last = np.moveaxis(array, axes[0], -1)
    return last[..., 0] if last.shape[-1] == 1 else np.ascontiguousarray(last)


def to_pixels(image: Image.Image, model: Model) -> Pixels:
    """Decode an opened image, as the model takes it, and close it. Raises Refused.

    An image of the model's own size and mode passes bit for bit.
    """
    with closing(image):
        side = 2 * max(model.size)
        with refuse_undecodable():
            # JPEG can be decoded at 1/2, 1/4, 1/8 for a fraction of the time; others ignore this.
            image.draft(None, (side, side))
            image.load()
        turn_upright(image)
        fitted = image if is_own(image, model) else fit(to_8_bits(image), model)
        channels, height, width = model.shape
        return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def turn_upright(image: Image.Image) -> None:
    """Turn the image as its EXIF orientation says; a damaged EXIF says nothing."""
    with suppress(Refused), refuse_undecodable():
        ImageOps.exif_transpose(image, in_place=True)


def is_own(image: Image.Image, model: Model) -> bool:
    """Tell whether the image has the model's size and mode, and no hole."""
    own = (image.mode, image.size) == (model.mode, model.size)
    return own and not image.has_transparency_data


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, where Pillow would cut it off; 32-bit integers count as 16."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def fit(image: Image.Image, model: Model) -> Image.Image:
    """Lay the image on the middle of the model's background, as large as it fits, aspect kept.

    Raises Refused for colours that cannot be converted.
    """
    mode = "RGBA" if image.has_transparency_data else model.mode
    try:
        colours = image.convert(mode)
    except ValueError:
        raise Refused("unsupported_type", f"The colour mode {image.mode} is not known.") from None
    width, height = model.size
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = colours.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    fitted = Image.new(model.mode, size, model.background)
    fitted.paste(scaled, (0, 0), scaled if mode == "RGBA" else None)
    canvas = Image.new(model.mode, model.size, model.background)
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.paste(match_background(fitted, model), corner)
    return canvas


def match_background(image: Image.Image, model: Model) -> Image.Image:
    """Return the image, or its negative if it is grey and lies on the opposite background.

    Photographs show dark things on white; a data set may show bright ones on black. Only a
    background of black or white has an opposite, and an image without any contrast is left as it
    is.
    """
    pixels, background = np.asarray(image).astype(np.float64), model.background[0]
    if model.mode != "L" or min(background, WHITE - background) > BACKGROUND_TOLERANCE:
        return image
    edge = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    opposite = (np.abs(edge - background) > WHITE / 2).mean() > MIN_OPPOSITE_SHARE
    shows = (np.abs(pixels - background) <= WHITE / 2).any()
    return invert(pixels, float(np.median(edge)), background) if opposite and shows else image


def invert(pixels: NDArray[np.float64], edge: float, background: int) -> Image.Image:
    """Return the negative in which the value `edge` becomes `background`, the other end its own.

    Paper is seldom white in a photo. Left grey, its negative is a veil that no model has learned.
    """
    end = 0 if edge > background else WHITE
    stretched = background + (pixels - edge) * (WHITE - end - background) / (end - edge)
    return Image.fromarray(stretched.round().clip(0, WHITE).astype(np.uint8))
