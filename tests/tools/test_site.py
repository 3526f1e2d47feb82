"""How the demo and `make up` speak with the connectors, whichever broker is between."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from connectors.settings import KINDS, Daemon, load
from tools.site import BROKERS, PARTITIONS, Site, on_kafka, on_pubsub
from tools.stack_kafka import Cluster
from tools.stack_pubsub import HOST, Emulation

if TYPE_CHECKING:
    from pathlib import Path

EXTRA = {"send": ["--test-set"], "dlq replay": ["--name", "fix"]}


class Known(Cluster):
    """A cluster that is not there, and what was asked of it."""

    def __init__(self, *topics: str) -> None:
        super().__init__("localhost:9092")
        self.there = dict.fromkeys(topics, 1)

    def topics(self) -> list[str]:
        return list(self.there)

    def create_topic(self, name: str, partitions: int = 1, **_: object) -> None:
        assert name not in self.there
        self.there[name] = partitions


SITES = {"kafka": on_kafka(Known(), "a-"), "pubsub": on_pubsub(Emulation("localhost:8085"), "a-")}


@pytest.mark.parametrize("command", KINDS)
def test_every_verb_takes_the_flags_of_a_site(
    command: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    verb, broker = command
    site = SITES[broker]
    words = site.command(verb, *EXTRA.get(verb, []))
    assert words[:3] == [sys.executable, "-m", "connectors"]
    rest = words[3 + len(command[0].split()) :]
    assert rest[0] == broker
    settings = load(KINDS[command], rest[1:], "connectors")
    assert isinstance(settings, Daemon)


def test_there_is_a_site_for_every_broker() -> None:
    assert set(SITES) == set(BROKERS) == {broker for _, broker in KINDS}


def test_topics_that_are_there_are_not_made_again() -> None:
    cluster = Known("images")
    on_kafka(cluster)
    assert cluster.there == {"images": 1, "predictions": PARTITIONS, "images.dead": PARTITIONS}


def test_what_people_are_told_is_what_runs(tmp_path: Path) -> None:
    site = SITES["pubsub"]
    told = shlex.split(site.example("send", "--test-set"))
    assert told[0] == f"{HOST}=localhost:8085"
    assert told[1:] == ["python", *site.command("send", "--test-set")[1:]]
    process = site.process("send", "--test-set", log=tmp_path / "log")
    assert process.argv == site.command("send", "--test-set")
    assert process.env
    assert process.env[HOST] == "localhost:8085"


def test_a_site_may_need_no_variables() -> None:
    site = Site("kafka", "images", "predictions", ["--group", "a"], {})
    assert site.example("run") == "python -m connectors run kafka --group a"
