"""Headers in the form in which docs/schemas describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def as_object(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """Return headers as their schema sees them: texts by name, of several the last one."""
    return {name: (value or b"").decode() for name, value in headers}
