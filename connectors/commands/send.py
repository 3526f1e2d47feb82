"""Send images to a topic."""

from __future__ import annotations

import mimetypes
import struct
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from math import prod
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from ..errors import Exit, Stop
from ..images import encode_png

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from ..records import Headers, Publisher
    from ..verbs import Send


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to send; `load` gives the bytes of its file."""

    key: str
    headers: Headers
    load: Callable[[], bytes]


def send(settings: Send, publisher: Publisher) -> None:
    """Send what was asked for; returns when the broker has acknowledged all of it."""
    with closing(publisher):
        chosen = find_samples(settings)
        planned = list(chain.from_iterable(repeat(chosen, settings.repeat)))
        bar = track(planned, "Sending", console=Console(stderr=True))
        for sample in pace(bar, settings.rate, time.monotonic, time.sleep):
            publisher.publish(sample.key.encode(), sample.load(), sample.headers)
        publisher.flush()
    Console(stderr=True).print(f"Sent {len(planned)} images.")


def find_samples(settings: Send) -> list[Sample]:
    """The test set or the files, up to the limit; raises Stop(2) for what is not there."""
    found = load_test_set(settings.data) if settings.test_set else find_files(settings.paths)
    return found[: settings.limit]


def find_files(paths: Iterable[Path]) -> list[Sample]:
    """Every file that is named, and every image in a folder that is named."""
    found = list(chain.from_iterable(map(_list_images, paths)))
    if not found:
        raise Stop("no image is there to send; name files, or folders that hold some", Exit.USAGE)
    return [
        Sample(path.name, _make_headers(index, _guess_type(path)), path.read_bytes)
        for index, path in enumerate(found)
    ]


def _list_images(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if _guess_type(file).startswith("image/"))
    if not path.is_file():
        raise Stop(f"{path} is not there", Exit.USAGE)
    return [path]


def _guess_type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _make_headers(index: int, content_type: str) -> Headers:
    return (("content-type", content_type.encode()), ("index", b"%d" % index))


def load_test_set(data: Path) -> list[Sample]:
    """The test images of Fashion-MNIST as PNG, in the folders that torchvision makes."""
    folder = data / "FashionMNIST" / "raw"
    (_, height, width), pixels = read_idx(folder / "t10k-images-idx3-ubyte")
    _, labels = read_idx(folder / "t10k-labels-idx1-ubyte")
    size = width * height
    return [
        Sample(
            f"test/{index}",
            (*_make_headers(index, "image/png"), ("label", b"%d" % label)),
            partial(encode_png, width, height, pixels[index * size : (index + 1) * size]),
        )
        for index, label in enumerate(labels)
    ]


def read_idx(path: Path) -> tuple[tuple[int, ...], bytes]:
    """Shape and bytes of an idx file of uint8 (http://yann.lecun.com/exdb/mnist, at its end)."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Stop(f"no test set: {error}; --data names its folder", Exit.USAGE) from None
    rank = int.from_bytes(content[3:4], "big")
    sizes, values = content[4 : 4 + 4 * rank], content[4 + 4 * rank :]
    shape = tuple(size for (size,) in struct.iter_unpack(">I", sizes[: len(sizes) // 4 * 4]))
    if content[:3] != b"\0\0\x08" or len(shape) != rank or len(values) != prod(shape):
        raise Stop(f"{path} is not an idx file of bytes; fetch it again", Exit.USAGE)
    return shape, values


def pace(
    samples: Iterable[Sample],
    rate: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[Sample]:
    """No more than `rate` a second: each is held until its time, counted from the first."""
    start = clock()
    for count, sample in enumerate(samples):
        if rate is not None:
            sleep(max(0.0, start + count / rate - clock()))
        yield sample
