"""The programs of tools/ import little before they work, and old names lead to the new ones."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tools.moved import MOVED
from tools.servers.process import ROOT

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = ("torch", "torchvision", "numpy", "kafka", "google.cloud", "grpc", "connectors", "training")

SHOW_HEAVY = f"print([name for name in {HEAVY!r} if name in sys.modules])"

RUN_HELP = """
import runpy, sys
sys.argv = [{module!r}, "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as end:
    assert end.code in (0, None)
"""

RUN_UP = """
import sys
from pathlib import Path
from tools import up
up.STATE = Path({state!r})
print(up.main([{verb!r}]))
"""


def run_code(code: str) -> list[str]:
    """Run Python code in a process of its own; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code + SHOW_HEAVY],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "module",
    [
        "tools.archive",
        "tools.demo",
        "tools.rollout",
        "tools.serve",
        "tools.up",
        "tools.verify",
        "tests.chaos",
    ],
)
def test_help_imports_neither_torch_nor_a_broker(module: str) -> None:
    first, *_, last = run_code(RUN_HELP.format(module=module))
    assert first.startswith("usage:"), first
    assert last == "[]"


@pytest.mark.parametrize("verb", ["status", "stop"])
def test_status_and_stop_import_neither_torch_nor_a_broker(verb: str, tmp_path: Path) -> None:
    state = tmp_path / "up.json"
    ended = {"pid": 2**22 + 1, "born": 0.0, "address": "here", "log": "run/kafka.log"}
    state.write_text(json.dumps({"kafka": ended}))
    *_, code, heavy = run_code(RUN_UP.format(state=str(state), verb=verb))
    assert (code, heavy) == ("1" if verb == "status" else "0", "[]")


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_answers_with_the_new_one(old: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", old, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{old} has moved: python -m {MOVED[old]}\n"
