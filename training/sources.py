"""Sources of images, by the word that follows `--data`.

fashion-mnist       the four files below --data-dir, verified
folder:PATH         a sub-folder for each class, named after it; or PATH/train and PATH/test, each
                    with such sub-folders: `folders` finds the files, `image_files` reads them
idx:PATH            a folder with *train-images-idx* and *train-labels-idx*, perhaps packed by
                    gzip, perhaps with test images as *t10k-…* or *test-…*; names of the classes
                    in classes.txt, one a line, in the order of the labels: `idx`
MODULE:ATTRIBUTE    a map-style data set, or a callable that returns one
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .choices import FASHION_MNIST
from .data import ImageSet, load_unchecked
from .errors import DataError, TrainingError
from .fashion_mnist import load_fashion_mnist
from .files import show_path
from .folders import Part, find_files, is_utf8
from .idx import load_idx
from .image_files import ImageSpec, Size, load_files

if TYPE_CHECKING:
    from torch.utils.data import Dataset

__all__ = [
    "ImageSpec",
    "Size",
    "load_any_images",
    "load_training_images",
    "load_unseen_images",
]

FEWEST = 2
"""Images that a class needs: one to learn from and one to be evaluated on."""

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
    if not is_utf8(source):
        raise DataError(f"{show_path(source)} is not UTF-8, and no run can note it: rename it")
    if source == FASHION_MNIST:
        return load_fashion_mnist(data_dir, train=part == "train")
    if not colon or not rest:
        raise DataError(
            f"{source!r} names no data: write {FASHION_MNIST}, folder:PATH, idx:PATH or "
            "MODULE:ATTRIBUTE"
        )
    path = _expand(rest)
    if kind == "folder":
        return _load_folder(path, part, spec)
    if kind == "idx":
        return load_idx(path, part)
    return load_unchecked(_import_dataset(kind, rest)) if part == "train" else None


def _expand(path: str) -> Path:
    """Return a path in which ~ is the home, which no shell writes out behind a colon."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"{path} begins with a home that is not known: write it out") from None


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
    return replace(images, names=names)


def _import_dataset(module: str, attribute: str) -> Dataset[Any]:
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise DataError(
            f"{module}:{attribute} cannot be imported ({error}): stand in the folder of the "
            "module, or set PYTHONPATH"
        ) from error
    except Exception as error:  # the module is anybody's
        raise DataError(f"{module} cannot be imported, {_explain(error)}: mend it") from error
    is_a_data_set = hasattr(found, "__getitem__") and not isinstance(found, type)
    is_ready = is_a_data_set or not callable(found)
    dataset: Dataset[Any] = found if is_ready else _call(found, f"{module}:{attribute}")
    return dataset


def _call(make: Any, name: str) -> Any:  # noqa: ANN401 - anybody's function
    try:
        return make()
    except TrainingError:
        raise
    except Exception as error:
        raise DataError(f"{name} returned no data set, {_explain(error)}: mend it") from error


def _explain(error: Exception) -> str:
    return f"it raised {type(error).__name__} ({error})"


def _load_folder(folder: Path, part: Part, spec: ImageSpec) -> ImageSet | None:
    found = find_files(folder, part)
    if found is None:
        return None
    images, background = load_files(found.files, spec)
    return ImageSet(images, torch.tensor(found.labels), found.names, background)
