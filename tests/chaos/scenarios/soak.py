"""The memory of one relay at full speed.

The input topic is kept ahead of the relay, which TorchServe and Kafka bound and nothing else. From
outside its resident memory (RSS) is sampled every 5 s. Each sample after the warm-up must be within
5 % of their median, the input must never run dry, and the dead letters must be the poison. Kafka
deletes what was relayed long ago, so the disk is bounded too.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.brokers.kafka.producer import TopicProducer
from tests.chaos.brokers.kafka.testbed import TOPICS, create_topics, relay_argv
from tests.chaos.load import MAX_RATE, POISON, Input, generate_inputs
from tests.chaos.targets import require_alive
from tests.chaos.testbed import make_load, make_relay, wait_until
from tests.chaos.verdict import Verdict
from tools.servers.kafka import Kafka
from tools.servers.process import free_ports
from tools.servers.torchserve import TorchServe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

PARTITIONS = 9
SHARE_OF_POISON = 0.005
SAMPLE_INTERVAL_S = 5.0
TOLERANCE = 0.05  # of the median
MOST_AHEAD = 60_000  # records in the topic and not relayed, at most
LEAST_AHEAD = 8192  # records: twice what a relay holds; with fewer it may wait for its input
ENDLESS = 1 << 62
MEGABYTE = 1e6
# Bytes of each partition; what a relay has not read yet is a tenth of it.
RETENTION = {"retention_bytes": 32 << 20, "segment_bytes": 8 << 20, "file_delete_delay_ms": 1000}
WAIT_TIMEOUT_S = 300.0  # 60,000 records that are still to come take most of them
CHECK_INTERVAL_S = 1.0
SAMPLES_PER_LINE = 6


class MemorySample(NamedTuple):
    """Seconds since the relay began, resident bytes, records relayed and in the topic by then."""

    at: float
    rss: int
    relayed: int
    sent: int


class Counts(NamedTuple):
    """The relay's own counts, in records."""

    predicted: int
    dead: int
    rewinds: int


def parse_counts(page: str) -> Counts:
    """Return what a page of /metrics says."""
    totals: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            totals[sample.name] += int(sample.value) if sample.name.endswith("_total") else 0
    return Counts(
        totals["connector_predictions_total"],
        totals["connector_dead_letters_total"],
        totals["connector_rewinds_total"],
    )


def compute_slope(samples: Sequence[MemorySample]) -> float:
    """Return the growth in megabytes an hour, by least squares."""
    line = statistics.linear_regression(
        [each.at / 3600 for each in samples], [each.rss / MEGABYTE for each in samples]
    )
    return line.slope


class Supply:
    """Lets a load through as long as not more than MOST_AHEAD of it is still to be relayed."""

    def __init__(self) -> None:
        self.poison = 0
        self._relayed = 0
        self._grown = threading.Condition()
        self._over = False

    def note_relayed(self, count: int) -> None:
        """Note how many have been relayed."""
        with self._grown:
            self._relayed = count
            self._grown.notify()

    def end(self) -> None:
        """Let no more through."""
        with self._grown:
            self._over = True
            self._grown.notify()

    def throttle(self, load: Iterable[Input]) -> Iterator[Input]:
        """Yield the load, waiting where it would be too far ahead."""
        for number, record in enumerate(load):
            with self._grown:
                while number - self._relayed >= MOST_AHEAD and not self._over:
                    self._grown.wait()
                if self._over:
                    return
            self.poison += record.value in POISON
            yield record


class SoakTestbed:
    """One relay, as it is shipped, and what is sampled of it."""

    def __init__(self, servers: str, url: str, folder: Path, stack: ExitStack) -> None:
        (port,) = free_ports(1)
        argv = [*relay_argv(("connectors",), servers, url, "relay"), "--metrics-port", str(port)]
        inputs = generate_inputs(ENDLESS, PARTITIONS, SHARE_OF_POISON, Random(1))
        self.supply = Supply()
        self.relay = make_relay("relay", argv, folder, stack)
        producer = TopicProducer(servers, TOPICS.images)
        self.load = make_load(producer, self.supply.throttle(inputs), MAX_RATE, stack)
        stack.callback(self.supply.end)
        self._metrics_url = f"http://127.0.0.1:{port}/metrics"

    def begin(self) -> None:
        """Fill the topic, then let the relay work."""
        self.load.start()
        self.wait_until(lambda: self.load.sent == MOST_AHEAD)
        self.relay.start()
        self.wait_until(lambda: "Serving metrics" in self.relay.process.tail())
        self._started = time.monotonic()
        self._process = psutil.Process(self.relay.process.child.pid)

    def read_counts(self) -> Counts:
        """Return the relay's own counts; the supply goes by them."""
        found = parse_counts(requests.get(self._metrics_url, timeout=WAIT_TIMEOUT_S).text)
        self.supply.note_relayed(found.predicted + found.dead)
        return found

    def sample(self, seconds: float) -> Iterator[MemorySample]:
        """Yield a sample every SAMPLE_INTERVAL_S, for so long."""
        begin = time.monotonic()
        for number in range(1 + int(seconds / SAMPLE_INTERVAL_S)):
            time.sleep(max(0.0, begin + number * SAMPLE_INTERVAL_S - time.monotonic()))
            self._check()
            now, counts = time.monotonic() - self._started, self.read_counts()
            rss = self._process.memory_info().rss
            yield MemorySample(now, rss, counts.predicted + counts.dead, self.load.sent)

    def finish(self) -> Counts:
        """End the load, and return the counts when everything is relayed."""
        self.supply.end()
        self.wait_until(lambda: not self.load.is_running() and self._has_relayed_all())
        return self.read_counts()

    def _has_relayed_all(self) -> bool:
        counts = self.read_counts()
        return counts.predicted + counts.dead >= self.load.sent

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds; raises StackError when it does not in time."""
        log = self.relay.process.log
        wait_until(condition, WAIT_TIMEOUT_S, self._check, lambda: f"see {log}", CHECK_INTERVAL_S)

    def _check(self) -> None:
        """Raise StackError when the load was not taken, or the relay has ended by itself."""
        self.load.is_running()
        if self.relay.wanted:
            require_alive("the relay", self.relay.process)


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:  # noqa: ARG001 - Kafka's
    """See `Scenario.add_arguments`."""
    parser.add_argument("--length", type=float, default=600.0, help="seconds, after the warm-up")
    parser.add_argument("--warm-up", type=float, default=180.0, help="seconds that do not count")


def run(asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Verdict:
    """See `Scenario.run`."""
    say("starting Kafka and TorchServe")
    with ExitStack() as stack:
        kafka = stack.enter_context(Kafka())
        create_topics(kafka, PARTITIONS, **RETENTION)
        server = stack.enter_context(TorchServe())
        testbed = SoakTestbed(kafka.bootstrap_servers, server.url, folder, stack)
        testbed.begin()
        before = collect_samples(testbed.sample(asked.warm_up), "warming up", say)
        samples = collect_samples(testbed.sample(asked.length), "measuring", say)
        last = testbed.finish()
        code = testbed.relay.stop()
        figures = measure(before, samples) | {
            "rewinds": last.rewinds,
            "dead_letters": last.dead,
            "poison": testbed.supply.poison,
            "outcomes": last.predicted + last.dead,
            "records": testbed.load.sent,
            "exit_code": code,
        }
        return Verdict(figures, find_complaints(figures))


def collect_samples(
    samples: Iterable[MemorySample], what: str, say: Callable[[str], None]
) -> list[MemorySample]:
    """Return all samples, and say now and then how it goes."""
    collected: list[MemorySample] = []
    for each in samples:
        if not len(collected) % SAMPLES_PER_LINE:
            size = each.rss / MEGABYTE
            say(f"{each.at:5.0f} s  {what}: {size:.1f} MB, {each.relayed:,} relayed")
        collected.append(each)
    return collected


def measure(before: Sequence[MemorySample], samples: Sequence[MemorySample]) -> dict[str, Any]:
    """Return what was measured after the warm-up, by name, and all samples."""
    first, last, sizes = samples[0], samples[-1], [each.rss / MEGABYTE for each in samples]
    median = statistics.median(sizes)
    relayed, seconds = last.relayed - first.relayed, last.at - first.at
    return {
        "seconds": round(seconds, 1),
        "warm_up_seconds": round(first.at, 1),
        "records_relayed": relayed,
        "images_per_second": round(relayed / seconds, 1),
        "least_ahead": min(each.sent - each.relayed for each in samples),
        "rss_mb_least": round(min(sizes), 1),
        "rss_mb_median": round(median, 1),
        "rss_mb_most": round(max(sizes), 1),
        "rss_percent_off_the_median": round(
            100 * max(abs(size - median) for size in sizes) / median, 2
        ),
        "rss_mb_an_hour": round(compute_slope(samples), 2),
        "samples": [list(each) for each in (*before, *samples)],
    }


def find_complaints(figures: Mapping[str, Any]) -> list[str]:
    """Return what was not as promised, a sentence each."""
    off, ahead = figures["rss_percent_off_the_median"], figures["least_ahead"]
    found = {
        f"the memory was {off} % off its median": off > 100 * TOLERANCE,
        f"the input ran dry: {ahead} records ahead": ahead < LEAST_AHEAD,
        "the dead letters are not the poison": figures["dead_letters"] != figures["poison"],
        "the outcomes are not the records": figures["outcomes"] != figures["records"],
        f"the relay left with {figures['exit_code']}": figures["exit_code"],
    }
    return [sentence for sentence, wrong in found.items() if wrong]
