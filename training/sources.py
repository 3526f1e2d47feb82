"""Sources of images, by the word that follows `--data`.

fashion-mnist       the four files below --data-dir, verified
folder:PATH         a sub-folder for each class, named after it; or PATH/train and PATH/test, each
                    with such sub-folders
idx:PATH            a folder with *train-images-idx* and *train-labels-idx*, perhaps packed by
                    gzip, perhaps with test images as *t10k-…* or *test-…*; names of the classes
                    in classes.txt, one a line, in the order of the labels
MODULE:ATTRIBUTE    a map-style data set, or a callable that returns one
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .choices import FASHION_MNIST
from .data import (
    ImageSet,
    border,
    estimate_background,
    load_unchecked,
    read_idx,
)
from .errors import DataError
from .fashion_mnist import load_fashion_mnist

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.utils.data import Dataset

Part = Literal["train", "test"]
Size = tuple[int, int]
"""Height and width."""

FEWEST = 2
"""Images that a class needs: one to learn from and one to be evaluated on."""

GREY = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "F"})
"""Pillow's modes without colour."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What the images of a folder are brought to; None is found out from the images."""

    size: Size | None = None
    channels: int | None = None
    background: int | None = None


UNCHANGED = ImageSpec()


def load_training_images(source: str, data_dir: Path, spec: ImageSpec = UNCHANGED) -> ImageSet:
    """Return the images to learn from, with the name of every class; raises DataError."""
    images = _read(source, "train", data_dir, spec)
    assert images is not None, "every source has images"  # noqa: S101
    return _check_labels(images)


def load_unseen_images(source: str, data_dir: Path, spec: ImageSpec = UNCHANGED) -> ImageSet:
    """Return the images of a source that nothing is learned from; raises DataError."""
    images = _read(source, "test", data_dir, spec)
    if images is None:
        raise DataError(f"{source} has no test images of its own: name some with --data")
    return images


def load_any_images(source: str, data_dir: Path, spec: ImageSpec = UNCHANGED) -> ImageSet:
    """Return the test images of a source, or all when it has no such; raises DataError."""
    images = _read(source, "test", data_dir, spec) or _read(source, "train", data_dir, spec)
    assert images is not None, "every source has images"  # noqa: S101
    return images


def _read(source: str, part: Part, data_dir: Path, spec: ImageSpec) -> ImageSet | None:
    kind, colon, rest = source.partition(":")
    path = Path(rest)
    if source == FASHION_MNIST:
        return load_fashion_mnist(data_dir, train=part == "train")
    if not colon or not rest:
        raise DataError(
            f"{source!r} names no data: write {FASHION_MNIST}, folder:PATH, idx:PATH or "
            "MODULE:ATTRIBUTE"
        )
    if kind == "folder":
        return _load_folder(path, part, spec)
    if kind == "idx":
        return _load_idx(path, part)
    return load_unchecked(_import_dataset(kind, rest)) if part == "train" else None


def _check_labels(images: ImageSet) -> ImageSet:
    """Return the images with a name for every class; each class is there, and can be split."""
    channels = images.images.shape[1]
    if channels not in {1, 3}:
        raise DataError(f"the images have {channels} channels: make them grey (1) or RGB (3)")
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    names = images.names or tuple(str(label) for label in range(highest + 1))
    if lowest < 0 or highest >= len(names):
        raise DataError(
            f"labels go from {lowest} to {highest}, but with {len(names)} classes they must go "
            f"from 0 to {len(names) - 1}"
        )
    if len(names) < 2:  # noqa: PLR2004 - one class is nothing to tell apart
        raise DataError("there is one class only: give at least two")
    for name, count in zip(names, torch.bincount(images.labels, minlength=len(names)), strict=True):
        if count < FEWEST:
            raise DataError(f"class {name!r} has {count} images: give it at least {FEWEST}")
    return ImageSet(images.images, images.labels, names)


def _import_dataset(module: str, attribute: str) -> Dataset[Any]:
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"{module}:{attribute} cannot be imported ({error}): stand in the folder of the "
            "module, or set PYTHONPATH"
        ) from error
    is_a_data_set = hasattr(found, "__getitem__") and not isinstance(found, type)
    dataset: Dataset[Any] = found if is_a_data_set or not callable(found) else found()
    return dataset


def _load_idx(folder: Path, part: Part) -> ImageSet | None:
    prefixes = ("train",) if part == "train" else ("t10k", "test")
    files = [_find_file(folder, prefixes, kind) for kind in ("images", "labels")]
    if part == "test" and files == [None, None]:
        return None
    images, labels = (read_idx(_require_file(file, folder, part)) for file in files)
    class_file = folder / "classes.txt"
    names = tuple(class_file.read_text("utf-8").split("\n")) if class_file.exists() else ()
    return ImageSet(
        images.unsqueeze(1) if images.ndim == 3 else images,  # noqa: PLR2004 - N, H, W
        labels.to(torch.int64),
        tuple(name.strip() for name in names if name.strip()),
    )


def _find_file(folder: Path, prefixes: Sequence[str], kind: str) -> Path | None:
    found = [path for prefix in prefixes for path in folder.glob(f"*{prefix}-{kind}-idx*")]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]} are both {kind}: remove one")
    return found[0] if found else None


def _require_file(file: Path | None, folder: Path, part: Part) -> Path:
    if file is None:
        raise DataError(f"{folder} lacks *{part}-images-idx* or *{part}-labels-idx*: add them")
    return file


def _load_folder(folder: Path, part: Part, spec: ImageSpec) -> ImageSet | None:
    if (folder / "train").is_dir():
        folder = folder / part
    elif part == "test":
        return None
    if not folder.is_dir():
        if part == "test":
            return None
        raise DataError(f"{folder} is no folder: give one that holds a sub-folder for each class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and _is_visible(path))
    files = [
        (file, label)
        for label, path in enumerate(classes)
        for file in sorted(path.iterdir())
        if _is_visible(file)
    ]
    if not files:
        raise DataError(f"{folder} holds no images: give it a sub-folder of them for each class")
    images = _fit_files([file for file, _ in files], spec)
    names = tuple(path.name for path in classes)
    return ImageSet(images, torch.tensor([label for _, label in files]), names)


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _fit_files(files: Sequence[Path], spec: ImageSpec) -> Tensor:
    """Return the files as uint8 [N, C, H, W]: grey if all are, else RGB.

    They are converted and resized as the handler does it to what it is sent: scaled to fit, aspect
    kept, on the middle of the background, which also shows through holes.
    """
    headers = [_read_header(file) for file in files]
    grey = spec.channels == 1 if spec.channels else all(mode in GREY for mode, _ in headers)
    mode = "L" if grey else "RGB"
    size = spec.size or _require_common_size(files, [size for _, size in headers])
    scaled = [_scale(file, mode, size) for file in files]
    background = _estimate_background(scaled) if spec.background is None else spec.background
    return torch.stack(
        [_to_pixels(_paste_on_background(image, mode, size, background)) for image in scaled]
    )


def _estimate_background(images: Sequence[Image.Image]) -> int:
    opaque = (image.convert("RGB") if image.mode == "RGBA" else image for image in images)
    return estimate_background(torch.cat([border(_to_pixels(image)[None]) for image in opaque]))


def _to_pixels(image: Image.Image) -> Tensor:
    """Return an image of mode L or RGB as uint8 [C, H, W]."""
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
    return pixels.permute(2, 0, 1)


def _require_common_size(files: Sequence[Path], sizes: Sequence[Size]) -> Size:
    """Return (height, width) of the files, whose `sizes` are (width, height)."""
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{file} is {size[1]}x{size[0]} but {files[0]} is {sizes[0][1]}x{sizes[0][0]}: "
                "name the size that all are brought to with --size"
            )
    return sizes[0][1], sizes[0][0]


def _read_header(file: Path) -> tuple[str, Size]:
    """Return mode and upright (width, height)."""
    with _open(file) as image:
        across = image.getexif().get(0x0112, 1) >= 5  # noqa: PLR2004 - EXIF: 5 to 8 lie on the side
        return image.mode, image.size[::-1] if across else image.size


@contextmanager
def _open(file: Path) -> Iterator[Image.Image]:
    """Turn what Pillow says about a file into a DataError."""
    try:
        with Image.open(file) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{file} is no image: remove it") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is damaged ({error}): remove it") from error


def _scale(file: Path, mode: str, size: Size) -> Image.Image:
    """Return the image upright and as large as it fits; of `mode`, or RGBA if it has holes."""
    height, width = size
    with _open(file) as image:
        image.draft(None, (2 * max(size),) * 2)
        upright = _to_8_bits(ImageOps.exif_transpose(image))
        colours = upright.convert("RGBA" if upright.has_transparency_data else mode)
    scale = min(width / colours.width, height / colours.height)
    fitting = (max(1, round(colours.width * scale)), max(1, round(colours.height * scale)))
    return colours.resize(fitting, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, where Pillow would cut it off."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def _paste_on_background(image: Image.Image, mode: str, size: Size, background: int) -> Image.Image:
    """Return the image, of mode L or RGB, on the middle of its background."""
    height, width = size
    canvas = Image.new(mode, (width, height), (background,) * len(mode))
    corner = ((width - image.width) // 2, (height - image.height) // 2)
    canvas.paste(image, corner, image if image.mode == "RGBA" else None)
    return canvas
