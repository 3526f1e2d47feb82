"""Requests of one image over HTTP: our archive with our settings, and with TorchServe's own."""

from __future__ import annotations

import asyncio
import time
import zipfile
from dataclasses import asdict, dataclass
from http import HTTPStatus
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from tests.bench.pictures import encode
from tools.exported import first_images
from tools.servers.torchserve import ARCHIVE, PORTS, TorchServe

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

CLIENTS = (1, 16, 64, 256)
TIMEOUT_S = 60.0
LEAST_RATIO = 1.8
JUDGED = 64
"""Clients at which the ratio counts."""


class Load(NamedTuple):
    """What so many clients saw: answers a second, their delays, and how many were not 200."""

    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


async def ask_in_turn(url: str, message: bytes, left: Iterator[int], delays_s: list[float]) -> int:
    """Ask over one connection while there is something left; return how often it failed.

    After a failure the connection is another: a server that refuses may close it.
    """
    address, failed, writer = urlsplit(url), 0, None
    for _ in left:
        if writer is None:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
        began = time.monotonic()
        if await _ask(reader, writer, message) != HTTPStatus.OK:
            failed += 1
            writer.close()
            writer = None
        delays_s.append(time.monotonic() - began)
    if writer is not None:
        writer.close()
    return failed


async def _ask(reader: StreamReader, writer: StreamWriter, message: bytes) -> int | None:
    """Return the status of an answer that was read to its end; None when there was none."""
    try:
        writer.write(message)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(_read_length(head))
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    return int(head.split(None, 2)[1])


def _read_length(head: bytes) -> int:
    """Bytes of the body."""
    lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
    return next(int(value) for name, _, value in lines if name == b"content-length")


def build_message(url: str, image: bytes) -> bytes:
    """Return a whole request for one image."""
    address = urlsplit(url)
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/png\r\n"
    return f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image


async def _measure(url: str, clients: int, count: int) -> Load:
    message = build_message(url, encode(first_images(1)[0]))
    left, delays_s, began = iter(range(count)), list[float](), time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        asked = [ask_in_turn(url, message, left, delays_s) for _ in range(clients)]
        failed = sum(await asyncio.gather(*asked))
    seconds = time.monotonic() - began
    return Load(
        count / seconds, 1e3 * median(delays_s), 1e3 * quantiles(delays_s, n=100)[98], failed
    )


def measure(url: str, clients: int, count: int) -> Load:
    """Let so many clients ask `count` times together. Raises TimeoutError after TIMEOUT_S."""
    return asyncio.run(_measure(url, clients, count))


def serve_stock(folder: Path) -> TorchServe:
    """Return a server, not started, of our archive with TorchServe's own settings.

    Of the model's settings only those of the handler are left, of the server's its addresses.
    """
    stock = folder / ARCHIVE.name
    with zipfile.ZipFile(ARCHIVE) as ours, zipfile.ZipFile(stock, "w") as theirs:
        for name in ours.namelist():
            content = ours.read(name)
            if name == "model-config.yaml":
                content = yaml.safe_dump({"handler": yaml.safe_load(content)["handler"]}).encode()
            theirs.writestr(name, content)
    server = TorchServe(stock)
    kept = {*PORTS, "model_store", "disable_token_authorization"}
    server.settings = {key: server.settings[key] for key in kept}
    return server


@dataclass(frozen=True)
class Settings:
    """What was found with our settings and the stock ones, a round each, by number of clients."""

    ours: Mapping[int, Sequence[Load]]
    stock: Mapping[int, Sequence[Load]]

    def compute_ratio(self, clients: int) -> float:
        """Return the median of the rounds' ratios."""
        pairs = zip(self.ours[clients], self.stock[clients], strict=True)
        return median(ours.rate / stock.rate for ours, stock in pairs)

    @property
    def passed(self) -> bool:
        """Whether ours are as fast as they should be, and none of our requests failed."""
        failed = sum(load.failed for loads in self.ours.values() for load in loads)
        return not failed and self.compute_ratio(JUDGED) >= LEAST_RATIO

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return asdict(self)

    def render(self) -> str:
        """Return a line for each number of clients, for people: medians of the rounds."""
        lines = [f"{'':>7}{'ours':>8}{'p50':>7}{'p99':>7}{'failed':>7}{'stock':>9}{'p50':>7}"]
        lines[0] += f"{'p99':>7}{'failed':>7}{'ratio':>7}"
        for clients in self.ours:
            sides = (_render_loads(side[clients]) for side in (self.ours, self.stock))
            lines.append(f"{clients:>7}{'  '.join(sides)}{self.compute_ratio(clients):>7.2f}")
        return "\n".join(lines)


def _render_loads(loads: Sequence[Load]) -> str:
    rate, p50, p99, _ = (median(values) for values in zip(*loads, strict=True))
    return f"{rate:>8,.0f}{p50:>7.1f}{p99:>7.1f}{sum(load.failed for load in loads):>7}"


def compare_settings(
    ours: str, stock: str, rounds: int, count: int, say: Callable[[str], None]
) -> Settings:
    """Ask both servers in turns, after a round that does not count."""
    sides: Mapping[str, dict[int, list[Load]]] = {ours: {}, stock: {}}
    for number in range(rounds + 1):
        for clients in CLIENTS:
            for url, found in sides.items():
                load = measure(url, clients, count if clients > 1 else max(count // 4, 2))
                found.setdefault(clients, []).append(load)
        say(f"round {number} of {rounds}" if number else "warmed up")
    counted = [{clients: loads[1:] for clients, loads in side.items()} for side in sides.values()]
    return Settings(*counted)
