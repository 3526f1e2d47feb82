"""How long records wait for a result that a reader of committed records sees."""

from __future__ import annotations

import json
import time
from contextlib import closing
from statistics import quantiles
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple, Self

from kafka import KafkaConsumer

from tests.chaos.brokers.kafka.producer import TopicProducer
from tests.chaos.load import LoadGenerator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.load import Input

POLL_MS = 200
TICK_S = 0.05
LOAD_TICK_S = 0.005
"""Short beside the delays that are measured: after 50 ms what came at once filled a pack."""
LINGER_MS = 5
"""The default of Kafka's own producers since 4.0; at 0 the load took 0.38 cores and not 0.29.

A delay counts from the record's own timestamp, so it holds these milliseconds, too.
"""
SETTLE_S = 5.0
"""Of a relay that has just started; what comes then is not counted with the rest."""


class Latency(NamedTuple):
    """Percentiles of the delays, in milliseconds; `early_p99_ms`: of those left out before."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    early_p99_ms: float = 0.0


def compute_latency(delays_s: Sequence[float], early: int = 0) -> Latency:
    """Return the percentiles of delays, but for the first ones; of either kind at least two."""
    p50, p95, p99 = _compute_percentiles(delays_s[early:])
    return Latency(p50, p95, p99, _compute_percentiles(delays_s[:early])[-1] if early else 0.0)


def _compute_percentiles(delays_s: Sequence[float]) -> tuple[float, float, float]:
    cuts = [1000 * cut for cut in quantiles(delays_s, n=100)]
    return cuts[49], cuts[94], cuts[98]


def send_load(servers: str, topic: str, load: Iterator[Input], rate: float) -> None:
    """Send records at a steady rate (a second); return when they are there."""
    generator = LoadGenerator(TopicProducer(servers, topic, LINGER_MS), load, rate, LOAD_TICK_S)
    with closing(generator):
        generator.start()
        while generator.is_running():
            time.sleep(TICK_S)


class Arrivals:
    """Notes when each result comes that is committed after `with`, from a thread of its own."""

    def __init__(self, servers: str, topic: str) -> None:
        self._consumer = KafkaConsumer(
            topic,
            bootstrap_servers=servers,
            isolation_level="read_committed",
            enable_auto_commit=False,
        )
        self._over = Event()
        self._delays_s: list[float] = []
        self._thread = Thread(target=self._run, name="arrivals")

    def __enter__(self) -> Self:
        while not self._consumer.assignment():
            self._consumer.poll(POLL_MS)
        for partition in self._consumer.assignment():
            self._consumer.position(partition)  # where the topic ends now
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close()

    def have(self, count: int) -> bool:
        """Say whether so many have come."""
        return len(self._delays_s) >= count

    def list_delays(self) -> Sequence[float]:
        """Return seconds from a record's own timestamp to the arrival of its result."""
        return tuple(self._delays_s)

    def _run(self) -> None:
        while not self._over.is_set():
            found = self._consumer.poll(POLL_MS)
            now = time.time()
            for records in found.values():
                # `time` of a result is the timestamp of its record
                self._delays_s += [now - json.loads(one.value)["time"] / 1000 for one in records]
