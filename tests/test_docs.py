"""The README cannot rot: what it names exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]


@cache
def help_of(*module_and_words: str) -> str:
    """Return what `python -m MODULE WORD… --help` prints."""
    command = [sys.executable, "-m", *module_and_words, "--help"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def test_every_make_target_that_the_readme_names_exists() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)", makefile, re.MULTILINE)) - {"maven"}
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert phony == explained


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("python -m ")])
def test_every_flag_in_a_command_of_the_readme_is_in_its_help(line: str) -> None:
    words = line.split()[2:]
    flags = [word for word in words if word.startswith("--")]
    shown = help_of(*words[: words.index(flags[0])] if flags else words)
    assert set(flags) <= set(re.findall(r"--[a-z-]+", shown))


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    tiny = TensorDataset(images, torch.arange(40) % 5)
    names = {"train_set": tiny, "validation_set": tiny}
    exec(block.replace("budget=180.0", "budget=0.5"), names)  # noqa: S102 - our own README
    assert (tmp_path / "flowers.pt").exists()
    card = json.loads((tmp_path / "build" / "flowers" / "model.json").read_text())
    assert (card["name"], card["classes"], card["input"]["channels"]) == ("flowers", 5, 3)


def test_every_test_that_the_guarantees_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text()))
    sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_file_that_the_readme_links_to_exists(target: str) -> None:
    assert (ROOT / target).exists()


def test_every_decision_is_short_and_says_what_was_decided() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert decisions
    for decision in decisions:
        lines = decision.read_text().splitlines()
        assert lines[0].startswith("# ")
        assert len(lines) <= 20, decision.name
