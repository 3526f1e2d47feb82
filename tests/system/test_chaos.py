"""Exactly once through faults of all kinds, for a minute; `python -m tests.chaos` takes longer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.chaos.scenarios import killer, link
from tests.chaos.testbed import Service, ask_classes
from tests.conftest import missing
from tools.servers.kafka import fetch_libraries
from tools.servers.process import ROOT, StackError
from tools.servers.torchserve import ARCHIVE, TorchServe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.fixture
def _servers() -> None:
    """What the run starts its own servers from."""
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    try:
        fetch_libraries()
    except StackError as error:
        missing(str(error))


@pytest.mark.usefixtures("_servers")
def test_a_minute_of_chaos_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    output = tmp_path / "chaos.json"
    flags = ["--duration", "60", "--rate", "120", "--seed", "1", "--output", str(output)]
    # A program of its own: kafka-python leaves sockets open when a broker is away.
    argv = [sys.executable, "-m", "tests.chaos", "kills", *flags]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["passed"]
    assert found["records"] == 7_200
    assert all(happened > 0 for happened in found["faults"].values())


@pytest.mark.usefixtures("_servers", "network_namespaces")
def test_a_cluster_that_is_cut_in_two_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    output = tmp_path / "cluster.json"
    flags = ["--rounds", "1", "--faults", "leader-cut", "one-way-cut", "--output", str(output)]
    argv = [sys.executable, "-m", "tests.chaos", "cluster", *flags]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["faults"] == {"leader cut": 1, "one-way cut": 1}
    assert all(strike["packets"] > 0 for strike in found["strikes"])
    assert not any(found["findings"].values())


@pytest.mark.usefixtures("_servers")
@pytest.mark.parametrize("name", list(link.LATE_REQUESTS))
def test_a_request_that_comes_20_seconds_late_touches_no_later_transaction(
    server: TorchServe, tmp_path: Path, name: str
) -> None:
    service = Service(server, ask_classes(server))
    assert link.run_held(link.LATE_REQUESTS[name], service, 20.0, link.DEFENDED, tmp_path) == {}


@pytest.mark.usefixtures("_servers")
def test_an_image_that_kills_the_worker_is_the_only_dead_letter(tmp_path: Path) -> None:
    verdict = killer.run_killer(40.0, tmp_path, print)
    found = verdict.found
    assert (found["dead_letters"], found["lost"], found["doubled"]) == (1, 0, 0)
    assert (found["reason"], found["attempts"]) == ("failed", 3)
    # A worker that comes back later than the relay waits costs its neighbours trials of their own.
    log = (tmp_path / "relay.log").read_text()
    assert verdict.passed or found["longest_call_seconds"] >= killer.SERVICE_TIMEOUT_S, (
        verdict.render() + log
    )
