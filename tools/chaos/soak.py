"""The memory of one relay at full speed: `python -m tools.chaos.soak`, or `make soak`.

The input topic is kept ahead of the relay, which TorchServe and Kafka bound and nothing else. From
outside its resident memory (RSS) is sampled every 5 s. Exit code 0 only if each sample after the
warm-up is within 5 % of their median, the input never ran dry and the dead letters are the poison.
Kafka deletes what was relayed long ago, so the disk is bounded too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from tools.chaos.load import POISON, Feeder, Input, KafkaOutlet, inputs
from tools.chaos.scene import TOPICS, relay_argv
from tools.chaos.verdict import Verdict, concluded, logs_of
from tools.chaos.victims import Seat
from tools.stack import ROOT, StackError, TorchServe, free_ports
from tools.stack_kafka import Kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

PARTITIONS = 9
SHARE_OF_POISON = 0.005
EVERY = 5.0  # seconds between two samples
TOLERANCE = 0.05  # of the median
AHEAD = 60_000  # records in the topic and not relayed, at most
DRY = 8192  # records: twice what a relay holds; with fewer it may wait for its input
ENDLESS = 1 << 62
AT_ONCE = 1e6  # records a second
MB = 1e6
# Bytes of each partition; what a relay has not read yet is a tenth of it.
RETENTION = {"retention_bytes": 32 << 20, "segment_bytes": 8 << 20, "file_delete_delay_ms": 1000}
PATIENCE = 300.0  # seconds; 60,000 records that are still to come take most of them


class Sample(NamedTuple):
    """Seconds since the relay began, resident bytes, records relayed and in the topic by then."""

    at: float
    rss: int
    relayed: int
    fed: int


class Counts(NamedTuple):
    """What the relay says of itself, in records."""

    predicted: int
    dead: int
    rewinds: int


def counts(page: str) -> Counts:
    """What a page of /metrics says."""
    totals: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            totals[sample.name] += int(sample.value) if sample.name.endswith("_total") else 0
    return Counts(
        totals["connector_predictions_total"],
        totals["connector_dead_letters_total"],
        totals["connector_rewinds_total"],
    )


def slope(samples: Sequence[Sample]) -> float:
    """Megabytes an hour, by least squares."""
    line = statistics.linear_regression(
        [each.at / 3600 for each in samples], [each.rss / MB for each in samples]
    )
    return line.slope


class Supply:
    """Lets a load through as long as not more than AHEAD of it is still to be relayed."""

    def __init__(self) -> None:
        self.poison = 0
        self._relayed = 0
        self._grown = threading.Condition()
        self._over = False

    def relayed(self, count: int) -> None:
        """So many have been relayed."""
        with self._grown:
            self._relayed = count
            self._grown.notify()

    def end(self) -> None:
        """No more."""
        with self._grown:
            self._over = True
            self._grown.notify()

    def measured_out(self, load: Iterable[Input]) -> Iterator[Input]:
        """Yield the load, waiting where it would be too far ahead."""
        for number, record in enumerate(load):
            with self._grown:
                while number - self._relayed >= AHEAD and not self._over:
                    self._grown.wait()
                if self._over:
                    return
            self.poison += record.value in POISON
            yield record


class Bench:
    """One relay, as it is shipped, and what is sampled of it."""

    def __init__(self, servers: str, url: str, folder: Path, stack: ExitStack) -> None:
        (port,) = free_ports(1)
        argv = [*relay_argv(("connectors",), servers, url, "seat"), "--metrics-port", str(port)]
        load = inputs(ENDLESS, PARTITIONS, SHARE_OF_POISON, Random(1))  # noqa: S311 - no secrets
        self.supply = Supply()
        self.seat = Seat("seat", argv, folder, Counter())
        outlet = KafkaOutlet(servers, TOPICS.images)
        self.feeder = Feeder(outlet, self.supply.measured_out(load), AT_ONCE)
        self._page = f"http://127.0.0.1:{port}/metrics"
        for end in (self.feeder.close, self.supply.end, self.seat.end):
            stack.callback(end)

    def begin(self) -> None:
        """Fill the topic, then let the relay work."""
        self.feeder.start()
        self.wait_for(lambda: self.feeder.sent == AHEAD)
        self.seat.take()
        self.wait_for(lambda: "Serving metrics" in self.seat.process.tail())
        self._started = time.monotonic()
        self._process = psutil.Process(self.seat.process.child.pid)

    def counts(self) -> Counts:
        """What the relay says of itself; the supply is told."""
        found = counts(requests.get(self._page, timeout=PATIENCE).text)
        self.supply.relayed(found.predicted + found.dead)
        return found

    def samples(self, seconds: float) -> Iterator[Sample]:
        """Yield one every EVERY seconds, for so long."""
        begin = time.monotonic()
        for number in range(1 + int(seconds / EVERY)):
            time.sleep(max(0.0, begin + number * EVERY - time.monotonic()))
            self._check()
            now, said = time.monotonic() - self._started, self.counts()
            rss = self._process.memory_info().rss
            yield Sample(now, rss, said.predicted + said.dead, self.feeder.sent)

    def finish(self) -> Counts:
        """Feed no more, and return the counts when everything is relayed."""
        self.supply.end()
        self.wait_for(lambda: not self.feeder.feeding() and self._idle())
        return self.counts()

    def _idle(self) -> bool:
        said = self.counts()
        return said.predicted + said.dead >= self.feeder.sent

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when it holds; raises StackError when it does not in time."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self._check()
            if time.monotonic() > deadline:
                raise StackError(f"not within {PATIENCE:g} s; {self.seat.process.log} may tell why")
            time.sleep(1)

    def _check(self) -> None:
        """Raise StackError when the load was not taken, or the relay has ended by itself."""
        self.feeder.feeding()
        if self.seat.taken and not self.seat.process.alive():
            raise StackError(f"the relay has ended; its last words:\n{self.seat.process.tail()}")


def run(warm_up: float, length: float, folder: Path) -> Verdict:
    """Do one run; the relay's log stays in `folder`. Raises StackError when somebody ends early."""
    say("starting Kafka and TorchServe")
    with ExitStack() as stack:
        kafka = stack.enter_context(Kafka())
        for topic in TOPICS:
            kafka.create_topic(topic, PARTITIONS, **RETENTION)
        server = stack.enter_context(TorchServe())
        bench = Bench(kafka.bootstrap_servers, server.url, folder, stack)
        bench.begin()
        before = told(bench.samples(warm_up), "warming up")
        samples = told(bench.samples(length), "measuring")
        last = bench.finish()
        code = bench.seat.leave()
        figures = measured(before, samples) | {
            "rewinds": last.rewinds,
            "dead_letters": last.dead,
            "poison": bench.supply.poison,
            "outcomes": last.predicted + last.dead,
            "records": bench.feeder.sent,
            "exit_code": code,
        }
        return Verdict(figures, complaints(figures))


def told(samples: Iterable[Sample], what: str) -> list[Sample]:
    """Gather the samples, and say now and then how it goes."""
    gathered: list[Sample] = []
    for sample in samples:
        if not len(gathered) % 6:
            say(f"{sample.at:5.0f} s  {what}: {sample.rss / MB:.1f} MB, {sample.relayed:,} relayed")
        gathered.append(sample)
    return gathered


def measured(before: Sequence[Sample], samples: Sequence[Sample]) -> dict[str, Any]:
    """What was measured after the warm-up, by name; the samples of the warm-up are listed too."""
    first, last, sizes = samples[0], samples[-1], [each.rss / MB for each in samples]
    median = statistics.median(sizes)
    relayed, seconds = last.relayed - first.relayed, last.at - first.at
    return {
        "seconds": round(seconds, 1),
        "warm_up_seconds": round(first.at, 1),
        "records_relayed": relayed,
        "images_per_second": round(relayed / seconds, 1),
        "least_ahead": min(each.fed - each.relayed for each in samples),
        "rss_mb_least": round(min(sizes), 1),
        "rss_mb_median": round(median, 1),
        "rss_mb_most": round(max(sizes), 1),
        "rss_percent_off_the_median": round(
            100 * max(abs(size - median) for size in sizes) / median, 2
        ),
        "rss_mb_an_hour": round(slope(samples), 2),
        "samples": [list(each) for each in (*before, *samples)],
    }


def complaints(figures: Mapping[str, Any]) -> list[str]:
    """What was not as promised, a sentence each."""
    off, ahead = figures["rss_percent_off_the_median"], figures["least_ahead"]
    found = {
        f"the memory was {off} % off its median": off > 100 * TOLERANCE,
        f"the input ran dry: {ahead} records ahead": ahead < DRY,
        "the dead letters are not the poison": figures["dead_letters"] != figures["poison"],
        "the outcomes are not the records": figures["outcomes"] != figures["records"],
        f"the relay left with {figures['exit_code']}": figures["exit_code"],
    }
    return [sentence for sentence, wrong in found.items() if wrong]


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"soak: {text}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.chaos.soak", description=__doc__)
    made.add_argument("--length", type=float, default=600.0, help="seconds, after the warm-up")
    made.add_argument("--warm-up", type=float, default=180.0, help="seconds that do not count")
    made.add_argument("--output", type=Path, default=ROOT / "run" / "soak.json")
    return made


def main(argv: list[str] | None = None) -> int:
    """Do one run; return the exit code."""
    asked = parser().parse_args(argv)
    folder = logs_of(asked.output)
    return concluded(lambda: run(asked.warm_up, asked.length, folder), asked.output, say)


if __name__ == "__main__":
    sys.exit(main())
