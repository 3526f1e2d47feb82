"""What both cores can do without a broker and a server: decode, predict, nothing else.

One process for each core, one thread of torch in each, batches as large as a pack.
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from PIL import Image

from connectors.images import encode_png
from tools.exported import first_images
from tools.servers.torchserve import ARCHIVE

PACK = 64
_network: Any = None


def load() -> None:
    """Load the archive's network into this process."""
    global _network  # noqa: PLW0603 - one of each process
    torch.set_num_threads(1)
    with zipfile.ZipFile(ARCHIVE) as opened:
        _network = torch.jit.load(io.BytesIO(opened.read("model.pt")))  # type: ignore[no-untyped-call] # torch


def predict(files: list[bytes]) -> int:
    """Decode and predict one pack; return how many images it had."""
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one))) for one in files])
    with torch.inference_mode():
        return len(_network(torch.from_numpy(pixels)[:, None]).argmax(1))


def measure(records: int, cores: int) -> float:
    """Return the images a second of so many processes, after a round that does not count."""
    files = [encode_png(28, 28, image.tobytes()) for image in first_images(min(records, 10_000))]
    files = [files[number % len(files)] for number in range(records)]
    packs = [files[start : start + PACK] for start in range(0, records, PACK)]
    with ProcessPoolExecutor(cores, get_context("spawn"), initializer=load) as pool:
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
