"""Send images to a topic."""

from __future__ import annotations

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
from ..text import replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from ..records import Headers, Publisher, SizeLimit
    from ..verbs import Send


MAX_NAMED = 3
"""Files that are named in a sentence."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to send; `load` gives the bytes of its file, of which there are `size`."""

    key: str
    headers: Headers
    load: Callable[[], bytes]
    size: int = 0


SUFFIXES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".jfif": "image/jpeg",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
"""How the names of images end, whatever the machine knows of types."""


def send(settings: Send, publisher: Publisher) -> None:
    """Send what was asked for; returns when the broker has acknowledged all of it.

    Raises Stop(2) in the end when a file was left out that could not be read.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    with closing(publisher):
        chosen, faults = find_samples(settings, partial(_say, console))
        chosen = _drop_too_large(chosen, publisher.limit, faults, console)
        planned = list(chain.from_iterable(repeat(chosen, settings.repeat)))
        bar = track(planned, "Sending", console=console)
        paced = pace(bar, settings.rate, time.monotonic, time.sleep)
        sent = _publish(paced, len(planned), publisher, faults, console)
    _say(console, f"Sent {sent} images.")
    if faults:
        raise Stop("; ".join(faults[:MAX_NAMED]) + _and_more(faults), Exit.USAGE)


def _publish(
    samples: Iterable[Sample], total: int, publisher: Publisher, faults: list[str], console: Console
) -> int:
    """Publish each that can be read; return how many. Say how many when it ends before the end."""
    sent = 0
    try:
        for sample in samples:
            value = _load(sample, faults)
            if value is not None:
                key = sample.key.encode("utf-8", "surrogateescape")
                publisher.publish(key, value, sample.headers)
                sent += 1
        publisher.flush()
    except KeyboardInterrupt:
        publisher.flush()
        _say(console, f"Sent {sent} of {total} images, then interrupted.")
        raise
    except Stop:
        _say(console, f"Handed over {sent} of {total} images, of which the last may be lost.")
        raise
    return sent


def _drop_too_large(
    samples: Sequence[Sample], limit: SizeLimit | None, faults: list[str], console: Console
) -> list[Sample]:
    """Leave out what the topic would refuse, and name it before anything is sent."""
    fit: list[Sample] = []
    for one in samples:
        if limit is None or _measure(one) <= limit.bytes:
            fit.append(one)
            continue
        fault = f"{one.key} has {one.size} bytes, more than the {limit.bytes} that go"
        faults.append(f"{fault}: {limit.fix}")
        _say(console, f"Left out: {faults[-1]}.")
    return fit


def _measure(sample: Sample) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in sample.headers)
    return sample.size + len(sample.key.encode("utf-8", "surrogateescape")) + headers


def _load(sample: Sample, faults: list[str]) -> bytes | None:
    try:
        return sample.load()
    except OSError as error:
        fault = f"{sample.key} cannot be read ({error.strerror})"
        faults += [fault] if fault not in faults else []
        return None


def _say(console: Console, text: str) -> None:
    console.print(replace_control_characters(text), soft_wrap=True)


def _and_more(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return f" and {more} more" if more > 0 else ""


def find_samples(
    settings: Send, say: Callable[[str], None] = lambda _: None
) -> tuple[list[Sample], list[str]]:
    """The test set or the files, up to the limit, and what cannot be sent, as sentences.

    Raises Stop(2) when nothing is there; `say` takes what is left out on purpose.
    """
    if settings.test_set:
        return load_test_set(settings.data)[: settings.limit], []
    samples, faults = find_files(settings.paths, say)
    return samples[: settings.limit], faults


def find_files(paths: Iterable[Path], say: Callable[[str], None]) -> tuple[list[Sample], list[str]]:
    """Every file that is named, and every image in a folder that is named; and what is none."""
    listing = Listing()
    for path in paths:
        listing.add(path)
    if not listing.files:
        why = listing.faults or ["no image is there to send"]
        raise Stop(f"{why[0]}; name files, or folders that hold some", Exit.USAGE)
    for what, names in listing.left_out.items():
        say(f"Left out, as {what}: {', '.join(names[:MAX_NAMED])}{_and_more(names)}.")
    samples = [
        Sample(key, _make_headers(index, _guess_type(path)), path.read_bytes, path.stat().st_size)
        for index, (path, key) in enumerate(
            zip(listing.files, _make_keys(listing.files), strict=True)
        )
    ]
    return samples, listing.faults


class Listing:
    """Files to send, what is left out on purpose, and what should have been one."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.left_out: dict[str, list[str]] = {}
        self.faults: list[str] = []

    def add(self, path: Path) -> None:
        """Take a file that was named, or what is in a folder that was named."""
        if path.is_dir():
            for inner in sorted(path.rglob("*")):
                self._add_found(inner, inner.relative_to(path))
        else:
            self._add_file(path)

    def _add_found(self, path: Path, relative: Path) -> None:
        is_image = path.suffix.lower() in SUFFIXES
        if not is_image and path.is_dir():
            return
        if any(part.startswith(".") for part in relative.parts):
            self.left_out.setdefault("hidden", []).append(str(relative))
        elif is_image:
            self._add_file(path)
        else:
            self.left_out.setdefault("no image by its name", []).append(str(relative))

    def _add_file(self, path: Path) -> None:
        if path.is_file():
            self.files.append(path)
        elif path.is_dir():
            self.faults.append(f"{path} is a folder with the name of an image")
        elif path.is_symlink():
            self.faults.append(f"{path} is not there: it is a link that leads nowhere")
        else:
            self.faults.append(f"{path} is {'no file' if path.exists() else 'not there'}")


def _make_keys(paths: Sequence[Path]) -> list[str]:
    """Give the name of each file, with as many of its folders as tell it from the others."""
    parts = [path.absolute().parts for path in paths]
    keys = [path.name for path in paths]
    same = _find_repeated(keys, parts)
    for depth in range(2, max(map(len, parts), default=0) + 1):
        if not same:
            break
        for place in same:
            keys[place] = "/".join(parts[place][-depth:])
        same = _find_repeated(keys, parts)
    return keys


def _find_repeated(keys: Sequence[str], parts: Sequence[tuple[str, ...]]) -> list[int]:
    """The places of different files with the same key."""
    files: dict[str, set[tuple[str, ...]]] = {}
    for key, one in zip(keys, parts, strict=True):
        files.setdefault(key, set()).add(one)
    return [place for place, key in enumerate(keys) if len(files[key]) > 1]


def _guess_type(path: Path) -> str:
    return SUFFIXES.get(path.suffix.lower(), "application/octet-stream")


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
