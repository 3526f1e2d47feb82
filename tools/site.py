"""A broker with the topics of one connector, ready for the verbs: for the demo and `make up`."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tools.stack import ROOT, Process
from tools.stack_kafka import Cluster, kafka
from tools.stack_pubsub import Emulation, pubsub

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

BROKERS = ("kafka", "pubsub")
ONCE = ("kafka",)  # of which each result comes exactly once
PARTITIONS = 3


class Site(NamedTuple):
    """What every verb of the connectors is told: they all take the flags of the daemon."""

    broker: str
    images: str
    predictions: str
    flags: Sequence[str]
    variables: Mapping[str, str]

    def command(self, verb: str, *flags: str) -> list[str]:
        """Return the command of one verb; it also needs `environment`."""
        words = [*verb.split(), self.broker, *self.flags, *flags]
        return [sys.executable, "-m", "connectors", *words]

    @property
    def environment(self) -> dict[str, str]:
        """Of the command."""
        return os.environ | self.variables

    def process(self, verb: str, *flags: str, log: Path) -> Process:
        """Return the command of one verb as a process, not started yet."""
        return Process(self.command(verb, *flags), log, env=self.environment, cwd=ROOT)

    def example(self, verb: str, *flags: str) -> str:
        """Return the same for people to type."""
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        return " ".join([*variables, "python", *self.command(verb, *flags)[1:]])


def on_kafka(cluster: Cluster, prefix: str = "") -> Site:
    """Return a site of three topics, made if they are missing."""
    images, predictions = f"{prefix}images", f"{prefix}predictions"
    topics = [images, predictions, f"{images}.dead"]
    for topic in set(topics) - set(cluster.topics()):
        cluster.create_topic(topic, partitions=PARTITIONS)
    flags = ["--bootstrap-servers", cluster.bootstrap_servers]
    flags += ["--input-topic", images, "--output-topic", predictions]
    return Site("kafka", images, predictions, flags, {})


def on_pubsub(emulation: Emulation, prefix: str = "") -> Site:
    """Return a site whose topics and subscriptions the connector makes itself."""
    images, predictions = f"{prefix}images", f"{prefix}predictions"
    flags = ["--project", emulation.project, "--subscription", images, "--input-topic", images]
    flags += ["--output-topic", predictions, "--output-subscription", predictions, "--create"]
    return Site("pubsub", images, predictions, flags, emulation.environment)


@contextmanager
def started(broker: str, prefix: str) -> Iterator[Site]:
    """Start a broker of one of BROKERS, or use the one that the environment names."""
    if broker == "pubsub":
        with pubsub() as emulation:
            yield on_pubsub(emulation, prefix)
    else:
        with kafka() as cluster:
            yield on_kafka(cluster, prefix)
