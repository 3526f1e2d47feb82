"""Exactly once while everything is hurt, for a minute; `python -m tools.chaos` takes its time."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing
from tools.chaos import killer, link
from tools.stack import ARCHIVE, ROOT, StackError, TorchServe
from tools.stack_kafka import libraries

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.fixture
def _servers() -> None:
    """What the run starts its own servers from."""
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    try:
        libraries()
    except StackError as error:
        missing(str(error))


@pytest.mark.usefixtures("_servers")
def test_a_minute_of_chaos_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    output = tmp_path / "chaos.json"
    flags = ["--duration", "60", "--rate", "120", "--seed", "1", "--output", str(output)]
    # A program of its own: kafka-python leaves sockets open when a broker is away.
    argv = [sys.executable, "-m", "tools.chaos", *flags]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["passed"]
    assert found["records"] == 7_200
    assert all(happened > 0 for happened in found["faults"].values())


@pytest.mark.usefixtures("_servers")
@pytest.mark.parametrize("name", list(link.CASES))
def test_a_request_that_comes_20_seconds_late_touches_no_later_transaction(
    server: TorchServe, tmp_path: Path, name: str
) -> None:
    assert link.run(link.CASES[name], server, 20.0, link.DEFENDED, tmp_path) == {}


@pytest.mark.usefixtures("_servers")
def test_an_image_that_kills_the_worker_is_the_only_dead_letter(tmp_path: Path) -> None:
    verdict = killer.run(40.0, tmp_path, print)
    found = verdict.found
    assert (found["dead_letters"], found["lost"], found["doubled"]) == (1, 0, 0)
    assert (found["reason"], found["attempts"]) == ("failed", 3)
    # A worker that comes back later than the relay waits costs its neighbours trials of their own.
    told = (tmp_path / "seat.log").read_text()
    assert verdict.passed or found["longest_call_seconds"] >= killer.WAITS, verdict.table() + told
