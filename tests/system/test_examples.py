"""The programs of examples/, as somebody would copy them, on real services."""

from __future__ import annotations

import configparser
import os
import shlex
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from connectors.__main__ import parse_command
from connectors.command_line import load
from connectors.errors import Exit
from connectors.registry import KINDS
from tests.system.test_relay import Site
from tools.servers.process import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tools.servers.kafka import Cluster
    from tools.servers.torchserve import TorchServe

EXAMPLES = ROOT / "examples"


def run(program: str, *arguments: str, servers: str) -> list[str]:
    """Return the lines that an example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / program, *arguments],
        cwd=ROOT,
        env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": servers},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.system
def test_what_the_producer_sends_the_consumer_sees_predicted(
    kafka: Cluster, server: TorchServe, tmp_path: Path
) -> None:
    pictures = ["tests/data/ankle-boot.png", "tests/data/trouser.png"]
    servers = kafka.bootstrap_servers
    with ExitStack() as stack:
        site = Site(kafka=kafka, folder=tmp_path, stack=stack)
        site.create(partitions=1)
        site.daemon(server.url)
        sent = run("producer.py", site.name, *pictures, servers=servers)
        found = run("consumer.py", f"{site.name}.out", "2", servers=servers)
    assert sent == [f"sent {name}" for name in pictures]
    assert [line.split("  ")[:3] for line in found] == [
        [f"{site.name}/0/0", "ankle-boot.png", "Ankle boot"],
        [f"{site.name}/0/1", "trouser.png", "Trouser"],
    ]


@pytest.mark.parametrize("name", ["producer.py", "consumer.py"])
def test_an_example_says_how_it_is_used_and_is_short(name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"Usage: python examples/{name} TOPIC" in done.stderr
    code = (EXAMPLES / name).read_text().split('"""')[2].splitlines()
    assert len([line for line in code if line.strip()]) <= 25


def test_the_unit_runs_a_command_that_the_connector_knows(tmp_path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # systemd minds the case
    unit.read(EXAMPLES / "fmnist-connector.service")
    assert {*unit} >= {"Unit", "Service", "Install"}
    service = unit["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/fmnist")
    verb, broker, flags = parse_command(arguments)
    config = tmp_path / "connector.toml"
    config.write_text('input_topic = "images"\noutput_topic = "predictions"\n')
    flags = [str(config) if flag.startswith("/etc/") else flag for flag in flags]
    settings = load(KINDS[verb, broker], flags, "fmnist")
    margin = 5.0  # the watchdog's, behind the drain limit
    assert float(service["TimeoutStopSec"]) > settings.drain_limit + margin  # type: ignore[attr-defined]
    never_again = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert never_again == {Exit.USAGE, Exit.GIVEN_UP}
