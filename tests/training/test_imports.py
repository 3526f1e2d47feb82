"""Imports inside the package: none in a circle, and none of torch before a command runs."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.test_rooms import imported
from training.options import VERBS

ROOT = Path(__file__).resolve().parents[2]


def test_no_two_modules_import_each_other() -> None:
    files = [file for file in (ROOT / "training").glob("*.py") if file.stem != "__init__"]
    imports = {
        f"training.{file.stem}": imported(file.read_text(), f"training/{file.name}")
        for file in files
    }

    assert "training.data" in imports["training.recipe"]
    TopologicalSorter(imports).prepare()  # raises CycleError; counts imports for types, too


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)])
def test_help_does_not_import_torch(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "training", *words, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)

    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "training.options" in imported
    assert not {name for name in imported if name.split(".")[0] in {"torch", "numpy"}}
