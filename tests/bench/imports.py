"""How long programs import before they begin, each module in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

from tools.servers.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOTHING = "sys"
"""Is there before anything is imported."""

MODULES = (
    NOTHING,
    "connectors.__main__",
    "connectors.brokers.kafka.broker",
    "connectors.brokers.pubsub.broker",
    "training.__main__",
    "torch",
)


def measure_imports(modules: Sequence[str], rounds: int) -> Mapping[str, float]:
    """Return the median seconds of an interpreter that imports one module, and ends."""
    seconds: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(rounds):
        for module in modules:
            seconds[module].append(time_import(module))
    return {module: median(found) for module, found in seconds.items()}


def time_import(module: str) -> float:
    """Return the seconds from the start of Python to its end. Raises CalledProcessError."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT, timeout=120)
    return time.monotonic() - began


def render_imports(found: Mapping[str, float]) -> str:
    """Return a line for each module, less what Python takes for itself."""
    own = found[NOTHING]
    lines = [f"{module:<36}{1000 * (seconds - own):>8.0f} ms" for module, seconds in found.items()]
    return "\n".join([f"{'Python alone':<36}{1000 * own:>8.0f} ms", *lines[1:]])
