"""One group, several relays: what each adds, and how long a rebalance keeps records waiting.

The service answers at once, so that it is not the limit; the cores of the machine are, and the
table says how many were in use. Records come at a steady rate while a relay joins, leaves, is
killed. The silence of an event is the longest time, of all partitions, without a result.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import pairwise
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench.kafka import CONTESTANTS
from tests.chaos.brokers.kafka.observer import read_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from tests.bench.kafka import KafkaBenchmark
    from tests.bench.measured import Measured
    from tools.servers.process import Process

PARTITIONS = 12
COUNTS = (1, 2, 4)
INSTANT = CONTESTANTS["instant service"]
RATE = 240.0
"""Records a second while relays come and go: 20 in each partition."""

SPACING_S = 15.0
"""From one event to the next; more than a session, after which the group misses who was killed."""

Moments = dict[int, list[float]]
"""When each partition had its results, in seconds."""


class Event(NamedTuple):
    """What happened to the group, and when, in seconds of the wall clock."""

    name: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The runs by number of relays; the silence behind each event, in seconds."""

    runs: Mapping[int, Measured]
    silences: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        runs = {str(count): asdict(run) for count, run in self.runs.items()}
        return {"relays": runs, "silence_s": dict(self.silences)}

    def render(self) -> str:
        """Return two tables, for people."""
        alone = self.runs[min(self.runs)].records_s
        lines = [
            f"{'relays':<8}{'records/s':>10}{'times':>7}{'relay µs':>10}{'cores':>7}{'busy':>6}"
        ]
        for count, run in self.runs.items():
            line = f"{count:<8}{run.records_s:>10,.0f}{run.records_s / alone:>7.2f}"
            line += f"{run.cpu_us['relay']:>10.0f}{run.cores:>7.2f}{run.machine_cores:>6.2f}"
            lines.append(line)
        lines += ["", f"{'longest silence of a partition':<40}{'seconds':>8}"]
        lines += [f"{name:<40}{seconds:>8.1f}" for name, seconds in self.silences.items()]
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """Draw both as a picture."""
        from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and for pictures alone

        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(list(self.runs), [run.records_s for run in self.runs.values()], marker="o")
        left.set(title="records a second", xlabel="relays", xticks=list(self.runs))
        left.set_ylim(bottom=0)
        right.barh(list(self.silences), list(self.silences.values()))
        right.invert_yaxis()
        right.set(title="longest silence of a partition", xlabel="seconds")
        figure.savefig(path)


def find_silences(
    moments: Mapping[int, Sequence[float]], events: Sequence[Event]
) -> dict[str, float]:
    """Return the longest time without a result, of those that end between an event and the next.

    It may have begun before the event, with the last result before it.
    """
    ends = [*(event.at for event in events[1:]), max(max(one) for one in moments.values())]
    return {
        event.name: max(find_gap(one, event.at, end) for one in moments.values())
        for event, end in zip(events, ends, strict=True)
    }


def find_gap(moments: Sequence[float], start: float, end: float) -> float:
    """Return the longest time between two moments in a row of which the later is in the span."""
    ordered = sorted(moments)
    gaps = (later - one for one, later in pairwise(ordered) if start <= later < end)
    return max(gaps, default=end - start)


def list_moments(found: Iterable[Any]) -> Moments:
    """Return when the results of each partition were written."""
    moments: Moments = defaultdict(list)
    for one in found:
        moments[one.partition].append(one.timestamp / 1000)
    return moments


def measure_rebalances(benchmark: KafkaBenchmark) -> dict[str, float]:
    """Let a third relay join two others and leave, then kill one of them, under a steady load."""
    group = benchmark.create_topics()
    images = benchmark.create_input(group)
    count = round(RATE * SPACING_S * 5)
    with (
        benchmark.started(INSTANT, group, images) as first,
        benchmark.started(INSTANT, group, images) as second,
    ):
        benchmark.wait_for_members([first, second], group)
        load = Thread(target=benchmark.send, args=(images, count, RATE))
        load.start()
        events = list(_disturb(benchmark, group, images, second))
        load.join()
        benchmark.wait_until_done([first], group, count)
    found = read_topic(benchmark.bootstrap_servers, f"{group}-predictions")
    return find_silences(list_moments(found), events)


def _disturb(
    benchmark: KafkaBenchmark, group: str, images: str, second: Process
) -> Iterable[Event]:
    time.sleep(SPACING_S / 3)
    yield Event("nothing happens", time.time())
    time.sleep(SPACING_S)
    yield Event("a third relay joins", time.time())
    with benchmark.started(INSTANT, group, images):
        time.sleep(SPACING_S)
        yield Event("it is stopped (SIGTERM)", time.time())
    time.sleep(SPACING_S)
    yield Event("one of two is killed (SIGKILL)", time.time())
    second.kill()
    time.sleep(SPACING_S)


def measure(benchmark: KafkaBenchmark, say: Callable[[str], None]) -> Scaling:
    """Run one relay, two and four from one backlog, then disturb a group. Raises StackError."""
    runs = {}
    benchmark.run(INSTANT)  # warms Kafka up
    for count in COUNTS:
        runs[count] = benchmark.run(INSTANT, count)
        say(f"{count} relays: {runs[count].records_s:,.0f} records/s")
    return Scaling(runs=runs, silences=measure_rebalances(benchmark))
