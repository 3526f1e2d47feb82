from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from training import fashion_mnist
from training.data import ImageSet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: the images are tiny, and the bits are then the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)  # the commands set it, and it is of the whole process


@contextmanager
def answers_of(kind: type[nn.Module]) -> Iterator[set[tuple[bool, torch.dtype]]]:
    """Collect of each layer of this kind whether it learned, and the type of what it answered."""
    found = set()

    def note(layer: nn.Module, _: object, out: Tensor) -> None:
        if isinstance(layer, kind):
            found.add((layer.training, out.dtype))

    hook = register_module_forward_hook(note)
    try:
        yield found
    finally:
        hook.remove()


def stripes(number: int, *, channels: int = 1, size: int = 12, classes: int = 3) -> ImageSet:
    """Make images that anybody can tell apart: of class k, every (k + 2)th row is bright."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(number) % classes
    bright = torch.arange(size)[None] % (labels[:, None] + 2) == 0
    noise = torch.randint(40, (number, channels, size, size), generator=generator)
    noise[..., 0] = noise[..., -1] = 0
    images = noise + 180 * bright[:, None, :, None]
    return ImageSet(images.to(torch.uint8), labels, tuple(f"every {k + 2}" for k in range(classes)))


def write_idx(path: Path, values: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.array(values.shape, dtype=">u4").tobytes()
    head = bytes([0, 0, 8, values.ndim])
    path.write_bytes(head + lengths + values.to(torch.uint8).numpy().tobytes())


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder that looks like Fashion-MNIST to the program, with 240 + 60 images."""
    folder = tmp_path / "data"
    digests = {}
    for part, number in (("train", 240), ("t10k", 60)):
        images = stripes(number, classes=10)
        for name, values in (
            (f"{part}-images-idx3-ubyte", images.images[:, 0]),
            (f"{part}-labels-idx1-ubyte", images.labels),
        ):
            path = folder / "FashionMNIST" / "raw" / name
            write_idx(path, values)
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(fashion_mnist, "SHA256", digests)
    return folder
