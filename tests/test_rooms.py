"""The import law: which room may know of which, read from the sources themselves."""

from __future__ import annotations

import ast
import sys
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {
    *("training", "handler", "connectors", "tools"),
    *("fmnist_handler", "fmnist_images", "fmnist_wire"),
}
CLOCKS = frozenset(
    {"time", "threading", "random", "logging", "datetime", "asyncio", "os", "signal"}
)


class Law(NamedTuple):
    """For the files that `pattern` matches: what of ours and what else they may not do without."""

    pattern: str
    ours: set[str]
    libraries: set[str]
    never: frozenset[str] = frozenset()


# The first pattern that matches a file is its law. Anything of the standard library is allowed
# but for `never`; anything else must be named.
LAWS = [
    Law(
        "training/evaluation.py",  # reports draw what it finds: never the other way
        {f"training.{name}" for name in ("calibration", "classifier", "corruptions", "data")},
        {"torch"},
    ),
    Law("training/choices.py", set(), set()),
    Law("training/options.py", {"training.choices"}, set()),  # --help answers without torch
    Law(
        "training/*.py",
        {"training"},
        {"torch", "torchvision", "numpy", "PIL", "rich", "matplotlib"},
    ),
    Law("handler/fmnist_images.py", set(), {"numpy", "PIL"}, CLOCKS),
    Law("handler/fmnist_wire.py", {"fmnist_images"}, {"numpy", "PIL"}, CLOCKS),
    Law("handler/fmnist_handler.py", {"fmnist_images", "fmnist_wire"}, {"torch", "numpy"}),
    Law("connectors/records.py", set(), set(), CLOCKS),
    Law("connectors/errors.py", set(), set(), CLOCKS),
    Law("connectors/codec.py", {"connectors.records"}, set(), CLOCKS),
    Law("connectors/relay.py", {"connectors.records", "connectors.errors"}, set(), CLOCKS),
    Law(
        "connectors/loop.py",
        {"connectors.records", "connectors.errors", "connectors.relay"},
        set(),
        CLOCKS - {"logging"},
    ),
    Law(
        "connectors/client.py", {"connectors.records", "connectors.codec"}, {"requests", "urllib3"}
    ),
    Law(
        "connectors/brokers/memory.py",
        {"connectors.records", "connectors.errors"},
        set(),
        CLOCKS - {"threading"},  # a lock: its readers may be other threads
    ),
    Law(
        "connectors/brokers/delivery.py", {"connectors.records", "connectors.errors"}, set(), CLOCKS
    ),
    Law(
        "connectors/brokers/kafka.py",
        {
            "connectors.records",
            "connectors.errors",
            "connectors.settings",  # the type of them
            "connectors.brokers.delivery",
            "connectors.brokers.kafka_clients",
            "connectors.brokers.kafka_outcomes",
        },
        {"kafka"},
    ),
    Law(
        "connectors/brokers/kafka_clients.py",
        {"connectors.errors", "connectors.settings"},
        {"kafka"},
        CLOCKS - {"socket"},  # whether anybody listens
    ),
    Law(
        "connectors/brokers/kafka_outcomes.py",
        {
            "connectors.settings",
            "connectors.brokers.delivery",
            "connectors.brokers.kafka_clients",
        },
        {"kafka"},
        CLOCKS - {"time"},  # how long the ends are read
    ),
    Law("connectors/brokers/pubsub_stream.py", set(), {"google"}, CLOCKS - {"time"}),
    Law(
        "connectors/brokers/pubsub.py",
        {
            "connectors.records",
            "connectors.errors",
            "connectors.settings",
            "connectors.brokers.delivery",
            "connectors.brokers.pubsub_stream",
        },
        {"google", "grpc"},
        CLOCKS - {"time", "datetime", "logging", "os"},  # os: which emulator the library follows
    ),
    Law(
        "connectors/brokers/kafka_operations.py",
        {
            "connectors.records",
            "connectors.errors",
            "connectors.settings",
            "connectors.brokers.kafka",
            "connectors.brokers.kafka_clients",
            "connectors.brokers.delivery",
        },
        {"kafka"},
        CLOCKS - {"time"},  # how long a new cluster is waited for
    ),
    Law(
        "connectors/brokers/pubsub_operations.py",
        {
            "connectors.records",
            "connectors.errors",
            "connectors.settings",
            "connectors.brokers.pubsub",
            "connectors.brokers.delivery",
        },
        {"google"},
        CLOCKS - {"time", "os"},  # the broker's clock; which emulator the library follows
    ),
    Law(
        "connectors/deadletters.py",
        {"connectors.records", "connectors.errors", "connectors.settings"},
        set(),
        CLOCKS - {"logging", "datetime"},  # a letter's time is shown, the present one is not known
    ),
    Law(
        "connectors/metrics.py",
        {"connectors.records", "connectors.errors", "connectors.relay"},
        {"prometheus_client"},
        CLOCKS - {"threading"},  # the server's
    ),
    Law(
        "connectors/doctor.py",
        {
            "connectors.records",
            "connectors.errors",
            "connectors.settings",
            "connectors.codec",
            "connectors.client",
        },
        set(),
        CLOCKS - {"time"},  # how long an answer took
    ),
    Law("connectors/settings.py", {"connectors.errors"}, {"pydantic", "pydantic_settings"}),
    Law("connectors/*.py", {"connectors"}, {"requests", "rich", "PIL", "tqdm", "pydantic"}),
    Law("connectors/brokers/*.py", {"connectors.records", "connectors.errors"}, set()),
]


def imported(source: str, path: str) -> set[str]:
    """Return the absolute names of all modules that `source`, lying at `path`, imports."""
    package = PurePosixPath(path).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names |= absolute([*base, *filter(None, [node.module])], node.names)
    return names


def absolute(parts: list[str], aliases: list[ast.alias]) -> set[str]:
    """Return what `from <parts> import <aliases>` imports: the module, or modules in it."""
    module = ".".join(parts)
    if (ROOT / Path(*parts)).is_dir():  # `from connectors import relay` imports a module
        return {f"{module}.{alias.name}" for alias in aliases}
    return {module}


def within(name: str, allowed: set[str]) -> bool:
    """Say whether the module `name` is one of `allowed`, or lies in one."""
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def violations(source: str, path: str) -> set[str]:
    """Return the modules that `source` imports against the law of the file `path`."""
    law = next(law for law in LAWS if PurePosixPath(path).match(law.pattern))
    known = law.ours | law.libraries | (set(sys.stdlib_module_names) - law.never)
    return {name for name in imported(source, path) if not within(name, known)}


FILES = [
    str(file.relative_to(ROOT))
    for room in ("training", "handler", "connectors")
    for file in sorted((ROOT / room).rglob("*.py"))
]


@pytest.mark.parametrize("path", FILES)
def test_a_room_imports_what_it_may_know(path: str) -> None:
    assert violations((ROOT / path).read_text(), path) == set()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("connectors/relay.py", "import time"),
        ("connectors/relay.py", "from random import uniform"),
        ("connectors/relay.py", "from .client import HttpClient"),
        ("connectors/records.py", "from .errors import Stop"),
        ("connectors/codec.py", "import torch"),
        ("connectors/clients.py", "import kafka"),
        ("connectors/brokers/memory.py", "from connectors import loop"),
        ("connectors/relay.py", "from .metrics import Metered"),
        ("connectors/loop.py", "import prometheus_client"),
        ("connectors/metrics.py", "from .brokers.kafka import KafkaBroker"),
        ("connectors/metrics.py", "import time"),
        ("connectors/deadletters.py", "import kafka"),
        ("connectors/deadletters.py", "from .relay import Relay"),
        ("connectors/doctor.py", "from .brokers import kafka_operations"),
        ("connectors/brokers/kafka.py", "from ..relay import Relay"),
        ("connectors/brokers/kafka.py", "from google.cloud import pubsub_v1"),
        ("connectors/brokers/pubsub.py", "import asyncio"),
        ("connectors/brokers/pubsub.py", "from .kafka import KafkaBroker"),
        ("handler/fmnist_handler.py", "import training"),
        ("handler/fmnist_handler.py", "from ts.context import Context"),
        ("handler/fmnist_images.py", "import fmnist_wire"),
        ("handler/fmnist_images.py", "import torch"),
        ("handler/fmnist_wire.py", "import torch"),
        ("training/evaluation.py", "from .reports import render_evaluation"),
        ("training/choices.py", "import torch"),
        ("training/options.py", "from .networks import find_network"),
        ("training/export.py", "import fmnist_wire"),
        ("training/data.py", "def later():\n    from connectors.codec import decode"),
    ],
)
def test_the_law_forbids(path: str, line: str) -> None:
    assert violations(line, path)


def test_the_core_of_the_handler_can_leave_torchserve() -> None:
    names = {
        name
        for file in (ROOT / "handler").glob("*.py")
        for name in imported(file.read_text(), f"handler/{file.name}")
    }
    assert not {name for name in names if name == "ts" or name.startswith("ts.")}
