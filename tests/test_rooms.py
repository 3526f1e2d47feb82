"""The import law: which room may know of which, read from the sources themselves."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {
    *("training", "handler", "connectors", "tools"),
    *("fmnist_handler", "fmnist_gate", "fmnist_images", "fmnist_json", "fmnist_sandbox"),
    *("fmnist_v2", "fmnist_wire"),
}
CLOCKS = frozenset(
    {"time", "threading", "random", "logging", "datetime", "asyncio", "os", "signal"}
)


CORE = {
    "connectors.codec",
    "connectors.errors",
    "connectors.loop",
    "connectors.records",
    "connectors.relay",
}
BROKERS = {"kafka": {"kafka"}, "pubsub": {"google", "grpc"}}
"""Which libraries the package of a broker may import."""
SHARED_BY_BROKERS = {
    "connectors.headers",
    "connectors.records",
    "connectors.errors",
    "connectors.text",
    "connectors.brokers.Untyped",
    "connectors.brokers.publishing",
}


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
    Law("handler/fmnist_gate.py", set(), set(), CLOCKS),
    Law("handler/fmnist_images.py", {"fmnist_gate"}, {"numpy", "PIL"}, CLOCKS),
    Law("handler/fmnist_sandbox.py", {"fmnist_gate", "fmnist_images"}, {"numpy"}),
    Law("handler/fmnist_json.py", {"fmnist_gate"}, set(), CLOCKS),
    Law("handler/fmnist_v2.py", {"fmnist_gate", "fmnist_images"}, {"numpy", "PIL"}, CLOCKS),
    Law(
        "handler/fmnist_wire.py",
        {"fmnist_gate", "fmnist_images", "fmnist_json", "fmnist_sandbox", "fmnist_v2"},
        {"numpy", "PIL"},
        CLOCKS - {"logging"},
    ),
    Law(
        "handler/fmnist_handler.py",
        {"fmnist_gate", "fmnist_images", "fmnist_wire"},
        {"torch", "numpy"},
    ),
    Law("connectors/records.py", set(), set(), CLOCKS),
    Law("connectors/errors.py", set(), set(), CLOCKS),
    Law(  # the time of a record is shown, the present one is not known
        "connectors/text.py", set(), set(), CLOCKS - {"datetime"}
    ),
    Law("connectors/images.py", {"connectors.records", "connectors.errors"}, set(), CLOCKS),
    Law("connectors/image_header.py", set(), set(), CLOCKS),
    Law("connectors/headers.py", {"connectors.records"}, set(), CLOCKS),
    Law(
        "connectors/codec.py",
        {"connectors.headers", "connectors.records", "connectors.text"},
        set(),
        CLOCKS,
    ),
    Law(
        "connectors/cloudevents.py",
        {"connectors.codec", "connectors.records", "connectors.text"},
        set(),
        CLOCKS,
    ),
    Law("connectors/relay.py", {"connectors.records", "connectors.errors"}, set(), CLOCKS),
    Law(
        "connectors/loop.py",
        {"connectors.records", "connectors.errors", "connectors.relay"},
        set(),
        CLOCKS - {"logging"},
    ),
    Law("connectors/inference/dialect.py", {"connectors.records"}, set(), CLOCKS),
    Law(
        "connectors/inference/http.py",
        {"connectors.records", "connectors.inference.dialect"},
        {"requests", "urllib3"},
    ),
    Law(
        "connectors/inference/__init__.py",
        {"connectors.errors", "connectors.inference", "connectors.records", "connectors.verbs"},
        set(),
        CLOCKS - {"time"},
    ),
    Law(
        "connectors/inference/files.py",
        {"connectors.errors", "connectors.inference.dialect", "connectors.records"},
        set(),
        CLOCKS,
    ),
    Law(
        "connectors/inference/inspection.py",
        {"connectors.errors", "connectors.records", "connectors.text", "connectors.verbs"},
        set(),
        CLOCKS,
    ),
    Law(
        "connectors/inference/answers.py", {"connectors.records", "connectors.text"}, set(), CLOCKS
    ),
    Law(  # each dialect
        "connectors/inference/*.py",
        {
            "connectors.records",
            "connectors.inference.answers",
            "connectors.inference.dialect",
            "connectors.text",
        },
        set(),
        CLOCKS,
    ),
    Law("connectors/brokers/__init__.py", set(), set(), CLOCKS),
    Law(
        "connectors/brokers/publishing.py",
        {"connectors.records", "connectors.errors", "connectors.text"},
        set(),
        CLOCKS,
    ),
    Law(  # imported with the command line, before it is known which library is there
        "connectors/brokers/*/settings.py",
        {"connectors.settings", "connectors.tls", "connectors.verbs"},
        {"pydantic"},
        CLOCKS - {"os"},  # the process id, and what a cloud's variables say
    ),
    *(
        Law(
            f"connectors/brokers/{broker}/*.py",
            {*SHARED_BY_BROKERS, f"connectors.brokers.{broker}"},
            libraries,
            CLOCKS - {"time", "datetime", "logging", "os"},  # os: variables of the library
        )
        for broker, libraries in BROKERS.items()
    ),
    Law(
        "connectors/commands/dlq.py",
        {
            "connectors.headers",
            "connectors.records",
            "connectors.errors",
            "connectors.text",
            "connectors.verbs",
        },
        set(),
        CLOCKS - {"logging"},
    ),
    Law(
        "connectors/commands/doctor.py",
        {
            "connectors.codec",  # how large an image may be
            "connectors.records",
            "connectors.errors",
            "connectors.images",
            "connectors.inference",
            "connectors.text",
            "connectors.command_line",  # the type of what is printed
            "connectors.settings",
            "connectors.verbs",
        },
        set(),
        CLOCKS - {"time"},  # how long an answer took
    ),
    Law(
        "connectors/commands/live_view.py",
        {
            "connectors.commands.dlq",  # what a dead letter says
            "connectors.drift",
            "connectors.image_header",
            "connectors.records",
            "connectors.text",
        },
        set(),
        CLOCKS,
    ),
    Law(  # the one command with threads: those of its server
        "connectors/commands/watch.py",
        {
            "connectors.commands.live_view",
            "connectors.description",
            "connectors.drift",  # a type
            "connectors.page_server",
            "connectors.records",
            "connectors.tls",
            "connectors.verbs",
        },
        set(),
        CLOCKS - {"logging", "threading", "time"},
    ),
    Law(
        "connectors/commands/*.py",
        {
            "connectors.records",
            "connectors.errors",
            "connectors.images",
            "connectors.text",
            "connectors.verbs",
        },
        {"rich"},
        CLOCKS - {"time", "os"},
    ),
    Law(
        "connectors/metrics.py",
        {
            "connectors.records",
            "connectors.drift",
            "connectors.errors",
            "connectors.page_server",
            "connectors.relay",
            "connectors.text",
        },
        {"prometheus_client"},
        CLOCKS,
    ),
    Law("connectors/drift.py", {"connectors.text"}, set(), CLOCKS),
    Law(
        "connectors/description.py",
        {"connectors.drift", "connectors.inference.http", "connectors.text"},
        set(),
        CLOCKS - {"logging", "threading"},
    ),
    Law(
        "connectors/tracing.py",
        {"connectors.records", "connectors.text"},
        {"opentelemetry"},
        CLOCKS,
    ),
    Law(
        "connectors/instrumentation.py",
        {"connectors.records", "connectors.tracing", "connectors.verbs"},
        {"opentelemetry"},  # a type
        CLOCKS,
    ),
    Law("connectors/page_server.py", {"connectors.errors"}, set()),
    Law("connectors/logs.py", {"connectors.text"}, set(), CLOCKS - {"logging"}),
    Law(
        "connectors/status.py",
        {"connectors.relay", "connectors.verbs"},
        set(),
        CLOCKS - {"logging"},
    ),
    Law("connectors/committer.py", set(), set(), CLOCKS),  # the executor has the thread
    Law("connectors/watchdog.py", {"connectors.errors", "connectors.status"}, set()),
    Law(
        "connectors/settings.py",
        {"connectors.errors"},
        {"pydantic", "pydantic_settings"},
        CLOCKS - {"os"},  # the environment
    ),
    Law("connectors/tls.py", set(), set(), CLOCKS),
    Law("connectors/verbs.py", {"connectors.settings", "connectors.tls"}, {"pydantic"}, CLOCKS),
    Law(
        "connectors/registry.py",
        {
            *(f"connectors.brokers.{broker}.settings" for broker in BROKERS),
            "connectors.brokers.publishing",  # these three: types
            "connectors.commands.dlq",
            "connectors.records",
            "connectors.errors",
            "connectors.settings",
        },
        set(),
        CLOCKS,
    ),
    Law(
        "connectors/command_line.py",
        {"connectors.errors", "connectors.registry", "connectors.settings"},
        {"pydantic", "pydantic_settings"},
        CLOCKS - {"logging"},
    ),
    Law(
        "connectors/daemon.py",
        {
            *CORE,
            "connectors.__version__",
            "connectors.cloudevents",
            "connectors.commands.doctor",
            "connectors.committer",
            "connectors.description",
            "connectors.images",
            "connectors.inference",
            "connectors.instrumentation",
            "connectors.logs",
            "connectors.metrics",
            "connectors.page_server",
            "connectors.status",
            "connectors.brokers.publishing",  # a type
            "connectors.verbs",
            "connectors.watchdog",
        },
        set(),
    ),
    Law(  # knows no broker but by the registry
        "connectors/__main__.py",
        {
            "connectors.__version__",
            "connectors.command_line",
            "connectors.commands",
            "connectors.daemon",
            "connectors.errors",
            "connectors.instrumentation",
            "connectors.logs",
            "connectors.registry",
            "connectors.settings",  # a type
            "connectors.verbs",
        },
        set(),
    ),
    Law("connectors/__init__.py", set(), set(), CLOCKS),
    Law(
        "tests/brokers/memory.py",
        {"connectors.records", "connectors.errors"},
        set(),
        CLOCKS - {"threading"},  # a lock: its readers may be other threads
    ),
    Law("connectors/commands/__init__.py", set(), set(), CLOCKS),
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
            names |= absolute([*base, *(node.module or "").split(".")], node.names)
    return names


def absolute(parts: list[str], aliases: list[ast.alias]) -> set[str]:
    """Return what `from <parts> import <aliases>` imports: the module, or modules in it."""
    module = ".".join(filter(None, parts))
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
] + ["tests/brokers/memory.py"]


@pytest.mark.parametrize("path", FILES)
def test_a_room_imports_what_it_may_know(path: str) -> None:
    assert violations((ROOT / path).read_text(), path) == set()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("connectors/relay.py", "import time"),
        ("connectors/relay.py", "from random import uniform"),
        ("connectors/relay.py", "from .inference.http import HttpClient"),
        ("connectors/records.py", "from .errors import Stop"),
        ("connectors/codec.py", "import torch"),
        ("connectors/codec.py", "from .cloudevents import CloudEvents"),
        ("connectors/cloudevents.py", "import datetime"),
        ("connectors/cloudevents.py", "import cloudevents"),
        ("connectors/commands/listen.py", "import kafka"),
        ("tests/brokers/memory.py", "from connectors import loop"),
        ("connectors/commands/send.py", "from ..brokers.kafka.clients import open_client"),
        ("connectors/__main__.py", "from .brokers.kafka.broker import KafkaBroker"),
        ("connectors/settings.py", "from .brokers.kafka.settings import KafkaSettings"),
        ("connectors/registry.py", "import kafka"),
        ("connectors/inference/torchserve.py", "import requests"),
        ("connectors/inference/torchserve.py", "import time"),
        ("connectors/inference/http.py", "from .torchserve import TorchServe"),
        ("connectors/brokers/kafka/settings.py", "import kafka"),
        ("connectors/relay.py", "from .metrics import InstrumentedBroker"),
        ("connectors/loop.py", "import prometheus_client"),
        ("connectors/metrics.py", "from .brokers.kafka.broker import KafkaBroker"),
        ("connectors/metrics.py", "import time"),
        ("connectors/commands/dlq.py", "import kafka"),
        ("connectors/commands/dlq.py", "from ..relay import Relay"),
        ("connectors/commands/doctor.py", "from ..brokers.kafka import admin"),
        ("connectors/commands/live_view.py", "import time"),
        ("connectors/commands/watch.py", "from ..brokers.kafka import watcher"),
        ("connectors/brokers/kafka/broker.py", "from ...relay import Relay"),
        ("connectors/brokers/kafka/broker.py", "from google.cloud import pubsub_v1"),
        ("connectors/brokers/pubsub/broker.py", "import asyncio"),
        ("connectors/brokers/pubsub/broker.py", "from ..kafka.broker import KafkaBroker"),
        ("handler/fmnist_handler.py", "import training"),
        ("handler/fmnist_handler.py", "from ts.context import Context"),
        ("handler/fmnist_images.py", "import fmnist_wire"),
        ("handler/fmnist_v2.py", "import fmnist_wire"),
        ("handler/fmnist_json.py", "import numpy"),
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


def module_of(path: str) -> str:
    """Return the name by which the file at `path` is imported."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts).removeprefix("handler.")


def nearest(name: str, modules: set[str]) -> str:
    """Return the module that `name` is, or lies in: what a package offers is of its `__init__`."""
    while name not in modules and "." in name:
        name = name.rpartition(".")[0]
    return name


def test_a_name_that_a_package_offers_counts_as_an_import_of_it() -> None:
    modules = {"connectors.inference", "connectors.inference.http"}
    assert nearest("connectors.inference.open_client", modules) == "connectors.inference"
    assert nearest("connectors.inference.http", modules) == "connectors.inference.http"


def test_no_module_imports_itself_by_way_of_others() -> None:
    paths = [
        str(file.relative_to(ROOT))
        for room in ("training", "handler", "connectors", "tools", "tests/chaos", "tests/bench")
        for file in sorted((ROOT / room).rglob("*.py"))
    ]
    modules = {module_of(path) for path in paths}
    graph = {
        module_of(path): {
            nearest(name, modules) for name in imported((ROOT / path).read_text(), path)
        }
        & modules - {module_of(path)}
        for path in paths
    }
    assert len(graph) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"an import circle: {' -> '.join(error.args[1])}")
