"""Folders of images: where the classes are, and which files belong to them.

Nothing is decoded here. A folder may hold a sub-folder for each class, or parts (train, test, val)
that hold such sub-folders; it may be named one level too high. What is hidden, begins with a dot,
is passed over; so is what systems and annotators leave among images.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from unicodedata import normalize

from .errors import DataError
from .files import explain_error, show_path
from .image_files import starts_like_image
from .output import list_names, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Part = Literal["train", "test"]

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
"""Names of folders that hold a part of the images, in lower case."""

LITTER = re.compile(
    r"thumbs\.db|ehthumbs\.db|desktop\.ini|icon\r|.*\.(xml|jsonl?|csv|tsv|ya?ml|md)"
    r"|(readme|licen[cs]e|notice|changelog|copying)(\..*)?",
    re.IGNORECASE | re.DOTALL,
)
"""What systems, annotators and authors leave among images."""

HIDDEN = (".", "__MACOSX")
"""How names begin that are passed over without a word."""

HOW = "it must hold a sub-folder of images for each class, or train and test with such sub-folders"


@dataclass(frozen=True, slots=True)
class Found:
    """Files to read, the label of each, and the names of the classes in the order of the labels."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]


def find_files(folder: Path, part: Part) -> Found | None:
    """Return the files of a part; None if the folder has no test images of its own.

    Raises DataError, before an image is read, if the folder cannot be understood.
    """
    with _tell_os_errors(folder):
        if not folder.is_dir():
            raise DataError(
                f"{show_path(folder)} is no folder: give one that holds a sub-folder for each class"
            )
        root = _choose_root(folder, part)
        return None if root is None else _list_classes(root)


@contextmanager
def _tell_os_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = Path(error.filename) if isinstance(error.filename, str) else folder
        raise DataError(
            f"{show_path(path)} cannot be read ({explain_error(error, path)}): mend that"
        ) from error


def _choose_root(folder: Path, part: Part) -> Path | None:
    """Return the folder whose sub-folders are the classes of this part."""
    folder = _descend(folder)
    parts = _find_parts(folder)
    if not parts:
        return folder if part == "train" else None
    if part == "test":
        test = parts.get("test") or parts.get("val")
        return None if test is None else _descend(test)
    if "train" not in parts:
        raise DataError(f"{show_path(folder)} holds {_join(parts.values())} but no train: {HOW}")
    return _descend(parts["train"])


def _descend(folder: Path) -> Path:
    """Return the folder, or the one with classes that lies in it alone, as archives unpack."""
    while True:
        inner = _list_folders(folder)
        if len(inner) != 1 or inner[0].name.lower() in PARTS:
            return folder
        if not _list_folders(inner[0]) or _holds_images(inner[0]):
            return folder
        folder = inner[0]


def _find_parts(folder: Path) -> dict[str, Path]:
    """Return the folders of train, test and val; none if those are names of classes."""
    inner = _list_folders(folder)
    named = [path for path in inner if path.name.lower() in PARTS]
    trains = [path for path in named if PARTS[path.name.lower()] == "train"]
    if len(named) < len(inner) and not any(map(_list_folders, trains)):
        return {}
    parts: dict[str, Path] = {}
    for path in named:
        other = parts.setdefault(PARTS[path.name.lower()], path)
        if other != path:
            raise DataError(
                f"{show_path(folder)} holds both {other.name} and {path.name}: leave one of them"
            )
    return parts


def _list_classes(root: Path) -> Found:
    """Return the files of each class; folders whose names look the same are one class."""
    folders = _list_folders(root)
    _require_utf8(folders)
    _refuse_parts(root, folders)
    _refuse_repetition(root, folders)
    known = {_identify(path) for path in (root, *root.resolve().parents, *folders)}
    names = sorted({normalize("NFC", path.name) for path in folders})
    found = [
        (file, names.index(normalize("NFC", path.name)))
        for path in folders
        for file in _walk(path, known - {_identify(path)})
    ]
    found.sort(key=lambda pair: pair[1])
    kept = _pass_over_litter(found)
    if not kept:
        lie = "its images lie in no sub-folder" if _holds_images(root) else "holds no images"
        raise DataError(f"{show_path(root)} {lie}: give it a sub-folder of them for each class")
    files, labels = zip(*kept, strict=True)
    return Found(files, labels, tuple(names))


def _require_utf8(folders: Sequence[Path]) -> None:
    """Raise DataError for names that no JSON file can hold."""
    wrong = [show_path(path) for path in folders if not is_utf8(path.name)]
    if wrong:
        raise DataError(f"{list_names(wrong)}: the name of a class must be UTF-8, rename it")


def is_utf8(text: str) -> bool:
    """Tell whether a text from the system can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_parts(root: Path, folders: Sequence[Path]) -> None:
    """Raise DataError where what should be a class holds parts: test images would be learned."""
    for folder in folders:
        inner = _list_folders(folder)
        if any(path.name.lower() in PARTS for path in inner) and not _holds_images(folder):
            raise DataError(
                f"{show_path(folder)} holds {_join(inner)}, so it is no class of "
                f"{show_path(root)}: name {show_path(folder)} itself"
            )


def _refuse_repetition(root: Path, folders: Sequence[Path]) -> None:
    """Raise DataError where each folder holds the same sub-folders: those are the classes."""
    if len(folders) < 2:  # noqa: PLR2004 - repetition takes two
        return
    inner = [{path.name for path in _list_folders(_descend(folder))} for folder in folders]
    common = set.intersection(*inner)
    if common and not any(map(_holds_images, folders)):
        raise DataError(
            f"{show_path(root)} is one level too high, {_join(folders)} all hold "
            f"{list_names(sorted(map(show_path, common)))}: name one of them, or call them train "
            "and test"
        )


def _join(paths: Iterable[Path]) -> str:
    return list_names([show_path(path.name) for path in paths])


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the files of a class, those of its sub-folders too; no folder that was seen before.

    A link may lead back up, or into another class.
    """
    identity = _identify(folder)
    if identity in seen:
        return
    seen.add(identity)
    entries = _list_visible(folder)
    inner = {path for path in entries if path.is_dir()}
    yield from (path for path in entries if path not in inner)
    for path in sorted(inner):
        yield from _walk(path, seen)


def _identify(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _pass_over_litter(found: Sequence[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """Return the files without litter, and say how much there was."""
    stems = {file.with_suffix("") for file, _ in found if file.suffix.lower() != ".txt"}
    litter = {file for file, _ in found if _is_litter(file, stems)}
    if litter:
        names = list_names(sorted({show_path(file.name) for file in litter}))
        what = "file that is no image is" if len(litter) == 1 else "files that are no images are"
        say(f"{len(litter):,} {what} passed over: {names}")
    return [(file, label) for file, label in found if file not in litter]


def _is_litter(file: Path, stems: set[Path]) -> bool:
    """Tell whether a file may be passed over: by its name, or as the annotation of an image.

    A text that bears the name of an image beside it is its annotation, as YOLO writes them.
    """
    annotation = file.suffix.lower() == ".txt" and file.with_suffix("") in stems
    if not annotation and not LITTER.fullmatch(file.name):
        return False
    try:
        return not starts_like_image(file)
    except OSError:
        return False


def _holds_images(folder: Path) -> bool:
    """Tell whether a folder holds an image itself, not in a sub-folder."""
    for path in _list_visible(folder):
        try:
            if not path.is_dir() and starts_like_image(path):
                return True
        except OSError:
            continue
    return False


def _list_folders(folder: Path) -> list[Path]:
    return [path for path in _list_visible(folder) if path.is_dir()]


def _list_visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(HIDDEN))
