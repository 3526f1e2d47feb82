"""Send images to a broker, and watch the predictions that come back: the two ends of the relay."""

from __future__ import annotations

import json
import mimetypes
import os
import struct
import sys
import time
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from math import inf, prod
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import track
from rich.table import Table
from rich.text import Text

from . import codec
from .errors import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from .records import Headers, Record
    from .settings import Listen, Send

GLANCE = 0.25
"""Seconds between two looks at the topic; the table is drawn as often."""

RECENT = 1000
"""Records that rate and latency are taken of."""

SHOWN = 10
"""Records in the table."""


class Publisher(Protocol):
    """Puts images into one topic; made by `open_publisher(settings)` of a broker's module."""

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """Hand over one record; waits, in bounded time, while the buffer is full.

        Raises Stop when the topic is missing or an earlier record could not be delivered.
        """
        ...

    def flush(self) -> None:
        """Return when all is acknowledged by the broker; raises Stop when it is not."""
        ...

    def close(self) -> None:
        """Drop what is not acknowledged; return in bounded time."""
        ...


class Unordered:
    """A Publisher that sends no keys; a record's key goes along as its header `name`.

    For brokers to which a key is an order to keep, which costs a request for each key.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """See `Publisher.publish`."""
        self._publisher.publish(None, value, (*headers, ("name", key)))

    def flush(self) -> None:
        """See `Publisher.flush`."""
        self._publisher.flush()

    def close(self) -> None:
        """See `Publisher.close`."""
        self._publisher.close()


class Reader(Protocol):
    """Reads committed records of one topic, outside any group.

    Made by `open_reader(settings, topic, from_beginning)` of a broker's module, which raises
    Stop when the topic is missing.
    """

    def read(self, timeout: float) -> Sequence[Record]:
        """Return what has come, waiting at most `timeout` seconds for the first."""
        ...

    def close(self) -> None:
        """Return in bounded time."""
        ...


@dataclass(frozen=True, slots=True)
class Picture:
    """One image to send; `load` gives the bytes of its file."""

    key: str
    headers: Headers
    load: Callable[[], bytes]


def send(settings: Send, publisher: Publisher) -> None:
    """Send what was asked for; returns when the broker has acknowledged all of it."""
    with closing(publisher):
        chosen = pictures(settings)
        planned = list(chain.from_iterable(repeat(chosen, settings.repeat)))
        bar = track(planned, "Sending", console=Console(stderr=True))
        for picture in paced(bar, settings.rate, time.monotonic, time.sleep):
            publisher.publish(picture.key.encode(), picture.load(), picture.headers)
        publisher.flush()
    Console(stderr=True).print(f"Sent {len(planned)} images.")


def pictures(settings: Send) -> list[Picture]:
    """The test set or the files, up to the limit; raises Stop(2) for what is not there."""
    found = fashion_mnist(settings.data) if settings.test_set else files(settings.paths)
    return found[: settings.limit]


def files(paths: Iterable[Path]) -> list[Picture]:
    """Every file that is named, and every image in a folder that is named."""
    found = list(chain.from_iterable(map(_within, paths)))
    if not found:
        raise Stop("no image is there to send; name files, or folders that hold some", Exit.USAGE)
    return [
        Picture(path.name, _headers(index, _type(path)), path.read_bytes)
        for index, path in enumerate(found)
    ]


def _within(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if _type(file).startswith("image/"))
    if not path.is_file():
        raise Stop(f"{path} is not there", Exit.USAGE)
    return [path]


def _type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _headers(index: int, content_type: str) -> Headers:
    return (("content-type", content_type.encode()), ("index", b"%d" % index))


def fashion_mnist(data: Path) -> list[Picture]:
    """The test images of Fashion-MNIST as PNG, in the folders that torchvision makes."""
    folder = data / "FashionMNIST" / "raw"
    (_, height, width), pixels = read_idx(folder / "t10k-images-idx3-ubyte")
    _, labels = read_idx(folder / "t10k-labels-idx1-ubyte")
    size = width * height
    return [
        Picture(
            f"test/{index}",
            (*_headers(index, "image/png"), ("label", b"%d" % label)),
            partial(codec.png, width, height, pixels[index * size : (index + 1) * size]),
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


def paced(
    pictures: Iterable[Picture],
    rate: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[Picture]:
    """No more than `rate` a second: each is held until its time, counted from the first."""
    start = clock()
    for count, picture in enumerate(pictures):
        if rate is not None:
            sleep(max(0.0, start + count / rate - clock()))
        yield picture


def listen(settings: Listen, reader: Reader) -> None:
    """Show what comes until the limit, the silence or Ctrl-C ends it."""
    with closing(reader), suppress(KeyboardInterrupt):
        batches = arrivals(reader, settings.limit, settings.idle_timeout, time.monotonic)
        if settings.json_lines:
            _print_lines(batches)
        else:
            _show_table(batches)


def arrivals(
    reader: Reader, limit: int | None, idle_timeout: float | None, clock: Callable[[], float]
) -> Iterator[Sequence[Record]]:
    """What was read at each look, nothing included; at most `limit` records altogether."""
    left, last = inf if limit is None else limit, clock()
    while left > 0 and (idle_timeout is None or clock() - last < idle_timeout):
        records = reader.read(GLANCE)
        records = records if len(records) <= left else records[: int(left)]
        left -= len(records)
        last = clock() if records else last
        yield records


def _print_lines(batches: Iterable[Sequence[Record]]) -> None:
    try:
        for records in batches:
            sys.stdout.writelines(json.dumps(described(record)) + "\n" for record in records)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit flush fails


def described(record: Record) -> dict[str, Any]:
    """A record as JSON: where it lies, whose it is, and the result (null if it is none)."""
    return {
        "record": record.id,
        "time": record.time,
        "key": _text(record.key),
        "headers": {name: _text(value) for name, value in record.headers},
        "result": result(record),
    }


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def result(record: Record) -> dict[str, Any] | None:
    """The prediction in a record's value."""
    try:
        value = json.loads(record.value or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _show_table(batches: Iterable[Sequence[Record]]) -> None:
    board = Board()
    with Live(board.table(), auto_refresh=False) as live:
        for records in batches:
            for record in records:
                board.add(record, time.time())
            live.update(board.table(), refresh=True)


class Board:
    """What has come so far. `now`: seconds since the epoch."""

    def __init__(self) -> None:
        self.count = 0
        self.labelled = 0
        self.right = 0
        self._times: deque[float] = deque(maxlen=RECENT)
        self._latencies: deque[float] = deque(maxlen=RECENT)
        self._last: deque[tuple[str, str, str]] = deque(maxlen=SHOWN)

    def add(self, record: Record, now: float) -> None:
        """One more record; those without a result are counted too."""
        found = result(record) or {}
        self.count += 1
        self._times.append(now)
        if isinstance(found.get("time"), int):
            self._latencies.append(now - found["time"] / 1000)
        headers = dict(record.headers)
        self._judge(headers.get("label"), found.get("class"))
        score = found.get("score")
        shown = f"{score:.3f}" if isinstance(score, float) else ""
        name = _text(record.key) or _text(headers.get("name")) or ""
        self._last.append((name, str(found.get("label", "?")), shown))

    def _judge(self, label: bytes | None, predicted: object) -> None:
        if label is not None and predicted is not None:
            self.labelled += 1
            self.right += label == str(predicted).encode()

    def rate(self) -> float:
        """Images per second of late."""
        seconds = self._times[-1] - self._times[0] if self._times else 0.0
        return (len(self._times) - 1) / seconds if seconds else 0.0

    def summary(self) -> str:
        """Counts, rate, latency since the source record's time, accuracy where labels came."""
        parts = [f"{self.count} predictions", f"{self.rate():.0f}/s"]
        if self._latencies:
            parts.append(f"latency {median(self._latencies):.3f} s")
        if self.labelled:
            parts.append(f"{self.right / self.labelled:.2%} of {self.labelled} right")
        return ", ".join(parts)

    def table(self) -> Group:
        """The summary above the last few."""
        table = Table("key", "label", "score")
        for row in self._last:
            table.add_row(*map(_plain, row))
        return Group(self.summary(), table)


def _plain(text: str) -> Text:
    """Without what a terminal would obey: it came from strangers."""
    return Text(
        "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    )
