"""How the demo and `make up` speak with the connectors, whichever broker is between."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from connectors.command_line import load
from connectors.registry import KINDS
from connectors.verbs import Daemon
from tools.connector import (
    BROKERS,
    PARTITIONS,
    ConnectorCommand,
    prepare_kafka,
    prepare_pubsub,
)
from tools.servers.kafka import Cluster
from tools.servers.pubsub import HOST, Emulation

if TYPE_CHECKING:
    from pathlib import Path

EXTRA = {"send": ["--test-set"], "dlq replay": ["--name", "fix"]}


class RecordingCluster(Cluster):
    """A cluster that is not there, and what was asked of it."""

    def __init__(self, *topics: str) -> None:
        super().__init__("localhost:9092")
        self.there = dict.fromkeys(topics, 1)

    def topics(self) -> list[str]:
        return list(self.there)

    def create_topic(self, name: str, partitions: int = 1, **_: object) -> None:
        assert name not in self.there
        self.there[name] = partitions


COMMANDS = {
    "kafka": prepare_kafka(RecordingCluster(), "a-"),
    "pubsub": prepare_pubsub(Emulation("localhost:8085"), "a-"),
}


@pytest.mark.parametrize("command", KINDS)
def test_every_verb_takes_the_flags_of_a_site(
    command: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    verb, broker = command
    connector = COMMANDS[broker]
    words = connector.argv(verb, *EXTRA.get(verb, []))
    assert words[:3] == [sys.executable, "-m", "connectors"]
    rest = words[3 + len(command[0].split()) :]
    assert rest[0] == broker
    settings = load(KINDS[command], rest[1:], "connectors")
    assert isinstance(settings, Daemon)


def test_there_is_a_site_for_every_broker() -> None:
    assert set(COMMANDS) == set(BROKERS) == {broker for _, broker in KINDS}


def test_topics_that_are_there_are_not_made_again() -> None:
    cluster = RecordingCluster("images")
    prepare_kafka(cluster)
    assert cluster.there == {"images": 1, "predictions": PARTITIONS, "images.dead": PARTITIONS}


def test_what_people_are_told_is_what_runs(tmp_path: Path) -> None:
    connector = COMMANDS["pubsub"]
    words = shlex.split(connector.example("send", "--test-set"))
    assert words[0] == f"{HOST}=localhost:8085"
    assert words[1:] == ["python", *connector.argv("send", "--test-set")[1:]]
    process = connector.process("send", "--test-set", log=tmp_path / "log")
    assert process.argv == connector.argv("send", "--test-set")
    assert process.env
    assert process.env[HOST] == "localhost:8085"


def test_a_site_may_need_no_variables() -> None:
    connector = ConnectorCommand("kafka", "images", "predictions", ["--group", "a"], {})
    assert connector.example("run") == "python -m connectors run kafka --group a"
