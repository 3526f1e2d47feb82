"""Checks objects against the schemas of Kubernetes and of two operators, strictly.

Run by the interpreter of build/deploy-venv, which has the libraries: objects as a JSON list on
stdin, a fault a line on stdout. `strict.py CRDS VERSION…`: the folder of the operators'
definitions, and the versions of Kubernetes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator


def load_definitions(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the schema of each kind that the operators define, by apiVersion and kind."""
    found = {}
    for file in folder.glob("*.yaml"):
        spec = yaml.safe_load(file.read_text())["spec"]
        for version in spec["versions"]:
            key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = {"type": "object"}
            found[key] = close(schema)
    return found


def close(schema: Any) -> Any:  # noqa: ANN401 - JSON is anything
    """Refuse keys that a schema does not name, where it does not say that there may be others."""
    if isinstance(schema, list):
        return [close(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(part) for key, part in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


def find_faults(
    one: dict[str, Any], definitions: dict[tuple[str, str], dict[str, Any]], versions: list[str]
) -> Iterator[str]:
    """Yield what is wrong with one object."""
    name = f"{one['kind']}/{one['metadata']['name']}"
    try:
        if schema := definitions.get((one["apiVersion"], one["kind"])):
            jsonschema.validate(one, schema)
            return
        for version in versions:
            kubernetes_validate.validate(one, version, strict=True)
    except jsonschema.ValidationError as error:
        yield f"{name}: {'.'.join(map(str, error.absolute_path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"{name}: {error.message}"


if __name__ == "__main__":
    known = load_definitions(Path(sys.argv[1]))
    for found in json.load(sys.stdin):
        print("\n".join(find_faults(found, known, sys.argv[2:])))
