"""Data sets in memory: images and labels as uint8 and int64 tensors.

A data set of this size fits in memory many times over, and slicing a tensor is hundreds of times
faster than loading one image after the other: so everything is loaded once, then only sliced.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import operator
import zlib
from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

SPLIT_SEED = 2017
"""Fixed, so that every run is evaluated on the same held-out images."""

BACKGROUND_TOLERANCE = 32
"""Grey values around the most frequent one that belong to the background: noise and shadow."""

PIXEL_TOLERANCE = 0.01
"""How far 255 times a float may lie from a whole number and still be a pixel."""


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Images uint8 [N, C, H, W], labels int64 [N], and the names of the classes if they are known.

    Raises DataError if it is empty or its parts do not fit each other.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:  # noqa: PLR2004 - N, C, H, W
            raise DataError(
                f"images must be uint8 [N, C, H, W], but these are {self.images.dtype} "
                f"{list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must be int64 [{len(self.images)}], one for each image, but these are "
                f"{self.labels.dtype} {list(self.labels.shape)}"
            )
        if not len(self.images):
            raise DataError("the data set is empty: give it at least one image")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def select(self, indices: Tensor) -> ImageSet:
        """Return the images at these indices, in this order."""
        return ImageSet(self.images[indices], self.labels[indices], self.names)

    def digest(self) -> str:
        """Return the SHA-256 of shape, pixels and labels, in hexadecimal."""
        content = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        content.update(self.images.numpy().tobytes())
        content.update(self.labels.numpy().tobytes())
        return content.hexdigest()

    def background(self) -> int:
        """Return the pixel value, 0 to 255, that lies around what the images show."""
        return estimate_background(border(self.images))


def relabel(images: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """Return the images with the labels that their classes have in `names`.

    A data set without names keeps its labels. Raises DataError for a class that is not there.
    """
    unknown = [name for name in images.names if name not in names]
    if unknown:
        raise DataError(
            f"there is no class {unknown[0]!r}: the classifier knows {', '.join(names)}"
        )
    if not images.names:
        return images
    indices = torch.tensor([names.index(name) for name in images.names])
    return ImageSet(images.images, indices[images.labels], names)


def border(images: Tensor) -> Tensor:
    """Return the outermost pixels of images [N, C, H, W], in one line."""
    rows, columns = images[:, :, [0, -1], :], images[:, :, :, [0, -1]]
    return torch.cat([rows.flatten(), columns.flatten()])


def estimate_background(pixels: Tensor) -> int:
    """Return the background, 0 to 255, of which these are the border pixels, uint8 [N].

    It is their most frequent value if half of them are about as bright. Otherwise, as with
    photographs of scenes, no value stands out and their mean is returned.
    """
    frequent = int(torch.bincount(pixels, minlength=256).argmax())
    near = (pixels.int() - frequent).abs() <= BACKGROUND_TOLERANCE
    return frequent if 2 * int(near.sum()) >= len(pixels) else round(pixels.double().mean().item())


def load_into_memory(dataset: Dataset[Any], *, channels: int, classes: int) -> ImageSet:
    """Take a map-style data set of (image, label) into memory.

    An image is a PIL image of mode L, RGB or RGBA, or a tensor or array [H, W] or [C, H, W] of
    uint8 pixels, or of floats that are pixels / 255 as torchvision's `ToTensor` makes them. A label
    is a whole number from 0 to classes - 1. Raises DataError naming the first sample that is not.
    """
    loaded = load_unchecked(dataset)
    if loaded.images.shape[1] != channels:
        raise DataError(
            f"the images have {loaded.images.shape[1]} channels, but the classifier takes "
            f"{channels}: convert them, and give arrays as [C, H, W]"
        )
    wrong = (loaded.labels < 0) | (loaded.labels >= classes)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise DataError(
            f"sample {at} has label {int(loaded.labels[at])}, but with {classes} classes "
            f"labels go from 0 to {classes - 1}"
        )
    return loaded


def load_unchecked(dataset: Dataset[Any]) -> ImageSet:
    """Do what `load_into_memory` does, whatever the channels and the labels are."""
    if isinstance(dataset, ImageSet):
        return dataset
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise DataError("the data set must be map-style: give it __len__ and __getitem__")
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(len(dataset)):
        image, label = _load_sample(dataset, index)
        images.append(image)
        labels.append(label)
        if image.shape != images[0].shape:
            raise DataError(
                f"sample {index} is {_format_shape(image)} but sample 0 is "
                f"{_format_shape(images[0])}: bring all images to one size"
            )
    if not images:
        raise DataError("the data set is empty: give it at least one image")
    names = tuple(str(name) for name in getattr(dataset, "classes", ()))
    return ImageSet(torch.stack(images), torch.tensor(labels, dtype=torch.int64), names)


def _load_sample(dataset: Dataset[Any], index: int) -> tuple[Tensor, int]:
    sample = dataset[index]
    try:
        image, label = sample
        return _to_pixels(image), operator.index(label)
    except DataError as error:
        raise DataError(f"sample {index}: {error}") from None
    except (TypeError, ValueError) as error:
        raise DataError(
            f"sample {index} is not a pair (image, label) with a whole number as label: {error}"
        ) from error


def _format_shape(image: Tensor) -> str:
    return "x".join(str(length) for length in image.shape)


def _to_pixels(image: object) -> Tensor:
    """Return one image as uint8 [C, H, W]."""
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        # A copy: torch takes neither an array that is read-only nor one that is turned round.
        image = torch.from_numpy(np.array(image, order="C"))
    if not isinstance(image, Tensor):
        raise DataError(f"{type(image).__name__} is no image: give a PIL image, a tensor or array")
    pixels = image
    if pixels.ndim not in {2, 3}:
        raise DataError(f"an image must be [H, W] or [C, H, W], but this is {list(pixels.shape)}")
    if pixels.is_floating_point():
        pixels = _round_pixels(pixels)
    if pixels.dtype != torch.uint8:
        raise DataError(
            f"pixels must be uint8, or floats from 0 to 1, but these are {pixels.dtype}"
        )
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels  # noqa: PLR2004 - H, W


def _from_pil(image: Image.Image) -> Tensor:
    if image.mode not in {"L", "RGB", "RGBA"}:
        raise DataError(f"a PIL image of mode {image.mode} is ambiguous: convert it to L or RGB")
    height_width_channels = torch.from_numpy(np.array(image)).reshape(*image.size[::-1], -1)
    return height_width_channels.permute(2, 0, 1).contiguous()


def _round_pixels(floats: Tensor) -> Tensor:
    """Return pixels / 255 as the uint8 pixels they came from."""
    scaled = floats.double() * 255
    pixels = scaled.round()
    exact = ((scaled - pixels).abs() <= PIXEL_TOLERANCE) & (pixels >= 0) & (pixels <= 255)  # noqa: PLR2004
    if not exact.all():
        raise DataError(
            "floats must be pixels / 255, from 0 to 1: leave out normalisation and augmentation, "
            "training does both itself"
        )
    return pixels.to(torch.uint8)


def split(
    whole: ImageSet, *, share: float = 1 / 12, seed: int = SPLIT_SEED
) -> tuple[ImageSet, ImageSet]:
    """Return (training, validation): `share` of every class is held out, always the same images.

    Of every class at least one. The 60,000 images of Fashion-MNIST become 55,000 and 5,000.
    """
    indices = choose_held_out(whole.labels, share=share, seed=seed)
    kept = torch.ones(len(whole), dtype=torch.bool)
    kept[indices] = False
    return whole.select(kept.nonzero().flatten()), whole.select(indices)


def choose_held_out(labels: Tensor, *, share: float = 1 / 12, seed: int = SPLIT_SEED) -> Tensor:
    """Return the indices of the validation images, int64, in ascending order."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[: max(1, round(len(members) * share))])
    return torch.cat(chosen).sort().values


def hash_indices(indices: Tensor) -> str:
    """Return the SHA-256 of indices, int64 little-endian, in hexadecimal."""
    return hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest()


def read_idx(path: Path) -> Tensor:
    """Read an idx file of bytes, perhaps packed by gzip, as uint8 [lengths…].

    The format: two zero bytes, 8 for "unsigned byte", the number of dimensions, each length as
    four bytes (big-endian), the data (http://yann.lecun.com/exdb/mnist).
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error
    if content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an idx file of bytes: rm it and fetch it again")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist()
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - start} bytes for {shape}: it is damaged, fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).reshape(shape)
