"""Names of the headers that are ours, and the rule by which those of others are left out. Pure.

A record that comes in may bring headers of our names: it was a dead letter once, or somebody
forged them. What is written here is known by its prefix, so none of them is believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records import Headers

OURS = "connector."
"""How the names of our own begin."""

ORIGIN = "__connect.errors."
"""How those begin that the tools around Kafka Connect read."""

REPLAY = f"{OURS}replay"
"""Which replay sent a record back; it stays on the result or on the dead letter of that record."""


def is_ours(name: str) -> bool:
    """Say whether only a connector may write a header of this name."""
    return name.startswith((OURS, ORIGIN))


def strip_earlier(headers: Headers) -> Headers:
    """Leave out what an earlier trip, or a stranger, wrote in our name, but for the replay's."""
    return tuple([header for header in headers if header[0] == REPLAY or not is_ours(header[0])])
