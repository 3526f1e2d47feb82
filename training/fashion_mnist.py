"""The four files of Fashion-MNIST: downloaded, verified by their checksums, read."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import torch

from .data import ImageSet
from .errors import DataError
from .files import explain_error
from .idx import read_idx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""In the order of the labels."""

SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Of the unpacked files: distributions pack them again, so the checksum of a .gz proves nothing."""

DOWNLOAD_SILENCE = 30.0
"""Seconds without a byte after which a download has failed."""


def data_folder(given: Path | None = None) -> Path:
    """Return the folder of the data: as given, else $DATA_DIR, else `data`."""
    return (given or Path(os.environ.get("DATA_DIR") or "data")).expanduser()


def load_fashion_mnist(folder: Path, *, train: bool) -> ImageSet:
    """Read one part of Fashion-MNIST; raises DataError if a file is missing or corrupt."""
    part = "train" if train else "t10k"
    images = read_idx(_verify_file(folder, f"{part}-images-idx3-ubyte"))
    labels = read_idx(_verify_file(folder, f"{part}-labels-idx1-ubyte"))
    return ImageSet(images.unsqueeze(1), labels.to(torch.int64), CLASS_NAMES)


def download(folder: Path) -> None:
    """Have the four files verified in `folder`, downloading them if one is missing."""
    if not all(_path(folder, name).is_file() for name in SHA256):
        _fetch_files(folder)
    verify(folder)


def verify(folder: Path) -> None:
    """Raise DataError unless the four files are there and whole."""
    for name in SHA256:
        _verify_file(folder, name)


def _path(folder: Path, name: str) -> Path:
    return folder / "FashionMNIST" / "raw" / name


def _verify_file(folder: Path, name: str) -> Path:
    path = _path(folder, name)
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: `make setup` fetches it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {explain_error(error, path)}") from error
    if content != SHA256[name]:
        raise DataError(f"{path} is corrupt: `rm {path}` and `make setup`")
    return path


def _fetch_files(folder: Path) -> None:
    # Slow to import, and needed only here.
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415

    try:
        with _limit_silence(DOWNLOAD_SILENCE):
            FashionMNIST(str(folder), download=True)
    except (URLError, RuntimeError, OSError) as error:
        raise DataError(
            f"Fashion-MNIST could not be downloaded ({error}): "
            "set DATA_DIR to a folder that holds FashionMNIST/raw"
        ) from error


@contextmanager
def _limit_silence(seconds: float) -> Iterator[None]:
    # torchvision passes no time-out, so the only place to set one is the default.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
