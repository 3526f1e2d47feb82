"""One input through the handler: did it pass, what did it cost, whose fault was it."""

from __future__ import annotations

import base64
import json
import resource
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml

from tests.fuzz.mutations import FILES, Request, Seeds, make_request
from tools.servers.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

sys.path.insert(0, str(ROOT / "handler"))  # flat on purpose, as it lies in the archive
import fmnist_wire as wire
from fmnist_gate import Refused

MAX_CPU_S = 3.0
MAX_WALL_S = 60.0
"""Seconds on the clock: a hang, also of the process that decodes apart. A cost is CPU."""
MAX_GROWTH_MB = 300.0
CERTAIN = np.ones(1, np.float32)
"""What a model of one class says of any image."""

CARD: dict[str, Any] = {
    "name": "fuzz",
    "version": "1",
    "input": {"channels": 1, "height": 28, "width": 28, "background": 0},
    "classes": 1,
}


class Verdict(NamedTuple):
    """What became of an input; `fault` is "" if nothing is wrong.

    `growth_mb`: above the base; 0 where an earlier input took more.
    """

    passed: bool
    decoded: bool
    cpu_s: float
    growth_mb: float
    fault: str


class Judge:
    """Asks the handler as shipped, and watches this process; one input at a time."""

    def __init__(self) -> None:
        config = yaml.safe_load((ROOT / "handler" / "model-config.yaml").read_text())
        self._model = wire.read_model(CARD, {"0": "any"})
        self._settings = wire.read_settings(config)
        self._seeds = Seeds()
        for name in FILES:
            self.try_request(({"body": self._seeds.good[name][0]}, {}))
        self._base_mb = self._peak_mb = peak_mb()

    def make(self, name: str, seed: int, index: int) -> Request:
        """Return an input: the same numbers, the same input."""
        return make_request(name, self._seeds, Random(f"{seed}/{name}/{index}"))

    def judge(self, request: Request) -> Verdict:
        """Try an input and measure it; what leaves `unpack` is a fault."""
        cpu, wall = time.process_time(), time.monotonic()
        try:
            passed, decoded, fault = self.try_request(request)
        except BaseException as reason:  # noqa: BLE001 - whatever leaves it is the finding
            passed, decoded, fault = True, False, f"{type(reason).__name__} left unpack: {reason}"
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        peak = peak_mb()
        growth = peak - self._base_mb if peak > self._peak_mb else 0.0
        self._peak_mb = peak
        if growth > MAX_GROWTH_MB:
            reset_peak()
            self._peak_mb = peak_mb()
        return Verdict(passed, decoded, cpu, growth, fault or find_excess(cpu, wall, growth))

    def try_request(self, request: Request) -> tuple[bool, bool, str]:
        """Return whether an image passed the gate, whether one was decoded, and a fault."""
        question = wire.unpack(*request, self._model, self._settings)
        items = (question,) if isinstance(question, Refused) else question.items
        internal = [item for item in items if isinstance(item, Refused) and item.code == "internal"]
        good = wire.good_images(question)
        _, body = wire.answer(question, [CERTAIN] * len(good), self._model, self._settings)
        wire.encode(body)
        decoded = bool(good)
        passed = decoded or self._passes(request, question)
        return passed, decoded, "the handler failed on it" if internal else ""

    def _passes(self, request: Request, question: wire.Question | Refused) -> bool:
        try:
            inspected = wire.inspect_request(*request, self._model, self._settings)
        except Exception:  # noqa: BLE001 - where `unpack` failed too, and said so
            return False
        if inspected.json is not None:
            return not isinstance(question, Refused)
        return any(not isinstance(item, Refused) for item in inspected.items)


def find_excess(cpu_s: float, wall_s: float, growth_mb: float) -> str:
    """Return what cost too much, or ""."""
    if cpu_s > MAX_CPU_S:
        return f"it cost {cpu_s:.1f} s of CPU"
    if wall_s > MAX_WALL_S:
        return f"it took {wall_s:.1f} s"
    return f"it took {growth_mb:.0f} MB" if growth_mb > MAX_GROWTH_MB else ""


def peak_mb() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    """Let the largest memory begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def write_input(folder: Path, stem: str, request: Request) -> Path:
    """Write an input: a body alone as it is, a request as JSON. Return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    row, headers = request
    if list(row) == ["body"] and not headers and isinstance(row["body"], bytes):
        path = folder / f"{stem}.body"
        path.write_bytes(row["body"])
        return path
    path = folder / f"{stem}.request.json"
    coded = {name: encode_value(value) for name, value in row.items()}
    path.write_text(json.dumps({"row": coded, "headers": headers}))
    return path


def read_input(path: Path) -> Request:
    """Return what `write_input` wrote, or any file as a body."""
    if not path.name.endswith(".request.json"):
        return {"body": path.read_bytes()}, {}
    content = json.loads(path.read_text())
    row = {name: decode_value(value) for name, value in content["row"].items()}
    return row, content["headers"]


def encode_value(value: object) -> dict[str, Any]:
    """Return bytes as Base64, anything else as it is."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    return {"value": value}


def decode_value(coded: Mapping[str, Any]) -> object:
    """Return what was encoded."""
    return base64.b64decode(coded["b64"]) if "b64" in coded else coded["value"]
