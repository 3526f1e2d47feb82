"""Files: regular ones to read, and atomic writes that leave a whole file or none."""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What is no regular file, by its type."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes; raises OSError for anything else of that name.

    It never waits: a pipe among the files would hold up its reader until somebody writes to it.
    """
    _require_regular(path, path.stat().st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        file.close()
        raise
    return file


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise OSError(errno.EINVAL, f"it is {kind}", str(path))


def explain_error(error: OSError, path: Path) -> str:
    """Return why a file cannot be read, in a few words for a message."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "it is a link that leads nowhere"
    return error.strerror or str(error)


def show_path(path: Path | str) -> str:
    """Return a path for a message; bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Hand out a path to write to, which takes the place of `path` when all went well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file for people and programs: indented, in UTF-8."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def symlink_atomically(link: Path, target: str) -> None:
    """Let the symbolic link `link` lead to `target`, without a moment in which it leads nowhere."""
    with atomic_write(link) as partial:
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
