"""The pages cannot rot: what they name exists, and what they show is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fmnist_v2 import DATATYPES as OUTPUTS
from kafka import KafkaConsumer
from torch.utils.data import TensorDataset

from connectors import command_line, registry
from connectors.brokers.kafka.clients import client_arguments
from connectors.brokers.kafka.settings import RunKafka
from connectors.settings import PREFIX
from tools.schemas import find_faults, load_schema

ROOT = Path(__file__).resolve().parent.parent
MAX_README_WORDS = 900


def pages(*patterns: str) -> dict[str, str]:
    """Return the text of the pages that match, by their path from the root."""
    files = (file for pattern in patterns for file in sorted(ROOT.glob(pattern)))
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


PAGES = pages("README.md", "CONTRIBUTING.md", "docs/*.md")
"""The pages whose commands and code are true now."""

LINKED = {**PAGES, **pages("docs/*/*.md")}
"""With decisions and results, which tell of their day: of those only the links must hold."""

README = PAGES["README.md"]
OPERATING = PAGES["docs/operating.md"]


def commands_in(page: str) -> list[str]:
    """Return the lines of all bash blocks, without remarks."""
    return [
        line.split(" #")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        if line.strip() and not line.startswith("#")
    ]


COMMANDS = commands_in(README)


class Line(NamedTuple):
    """A command, and the page that shows it."""

    page: str
    command: str


PYTHON_LINES = sorted(
    {
        Line(page, command)
        for page, text in PAGES.items()
        for command in [*commands_in(text), *re.findall(r"`(python -m [^`\n]+)`", text)]
        if command.startswith("python -m ")
    }
)


@cache
def help_of(*module_and_words: str) -> str:
    """Return what `python -m MODULE WORD… --help` prints."""
    command = [sys.executable, "-m", *module_and_words, "--help"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_the_readme_names_exists(page: str) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", PAGES[page], re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named or page != "README.md"
    assert named - targets == set()


def test_every_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)", makefile, re.MULTILINE)) - {
        "maven",
        "programs",
        "image-programs",
        "audit-venv",
        "deploy-venv",
        "litserve-venv",
        "browser-venv",
    }
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert phony == explained


def test_no_target_is_written_twice() -> None:
    command = ["make", "--no-print-directory", "--dry-run", "help"]
    read = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert "overriding recipe" not in read.stderr


@pytest.mark.parametrize("line", PYTHON_LINES, ids=lambda line: f"{line.page}: {line.command}")
def test_every_flag_in_a_command_of_the_readme_is_in_its_help(line: Line) -> None:
    words = [word for word in line.command.split()[2:] if word not in {"…", "[flags]"}]
    flags = [word for word in words if word.startswith("--")]
    positions = [words.index(flags[0])] if flags else []
    asked = words[: min([*positions, *map(words.index, ARGUMENTS & set(words)), len(words)])]
    shown = help_of(*asked)
    assert set(flags) <= set(re.findall(r"--[a-z-]+", shown)) | {"--help"}


ARGUMENTS = {
    *("latest", "seed0", "seed1", "seed2", "start", "stop", "status", "kafka|pubsub", "NAME"),
    *("tests/data/ankle-boot.png", "VERB", "BROKER"),
}
"""Words of commands that are neither a module nor one of its own commands."""


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_the_python_of_the_readme_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    images = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    tiny = TensorDataset(images, torch.arange(40) % 5)
    names = {"train_set": tiny, "validation_set": tiny}
    exec(block.replace("budget=180.0", "budget=0.5"), names)  # noqa: S102 - our own page
    assert (tmp_path / "flowers.pt").exists()
    card = json.loads((tmp_path / "build" / "flowers" / "model.json").read_text())
    assert (card["name"], card["classes"], card["input"]["channels"]) == ("flowers", 5, 3)


def test_some_page_shows_python() -> None:
    assert [page for page, text in PAGES.items() if "```python" in text] == ["docs/training.md"]


def test_every_test_that_the_guarantees_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGES["docs/guarantees.md"]))
    sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_ours_that_a_page_names_in_code_exists(page: str) -> None:
    rooms = "connectors|handler|training|tools|tests|serving|docs|examples"
    named = set(re.findall(rf"`((?:{rooms})/[\w./-]+\.\w+)`", PAGES[page]))
    assert {name for name in named if not (ROOT / name).exists()} == set()


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def anchors(file: Path) -> set[str]:
    """Return the anchors of a page."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {slug(heading) for heading in headings}


@pytest.mark.parametrize(
    ("page", "target"),
    sorted(
        {
            (page, target)
            for page, text in LINKED.items()
            for target in re.findall(r"\]\(([^):]+)\)", text)
        }
    ),
)
def test_every_file_that_the_readme_links_to_exists(page: str, target: str) -> None:
    name, _, anchor = target.partition("#")
    file = (ROOT / page).parent / name if name else ROOT / page
    assert file.exists()
    assert not anchor or anchor in anchors(file)


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MAX_README_WORDS


def test_the_index_names_every_page() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", PAGES["docs/index.md"])
    there = {(ROOT / "docs" / name).resolve() for name in named}
    assert {ROOT / page for page in PAGES} - there == {ROOT / "docs" / "index.md"}


def test_every_decision_is_short_and_says_what_was_decided() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    assert decisions
    for decision in decisions:
        lines = decision.read_text().splitlines()
        assert lines[0].startswith("# ")
        dated = re.fullmatch(r"(20\d\d-\d\d-\d\d), (accepted|superseded by \[\d{3}\].*)", lines[2])
        assert dated, decision.name
        assert f"]({decision.name}) | {lines[0][2:]} | {dated[1]} |" in index
        assert len(lines) <= 20, decision.name


JSON_BLOCKS = [
    (page, block)
    for page, text in PAGES.items()
    for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), JSON_BLOCKS)
def test_every_json_that_a_page_shows_has_the_form_that_is_described(page: str, block: str) -> None:
    shown: dict[str, Any] = json.loads(block)
    if "outputs" in shown:  # of the Open Inference Protocol
        assert {one["name"]: one["datatype"] for one in shown["outputs"]}.items() <= OUTPUTS.items()
        assert all(prod(one["shape"]) == len(one["data"]) for one in shown["outputs"])
        return
    answers = shown.get("predictions", [shown])
    for answer in (one for one in answers if "error" not in one):
        result = {"id": "images/0/0", "time": 0, "model": shown["model"], **answer}
        assert find_faults(result, load_schema("result")) == [], page
        assert answer["top"][0] == {name: answer[name] for name in ("class", "label", "score")}


EXAMPLE = ROOT / "docs" / "connector.toml"


def test_the_example_of_a_file_loads_and_every_key_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    settings = command_line.load(RunKafka, ["--config", str(EXAMPLE)], "connectors")
    given = tomllib.loads(EXAMPLE.read_text())
    assert {name: getattr(settings, name) for name in given} == given
    assert given["kafka"].items() <= client_arguments(KafkaConsumer, settings, {}).items()


def test_each_key_that_the_example_has_as_a_remark_is_known() -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert tomllib.loads(text).keys() - registry.list_settings() == set()


def test_every_query_asks_for_metrics_that_exist() -> None:
    table = OPERATING.partition("<!-- begin metrics -->")[2].partition("<!-- end metrics -->")[0]
    there = set(re.findall(r"^\| `(connector_\w+)` \| (\w+)", table, re.MULTILINE))
    known = {name for name, _ in there} | {
        f"{name}_bucket" for name, kind in there if kind == "histogram"
    }
    asked = set(re.findall(r"connector_\w+", OPERATING.replace(table, "")))
    assert asked
    assert asked - known == set()
