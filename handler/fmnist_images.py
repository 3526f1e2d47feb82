"""Images of any kind to pixels of the model's form: decoding, orientation, depth, background.

The middle of the handler's three pure modules: `fmnist_wire` imports it, and it imports neither
torch nor TorchServe. Pixels are uint8 [channels, height, width], as the model takes them. What the
sender did wrong is raised as `Refused`.

An image file takes three steps: `fmnist_gate.inspect` reads its structure and refuses what would
cost too much; `decode` hands the clean bytes to Pillow and turns the image upright; `fit` brings it
to the model's form: 8 bits, the model's size and mode, holes filled, on the model's background. An
image of the model's own size and mode skips the last: it passes bit for bit. `read_plain_png`
goes before: what it can read is what programs send that have the model's form already, and at
28 x 28 pixels it takes less than half of Pillow's time; whatever else comes is left to Pillow.
"""

from __future__ import annotations

import io
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from fmnist_gate import Limits, Refused, damaged
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fmnist_gate import File

Pixels = NDArray[np.uint8]

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for 8-bit pixels of so many channels."""

MAX_DETAIL = 170
"""Characters of a parser that a message quotes."""

WHITE = 255
DEEP_WHITE = 65_535
BAND_ROWS = 256
BACKGROUND_TOLERANCE = 32
"""Grey values from black or white within which a background counts as black or white: noise and
shadow."""
MIN_OPPOSITE_SHARE = 2 / 3
"""The share of the border that must lie on the other side of grey for an image to have the opposite
background. Of the 70,000 images of Fashion-MNIST the highest is 0.57, by a garment that fills
it."""

MIN_CONTRAST = {"L": 64, "RGB": 32}
"""Grey values between the background and what an image with holes shows, by the model's mode."""

PLAIN_PNG = Struct(">8s 4s4s 2I5B I I4s")
"""The signature; IHDR with its length, name, fields and checksum; length and name of the next."""
PLAIN_END = bytes.fromhex("0000000049454e44ae426082")
"""IEND, which is always the same."""
PLAIN_COLOURS = {0: "L", 2: "RGB"}
"""The mode of a PNG's colour type, with 8 bits a sample."""
MAX_PLAIN_BYTES = 65_536
"""Of packed rows: Pillow's reader hands its decoder so many at once (`ImageFile.MAXBLOCK`), and the
decoder's verdict on a stream whose end is wrong depends on where it was cut."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The `handler:` table of model-config.yaml, where each value has its reason."""

    precision: str
    threads: int
    passes: int
    chunk: int
    top_k: int
    max_bytes: int
    max_images: int
    max_pixels: int
    max_heavy_pixels: int
    max_request_pixels: int
    max_request_ms: int
    batch_ms: int
    sandbox_mb: int

    @property
    def limits(self) -> Limits:
        """Those of one image file."""
        return Limits(self.max_bytes, self.max_pixels, self.max_heavy_pixels)


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


def decode(file: File, model: Model) -> Image.Image:
    """Decode a file that the gate let pass, and turn it upright. Raises Refused."""
    with refuse_undecodable():
        image: Image.Image = Image.open(io.BytesIO(file.data), formats=(file.format,))
        # JPEG can be decoded at 1/2, 1/4, 1/8 for a fraction of the time; others ignore this.
        side = 2 * max(model.size)
        image.draft(None, (side, side))
        image.load()
    turn = TURNS.get(file.orientation)
    return image if turn is None else image.transpose(turn)


@contextmanager
def refuse_undecodable() -> Iterator[None]:
    """Turn whatever Pillow says about bytes into a Refused, and silence its warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its words name an address in memory
        raise damaged("its head contradicts itself") from None
    except Exception as reason:  # noqa: BLE001 - a parser raises anything on bytes not made for it
        raise damaged(f"{reason or type(reason).__name__}"[:MAX_DETAIL].rstrip(".")) from None


def draw(nested: list[Any], model: Model) -> Image.Image:
    """Make an image of lists of integers 0 to 255: [H][W], [C][H][W] or [H][W][C].

    Raises Refused. Nothing is built before the shape is known to be full, and each level is walked
    once, so lists cost no more than their length.
    """
    shape, flat = flatten(nested)
    kinds = set(map(type, flat))
    if list in kinds:
        raise wrong_shape()
    # bool is an int to Python, but not to whoever wrote true; 7.0 is how some languages write 7.
    if not kinds <= {int, float}:
        raise no_pixel()
    if float in kinds:
        flat = [to_integer(value) for value in flat]
    try:
        array = np.frombuffer(bytes(flat), np.uint8).reshape(shape)
    except ValueError:
        raise no_pixel() from None
    return Image.fromarray(move_channels_last(array, model))


def draw_raw(data: bytes | bytearray, model: Model) -> Image.Image:
    """Make an image of the bytes of the model's own pixels, [C, H, W]."""
    pixels = np.moveaxis(np.frombuffer(data, np.uint8).reshape(model.shape), 0, -1)
    return Image.fromarray(pixels[..., 0] if model.mode == "L" else np.ascontiguousarray(pixels))


def flatten(nested: list[Any]) -> tuple[list[int], list[Any]]:
    """Return the shape of two or three levels of lists, and their values. Raises Refused."""
    shape, level = [len(nested)], nested
    while len(shape) < len(MODES) and level and set(map(type, level)) == {list}:
        lengths = set(map(len, level))
        if len(lengths) != 1:
            raise wrong_shape()
        shape += lengths
        level = list(chain.from_iterable(level))
    if len(shape) == 1 or not level:
        raise wrong_shape()
    return shape, level


def wrong_shape() -> Refused:
    """Return the refusal of lists that are no rectangle."""
    return Refused("wrong_shape", "The pixels must be a full [H][W], [C][H][W] or [H][W][C].")


def no_pixel() -> Refused:
    """Return the refusal of values that are no pixels."""
    return Refused("not_an_image", "Each pixel must be an integer from 0 to 255.")


def to_integer(value: float) -> int:
    """Return a whole float as an int. Raises Refused for another."""
    if isinstance(value, float) and not value.is_integer():
        raise no_pixel()
    return int(value)


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


def to_pixels(file: File, model: Model) -> Pixels:
    """Decode a file, as the model takes it. Raises Refused.

    An image of the model's own size and mode passes bit for bit.
    """
    pixels = read_plain_png(file, model)
    return to_form(decode(file, model), model) if pixels is None else pixels


def read_plain_png(file: File, model: Model) -> Pixels | None:
    """Return the pixels of a PNG of the model's own form; None: let Pillow's reader decide.

    It must have one IDAT of at most MAX_PLAIN_BYTES and nothing beside it, chunks with right
    checksums, and no interlace. Its rows go to the decoder that Pillow's reader would call, in the
    same call; the reader's own work, which takes longer, is left out. As there, rows that a stream
    lacks may be black, and its own checksum may go unread. Raises MemoryError alone.
    """
    packed = find_plain_idat(file, model)
    if packed is None:
        return None
    try:
        image = Image.frombytes(model.mode, model.size, packed, "zip", model.mode)
    except ValueError:  # too few bytes, no zlib stream, or an unknown filter
        return None
    return to_form(image, model)


def find_plain_idat(file: File, model: Model) -> memoryview | None:
    """Return what a plain PNG of the model's form has packed; None where it is another file."""
    data = memoryview(file.data)
    own = (file.format, file.orientation, (file.width, file.height)) == ("PNG", 1, model.size)
    if not own or len(data) < PLAIN_PNG.size or data[-len(PLAIN_END) :] != PLAIN_END:
        return None
    head = PLAIN_PNG.unpack_from(data)
    depth, colour, interlace, head_sum, length, name = *head[5:7], *head[9:]
    end = PLAIN_PNG.size + length
    if (depth, PLAIN_COLOURS.get(colour), interlace, name) != (8, model.mode, 0, b"IDAT"):
        return None
    if end + 4 + len(PLAIN_END) != len(data) or zlib.crc32(data[12:29]) != head_sum:
        return None
    if length > MAX_PLAIN_BYTES:  # before its checksum, which takes 2 ms of 6 MB
        return None
    whole = zlib.crc32(data[PLAIN_PNG.size - 4 : end]) == int.from_bytes(data[end : end + 4], "big")
    return data[PLAIN_PNG.size : end] if whole else None


def to_form(image: Image.Image, model: Model) -> Pixels:
    """Bring a decoded, upright image to the model's form. Raises Refused."""
    fitted = image if is_own(image, model) else fit(image, model)
    channels, height, width = model.shape
    return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def is_own(image: Image.Image, model: Model) -> bool:
    """Tell whether the image has the model's size and mode, and no hole."""
    own = (image.mode, image.size) == (model.mode, model.size)
    return own and not image.has_transparency_data


def fit(image: Image.Image, model: Model) -> Image.Image:
    """Lay the image on the middle of the model's background, as large as it fits, aspect kept.

    Raises Refused for pixels that cannot be converted.
    """
    colours = to_colours(image, model.mode)
    width, height = model.size
    scale = min(width / colours.width, height / colours.height)
    size = (max(1, round(colours.width * scale)), max(1, round(colours.height * scale)))
    scaled = colours.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    filled = fill_holes(scaled, model) if scaled.mode == "RGBA" else scaled
    canvas = Image.new(model.mode, model.size, model.background)
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.paste(match_background(filled, model), corner)
    return canvas


def to_colours(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in 8 bits: RGBA if anything is transparent, else in `mode`.

    Raises Refused for a colour space that cannot be converted.
    """
    if image.mode.startswith(("I", "F")):
        image = to_8_bits(image)
    elif image.mode == "La":  # grey that is multiplied by its alpha
        image = image.convert("LA")
    wanted = "RGBA" if image.has_transparency_data else mode
    try:
        return image if image.mode == wanted else image.convert(wanted)
    except ValueError:
        raise Refused("unsupported_type", f"The colour mode {image.mode} is not known.") from None


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, or floating-point grey, to 8 bits. Raises Refused.

    Band by band, so that the memory has a bound. A value that stands for transparency is compared
    as it is, since 257 of them become one.
    """
    white, key = find_white(image), image.info.get("transparency")
    scaled = Image.new("L" if key is None else "LA", image.size)
    for top in range(0, image.height, BAND_ROWS):
        band = image.crop((0, top, image.width, min(top + BAND_ROWS, image.height)))
        scaled.paste(scale_band(np.asarray(band), white, key), (0, top))
    return scaled


def find_white(image: Image.Image) -> float:
    """Return the value that stands for white. Raises Refused where nobody can know.

    A file does not say what its 32-bit integers or its floats mean. Integers are 16 bits that were
    widened; floats go to 1 or to 255, whichever holds them all.
    """
    if image.mode.startswith("I;16"):
        return DEEP_WHITE
    low, high = cast("tuple[float, float]", image.getextrema())
    if image.mode == "I" and 0 < high <= WHITE:  # as well 8 bits that were widened
        raise unknown_range()
    for white in (DEEP_WHITE,) if image.mode == "I" else (1.0, float(WHITE)):
        if low >= 0 and high <= white:
            return white
    raise unknown_range()


def scale_band(values: NDArray[Any], white: float, key: int | None) -> Image.Image:
    """Return rows of grey in 8 bits, rounded as the PNG specification says (13.12).

    Mode LA where `key` stands for transparency, else L. Raises Refused for a NaN.
    """
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise unknown_range()
        grey = np.rint(values.astype(np.float64) * (WHITE / white)).astype(np.uint8)
    else:
        grey = ((values.astype(np.uint32) * WHITE + DEEP_WHITE // 2) // DEEP_WHITE).astype(np.uint8)
    if key is None:
        return Image.fromarray(grey)
    return Image.fromarray(np.dstack([grey, np.where(values == key, 0, WHITE).astype(np.uint8)]))


def unknown_range() -> Refused:
    """Return the refusal of numbers that nobody can read as grey."""
    return Refused(
        "unsupported_type",
        "The pixels are numbers of no known range: send 8 or 16 bits, or floats from 0 to 1.",
    )


def fill_holes(image: Image.Image, model: Model) -> Image.Image:
    """Lay an RGBA image on a ground, in the model's mode."""
    filled = Image.new(model.mode, image.size, choose_ground(image, model))
    filled.paste(image, (0, 0), image)
    return filled


def choose_ground(image: Image.Image, model: Model) -> tuple[int, ...]:
    """Return the colour that shows through the holes of an RGBA image.

    It is the model's background, unless what is visible would not stand out against it: a black
    drawing on a transparent ground was drawn for white paper. For grey the opposite ground is
    right sooner, because `match_background` makes a negative of it then.
    """
    background = model.background[0]
    alpha = np.asarray(image.getchannel("A")).astype(np.float64)
    if min(background, WHITE - background) > BACKGROUND_TOLERANCE or not alpha.any():
        return model.background
    visible = float((np.asarray(image.convert("L")) * alpha).sum() / alpha.sum())
    distance = abs(visible - background)
    lost = distance < MIN_CONTRAST[model.mode]
    opposite = 0 if background > WHITE / 2 else WHITE
    return (opposite,) * len(model.background) if lost else model.background


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
