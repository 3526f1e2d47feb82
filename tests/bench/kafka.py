"""The benchmark on Kafka: relays of several kinds from one backlog, through the same servers.

Each run has a group and topics of its own, and reads the same backlog from its beginning. CPU is
counted from the first result to the end, so a start costs nothing.
"""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import requests
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from tests.bench.bento import VARIABLE
from tests.bench.figures import compute_rate
from tests.bench.latency import SETTLE_S, Arrivals, Latency, compute_latency, send_load
from tests.bench.measured import Measured
from tests.bench.pictures import encode
from tests.bench.usage import Usage, find_torchserve, measure, measure_machine
from tests.chaos.brokers.kafka.observer import read_topic
from tests.chaos.load import MAX_RATE, Input
from tests.encoders import png_chunk
from tools.exported import first_images
from tools.servers.process import ROOT, Process, StackError, free_ports
from tools.servers.torchserve import TorchServe, on_free_ports, read_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tools.servers.kafka import Kafka

PARTITIONS = 4
TEST_IMAGES = 10_000
START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 600.0
TICK_S = 0.1
SIZE = 28
names = (f"bench-{number}" for number in count())
"""Of groups, and of the topics that are called after them."""
logs = (f"relay-{number}" for number in count())
OUTPUTS = ("predictions", "dead")
NOTHING = Usage(0.0, 0)
NO_CHUNK = bytes(12)
"""As long as a chunk of a PNG without data, such as its last one."""


class Contestant(NamedTuple):
    """A relay: its program's arguments, whom it asks, and the tree that it runs from.

    `workers`: of TorchServe, while it runs.
    """

    module: Sequence[str]
    flags: Sequence[str] = ()
    service: str | None = "torchserve"
    tree: Path = ROOT
    workers: int = 1


DAEMON = ("connectors", "kafka")
CONTESTANTS: Mapping[str, Contestant] = {
    "exactly once": Contestant(DAEMON),
    "at least once": Contestant(DAEMON, ("--delivery", "at-least-once")),
    "two workers": Contestant(DAEMON, workers=2),
    "pack of 1": Contestant(DAEMON, ("--pack", "1")),
    "plain relay": Contestant(("tests.bench.plain_kafka",)),
    "instant service": Contestant(DAEMON, service="instant"),
    "bare loop": Contestant(("tests.bench.bare_kafka",), service=None),
}


BASE = "base"
BENTOS: Mapping[str, Contestant] = {
    "bento": Contestant(("tests.bench.bento",)),
    "packed bento": Contestant(("tests.bench.bento",), ("--packed",)),
}


def list_contestants(tree: Path | None) -> dict[str, Contestant]:
    """Return the contestants; with Bento where it is, with the daemon of an older tree if given."""
    found = dict(CONTESTANTS)
    if os.environ.get(VARIABLE):
        found |= BENTOS
    if tree:
        found[BASE] = Contestant(DAEMON, tree=tree)
    return found


class Snapshot(NamedTuple):
    """What was used until a moment: seconds of the monotonic and of the wall clock.

    `machine_s`: CPU seconds of all processes.
    """

    monotonic: float
    wall: float
    usage: Mapping[str, Usage]
    machine_s: float


class KafkaBenchmark:
    """A backlog in `kafka`, and an instant service; made ready by `with`.

    `servers`: the TorchServe of each tree that contestants run from. The logs go to `folder`. Each
    topic has so many `partitions`; images have `size` times `size` pixels, and their files at least
    `payload` bytes.
    """

    def __init__(
        self,
        kafka: Kafka,
        servers: Mapping[Path, TorchServe],
        folder: Path,
        records: int,
        *,
        partitions: int = PARTITIONS,
        size: int = SIZE,
        payload: int = 0,
    ) -> None:
        self.records = records
        self.partitions = partitions
        self.bootstrap_servers = kafka.plain_servers
        self._size = size
        self._payload = payload
        self._kafka = kafka
        self._servers = servers
        self._folder = folder
        self._backlog = f"{next(names)}-images"
        self._stack = ExitStack()
        self._workers: dict[str, int] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            port = free_ports(1)[0]
            argv = [sys.executable, "-m", "tests.bench.instant_service", str(port)]
            self._instant = Process(argv, self._folder / "instant.log", cwd=ROOT).start()
            stack.callback(self._instant.stop)
            self._instant_url = f"http://127.0.0.1:{port}/predictions/instant"
            self._admin = KafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
            stack.callback(self._admin.close)
            self._consumer = KafkaConsumer(bootstrap_servers=self.bootstrap_servers)
            stack.callback(self._consumer.close)
            self._produce_backlog()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, contestant: Contestant, relays: int = 1) -> Measured:
        """Let relays answer the whole backlog; the clock starts when each of them has partitions.

        Raises StackError when a result is missing.
        """
        group, began = self.create_topics(), time.monotonic()
        with ExitStack() as stack:
            started = [
                stack.enter_context(self.started(contestant, group, self._backlog))
                for _ in range(relays)
            ]
            self._wait(started, START_TIMEOUT_S, partial(self._has_results, f"{group}-predictions"))
            self.wait_for_members(started, group)
            first = self._take_snapshot(started, contestant)
            self.wait_until_done(started, group, self.records)
            last = self._take_snapshot(started, contestant)
        found = self._compute(f"{group}-predictions", first, last)
        return replace(found, start_s=first.monotonic - began)

    def measure_latency(self, contestant: Contestant, rate: float, seconds: float) -> Latency:
        """Return how long records wait for their committed result; `rate`: records a second.

        The load begins SETTLE_S earlier: JIT compilers and connections are of a start.
        """
        group, count = self.create_topics(), round(rate * (SETTLE_S + seconds))
        images, predictions = self.create_input(group), f"{group}-predictions"
        send = partial(self.send, images)
        with self.started(contestant, group, images) as relay:
            send(self.partitions, MAX_RATE)  # the first ones wait longer
            self._wait([relay], START_TIMEOUT_S, partial(self._has_results, predictions))
            with Arrivals(self.bootstrap_servers, predictions) as arrivals:
                send(count, rate)
                self._wait([relay], RUN_TIMEOUT_S, partial(arrivals.have, count))
        return compute_latency(arrivals.list_delays(), round(rate * SETTLE_S))

    def send(self, topic: str, count: int, rate: float) -> None:
        """Send so many records of the backlog again, at a steady rate (a second)."""
        send_load(self.bootstrap_servers, topic, self._list_inputs(count), rate)

    def create_topics(self) -> str:
        """Return the name of a new group, whose topics are called after it."""
        group = next(names)
        for name in OUTPUTS:
            self._kafka.create_topic(f"{group}-{name}", self.partitions)
        return group

    def create_input(self, group: str) -> str:
        """Return the name of a new topic of images for a group."""
        self._kafka.create_topic(f"{group}-images", self.partitions)
        return f"{group}-images"

    @contextmanager
    def started(self, contestant: Contestant, group: str, images: str) -> Iterator[Process]:
        """Run a relay in a group of `create_topics` until the end of the block."""
        if contestant.service == "torchserve":
            self._scale(self._servers[contestant.tree], contestant.workers)
        environment = {**os.environ, "PYTHONPATH": str(contestant.tree)}
        argv = self._build_argv(contestant, group, images)
        log = self._folder / f"{next(logs)}.log"
        relay = Process(argv, log, environment, contestant.tree).start()
        try:
            yield relay
        finally:
            relay.stop()

    def _scale(self, server: TorchServe, workers: int) -> None:
        """Let TorchServe have so many workers. Raises StackError when it refuses."""
        if self._workers.get(server.url, 1) == workers:
            return
        asked = {"min_worker": str(workers), "max_worker": str(workers), "synchronous": "true"}
        models = f"{server.settings['management_address']}/models"
        answer = requests.put(f"{models}/{server.model}", params=asked, timeout=START_TIMEOUT_S)
        if not answer.ok:
            raise StackError(f"TorchServe does not take {workers} workers: {answer.text.strip()}")
        self._workers[server.url] = workers

    def _build_argv(self, contestant: Contestant, group: str, images: str) -> list[str]:
        argv = [sys.executable, "-m", *contestant.module, *contestant.flags]
        argv += ["--bootstrap-servers", self.bootstrap_servers, "--input-topic", images]
        argv += ["--output-topic", f"{group}-predictions", "--group", group]
        if contestant.module == DAEMON:
            argv += ["--dead-letter-topic", f"{group}-dead", "--metrics-port", "0"]
        match contestant.service:
            case "torchserve":
                argv += ["--url", self._servers[contestant.tree].url]
            case "instant":
                argv += ["--url", self._instant_url]
        return argv

    def _produce_backlog(self) -> None:
        self._kafka.create_topic(self._backlog, self.partitions)
        pictures = first_images(min(self.records, TEST_IMAGES))
        encoded = (encode_enlarged(image, self._size) for image in pictures)
        self._files = [pad_png(data, self._payload) for data in encoded]
        producer = KafkaProducer(bootstrap_servers=self.bootstrap_servers, linger_ms=20)
        for one in self._list_inputs(self.records):
            producer.send(self._backlog, **one._asdict())
        producer.flush()
        producer.close()

    def _list_inputs(self, count: int) -> Iterator[Input]:
        for number in range(count):
            value = self._files[number % len(self._files)]
            yield Input(value, b"%d" % number, [], number % self.partitions)

    def wait_for_members(self, relays: Sequence[Process], group: str) -> None:
        """Return when each relay has partitions. Raises StackError, as all waits, if one ends."""
        self._wait(relays, START_TIMEOUT_S, partial(self._have_partitions, group, len(relays)))

    def wait_until_done(self, relays: Sequence[Process], group: str, count: int) -> None:
        """Return when the group has committed so many records."""
        self._wait(relays, RUN_TIMEOUT_S, partial(self._is_done, group, count))

    def _wait(
        self, relays: Sequence[Process], timeout_s: float, condition: Callable[[], bool]
    ) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            for relay in relays:
                if not relay.alive() or time.monotonic() > until:
                    raise StackError(f"the relay did not get on; its log ends:\n{relay.tail()}")
            time.sleep(TICK_S)

    def _has_results(self, topic: str) -> bool:
        partitions = [TopicPartition(topic, one) for one in range(self.partitions)]
        return any(self._consumer.end_offsets(partitions).values())

    def _have_partitions(self, group: str, relays: int) -> bool:
        found = self._admin.describe_groups([group])[group]
        members = [one for one in found["members"] if one["member_assignment"]]
        return found["group_state"] == "Stable" and len(members) == relays

    def _is_done(self, group: str, count: int) -> bool:
        offsets = self._admin.list_group_offsets([group])[group]
        return bool(sum(found.offset for found in offsets.values()) >= count)

    def _take_snapshot(self, relays: Sequence[Process], contestant: Contestant) -> Snapshot:
        pids = {
            "relay": [relay.child.pid for relay in relays],
            "kafka": [self._kafka.process.child.pid],
        }
        match contestant.service:
            case "torchserve":
                pids |= find_torchserve(self._servers[contestant.tree].process.child.pid)
            case "instant":
                pids["service"] = [self._instant.child.pid]
        return Snapshot(time.monotonic(), time.time(), measure(pids), measure_machine())

    def _compute(self, topic: str, first: Snapshot, last: Snapshot) -> Measured:
        found = read_topic(self.bootstrap_servers, topic)
        if len(found) < self.records:
            raise StackError(f"{len(found)} of {self.records} results came: see {self._folder}")
        moments = [one.timestamp / 1000 for one in found]
        counted = sum(moment > first.wall for moment in moments)
        if not counted:
            raise StackError("all results came before the first look: take more records")
        used = {
            name: usage.cpu_s - first.usage.get(name, NOTHING).cpu_s
            for name, usage in last.usage.items()
        }
        seconds = last.monotonic - first.monotonic
        return Measured(
            records_s=compute_rate(moments),
            cpu_us={name: 1e6 * cpu_s / counted for name, cpu_s in used.items()},
            rss_mb={name: usage.rss_bytes / 1e6 for name, usage in last.usage.items()},
            cores=sum(used.values()) / seconds,
            machine_cores=(last.machine_s - first.machine_s) / seconds,
        )


def encode_enlarged(image: NDArray[np.uint8], size: int) -> bytes:
    """Return a PNG of `size` times `size` pixels, as Pillow writes it; its own are repeated."""
    rows = np.arange(size) * len(image) // size
    return encode(image[rows][:, rows])


def pad_png(data: bytes, size: int) -> bytes:
    """Return a PNG of at least so many bytes: a chunk that readers skip comes before its end.

    It is private and ancillary, by the case of its name (PNG specification, 5.4).
    """
    missing = size - len(data) - len(NO_CHUNK)
    if missing <= 0:
        return data
    chunk = png_chunk(b"paDd", random.Random(size).randbytes(missing))
    return data[: -len(NO_CHUNK)] + chunk + data[-len(NO_CHUNK) :]


def serve_base(tree: Path) -> TorchServe:
    """Return a server of an older tree's archive and settings, not started yet."""
    settings = read_properties(tree / "config.properties") | on_free_ports()
    return TorchServe(tree / "model_store" / "fmnist.mar", overrides=settings)
