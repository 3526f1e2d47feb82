"""What both cores can do without a broker and a server: decode, predict, nothing else.

One process for each core, each with the handler and the network of the archive, as a worker has
them, and batches as large as a pack.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.bench.pictures import encode
from tools.exported import first_images
from tools.servers.torchserve import ARCHIVE

PACK = 128
_worker: Any = None


def load(folder: Path) -> None:
    """Load the unpacked archive into this process."""
    global _worker  # noqa: PLW0603 - one of each process
    sys.path.insert(0, str(folder))  # the handler's own modules, as TorchServe does
    from tests.handler.torchserve import Served  # noqa: PLC0415 - imports the handler

    _worker = Served(folder, measured=False)


def predict(files: list[bytes]) -> int:
    """Decode and predict one pack; return how many images it had."""
    from tests.handler.torchserve import pack  # noqa: PLC0415 - imports the handler

    _, _, content = _worker.reply(pack(*files))
    return sum("class" in item for item in json.loads(content)["predictions"])


def measure(records: int, cores: int) -> float:
    """Return the images a second of so many processes, after a round that does not count."""
    files = [encode(image) for image in first_images(min(records, 10_000))]
    files = [files[number % len(files)] for number in range(records)]
    packs = [files[start : start + PACK] for start in range(0, records, PACK)]
    with tempfile.TemporaryDirectory(prefix="fmnist-bench-") as folder:
        with zipfile.ZipFile(ARCHIVE) as opened:
            opened.extractall(folder)
        arguments, spawn = (Path(folder),), get_context("spawn")
        with ProcessPoolExecutor(cores, spawn, initializer=load, initargs=arguments) as pool:
            list(pool.map(predict, packs[: 8 * cores]))
            start = time.monotonic()
            done = sum(pool.map(predict, packs))
            return done / (time.monotonic() - start)


def main() -> None:
    """Print images a second."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ceiling", description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--cores", type=int, default=2)
    asked = parser.parse_args()
    print(measure(asked.records, asked.cores))


if __name__ == "__main__":
    main()
