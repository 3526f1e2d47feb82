"""Image files to pixels: the same pixels that the handler makes of what it is sent.

A file takes four steps. The gate (`image_gate`, the handler's own text) reads its structure and
hands on clean bytes, or refuses; Pillow decodes them, and the image is turned upright; it is scaled
to fit, in 8 bits; it is laid on the middle of the background of all, its holes filled. A grey image
on the opposite background becomes its negative. An image of the wanted size and mode that has no
holes skips the last two: it passes bit for bit.

The form is written here a second time, because training and handler share no code but the gate's;
tests/training/test_image_files.py holds the two against each other.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .data import border, estimate_background
from .errors import DataError
from .files import explain_error, open_regular, show_path
from .image_gate import FORMATS, File, Limits, Refused, find_format, inspect
from .output import list_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import TypeVar

    from numpy.typing import NDArray
    from torch import Tensor

    Result = TypeVar("Result")

Size = tuple[int, int]
"""Height and width."""

LIMITS = Limits(max_bytes=64_000_000, max_pixels=25_000_000, max_heavy_pixels=12_000_000)
"""Of one file. Pixels are those of the handler; it takes fewer bytes, since they come by wire."""

HEAD_BYTES = 16
"""Enough to tell the format of a file."""

GREY = frozenset({"1", "L", "LA", "La", "I", "F"})
"""Pillow's modes without colour, beside those of 16 bits; a palette may have colours or not."""

PALETTE = frozenset({"P", "PA"})

WHITE, DEEP_WHITE, MIDDLE = 255, 65_535, 127.5
NEAR_END = 32
"""Grey values from black or white within which a background counts as black or white."""
OPPOSITE_SHARE = 2 / 3
"""A grey image becomes its negative if more of its border lies on the other side of grey."""
MIN_CONTRAST = {"L": 64, "RGB": 32}
"""Grey values, by mode: what an image with holes shows lies that far from what fills them, or
they are filled with the opposite of the background."""

UPRIGHT = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.ROTATE_270, Image.Transpose.FLIP_LEFT_RIGHT),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.ROTATE_90, Image.Transpose.FLIP_LEFT_RIGHT),
    8: (Image.Transpose.ROTATE_90,),
}
"""What brings an image upright, by its orientation as EXIF and TIFF number it."""
ON_ITS_SIDE = range(5, 9)

ADVICE = {
    "stray": ("is no image", "are no images", "move {0} elsewhere"),
    "foreign": (
        f"bears the name of an image, but its bytes are none of {', '.join(FORMATS)}",
        f"bear names of images, but their bytes are none of {', '.join(FORMATS)}",
        "convert {0}, or fetch {0} again",
    ),
    "damaged": ("is damaged", "are damaged", "fetch {0} again, or move {0} elsewhere"),
    "unreadable": ("cannot be read", "cannot be read", "mend that, or move {0} elsewhere"),
    "unusable": ("cannot be used", "cannot be used", "convert {0}, or move {0} elsewhere"),
}
"""By the kind of a problem: what is wrong with one file, with several, and what to do."""

OTHER_ENDINGS = frozenset(
    {".avif", ".heic", ".heif", ".jxl", ".svg", ".raw", ".dng", ".cr2", ".nef", ".arw", ".xcf"}
)
"""Of images that Pillow does not know by themselves."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What the images of a folder are brought to; None is found out from the images."""

    size: Size | None = None
    channels: int | None = None
    background: int | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a file before it is decoded: Pillow's mode, and upright (width, height)."""

    mode: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scaled:
    """An image that fits into the wanted size; RGBA if it has holes. `own`: it passes as it is."""

    image: Image.Image
    own: bool


class Unusable(Exception):
    """Why nothing can be learned from a file: a kind of ADVICE, and what it is about this one."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def load_files(files: Sequence[Path], spec: ImageSpec) -> tuple[Tensor, int]:
    """Return the images, uint8 [N, C, H, W], and their background, 0 to 255.

    They are grey if all files are, else RGB. Raises DataError, with all files in one message that
    cannot be read.
    """
    headers = _for_each(files, _read_header)
    mode = _choose_mode(files, headers, spec)
    size = spec.size or _require_common_size(files, [header.size for header in headers])
    scaled = _for_each(files, lambda file: _scale(_decode(_read_clean(file), size), mode, size))
    background = _estimate_background(scaled, mode) if spec.background is None else spec.background
    pixels = [_to_pixels(_to_form(each, mode, size, background)) for each in scaled]
    return torch.stack(pixels), background


def starts_like_image(file: Path) -> bool:
    """Tell by its first bytes whether a file has one of the formats; raises OSError."""
    with open_regular(file) as stream:
        return _is_format(stream.read(HEAD_BYTES))


def _is_format(head: bytes) -> bool:
    try:
        find_format(head)
    except Refused:
        return False
    return True


def _for_each(files: Sequence[Path], action: Callable[[Path], Result]) -> list[Result]:
    """Return what the action makes of each file; raises DataError that names all it fails on."""
    results: list[Result] = []
    problems: dict[Path, Unusable] = {}
    for file in files:
        try:
            results.append(action(file))
        except Unusable as problem:
            problems[file] = problem
    if problems:
        raise DataError(_render_problems(problems))
    return results


def _render_problems(problems: dict[Path, Unusable]) -> str:
    """Return one sentence on all of them, one part for each kind."""
    kinds: dict[str, dict[Path, str]] = {}
    for file, problem in problems.items():
        kinds.setdefault(problem.kind, {})[file] = problem.detail
    return "; ".join(_render_kind(kind, files) for kind, files in kinds.items())


def _render_kind(kind: str, files: dict[Path, str]) -> str:
    one, several, advice = ADVICE[kind]
    if len(files) == 1:
        ((file, detail),) = files.items()
        return f"{show_path(file)} {one}{_bracket(detail)}: {advice.format('it')}"
    named = [f"{show_path(file)}{_bracket(detail)}" for file, detail in files.items()]
    return f"{list_names(named)} {several}: {advice.format('them')}"


def _bracket(detail: str) -> str:
    return f" ({detail})" if detail else ""


def _read_clean(file: Path) -> File:
    """Return a file as the gate lets it pass; raises Unusable."""
    try:
        content = _read_bytes(file)
    except OSError as error:
        raise Unusable("unreadable", explain_error(error, file)) from error
    try:
        return inspect(content, LIMITS)
    except Refused as refusal:
        sentence = str(refusal).rstrip(".").replace(": send ", ": give ")
        kind = "damaged" if refusal.code == "not_an_image" else "unusable"
        raise Unusable(kind, sentence.removeprefix("The image is damaged: ")) from refusal


def _read_bytes(file: Path) -> bytes:
    """Return the content of a file of one of the formats; raises OSError or Unusable."""
    with open_regular(file) as stream:
        content = stream.read(HEAD_BYTES)
        if not _is_format(content):
            raise Unusable("foreign" if _is_called_image(file) else "stray")
        content += stream.read(LIMITS.max_bytes + 1 - len(content))
        if len(content) > LIMITS.max_bytes:
            raise Unusable("unusable", f"it has more than {LIMITS.max_bytes:,} bytes")
    return content


def _is_called_image(file: Path) -> bool:
    """Tell whether a file has the ending of any image, of a format that is read or another."""
    ending = file.suffix.lower()
    return ending in OTHER_ENDINGS or ending in Image.registered_extensions()


def _open(clean: File) -> Image.Image:
    """Return the image, not decoded yet; raises Unusable."""
    return _guard(lambda: Image.open(io.BytesIO(clean.data), formats=(clean.format,)))


def _guard(action: Callable[[], Result]) -> Result:
    """Turn whatever Pillow says about bytes into Unusable, and silence its warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return action()
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its words name an address in memory
        raise Unusable("damaged", "its head contradicts itself") from error
    except Exception as error:  # a parser raises anything on bytes that were not made for it
        raise Unusable("damaged", str(error).rstrip(".") or type(error).__name__) from error


def _read_header(file: Path) -> Header:
    clean = _read_clean(file)
    image = _open(clean)
    across = clean.orientation in ON_ITS_SIDE
    return Header(image.mode, image.size[::-1] if across else image.size)


def _choose_mode(files: Sequence[Path], headers: Sequence[Header], spec: ImageSpec) -> str:
    """Return L if that is asked for or no file has colours, else RGB."""
    if spec.channels:
        return "L" if spec.channels == 1 else "RGB"
    modes = {header.mode for header in headers} - PALETTE
    if not all(mode in GREY or mode.startswith("I;") for mode in modes):
        return "RGB"
    pairs = zip(files, headers, strict=True)
    palettes = (file for file, header in pairs if header.mode in PALETTE)
    return "L" if all(map(_has_grey_palette, palettes)) else "RGB"


def _has_grey_palette(file: Path) -> bool:
    """Tell whether every colour of a palette is grey; a damaged file has no colours either."""
    try:
        image = _open(_read_clean(file))
        colours = _guard(lambda: image.getpalette("RGB")) or []
    except Unusable:
        return True
    return colours[0::3] == colours[1::3] == colours[2::3]


def _require_common_size(files: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> Size:
    """Return (height, width) of the files, whose `sizes` are (width, height)."""
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{show_path(file)} is {size[1]}x{size[0]} but {show_path(files[0])} is "
                f"{sizes[0][1]}x{sizes[0][0]}: name the size that all are brought to with --size"
            )
    return sizes[0][1], sizes[0][0]


def _decode(clean: File, size: Size) -> Image.Image:
    """Return the image decoded and upright; raises Unusable."""
    image = _open(clean)
    side = 2 * max(size)
    # JPEG can be decoded at 1/2, 1/4, 1/8 for a fraction of the time; others ignore this.
    _guard(lambda: (image.draft(None, (side, side)), image.load()))
    for turn in UPRIGHT.get(clean.orientation, ()):
        image = image.transpose(turn)
    return image


def _scale(image: Image.Image, mode: str, size: Size) -> Scaled:
    """Return the image as large as it fits; raises Unusable for pixels that nobody can read."""
    height, width = size
    if (image.mode, image.size) == (mode, (width, height)) and not image.has_transparency_data:
        return Scaled(image, own=True)
    colours = _to_colours(image, mode)
    scale = min(width / colours.width, height / colours.height)
    fitting = (max(1, round(colours.width * scale)), max(1, round(colours.height * scale)))
    scaled = colours.resize(fitting, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return Scaled(scaled, own=False)


def _to_colours(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in 8 bits, of `mode` or RGBA if anything is transparent."""
    if image.mode[0] in "IF":
        image = _to_8_bits(image)
    elif image.mode == "La":
        image = image.convert("LA")
    try:
        return image.convert("RGBA" if image.has_transparency_data else mode)
    except ValueError as error:
        raise Unusable("unusable", f"its colours, {image.mode}, are not known") from error


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return grey of 16 or 32 bits or of floats in 8 bits; what tRNS names is transparent."""
    values = np.asarray(image)
    grey = Image.fromarray(_round_grey(values, image.mode))
    key = image.info.get("transparency")
    if key is None:
        return grey
    alpha = np.where(values == key, 0, WHITE).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha)))


def _round_grey(values: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    """Return numbers as grey 0 to 255: PNG specification 13.12; raises Unusable without a range.

    Integers are 16 bits, perhaps widened to 32; floats go to 1 or, if one is larger, to 255.
    """
    low, high = values.min(), values.max()
    known = bool(np.isfinite(values).all()) and low >= 0
    # Integers up to 255 in 32 bits may be 8 bits that were widened as well.
    known = known and not (mode == "I" and 0 < high <= WHITE)
    if not known or high > (WHITE if mode == "F" else DEEP_WHITE):
        raise Unusable("unusable", "its numbers have no known range: 8 or 16 bits have one")
    if mode == "F":
        floats = values.astype(np.float64)
        return np.rint(floats * WHITE if high <= 1 else floats).astype(np.uint8)
    return ((values.astype(np.uint32) * WHITE + DEEP_WHITE // 2) // DEEP_WHITE).astype(np.uint8)


def _estimate_background(images: Iterable[Scaled], mode: str) -> int:
    """Return what lies around the images; those with holes are filled as suits.

    A background is not known yet, so dark ones lie on white and bright ones on black.
    """
    filled = (_fill_holes(each.image, mode, _choose_filling(each.image, "L", 0)) for each in images)
    return estimate_background(torch.cat([border(_to_pixels(image)[None]) for image in filled]))


def _fill_holes(image: Image.Image, mode: str, filling: int) -> Image.Image:
    """Return an image of `mode`; `filling`, 0 to 255, shows through the holes of an RGBA one."""
    if image.mode != "RGBA":
        return image
    filled = Image.new(mode, image.size, (filling,) * len(mode))
    filled.paste(image, (0, 0), image)
    return filled


def _choose_filling(image: Image.Image, mode: str, background: int) -> int:
    """Return what shows through holes: the background, or its opposite to stand out from.

    A black drawing on a transparent ground was drawn for white paper. Only a background of black
    or white has an opposite.
    """
    if image.mode != "RGBA" or not _is_near_end(background):
        return background
    alpha = np.asarray(image.getchannel("A")).astype(np.float64)
    if not alpha.any():
        return background
    visible = float((np.asarray(image.convert("L")) * alpha).sum() / alpha.sum())
    lost = abs(visible - background) < MIN_CONTRAST[mode]
    return background if not lost else WHITE if background < MIDDLE else 0


def _is_near_end(background: int) -> bool:
    return min(background, WHITE - background) <= NEAR_END


def _to_form(scaled: Scaled, mode: str, size: Size, background: int) -> Image.Image:
    """Return the image, of mode L or RGB, on the middle of its background."""
    if scaled.own:
        return scaled.image
    filling = _choose_filling(scaled.image, mode, background)
    image = _fill_holes(scaled.image, mode, filling)
    if mode == "L" and _is_near_end(background):
        image = _match_background(image, background)
    height, width = size
    canvas = Image.new(mode, (width, height), (background,) * len(mode))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _match_background(image: Image.Image, background: int) -> Image.Image:
    """Return a grey image, or its negative if it lies on the opposite of the background.

    An image without contrast stays as it is. In the negative the border's median becomes the
    background and the other end of grey its own opposite: paper is seldom white in a photograph.
    """
    pixels = np.asarray(image).astype(np.float64)
    far = np.abs(pixels - background) > MIDDLE
    if far.all() or _take_border(far).mean() <= OPPOSITE_SHARE:
        return image
    edge = float(np.median(_take_border(pixels)))
    end = 0 if edge > background else WHITE
    stretched = background + (pixels - edge) * (WHITE - end - background) / (end - edge)
    return Image.fromarray(stretched.round().clip(0, WHITE).astype(np.uint8))


def _take_border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost pixels of [H, W] in one line: top, bottom, then what lies between."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def _to_pixels(image: Image.Image) -> Tensor:
    """Return an image of mode L or RGB as uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
    return pixels.permute(2, 0, 1)
