"""Reading a checkpoint, which may be anybody's file: nothing in it runs, everything is checked."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import RunError
from .files import explain_error, open_regular
from .recipe import TrainingState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read_checkpoint(path: Path, version: int) -> dict[str, Any]:
    """Return what `ImageClassifier.save` wrote; raises RunError if anything in it is not that."""
    content = _load(path)
    if not isinstance(content, dict) or content.get("format") != version:
        raise RunError(f"{path} is not a checkpoint of this version: train again")
    missing = [key for key in CHECKS if key not in content]
    if missing:
        raise RunError(f"{path} is not a whole checkpoint, it lacks {', '.join(missing)}: {FIX}")
    wrong = [key for key, is_right in CHECKS.items() if not is_right(content[key])]
    if not wrong and len(content["names"]) != content["classes"]:
        wrong = ["names"]
    if wrong:
        raise RunError(f"{path} is damaged, its {', '.join(wrong)} cannot be that: {FIX}")
    return content


FIX = "take another copy, or train again"


def _load(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        with open_regular(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path} is missing: `make train` writes one") from None
    except MemoryError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {explain_error(error, path)}") from error
    except Exception as error:  # a parser raises anything on bytes that were not made for it
        raise RunError(f"{path} is not a checkpoint of this program: train again") from error


def _is_count(value: object) -> bool:
    return _is_integer(value) and value > 0  # type: ignore[operator] # it is an integer


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_count, value))  # noqa: PLR2004 - height, width


def _is_grey(value: object) -> bool:
    return _is_integer(value) and value in range(256)


def _are_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _are_weights(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(weights, Tensor) for name, weights in value.items()
    )


def _is_training(value: object) -> bool:
    """Tell whether this is the state of a training that was interrupted, or None."""
    if value is None:
        return True
    if not isinstance(value, dict) or not isinstance(value.get("optimiser"), dict):
        return False
    place = value.get("place")
    return (
        isinstance(place, dict)
        and set(place) == {field.name for field in fields(TrainingState)}
        and all(isinstance(number, int | float) for number in place.values())
    )


CHECKS: dict[str, Callable[[object], bool]] = {
    "channels": _is_count,
    "classes": _is_count,
    "size": _is_size,
    "network": lambda value: value is None or isinstance(value, str),
    "seed": _is_integer,
    "names": _are_names,
    "background": _is_grey,
    "data": lambda value: isinstance(value, str),
    "weights": _are_weights,
    "underway": _is_training,
}
"""What each key of a checkpoint must hold."""
