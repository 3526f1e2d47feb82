"""The connectors' commands against a broker with the topics of one daemon: for demo and `make up`.

The brokers' libraries are imported when a broker is started, not before.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tools.servers.process import ROOT, Process, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tools.servers.kafka import Cluster
    from tools.servers.pubsub import Emulation

BROKERS = ("kafka", "pubsub")
EXACTLY_ONCE = ("kafka",)  # the brokers on which each result comes exactly once
PARTITIONS = 3
JOIN_TIMEOUT_S = 60.0


class ConnectorCommand(NamedTuple):
    """The command of any verb of the connectors: they all take the names of the daemon's topics."""

    broker: str
    images: str
    predictions: str
    flags: Sequence[str]
    variables: Mapping[str, str]

    def argv(self, verb: str, *flags: str) -> list[str]:
        """Return the command of one verb; it also needs `environment`."""
        words = [*verb.split(), self.broker, *self.flags, *flags]
        return [sys.executable, "-m", "connectors", *words]

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the command."""
        return os.environ | self.variables

    def process(self, verb: str, *flags: str, log: Path) -> Process:
        """Return the command of one verb as a process, not started yet."""
        return Process(self.argv(verb, *flags), log, env=self.environment, cwd=ROOT)

    def daemon(self, url: str, *flags: str, log: Path) -> Process:
        """Return the daemon that asks `url`, not started yet; SIGTERM drains it."""
        return self.process("run", "--url", url, *flags, log=log)

    def example(self, verb: str, *flags: str) -> str:
        """Return the same for people to type."""
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        return " ".join([*variables, "python", *self.argv(verb, *flags)[1:]])


def wait_for_daemon(daemon: Process) -> None:
    """Return when the daemon has joined its group; raises StackError when it does not."""
    deadline = time.monotonic() + JOIN_TIMEOUT_S
    while "Relaying" not in daemon.tail():
        if not daemon.alive() or time.monotonic() > deadline:
            raise StackError(f"the connector does not relay; its log ends with:\n{daemon.tail()}")
        time.sleep(0.1)


def prepare_kafka(cluster: Cluster, prefix: str = "") -> ConnectorCommand:
    """Create the three topics that are missing; return the commands against them."""
    images, predictions = f"{prefix}images", f"{prefix}predictions"
    topics = [images, predictions, f"{images}.dead"]
    for topic in set(topics) - set(cluster.topics()):
        cluster.create_topic(topic, partitions=PARTITIONS)
    flags = ["--bootstrap-servers", cluster.bootstrap_servers]
    flags += ["--input-topic", images, "--output-topic", predictions]
    return ConnectorCommand("kafka", images, predictions, flags, {})


def prepare_pubsub(emulation: Emulation, prefix: str = "") -> ConnectorCommand:
    """Return the commands; the connector itself creates its topics and subscriptions."""
    images, predictions = f"{prefix}images", f"{prefix}predictions"
    flags = ["--project", emulation.project, "--subscription", images, "--input-topic", images]
    flags += ["--output-topic", predictions, "--output-subscription", predictions, "--create"]
    return ConnectorCommand("pubsub", images, predictions, flags, emulation.environment)


@contextmanager
def start_broker(broker: str, prefix: str) -> Iterator[ConnectorCommand]:
    """Start a broker of one of BROKERS, or use the one that the environment names."""
    if broker == "pubsub":
        from tools.servers.pubsub import pubsub  # noqa: PLC0415 - the library, only when needed

        with pubsub() as emulation:
            yield prepare_pubsub(emulation, prefix)
    else:
        from tools.servers.kafka import kafka  # noqa: PLC0415 - the library, only when needed

        with kafka() as cluster:
            yield prepare_kafka(cluster, prefix)
