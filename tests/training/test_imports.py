"""What the package imports before a command runs: no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from training.options import VERBS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)])
def test_help_does_not_import_torch(words: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "training", *words, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)

    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "training.options" in imported
    assert not {name for name in imported if name.split(".")[0] in {"torch", "numpy"}}
