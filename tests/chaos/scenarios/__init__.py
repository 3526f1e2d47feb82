"""The scenarios: one module for each (choose one). This table imports none of them.

Each module has `add_arguments(parser, broker)`, its own flags, and `run(asked, folder, say)`, which
returns what it has shown. `asked` are the flags, `folder` takes the logs, `say` prints a line of
progress. `run` raises StackError when a server fails.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.verdict import Result

DEFAULT = "kills"


class Entry(NamedTuple):
    """`takes`: about how long it takes. `output`: the JSON's name, if it is not the scenario's."""

    summary: str
    needs: str
    takes: str
    brokers: tuple[str, ...] = ("kafka",)
    output: str = ""


ALL = "the broker, TorchServe, the archive"

SCENARIOS = {
    "kills": Entry(
        "relays, broker and TorchServe are killed, stopped and cut off under load",
        ALL,
        "21 minutes on Kafka (--duration 60: 3), 9 on Pub/Sub",
        ("kafka", "pubsub"),
        "chaos",
    ),
    "controls": Entry(
        "relays with known bugs, each of which must be noticed",
        ALL,
        "8 minutes on Kafka, 5 on Pub/Sub",
        ("kafka", "pubsub"),
    ),
    "link": Entry(
        "a request that a broken connection cut off arrives late, with the defence and without",
        ALL,
        "5 minutes",
    ),
    "reload": Entry(
        "a restarted Kafka answers with old offsets, with the defence and without",
        "the broker",
        "4 minutes",
    ),
    "outage": Entry("TorchServe is away for a minute under load", ALL, "3 minutes"),
    "killer": Entry(
        "an image that kills TorchServe's worker, in a full pack",
        f"{ALL} from `make archive`",
        "4 minutes",
    ),
    "cluster": Entry(
        "three brokers: cut off, cut one way, out of disk; a clock that jumps",
        "root, ip and iptables; no service",
        "9 minutes",
    ),
    "soak": Entry("the memory of a relay at full speed", ALL, "15 minutes"),
    "token": Entry("tokens are renewed under load, for three of their lives", ALL, "5 minutes"),
}


class Scenario(Protocol):
    """A module of this package."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser, broker: str) -> None:
        """Add the flags that only this scenario has."""
        ...

    def run(self, asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Result:
        """Do it."""
        ...


def load_scenario(name: str) -> Scenario:
    """Import the module of one of SCENARIOS, and with it what it needs."""
    return cast("Scenario", import_module(f"{__name__}.{name}"))
