"""Replacing one part of the product, for the negative controls; never silently in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Callable


class PatchError(StackError):
    """What a bug replaces is not there any more; the message is one sentence with the fix."""


def replace_attribute(owner: object, name: str, make_replacement: Callable[[Any], Any]) -> None:
    """Put what `make_replacement` makes of `owner.name` in its place; raise PatchError without one.

    `owner`: a class or a module, the one in which the product looks the name up. What a class only
    inherits is not its own: the product's part is gone, and the library's would be replaced.
    """
    if name not in vars(owner):
        where = getattr(owner, "__name__", owner)
        raise PatchError(f"{where} has no {name} to replace: write this bug anew in bugs.py")
    setattr(owner, name, make_replacement(getattr(owner, name)))
