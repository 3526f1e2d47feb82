"""What the HTTP transport asks of a server's dialect, and of whoever holds its credentials."""

from __future__ import annotations

from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..records import Answer, Image

MAX_RETRY_AFTER = 60.0
"""Seconds; a Retry-After that asks for more is taken as this much."""


class Call(NamedTuple):
    """One POST request; `path` is appended to the URL that the operator gave."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class Dialect(Protocol):
    """One server's way to ask about images and to answer. Pure; called from several threads."""

    def encode(self, images: Sequence[Image]) -> Call:
        """Make one request of these images, at least one; the same images give the same bytes."""
        ...

    def interpret(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> Answer:
        """Say what a reply to `count` images means; `headers` are found in any case.

        Never raises. Only a known answer is evidence against a record: in `torchserve` a reply that
        no such server would send is Busy. Where the protocol knows no error of an item (`v1`, `v2`)
        a reply that cannot be cut into `count` answers is Failed.
        """
        ...


class Authorization(Protocol):
    """Credentials for each request. One object for each thread."""

    def header(self) -> Mapping[str, str]:
        """Return the headers to send along; raises OSError or ValueError when there are none."""
        ...

    def forget(self) -> None:
        """Fetch the credentials anew next time: the server may have refused the present ones."""
        ...


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date), at most MAX_RETRY_AFTER.

    `now`: seconds since the epoch.
    """
    if value is None:
        return None
    seconds = float(value) if value.isdecimal() and value.isascii() else _seconds_until(value, now)
    return None if seconds is None else max(0.0, min(seconds, MAX_RETRY_AFTER))


def _seconds_until(date: str, now: float) -> float | None:
    parsed = parsedate_tz(date)
    try:
        return mktime_tz(parsed) - now if parsed else None
    except (ValueError, OverflowError):  # a date that no calendar has
        return None
