"""JSON Schemas of docs/schemas: a validator for the keywords that they use, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
}
RULES: dict[str, tuple[Any, Callable[[Any, Any], bool]]] = {
    "type": (object, lambda v, wanted: isinstance(v, TYPES[wanted]) and not isinstance(v, bool)),
    "enum": (object, lambda v, wanted: v in wanted),
    "required": (dict, lambda v, wanted: set(wanted) <= v.keys()),
    "pattern": (str, lambda v, wanted: re.search(wanted, v) is not None),
    "maxLength": (str, lambda v, wanted: len(v) <= wanted),
    "minimum": ((int, float), lambda v, wanted: v >= wanted),
    "maximum": ((int, float), lambda v, wanted: v <= wanted),
    "minItems": (list, lambda v, wanted: len(v) >= wanted),
}
"""What a keyword is about, and when it holds."""

REMARKS = {"$schema", "$defs", "title", "description"}
BRANCHES = {"properties", "items", "additionalProperties"}


def load_schema(name: str) -> dict[str, Any]:
    """Return docs/schemas/NAME.json."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def find_faults(value: Any, schema: Mapping[str, Any]) -> list[str]:  # noqa: ANN401 - JSON is anything
    """Return what is wrong with a value; raises ValueError for a keyword that is not known here."""
    return list(_faults(value, schema, schema, "$"))


def _faults(value: Any, part: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:  # noqa: ANN401
    for keyword, wanted in part.items():
        if keyword == "$ref":
            yield from _faults(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, at)
        elif keyword == "properties" and isinstance(value, dict):
            yield from _property_faults(value, part, root, at)
        elif keyword == "items" and isinstance(value, list):
            for index, item in enumerate(value):
                yield from _faults(item, wanted, root, f"{at}[{index}]")
        elif keyword == "anyOf":
            if all(list(_faults(value, one, root, at)) for one in wanted):
                yield f"{at}: none of anyOf holds"
        elif keyword not in REMARKS | BRANCHES and not _holds(value, keyword, wanted):
            yield f"{at}: {keyword} {wanted!r} does not hold for {value!r}"


def _property_faults(
    value: Mapping[str, Any], part: Mapping[str, Any], root: Mapping[str, Any], at: str
) -> Iterator[str]:
    known = part["properties"]
    for name in sorted(known.keys() & value.keys()):
        yield from _faults(value[name], known[name], root, f"{at}.{name}")
    if part.get("additionalProperties", True) is True:  # a schema in its place is not known here
        return
    for name in sorted(value.keys() - known.keys(), key=str):
        yield f"{at}.{name}: there is no such key"


def _holds(value: Any, keyword: str, wanted: Any) -> bool:  # noqa: ANN401
    """Say whether one keyword holds; one that is about another type always does."""
    if keyword not in RULES:
        raise ValueError(f"this validator does not know {keyword}")
    about, holds = RULES[keyword]
    return not isinstance(value, about) or holds(value, wanted)
