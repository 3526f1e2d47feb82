"""The input: two pictures in turn, now and then something that is none, at a steady rate."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kafka import KafkaProducer

from tools.stack import ROOT, StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

PICTURES = [
    (ROOT / "tests" / "data" / name).read_bytes() for name in ("ankle-boot.png", "trouser.png")
]
POISON = [b"no image at all", PICTURES[0][:150], b"\x89PNG\r\n\x1a\n" + bytes(200)]
TICK = 0.05
PATIENCE = 120.0  # seconds; several bounces of the broker


class Input(NamedTuple):
    """The arguments of `KafkaProducer.send`."""

    value: bytes
    key: bytes
    headers: list[tuple[str, bytes]]
    partition: int


def inputs(count: int, partitions: int, poison: float, random: Random) -> Iterator[Input]:
    """Yield numbered records, the partitions in turn; a share of `poison` is unreadable."""
    for number in range(count):
        good = random.random() >= poison
        value = PICTURES[number % len(PICTURES)] if good else random.choice(POISON)
        key = b"%d" % number
        yield Input(value, key, [("number", key)], number % partitions)


class Outlet(Protocol):
    """Where the load goes: one topic of a broker."""

    def send(self, record: Input, failed: Callable[[Exception], Any]) -> None:
        """Hand over one record; `failed` is called if it is not taken."""
        ...

    def flush(self) -> None:
        """Return when all was taken or has failed, or after PATIENCE."""
        ...

    def close(self) -> None:
        """Return in bounded time."""
        ...


class KafkaOutlet:
    """A topic of Kafka. What the library repeats after a bounce is in it once, in order."""

    def __init__(self, servers: str, topic: str) -> None:
        self._producer = KafkaProducer(
            bootstrap_servers=servers,
            enable_idempotence=True,
            delivery_timeout_ms=int(PATIENCE * 1000),
            max_block_ms=int(PATIENCE * 1000),
            request_timeout_ms=5_000,
            reconnect_backoff_max_ms=1_000,
            allow_auto_create_topics=False,
        )
        self._topic = topic

    def send(self, record: Input, failed: Callable[[Exception], Any]) -> None:
        """See `Outlet`."""
        future: Any = self._producer.send(self._topic, **record._asdict())
        future.add_errback(failed)

    def flush(self) -> None:
        """See `Outlet`."""
        self._producer.flush(timeout=PATIENCE)

    def close(self) -> None:
        """See `Outlet`."""
        self._producer.close(timeout=5)


class Feeder:
    """Sends it from a thread of its own; bounces of the broker delay it, it catches up."""

    def __init__(self, outlet: Outlet, load: Iterator[Input], rate: float) -> None:
        self._outlet = outlet
        self._load = load
        self._rate = rate
        self._failed: list[Exception] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="feeder")
        self.sent = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def feeding(self) -> bool:
        """Say whether there is more to come; raises StackError when a record was not taken."""
        if self._failed:
            raise StackError(f"the broker did not take the load: {self._failed[0]!r}")
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop now."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)
        self._outlet.close()

    def _feed(self) -> None:
        start = time.monotonic()
        for record in self._load:
            while self.sent >= self._rate * (time.monotonic() - start):
                if self._over.wait(TICK):
                    return
            self._outlet.send(record, self._failed.append)
            self.sent += 1
        self._outlet.flush()
