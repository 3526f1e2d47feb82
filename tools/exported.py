"""The archive's model without a server, and the test images: what predictions are compared with."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.archive import find_network_file
from tools.servers.process import ROOT
from tools.servers.torchserve import ARCHIVE

RAW = Path(os.environ.get("DATA_DIR", ROOT / "data")) / "FashionMNIST" / "raw"

Bytes = NDArray[np.uint8]


def first_images(count: int) -> Bytes:
    """Return the first images of Fashion-MNIST's test set, uint8 [count, 28, 28]."""
    flat = np.fromfile(RAW / "t10k-images-idx3-ubyte", np.uint8, offset=16, count=count * 784)
    return flat.reshape(count, 28, 28)


def first_labels(count: int) -> Bytes:
    """Return their labels, uint8 [count]."""
    return np.fromfile(RAW / "t10k-labels-idx1-ubyte", np.uint8, offset=8, count=count)


def classes(images: Bytes, archive: Path = ARCHIVE) -> NDArray[np.int64]:
    """Return the likeliest class of each grey image, int64 [count]; by the network alone."""
    import torch  # noqa: PLC0415 - takes seconds, and the images alone do not need it

    with zipfile.ZipFile(archive) as opened:
        name = find_network_file(opened.read("model.json"))
        network = io.BytesIO(opened.read(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and chosen
        module: Any = (
            torch.export.load(network).module()
            if name.endswith(".pt2")
            else torch.jit.load(network)  # type: ignore[no-untyped-call] # torch's own
        )
    batches = torch.split(torch.from_numpy(images)[:, None], 1000)
    with torch.inference_mode():
        found: NDArray[np.int64] = torch.cat([module(x).argmax(1) for x in batches]).numpy()
    return found
