"""Data sets in memory: images and labels as uint8 and int64 tensors.

A data set of this size fits in memory many times over, and slicing a tensor is hundreds of times
faster than loading one image after the other: so everything is loaded once, then only sliced.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .errors import DataError

SPLIT_SEED = 2017
"""Fixed, so that every run is evaluated on the same held-out images."""

BACKGROUND_TOLERANCE = 32
"""Grey values around the most frequent one that belong to the background: noise and shadow."""

CHANNELS = frozenset({1, 3, 4})
"""That an image usually has."""

PIXEL_TOLERANCE = 0.01
"""How far 255 times a float may lie from a whole number and still be a pixel."""


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Images uint8 [N, C, H, W], labels int64 [N], and the names of the classes if they are known.

    `filled`: the pixel value, 0 to 255, that the images were laid on, None if they were not.
    Raises DataError if it is empty or its parts do not fit each other.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()
    filled: int | None = None

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
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def digest(self) -> str:
        """Return the SHA-256 of shape, pixels and labels, in hexadecimal."""
        content = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        content.update(self.images.numpy().tobytes())
        content.update(self.labels.numpy().tobytes())
        return content.hexdigest()

    def background(self) -> int:
        """Return the pixel value, 0 to 255, that lies around what the images show.

        Images that were laid on one have that one: whoever serves the model must use the same.
        """
        return estimate_background(border(self.images)) if self.filled is None else self.filled


def relabel(images: ImageSet, names: tuple[str, ...]) -> ImageSet:
    """Return the images with the labels that their classes have in `names`.

    Names that look the same are the same, however their accents are coded. A data set without
    names keeps its labels. Raises DataError for classes that are not there.
    """
    if not images.names or images.names == names:
        return images
    known = [normalize("NFC", name) for name in names]
    given = [normalize("NFC", name) for name in images.names]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise DataError(
            f"there is no class {', '.join(map(repr, unknown))}: the classifier knows "
            f"{', '.join(names)}"
        )
    indices = torch.tensor([known.index(name) for name in given])
    return replace(images, labels=indices[images.labels], names=names)


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
    names = find_names(dataset)
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(_count_samples(dataset)):
        image, label = _load_sample(dataset, index)
        images.append(image)
        labels.append(label)
        _require_equal_shapes(images[0], image, index)
    if not images:
        raise DataError("the data set is empty: give it at least one image")
    return ImageSet(torch.stack(images), torch.tensor(labels, dtype=torch.int64), names)


def _count_samples(dataset: Sized) -> int:
    try:
        return len(dataset)
    except Exception as error:  # the data set is anybody's
        raise DataError(
            f"the data set has no length, {_explain(error)}: mend its __len__"
        ) from error


def _require_equal_shapes(first: Tensor, image: Tensor, index: int) -> None:
    if len(image) != len(first):
        raise DataError(
            f"sample {index} has {len(image)} channels but sample 0 has {len(first)} "
            f"({_format_shape(image)} and {_format_shape(first)}): convert all to grey or all to "
            "RGB, as [C, H, W]"
        )
    if image.shape != first.shape:
        raise DataError(
            f"sample {index} is {_format_shape(image)} but sample 0 is "
            f"{_format_shape(first)}: bring all images to one size"
        )


def find_names(dataset: object) -> tuple[str, ...]:
    """Return the names of the classes of a data set, by their labels; () if it has none.

    They stand in `classes` or `class_to_idx`: a list, a dict of name and label in either direction,
    or the number of classes. A part of a data set, or several in a row, have the names of the
    whole. Raises DataError for names without an order.
    """
    for attribute in ("classes", "class_to_idx"):
        classes = getattr(dataset, attribute, None)
        if classes is not None:
            return tuple(normalize("NFC", name) for name in _list_names(classes, attribute))
    whole = getattr(dataset, "dataset", None)
    if whole is not None:
        return find_names(whole)
    parts = getattr(dataset, "datasets", None)
    if not isinstance(parts, Sequence):
        return ()
    found = {names for names in map(find_names, parts) if names}
    if len(found) > 1:
        one, other = (", ".join(names) for names in sorted(found)[:2])
        raise DataError(f"the parts have different classes, {one} and {other}: name them alike")
    return found.pop() if found else ()


def _list_names(classes: object, attribute: str) -> list[str]:
    """Return the names in the order of their labels."""
    if isinstance(classes, Mapping):
        return _sort_names(dict(classes), attribute)
    if isinstance(classes, int) and not isinstance(classes, bool):
        return [str(label) for label in range(classes)]
    unordered = isinstance(classes, str | bytes | AbstractSet) or not isinstance(classes, Iterable)
    if unordered:
        raise DataError(
            f"`{attribute}` of the data set is {type(classes).__name__}: give a list of names in "
            "the order of the labels"
        )
    assert isinstance(classes, Iterable), "the rest was refused"  # noqa: S101
    return [_to_name(name) for name in classes]


def _sort_names(classes: dict[Any, Any], attribute: str) -> list[str]:
    """Return the names of a dict of name and label, in either direction, by their labels."""
    turned = all(isinstance(name, str) for name in classes) and bool(classes)
    pairs = {label: name for name, label in classes.items()} if turned else classes
    try:
        by_label = {operator.index(label): _to_name(name) for label, name in pairs.items()}
    except TypeError:
        by_label = {}
    if sorted(by_label) != list(range(len(classes))):
        raise DataError(
            f"`{attribute}` of the data set must give each name one label from 0 to "
            f"{len(classes) - 1}: give a list of names in the order of the labels"
        )
    return [by_label[label] for label in range(len(classes))]


def _to_name(name: object) -> str:
    """Return the name of a class; ImageNet's are tuples of synonyms."""
    text = ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name of the class {text!r} is not UTF-8: rename it") from None
    return text


def _load_sample(dataset: Dataset[Any], index: int) -> tuple[Tensor, int]:
    try:
        sample = dataset[index]
    except MemoryError:
        raise
    except Exception as error:  # the data set is anybody's
        raise DataError(f"sample {index} cannot be loaded, {_explain(error)}: mend it") from error
    if isinstance(sample, Mapping):
        raise DataError(
            f"sample {index} is a dict with {', '.join(map(str, sample))}: return a pair (image, "
            "label)"
        )
    try:
        image, label = sample
        number = operator.index(label)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"sample {index} is not a pair (image, label) with a whole number as label: {error}"
        ) from error
    try:
        return _to_pixels(image), number
    except DataError as error:
        raise DataError(f"sample {index}: {error}") from None


def _explain(error: Exception) -> str:
    return f"it raised {type(error).__name__} ({error})"


def _format_shape(image: Tensor) -> str:
    return "x".join(str(length) for length in image.shape)


def _to_pixels(image: object) -> Tensor:
    """Return one image as uint8 [C, H, W]."""
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Tensor):
        raise DataError(f"{type(image).__name__} is no image: give a PIL image, a tensor or array")
    pixels = image.detach().cpu()
    _check_shape(pixels)
    if pixels.is_floating_point():
        pixels = _round_pixels(pixels)
    if pixels.dtype != torch.uint8:
        raise DataError(
            f"pixels must be uint8, or floats from 0 to 1, but these are {pixels.dtype}"
        )
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels  # noqa: PLR2004 - H, W


def _from_array(image: np.ndarray[Any, Any]) -> Tensor:
    try:
        # A copy: torch takes neither an array that is read-only nor one that is turned round.
        return torch.from_numpy(np.array(image, order="C"))
    except TypeError:
        raise DataError(
            f"pixels must be uint8, or floats from 0 to 1, but these are {image.dtype}"
        ) from None


def _check_shape(pixels: Tensor) -> None:
    """Raise DataError unless this is [H, W] or [C, H, W]."""
    shape = list(pixels.shape)
    if pixels.ndim not in {2, 3}:
        raise DataError(f"an image must be [H, W] or [C, H, W], but this is {shape}")
    if not all(shape):
        raise DataError(f"an image must have pixels, but this is {shape}")
    if pixels.ndim == 3 and shape[0] not in CHANNELS and shape[2] in CHANNELS:  # noqa: PLR2004 - C, H, W
        raise DataError(
            f"this is {shape}, which looks like [H, W, C] with {shape[2]} channels: give arrays as "
            "[C, H, W]"
        )


def _from_pil(image: Image.Image) -> Tensor:
    if image.mode not in {"L", "RGB", "RGBA"}:
        raise DataError(f"a PIL image of mode {image.mode} is ambiguous: convert it to L or RGB")
    height_width_channels = torch.from_numpy(np.array(image)).reshape(*image.size[::-1], -1)
    return height_width_channels.permute(2, 0, 1).contiguous()


def _round_pixels(floats: Tensor) -> Tensor:
    """Return pixels / 255 as the uint8 pixels they came from."""
    if floats.dtype not in {torch.float32, torch.float64}:
        raise DataError(
            f"floats of {floats.dtype} are too coarse to be pixels for certain: give uint8 or "
            "float32"
        )
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
