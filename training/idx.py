"""idx files, as MNIST and its successors are distributed: found in a folder, unpacked, read.

The format: two zero bytes, the type of the values, the number of dimensions, each length as four
bytes (big-endian), the values (http://yann.lecun.com/exdb/mnist). Types are told by content, not by
name: a file that ends in .gz may be unpacked already, and the other way round.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from typing import TYPE_CHECKING, BinaryIO, Literal
from unicodedata import normalize

import numpy as np
import torch

from .data import ImageSet
from .errors import DataError
from .files import explain_error, open_regular, show_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

Part = Literal["train", "test"]

PREFIXES: dict[Part, tuple[str, ...]] = {"train": ("train",), "test": ("t10k", "test")}
"""In the names of the files of each part."""

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4"}
"""NumPy's name for each type of whole numbers; the others are floats."""

MAX_DIMENSIONS = 8
QMNIST_COLUMNS = 8
MAX_BYTES = 2**31
"""Of the values of one file, unpacked: four times EMNIST's largest. A packed file of a few
megabytes could unpack to any size."""
BLOCK_BYTES = 2**20
MAX_NAMES_BYTES = 2**20
"""Of classes.txt."""

GZIP = b"\x1f\x8b"


def load_idx(folder: Path, part: Part) -> ImageSet | None:
    """Return the images of a part, with names of their classes; None if it has no test images.

    Where the labels to learn begin at 1, as those of EMNIST's letters, they are moved to 0, and
    the classes keep their numbers as names. Raises DataError.
    """
    if folder.is_file():
        raise DataError(f"{show_path(folder)} is a file: name the folder that holds the idx files")
    folder = _descend(folder)
    images, labels = (_find_file(folder, part, kind) for kind in ("images", "labels"))
    if part == "test" and images is labels is None:
        return None
    if images is None or labels is None:
        raise DataError(
            f"{show_path(folder)} lacks *{part}-images-idx* or *{part}-labels-idx*: add them"
        )
    pixels, numbers = read_idx(images), _read_labels(labels)
    names = _read_names(folder / "classes.txt")
    first, names = _choose_first_label(folder, numbers, names)
    return ImageSet(
        pixels.unsqueeze(1) if pixels.ndim == 3 else pixels,  # noqa: PLR2004 - N, H, W
        numbers - first,
        names,
    )


def read_idx(path: Path) -> Tensor:
    """Read an idx file, perhaps packed by gzip: uint8 [lengths…] of bytes, else int64 [lengths…].

    It takes no more memory than its header announces, and at most MAX_BYTES. Raises DataError.
    """
    try:
        with open_regular(path) as file:
            packed = file.read(len(GZIP)) == GZIP
            file.seek(0)
            return _read_packed(path, file) if packed else _read_values(path, file)
    except OSError as error:
        raise DataError(
            f"{show_path(path)} cannot be read: {explain_error(error, path)}"
        ) from error


def _read_packed(path: Path, file: BinaryIO) -> Tensor:
    try:
        with gzip.open(file) as unpacked:
            return _read_values(path, unpacked)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{show_path(path)} is damaged, or is not an idx file at all ({error}): fetch it again"
        ) from error


def _read_values(path: Path, file: BinaryIO | gzip.GzipFile) -> Tensor:
    kind, shape = _read_head(path, file)
    expected = math.prod(shape) * kind.itemsize
    if expected > MAX_BYTES:
        raise DataError(
            f"{show_path(path)} announces {expected:,} bytes for {shape}, but at most "
            f"{MAX_BYTES:,} are read: give a smaller one"
        )
    content = _read_exactly(file, expected + 1)
    if len(content) != expected:
        found = f"more than {expected:,}" if len(content) > expected else f"{len(content):,}"
        raise DataError(
            f"{show_path(path)} holds {found} bytes for {shape}: it is damaged, fetch it again"
        )
    values = np.frombuffer(content, kind).reshape(shape)
    wanted = np.uint8 if kind == np.uint8 else np.int64
    return torch.from_numpy(values.astype(wanted, copy=kind != np.uint8))


def _read_head(path: Path, file: BinaryIO | gzip.GzipFile) -> tuple[np.dtype, list[int]]:
    """Return the type of the values and the length of each dimension."""
    head = bytes(_read_exactly(file, 4))
    if not head.startswith(b"\0\0"[: len(head)]) or head[2:3] > b"\x0e":
        raise DataError(f"{show_path(path)} is not an idx file: {_advise(head)}")
    lengths = _read_exactly(file, 4 * head[3]) if len(head) == 4 else b""  # noqa: PLR2004 - bytes
    if len(head) < 4 or len(lengths) < 4 * head[3]:  # noqa: PLR2004 - the head's bytes
        raise DataError(f"{show_path(path)} is cut inside its header: fetch it again")
    if head[2] not in TYPES or not 1 <= head[3] <= MAX_DIMENSIONS:
        raise DataError(
            f"{show_path(path)} is not an idx file of bytes or whole numbers (type {head[2]}, "
            f"{head[3]} dimensions): give one of bytes"
        )
    return np.dtype(TYPES[head[2]]), np.frombuffer(lengths, ">u4").tolist()


def _advise(head: bytes) -> str:
    """Return what to do about a file that does not begin as idx."""
    packed = head.startswith((b"PK", b"\xfd7zX", b"BZh", b"\x28\xb5\x2f\xfd", b"7z"))
    return "unpack it, or pack it by gzip" if packed else "fetch it again"


def _read_exactly(file: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """Return so many bytes, or those that there are, without room for what never comes."""
    content = bytearray()
    while len(content) < count and (block := file.read(min(BLOCK_BYTES, count - len(content)))):
        content += block
    return content


def _read_labels(path: Path) -> Tensor:
    """Return the labels, int64 [N]; of the eight columns that QMNIST has, the first.

    Raises DataError for labels of any other form, such as a column for each class.
    """
    labels = read_idx(path).to(torch.int64)
    if labels.ndim == 2 and labels.shape[1] in {1, QMNIST_COLUMNS}:  # noqa: PLR2004 - N, columns
        labels = labels[:, 0]
    if labels.ndim != 1:
        form = "x".join(map(str, labels.shape))
        raise DataError(f"{show_path(path)} holds labels {form}: give one number for each image")
    return labels


def _choose_first_label(
    folder: Path, labels: Tensor, names: tuple[str, ...]
) -> tuple[int, tuple[str, ...]]:
    """Return the number of the first class, 0 or 1, and the names.

    The labels to learn decide, where they are there: test images may lack a class.
    """
    file = _find_file(folder, "train", "labels")
    learned = _read_labels(file) if file else labels
    if not len(learned) or int(learned.min()) != 1:
        return 0, names
    highest = int(learned.max())
    if names and len(names) != highest:
        return 0, names
    return 1, names or tuple(str(label) for label in range(1, highest + 1))


def _descend(folder: Path) -> Path:
    """Return the folder, or its only sub-folder if that holds the files instead."""
    inner = [path for path in _list(folder) if path.is_dir()]
    found = any(True for part in PREFIXES for _ in _list_files(folder, part, "images"))
    return inner[0] if not found and len(inner) == 1 else folder


def _find_file(folder: Path, part: Part, kind: str) -> Path | None:
    """Return the file of images or labels; raises DataError if there are two different ones.

    The same file may be there twice, packed and unpacked: the unpacked one is taken.
    """
    found = {_plain_name(path): path for path in reversed(list(_list_files(folder, part, kind)))}
    if len(found) > 1:
        one, other = sorted(map(show_path, found.values()))[:2]
        raise DataError(f"{one} and {other} are both {kind}: leave one of them in the folder")
    return next(iter(found.values()), None)


def _list_files(folder: Path, part: Part, kind: str) -> Iterator[Path]:
    """Yield the files of this part and kind, unpacked ones first.

    Some archives unpack each file into a folder of its own name.
    """
    pattern = re.compile(rf".*({'|'.join(PREFIXES[part])})-{kind}[-.]idx", re.IGNORECASE)
    found = [path for path in _list(folder) if pattern.match(path.name)]
    inner = [each for path in found if path.is_dir() for each in _list(path)]
    files = [path for path in (*found, *inner) if pattern.match(path.name) and not path.is_dir()]
    yield from sorted(files, key=lambda path: (path.suffix.lower() == ".gz", path))


def _list(folder: Path) -> Sequence[Path]:
    """Return what lies in a folder and is not hidden; nothing if there is no such folder."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(
            f"{show_path(folder)} cannot be read: {explain_error(error, folder)}"
        ) from error


def _plain_name(path: Path) -> str:
    """Return the name that copies of a file share, packed or not, with a dot or a dash."""
    return path.name.lower().removesuffix(".gz").replace(".idx", "-idx")


def _read_names(path: Path) -> tuple[str, ...]:
    """Return the names in classes.txt, one a line; none without the file. Raises DataError."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_NAMES_BYTES)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(
            f"{show_path(path)} cannot be read: {explain_error(error, path)}"
        ) from error
    # Windows' editors begin a text with a byte order mark.
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{show_path(path)} is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from error
    lines = (line.strip() for line in re.split(r"[\r\n]+", text))
    return tuple(normalize("NFC", line) for line in lines if line)
