"""Atomic writes: files that are either whole or not there."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
