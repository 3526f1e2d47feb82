"""The load: two pictures in turn, now and then something that is none, at a steady rate."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tools.servers.process import ROOT, StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

PICTURES = [
    (ROOT / "tests" / "data" / name).read_bytes() for name in ("ankle-boot.png", "trouser.png")
]
POISON = [b"no image at all", PICTURES[0][:150], b"\x89PNG\r\n\x1a\n" + bytes(200)]
TICK_S = 0.05
DELIVERY_TIMEOUT_S = 120.0  # several bounces of the broker
MAX_RATE = 1e6
"""Records a second: as fast as the broker takes them."""


class Input(NamedTuple):
    """One input record; the arguments of `KafkaProducer.send`."""

    value: bytes
    key: bytes
    headers: list[tuple[str, bytes]]
    partition: int


def generate_inputs(count: int, partitions: int, poison: float, random: Random) -> Iterator[Input]:
    """Yield numbered records, the partitions in turn; a share of `poison` is unreadable."""
    for number in range(count):
        good = random.random() >= poison
        value = PICTURES[number % len(PICTURES)] if good else random.choice(POISON)
        key = b"%d" % number
        yield Input(value, key, [("number", key)], number % partitions)


class Producer(Protocol):
    """The way into one topic of a broker."""

    def send(self, record: Input, on_error: Callable[[Exception], Any]) -> None:
        """Hand over one record; `on_error` is called if it is not taken."""
        ...

    def flush(self) -> None:
        """Return when all was taken or has failed, or after DELIVERY_TIMEOUT_S."""
        ...

    def close(self) -> None:
        """Return in bounded time."""
        ...


class LoadGenerator:
    """Sends the load from a thread of its own; bounces of the broker delay it, it catches up.

    `rate`: records a second. Every `tick_s` seconds it sends what is due, all at once.
    """

    def __init__(
        self, producer: Producer, load: Iterator[Input], rate: float, tick_s: float = TICK_S
    ) -> None:
        self._producer = producer
        self._load = load
        self._rate = rate
        self._tick_s = tick_s
        self._errors: list[Exception] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self.sent = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def is_running(self) -> bool:
        """Say whether there is more to come; raises StackError when a record was not taken."""
        if self._errors:
            raise StackError(f"the broker did not take the load: {self._errors[0]!r}")
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop now."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(DELIVERY_TIMEOUT_S)
        self._producer.close()

    def _run(self) -> None:
        start = time.monotonic()
        for record in self._load:
            while self.sent >= self._rate * (time.monotonic() - start):
                if self._over.wait(self._tick_s):
                    return
            self._producer.send(record, self._errors.append)
            self.sent += 1
        self._producer.flush()
