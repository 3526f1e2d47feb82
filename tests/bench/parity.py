"""Both formats of the exported network side by side: `python -m tests.bench.parity`.

A run is exported in each format, and each is served by the handler in a process of its own. All
images go through the handler as PNG files in packs, as the connectors send them; their labels are
compared with each other and with those of the trained network. Start-up and speed are measured in
turns. Exit code 0 only when no label differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from tests.bench.pictures import encode
from tools.exported import Bytes, first_images
from tools.servers.process import ROOT
from training.choices import FORMATS
from training.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PACK = 250
"""Images of one request."""

SIZES = (1, 32, 256)
"""Images in one pass of the network; the handler takes at most the last number in all at once."""

WINDOW_S = 1.0
"""Seconds of one measurement of speed."""


class Served:
    """The handler with an exported folder, in a process of its own.

    `startup_s` is the time from its start until it can answer, `memory_mb` what it holds then.
    """

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.bench.parity", "--serve", str(folder)]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.memory_mb = float(self._read())
        self.startup_s = time.perf_counter() - start

    def classify(self, images: int) -> list[int]:
        """Return the classes of the first test images, as the handler answers packs of them."""
        found: list[int] = self._ask("classify", images)
        return found

    def measure_speed(self, size: int) -> float:
        """Return images/s of the network alone, in passes of `size` images."""
        return float(self._ask("measure_speed", size))

    def _ask(self, what: str, number: int) -> Any:  # noqa: ANN401 - JSON is anything
        assert self.process.stdin
        self.process.stdin.write(f"{what} {number}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:  # noqa: ANN401 - JSON is anything
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("parity: the process of the handler ended; its reason stands above")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def serve(folder: Path) -> int:
    """Be the other process: load the folder, and answer each line of stdin with one of JSON."""
    sys.path.insert(0, str(ROOT / "handler"))  # flat on purpose, as it lies in the archive
    from tests.handler import torchserve  # noqa: PLC0415 - it needs the path

    served = torchserve.Served(folder, measured=False)

    def classify(number: int) -> list[int]:
        files = [encode(image) for image in first_images(number)]
        packs = [torchserve.pack(*files[at : at + PACK]) for at in range(0, number, PACK)]
        answers = [served.one(pack).body["predictions"] for pack in packs]
        return [one["class"] for answer in answers for one in answer]

    def measure_speed(size: int) -> float:
        return count_per_second(served.handler.forward, first_images(size)[:, None])

    verbs: dict[str, Callable[[int], Any]] = {"classify": classify, "measure_speed": measure_speed}
    print(json.dumps(read_memory()), flush=True)
    for line in sys.stdin:
        what, number = line.split()
        print(json.dumps(verbs[what](int(number))), flush=True)
    return 0


def count_per_second(forward: Callable[..., object], images: Bytes) -> float:
    """Return how many images/s `forward` answers, all of these in each pass."""
    batch, count = list(images), 0
    forward(batch)
    start = time.perf_counter()
    while time.perf_counter() - start < WINDOW_S:
        forward(batch)
        count += len(batch)
    return count / (time.perf_counter() - start)


def read_memory() -> float:
    """Return the memory that this process holds, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1000


def export(run: str, scratch: Path) -> dict[str, Path]:
    """Return a folder for each format, with what was exported from the run."""
    folders = {name: scratch / name for name in FORMATS}
    for name, folder in folders.items():
        command = [sys.executable, "-m", "training", "export", "--run", run]
        subprocess.run(
            [*command, "--format", name, "--output", str(folder)],
            cwd=ROOT,
            check=True,
            stdout=sys.stderr,
        )
    return folders


def compare_labels(run: str, servers: Mapping[str, Served], number: int) -> int:
    """Print of how many images the label differs between two of all; return their number."""
    images = torch.from_numpy(first_images(number))[:, None]
    labels = {name: np.array(server.classify(number)) for name, server in servers.items()}
    labels["trained network"] = Run(run).classifier().predict(images).argmax(1).numpy()
    first, *others = labels.values()
    changed = sum(other != first for other in others)
    differing = int(np.count_nonzero(changed))
    print(f"parity: {', '.join(labels)}: {differing} of {number:,} labels differ", flush=True)
    return differing


def compare_speed(servers: Mapping[str, Served], rounds: int) -> None:
    """Print the medians of images/s, measured in turns."""
    for size in SIZES:
        turns = [
            {name: server.measure_speed(size) for name, server in servers.items()}
            for _ in range(rounds)
        ]
        for name in servers:
            speeds = [turn[name] for turn in turns]
            print(
                f"parity: {name}: {median(speeds):7,.0f} images/s in passes of {size}"
                f" ({min(speeds):,.0f} to {max(speeds):,.0f}, {rounds} turns)",
                flush=True,
            )


def compare_startup(folders: Mapping[str, Path], rounds: int) -> None:
    """Print the medians of start-up and memory, measured in turns."""
    turns: list[dict[str, tuple[float, float]]] = []
    for _ in range(rounds):
        turn = {}
        for name, folder in folders.items():
            with Served(folder) as server:
                turn[name] = server.startup_s, server.memory_mb
        turns.append(turn)
    for name, folder in folders.items():
        seconds, megabytes = zip(*[turn[name] for turn in turns], strict=True)
        size = (folder / FORMATS[name]).stat().st_size / 1e6
        print(
            f"parity: {name}: ready after {median(seconds):.1f} s ({min(seconds):.1f} to "
            f"{max(seconds):.1f}), {median(megabytes):.0f} MB of memory, a file of {size:.2f} MB",
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    """Compare the formats; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.parity", description=__doc__)
    parser.add_argument("--run", default="latest", help="default: latest")
    parser.add_argument("--images", type=int, default=10_000, help="test images (default: 10000)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.serve:
        return serve(asked.serve)
    with tempfile.TemporaryDirectory(prefix="fmnist-parity-") as scratch, ExitStack() as stack:
        folders = export(asked.run, Path(scratch))
        servers = {name: stack.enter_context(Served(each)) for name, each in folders.items()}
        differing = compare_labels(asked.run, servers, asked.images)
        compare_speed(servers, asked.rounds)
        compare_startup(folders, asked.rounds)
        return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
