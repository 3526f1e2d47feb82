"""HTTP endpoints for Prometheus and for probes: /metrics, /livez and /readyz.

The loop's thread leaves whole values, which it replaces and never changes; the server's threads
read them. Relay and loop know nothing of it.
"""

from __future__ import annotations

import faulthandler
from collections import OrderedDict, defaultdict
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .drift import Predicted, measure_drift
from .errors import Rewound
from .page_server import Page
from .records import Prediction, Reason, Skipped
from .relay import Retry
from .text import replace_control_characters

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Collection,
        Hashable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from prometheus_client.metrics_core import Metric

    from .drift import Baseline, Drift
    from .records import Broker, Record, Settled
    from .relay import Relay, Stats

GOOD_ANSWER_LIFETIME, BAD_ANSWER_LIFETIME = 30.0, 5.0
"""Seconds for which /readyz believes the service's last answer: a good one, and none."""

OPENMETRICS = "application/openmetrics-text"

LANE_LABELS = ("lane", "topic", "partition")

PACK_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
COMMIT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
RECORD_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)


class InstrumentedBroker:
    """A Broker that is watched: what it handed out, when that was committed, how long it took.

    What is committed are the very records that `poll` handed out, which the relay keeps until then.

    `clock`: monotonic seconds; `wall`: seconds since the epoch, as `Record.time` is of it.
    """

    def __init__(
        self, broker: Broker, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self.oldest: Mapping[Hashable | None, int] = {}  # ms since the epoch, by lane
        self.predicted = Predicted()
        self.commit_seconds = _histogram("transaction", COMMIT_SECONDS, "one commit took")
        self.record_seconds = _histogram(
            "record_to_result", RECORD_SECONDS, "passed from a record's time to its commit"
        )
        self._broker = broker
        self._clock = clock
        self._wall = wall
        # By identity: one record may be handed out twice, under one id, while it is held.
        self._held: dict[Hashable | None, OrderedDict[int, int]] = defaultdict(OrderedDict)
        self._moved: set[Hashable | None] = set()

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """See `Broker.poll`."""
        with self._forgetting_on_rewind():
            records = self._broker.poll(limit, timeout)
        for record in records:
            self._held[record.lane][id(record)] = record.time
        self._note_oldest()
        return records

    def commit(self, settled: Sequence[Settled]) -> None:
        """See `Broker.commit`."""
        began = self._clock()
        with self._forgetting_on_rewind():
            self._broker.commit(settled)
        self.commit_seconds.observe(self._clock() - began)
        self._forget_records([one.record for one in settled])
        self._observe_ages(one.record for one in settled if not isinstance(one.outcome, Skipped))
        found = [one.outcome.body for one in settled if isinstance(one.outcome, Prediction)]
        self.predicted = self.predicted.followed_by(found)
        self._note_oldest()

    def _forget_records(self, records: Sequence[Record]) -> None:
        for record in records:
            del self._held[record.lane][id(record)]
        lanes = {record.lane for record in records}
        self._moved |= lanes
        for lane in lanes:
            if not self._held[lane]:
                del self._held[lane]

    def _observe_ages(self, records: Iterable[Record]) -> None:
        now = self._wall()
        for record in records:
            self.record_seconds.observe(max(0.0, now - record.time / 1000))

    @contextmanager
    def _forgetting_on_rewind(self) -> Iterator[None]:
        """Forget what was handed out when the broker says that it is void."""
        try:
            yield
        except Rewound:
            self._held.clear()
            self._note_oldest()
            raise

    def _note_oldest(self) -> None:
        self.oldest = {lane: next(iter(held.values())) for lane, held in self._held.items()}

    def lag(self) -> Mapping[Hashable, int] | None:
        """See `Broker.lag`."""
        return self._broker.lag()

    def joined(self) -> bool:
        """See `Broker.joined`."""
        return self._broker.joined()

    def take_moved(self) -> Collection[Hashable | None]:
        """Return the lanes of what was committed since this was asked last."""
        moved, self._moved = self._moved, set()
        return moved

    def close(self) -> None:
        """See `Broker.close`."""
        self._broker.close()


def _histogram(name: str, buckets: Sequence[float], what: str) -> Histogram:
    title = f"connector_{name}_seconds"
    return Histogram(title, f"Seconds that {what}.", buckets=buckets, registry=None)


class Health:
    """Whether the daemon does its work. `clock`: monotonic seconds.

    The loop's thread calls `note_iteration`, another one asks. `ask` asks the service, and returns
    what is wrong with it, if anything.
    """

    def __init__(
        self,
        relay: Relay,
        clock: Callable[[], float],
        ask: Callable[[], str | None],
        *,
        stuck_after: float,
        stalled_after: float,
    ) -> None:
        self.lag: Mapping[Hashable, int] | None = None
        self._relay = relay
        self._clock = clock
        self._ask = ask
        self._stuck_after = stuck_after
        self._stalled_after = stalled_after
        self._ran_at = clock()
        self._joined = False
        self._moved: Mapping[Hashable, float] = {}  # when a lane last had no reason to complain
        self._settled = 0
        self._answered = -inf
        self._trouble: str | None = None
        self._parked: str | None = None

    def note_iteration(
        self,
        lag: Mapping[Hashable, int] | None,
        moved: Collection[Hashable | None],
        *,
        joined: bool,
    ) -> None:
        """The loop goes round. `moved`: the lanes in which something was committed meanwhile."""
        now = self._clock()
        excused = not joined or self._relay.stats.busy_since is not None
        self._moved = {
            lane: now if excused or not behind or lane in moved else self._moved.get(lane, now)
            for lane, behind in (lag or {}).items()
        }
        self.lag, self._joined, self._ran_at = lag, joined, now

    @property
    def parked(self) -> bool:
        """Whether the daemon has given up and waits for a person."""
        return self._parked is not None

    def note_parked(self, why: str) -> None:
        """The daemon has given up and left its group, and its main thread is well. Nothing lags."""
        self.note_iteration(None, (), joined=False)
        self._parked = why

    def describe_stall(self) -> str | None:
        """Say why the daemon must be started anew, if it must."""
        now = self._clock()
        if now - self._ran_at >= self._stuck_after:
            return f"the main loop has not run for {now - self._ran_at:.0f} s"
        stalled = self.stalled_seconds().items()
        still = [str(lane) for lane, seconds in stalled if seconds >= self._stalled_after]
        return f"no progress in {', '.join(still)} in spite of its lag" if still else None

    def stalled_seconds(self) -> Mapping[Hashable, float]:
        """Return for how long each lane has made no progress in spite of its lag."""
        now = self._clock()
        return {lane: now - at for lane, at in self._moved.items()}

    def describe_unreadiness(self) -> str | None:
        """Say why no record would get its result now, if none would."""
        stats = self._relay.stats
        if self._parked is not None:
            return f"given up, it waits for a person and then a restart: {self._parked}"
        if not self._joined:
            return "the group has not given out its partitions"
        if stats.busy_since is not None:
            return f"the service serves nobody: {stats.busy_detail}"
        return None if self._was_answered(stats) else self._trouble

    def _was_answered(self, stats: Stats) -> bool:
        """By the traffic; or else by a question of our own, once in a while."""
        now = self._clock()
        settled = stats.predicted + stats.rejected.total()
        if settled != self._settled:
            self._settled, self._answered, self._trouble = settled, now, None
        elif now - self._answered >= (
            BAD_ANSWER_LIFETIME if self._trouble else GOOD_ANSWER_LIFETIME
        ):
            self._trouble, self._answered = self._ask(), now
        return self._trouble is None


class RelayCollector(Collector):
    """The metrics of a daemon, drawn from what it keeps anyway, at the moment of the scrape.

    `info`: labels of `connector_info`, beside the model. `find_baseline` returns that of a model,
    if it is known.
    """

    def __init__(
        self,
        relay: Relay,
        health: Health,
        broker: InstrumentedBroker,
        clock: Callable[[], float],
        wall: Callable[[], float],
        info: Mapping[str, str],
        find_baseline: Callable[[str], Baseline | None] = lambda _: None,
    ) -> None:
        self._relay = relay
        self._health = health
        self._info = info
        self._find_baseline = find_baseline
        self._broker = broker
        self._clock = clock
        self._wall = wall

    def collect(self) -> Iterator[Metric]:
        """Give the families in the order of a record's way."""
        stats, predicted = self._relay.stats, self._broker.predicted
        labels = {**self._info, "model": predicted.model}
        yield InfoMetricFamily("connector", "What runs; the model that answered last.", labels)
        yield from self._lag_families(self._health.lag or {})
        yield from self._gauges(stats)
        yield from _totals(stats)
        yield _class_counts(predicted.classes)
        if baseline := self._find_baseline(predicted.model):
            yield from _drift_gauges(measure_drift(predicted.recent, baseline))
        yield from self._broker.record_seconds.collect()
        yield from self._broker.commit_seconds.collect()

    def _lag_families(self, lag: Mapping[Hashable, int]) -> Iterator[Metric]:
        records = _lane_gauge("lag_records", "Records that are not acknowledged.")
        seconds = _lane_gauge(
            "lag_seconds", "Age of the oldest record that was read and is not acknowledged."
        )
        stalled = _lane_gauge(
            "stalled_seconds", "Without progress in spite of lag, while the service answers."
        )
        oldest, now, still = self._broker.oldest, self._wall(), self._health.stalled_seconds()
        for lane, behind in lag.items():
            labels = _lane_labels(lane)
            records.add_metric(labels, behind)
            age = now - oldest[lane] / 1000 if lane in oldest else 0.0
            seconds.add_metric(labels, max(0.0, age))
            stalled.add_metric(labels, still.get(lane, 0.0))
        yield from (records, seconds, stalled)

    def _gauges(self, stats: Stats) -> Iterator[Metric]:
        now = self._clock()
        yield _gauge("held_records", "Records read and not committed.", stats.held)
        yield _gauge("held_bytes", "Bytes of their values.", stats.held_bytes)
        yield _gauge("waiting_records", "Records that wait to be sent.", stats.waiting)
        yield _gauge("suspects", "Requests that wait for a trial.", stats.quarantined)
        yield _gauge("out_requests", "Requests out, forgotten ones included.", stats.out)
        yield _gauge(
            "oldest_unanswered_seconds",
            "Since the oldest record without an outcome was read.",
            _age(stats.oldest_since, now),
        )
        yield _gauge(
            "service_busy_seconds",
            "Since the service serves nobody.",
            _age(stats.busy_since, now),
        )
        yield _gauge(
            "given_up",
            "1 while it is parked: it has left the group and waits for a person.",
            int(self._health.parked),
        )


def _age(since: float | None, now: float) -> float:
    return 0.0 if since is None else now - since


def _lane_gauge(name: str, what: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"connector_{name}", what, labels=LANE_LABELS)


def _lane_labels(lane: Hashable) -> Sequence[str]:
    """Return the values of LANE_LABELS: of a partition all, of another lane only the first."""
    name = replace_control_characters(str(lane))
    topic, _, partition = name.rpartition("/")
    return (name, topic, partition) if topic and partition.isdecimal() else (name, "", "")


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"connector_{name}", what, value=value)


def _totals(stats: Stats) -> Iterator[Metric]:
    yield _counter("received_records", "Records read.", stats.received)
    yield _counter("predictions", "Results committed.", stats.predicted)
    yield _counters("dead_letters", "Dead letters committed.", "reason", Reason, stats.rejected)
    yield _counter("skipped_records", "Records acknowledged without a trace.", stats.skipped)
    yield _pack_sizes(stats.packs)
    yield _counters("retries", "What came back without outcomes.", "class", Retry, stats.retries)
    yield _counter("stale_answers", "Answers to what a rewind made void.", stats.stale)
    yield _counter("rewinds", "Begun again from the last commit.", stats.rewound)
    yield _counter("commits", "Commits.", stats.commits)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(f"connector_{name}", what, value=value)


def _counters(
    name: str, what: str, label: str, values: object, counts: Mapping[Any, int]
) -> Metric:
    """All values from the start, so that a first one is seen as a rise."""
    family = CounterMetricFamily(f"connector_{name}", what, labels=[label])
    for value in get_args(values):
        family.add_metric([value], counts.get(value, 0))
    return family


def _drift_gauges(drift: Drift | None) -> Iterator[Metric]:
    """Give none rather than a good one while it is not known."""
    if drift is None:
        return
    yield _gauge(
        "drift_class_mix",
        "Population stability index of the last classes against the validation images.",
        drift.class_mix,
    )
    yield _gauge(
        "drift_confidence",
        "Mean score of the last results, less that of the validation images.",
        drift.confidence,
    )
    if drift.near_ties is not None:
        yield _gauge(
            "drift_near_ties",
            "Share of the last results that were nearly another class, less that of the "
            "validation images.",
            drift.near_ties,
        )


def _class_counts(classes: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        "connector_predicted_class", "Results committed, by their class.", labels=["class"]
    )
    for label, count in classes.items():
        family.add_metric([label], count)
    return family


def _pack_sizes(packs: Mapping[int, int]) -> Metric:
    counts = [sum(packs[size] for size in packs if size <= bound) for bound in (*PACK_SIZES, inf)]
    bounds = [str(float(bound)) for bound in PACK_SIZES] + ["+Inf"]
    return HistogramMetricFamily(
        "connector_pack_size",
        "Images in a request.",
        buckets=list(zip(bounds, counts, strict=True)),
        sum_value=sum(size * count for size, count in packs.items()),
    )


# The pages


def make_pages(collector: RelayCollector, health: Health) -> Mapping[str, Callable[[str], Page]]:
    """Return what can be asked for, by path; each takes the Accept header of who asks."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    red = False

    def metrics(accept: str) -> Page:
        encode, content_type = choose_encoder(choose_format(accept))
        return Page(200, content_type, encode(registry))

    def livez(_: str) -> Page:
        nonlocal red
        trouble = health.describe_stall()
        if trouble and not red:
            faulthandler.dump_traceback(all_threads=True)
        red = trouble is not None
        return _probe_page(trouble)

    def readyz(_: str) -> Page:
        return _probe_page(health.describe_unreadiness())

    return {"/metrics": metrics, "/livez": livez, "/readyz": readyz}


def choose_format(accept: str) -> str:
    """Return the Accept header to go by: OpenMetrics where it is named, else the text format.

    What else it says, the library may be unable to read.
    """
    named = {one.partition(";")[0].strip() for one in accept.split(",")}
    return f"{OPENMETRICS}; version=1.0.0" if OPENMETRICS in named else ""


def _probe_page(trouble: str | None) -> Page:
    status = 503 if trouble else 200
    text = replace_control_characters(trouble or "ok")
    return Page(status, "text/plain; charset=utf-8", f"{text}\n".encode())
