"""Files of the operator's: headers to send along, and labels."""

from __future__ import annotations

import re
from functools import cache
from shlex import quote
from stat import S_IRWXG, S_IRWXO
from typing import TYPE_CHECKING

from ..errors import Exit, Stop
from ..records import Advice, Ok

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from .dialect import Authorization

MAX_HEADER_BYTES = 64 << 10
MAX_LABEL_BYTES = 4 << 20
"""Of the whole file, both."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "inference-header-content-length",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that say how a request is made: a dialect's or the transport's own."""


class HeaderFile:
    """An `Authorization`: headers of a file, one `Name: value` a line, as it holds them now.

    Empty lines and lines that begin with # mean nothing. What is in the file is in no message.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._headers: dict[str, str] = {}

    def header(self) -> dict[str, str]:
        """Raises OSError or ValueError when the file cannot be read as headers."""
        if self._path is None:
            return {}
        status = self._path.stat()
        if (status.st_mtime_ns, status.st_size) != self._seen:
            self._headers = _read_headers(self._path)
            self._seen = status.st_mtime_ns, status.st_size
        return self._headers

    def forget(self) -> None:
        """Read the file again, though it may look unchanged."""
        self._seen = None


def check_header_file(path: Path) -> Ok | Advice:
    """Read the headers; raises Stop(2) when that cannot be done."""
    try:
        count = len(_read_headers(path))
        shared = path.stat().st_mode & (S_IRWXG | S_IRWXO)
    except (OSError, ValueError) as error:
        raise Stop(f"--header-file cannot be read: {error}", Exit.USAGE) from None
    if shared:
        return Advice(f"other users of this machine may read {path}: chmod 600 {quote(str(path))}")
    return Ok(f"{count} to be sent along")


class CombinedAuthorization:
    """An `Authorization` of several; each header may come from one of them only."""

    def __init__(self, parts: Iterable[Authorization]) -> None:
        self._parts = list(parts)

    def header(self) -> Mapping[str, str]:
        """See `Authorization.header`."""
        found: dict[str, tuple[str, str]] = {}
        for part in self._parts:
            for name, value in part.header().items():
                if name.lower() in found:
                    raise ValueError(f"{name} comes twice: by --token-file and by --header-file")
                found[name.lower()] = name, value
        return dict(found.values())

    def forget(self) -> None:
        """See `Authorization.forget`."""
        for part in self._parts:
            part.forget()


def _read_headers(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        content = file.read(MAX_HEADER_BYTES + 1)
    if len(content) > MAX_HEADER_BYTES:
        raise ValueError(f"{path} has more than {MAX_HEADER_BYTES} bytes")
    found: dict[str, str] = {}
    for number, line in enumerate(content.decode("latin-1").split("\n"), 1):
        text = line.removesuffix("\r")
        if text.strip() and not text.startswith("#"):
            name, value = _parse_header(text, f"line {number} of {path}")
            if name.lower() in map(str.lower, found):
                raise ValueError(f"line {number} of {path} names a header once more")
            found[name] = value
    return found


def _parse_header(text: str, where: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    value = value.strip(" \t")
    if not colon or not _TOKEN.fullmatch(name) or not (value.isascii() and value.isprintable()):
        raise ValueError(f"{where} is not `Name: value` in printable ASCII")
    if name.lower() in _OURS:
        raise ValueError(f"{where} names a header that the connector makes itself: remove it")
    return name, value


@cache
def load_labels(path: Path) -> Sequence[str]:
    """Read one label a line, once for each process; raises Stop(2) when that cannot be done."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LABEL_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Stop(f"--labels {path} cannot be read: {why}", Exit.USAGE) from None
    labels = [line.strip() for line in text.rstrip().split("\n")]
    if len(content) > MAX_LABEL_BYTES or not all(one and one.isprintable() for one in labels):
        raise Stop(f"--labels {path} must have one label in each line, no line empty", Exit.USAGE)
    return tuple(labels)
