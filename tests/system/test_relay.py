"""The daemon as an operator runs it: real Kafka, real TorchServe, signals and exit codes."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import requests
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.schemas import as_object
from tests.system.daemons import BOOT, Daemons, drain, names, png, wait_for_exit, wait_until
from tools.exported import classes, first_images, first_labels
from tools.schemas import find_faults, load_schema
from tools.servers.process import free_ports
from tools.servers.torchserve import TorchServe, on_free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tools.servers.kafka import Cluster

pytestmark = pytest.mark.system

PARTITIONS = 3
QUICK = ["--session-timeout", "6", "--heartbeat-interval", "1.5", "--transaction-timeout", "4"]

Headers = list[tuple[str, bytes]]


class Seen(NamedTuple):
    """One record of an output topic, as a read_committed reader finds it."""

    partition: int
    key: bytes | None
    value: bytes
    headers: Headers

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.value)
        return found


@dataclass(kw_only=True)
class Site(Daemons):
    """Three new topics on one Kafka, and the daemons between them."""

    kafka: Cluster

    @property
    def topics(self) -> tuple[str, str, str]:
        return self.name, f"{self.name}.out", f"{self.name}.dead"

    def create(self, partitions: int = PARTITIONS, **config: object) -> None:
        for topic in self.topics:
            self.kafka.create_topic(topic, partitions, **config)

    def flags(self) -> Sequence[str]:
        topics = ["--input-topic", self.name, "--output-topic", f"{self.name}.out"]
        servers = ["--bootstrap-servers", self.kafka.bootstrap_servers, "--group", self.name]
        return ["kafka", *topics, *servers]

    def produce(self, records: Sequence[tuple[int, bytes | None, bytes | None, Headers]]) -> None:
        """Send (partition, key, value, headers)."""
        producer = KafkaProducer(
            bootstrap_servers=self.kafka.bootstrap_servers, max_request_size=64 << 20
        )
        try:
            for partition, key, value, headers in records:
                producer.send(self.name, value, key, headers, partition)
            producer.flush(60)
        finally:
            producer.close(10)

    def read(self, topic: str, want: int, within: float = 120.0) -> list[Seen]:
        """Read committed records from the beginning: `want` of them, and what comes too much."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.kafka.bootstrap_servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_bytes=64 << 20,
        )
        try:
            consumer.assign([TopicPartition(topic, each) for each in range(PARTITIONS)])
            return self._gather(consumer, want, time.monotonic() + within)
        finally:
            consumer.close(timeout_ms=10_000)

    def _gather(self, consumer: Any, want: int, deadline: float) -> list[Seen]:  # noqa: ANN401 - untyped library
        found: list[Seen] = []
        while True:
            batch = [one for several in consumer.poll(1000).values() for one in several]
            found += [Seen(one.partition, one.key, one.value, one.headers) for one in batch]
            if not batch and len(found) >= want:
                return found
            assert time.monotonic() < deadline, f"{len(found)} of {want} in time\n{self.words()}"


@pytest.fixture
def site(kafka: Cluster, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(kafka=kafka, folder=tmp_path, stack=stack)
        made.create()
        yield made


def pictures(number: int) -> list[tuple[int, bytes | None, bytes | None, Headers]]:
    images = first_images(number)
    return [
        (i % PARTITIONS, b"%d" % i, png(image), [("index", b"%d" % i)])
        for i, image in enumerate(images)
    ]


def offsets(seen: Sequence[Seen]) -> dict[int, list[int]]:
    """The offsets of the source records, by partition, in the order of the output."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for one in seen:
        _, partition, offset = one.result["id"].rsplit("/", 2)
        assert int(partition) == one.partition
        found[one.partition].append(int(offset))
    return found


def test_all_test_images_go_through_once_in_order_and_as_the_model_says(
    site: Site, server: TorchServe
) -> None:
    daemon = site.daemon(server.url)
    site.produce(pictures(10_000))
    seen = site.read(site.topics[1], 10_000)
    assert len({one.result["id"] for one in seen}) == len(seen) == 10_000
    assert all(one == sorted(one) for one in offsets(seen).values())
    served = {int(dict(one.headers)["index"]): one.result["class"] for one in seen}
    offline = classes(first_images(10_000))
    assert [served[i] for i in range(10_000)] == offline.tolist()
    accuracy = np.mean([served[i] == label for i, label in enumerate(first_labels(10_000))])
    assert accuracy == np.mean(offline == first_labels(10_000))
    assert drain(daemon) == 0
    assert site.read(site.topics[2], 0) == []


def test_killed_daemons_lose_nothing_and_double_nothing(site: Site, server: TorchServe) -> None:
    total, rate, kills = 20_000, 800, 5
    slots = [["--instance", slot, *QUICK] for slot in ("one", "two")]
    running = [site.daemon(server.url, *flags) for flags in slots]
    feeder = threading.Thread(target=throttled, args=(site, total, rate))
    feeder.start()
    killed = 0
    for each in range(2 * kills):
        time.sleep(total / rate / (2 * kills + 1))
        running[each % 2].signal(signal.SIGKILL)
        killed += wait_for_exit(running[each % 2]) == -signal.SIGKILL
        running[each % 2] = site.daemon(server.url, *slots[each % 2])
    feeder.join(120)
    assert not feeder.is_alive()
    seen = site.read(site.topics[1], total)
    assert len({one.result["id"] for one in seen}) == len(seen) == total
    assert all(one == sorted(one) for one in offsets(seen).values())
    assert killed == 2 * kills
    assert site.read(site.topics[2], 0) == []


def throttled(site: Site, total: int, rate: int) -> None:
    """Produce `total` boots at `rate` a second, so that the kills outlast the load."""
    start = time.monotonic()
    for begin in range(0, total, rate):
        time.sleep(max(0.0, start + begin / rate - time.monotonic()))
        site.produce([(i % PARTITIONS, None, BOOT, []) for i in range(begin, begin + rate)])


def test_one_unreadable_image_in_a_pack_is_the_only_dead_letter(
    site: Site, server: TorchServe
) -> None:
    bad = b"\x89PNG but not really"
    headers = [("a", b"1"), ("content-type", b"image/png"), ("a", b"2"), ("empty", b"")]
    boots: list[Any] = [(0, b"%d" % i, BOOT, []) for i in range(63)]
    site.produce([*boots[:30], (0, b"the bad one", bad, headers), *boots[30:]])
    site.daemon(server.url, "--pack", "64")
    results = site.read(site.topics[1], 63)
    assert [one.result["label"] for one in results] == ["Ankle boot"] * 63
    assert [find_faults(one.result, load_schema("result")) for one in results] == [[]] * 63
    (letter,) = site.read(site.topics[2], 1)
    assert find_faults(as_object(letter.headers), load_schema("dead-letter-headers")) == []
    assert (letter.value, letter.key) == (bad, b"the bad one")
    assert letter.headers[:4] == headers
    ours = dict(letter.headers[4:])
    assert ours["connector.reason"] == b"not_an_image"
    assert ours["__connect.errors.topic"] == site.name.encode()
    assert (ours["__connect.errors.partition"], ours["__connect.errors.offset"]) == (b"0", b"30")


def test_a_record_that_calls_itself_multipart_stops_nobody(site: Site, server: TorchServe) -> None:
    kinds = (b"multipart/mixed", b"Multipart/Mixed; boundary=x", b"message/rfc822", b"charset/x")
    site.produce(
        [
            (number % PARTITIONS, b"%d" % number, BOOT, [("content-type", kinds[number % 4])])
            for number in range(12)
        ]
    )
    site.daemon(server.url, "--pack", "64")
    results = site.read(site.topics[1], 12)
    assert [one.result["label"] for one in results] == ["Ankle boot"] * 12


def test_odd_records_become_dead_letters_that_say_why(site: Site, server: TorchServe) -> None:
    large = bytes(20_000_000)
    site.name = next(names)
    site.create(max_message_bytes=64 << 20)
    odd: list[Any] = [
        (0, b"empty", b"", []),
        (0, b"null", None, []),
        (0, None, BOOT, []),
        (0, b"truncated", BOOT[:150], []),
        (0, b"text", b"a boot", []),
        (0, b"large", large, []),
    ]
    site.produce(odd)
    site.daemon(server.url)
    letters = site.read(site.topics[2], 5)
    reasons = {one.key: dict(one.headers)["connector.reason"] for one in letters}
    assert reasons == {
        b"empty": b"empty",
        b"null": b"tombstone",
        b"truncated": b"not_an_image",
        b"text": b"not_an_image",
        b"large": b"too_large",
    }
    assert letters[-1].value == large
    assert len(site.read(site.topics[1], 1)) == 1


def test_a_service_that_is_away_costs_time_and_nothing_else(site: Site, server: TorchServe) -> None:
    away = TorchServe(server.archive, overrides=on_free_ports())
    site.stack.callback(away.close)
    daemon = site.daemon(away.url)
    site.produce(pictures(300))
    wait_until(lambda: "has served nobody" in daemon.tail())
    away.start().wait()
    assert len(site.read(site.topics[1], 300)) == 300
    away.process.stop()
    site.produce(pictures(300))
    wait_until(lambda: daemon.tail().count("has served nobody") == 2)
    away.start().wait()
    assert len(site.read(site.topics[1], 600)) == 600
    assert drain(daemon) == 0
    assert site.read(site.topics[2], 0) == []


@pytest.mark.parametrize("path", ["predictions/nobody", "ping"])
def test_a_wrong_address_waits_and_warns_and_blames_no_record(
    site: Site, server: TorchServe, path: str
) -> None:
    daemon = site.daemon(f"{server.address}/{path}", "--drain-limit", "2")
    site.produce(pictures(10))
    wait_until(lambda: "has served nobody" in daemon.tail())
    assert drain(daemon) == 0
    assert "Left 10 records without a commit" in daemon.tail()
    assert site.read(site.topics[1], 0) == site.read(site.topics[2], 0) == []


def test_the_token_is_read_from_the_key_file_and_again_when_it_was_renewed(
    site: Site, server: TorchServe
) -> None:
    guarded = TorchServe(
        server.archive, overrides=on_free_ports() | {"disable_token_authorization": "false"}
    )
    site.stack.enter_context(guarded)
    site.daemon(guarded.url, "--token-file", str(guarded.key_file))
    site.produce(pictures(30))
    assert len(site.read(site.topics[1], 30)) == 30
    old = guarded.key("inference")
    renewed = requests.get(
        f"{guarded.settings['management_address']}/token?type=inference",
        headers={"Authorization": f"Bearer {guarded.key('API')}"},
        timeout=30,
    )
    assert renewed.ok
    assert guarded.key("inference") != old
    site.produce(pictures(30))
    assert len(site.read(site.topics[1], 60)) == 60
    assert site.read(site.topics[2], 0) == []


def test_of_two_daemons_with_one_name_the_older_leaves(site: Site, server: TorchServe) -> None:
    older = site.daemon(server.url, "--instance", "twin", *QUICK)
    site.produce(pictures(30))
    site.read(site.topics[1], 30)
    site.daemon(server.url, "--instance", "twin", *QUICK)
    start = time.monotonic()
    while older.alive() and time.monotonic() < start + 60:
        site.produce(pictures(30))
        time.sleep(0.5)
    assert wait_for_exit(older) == 75
    assert "--instance" in older.tail()


def test_a_broker_that_is_not_there_is_one_sentence(site: Site, server: TorchServe) -> None:
    flags = ["--bootstrap-servers", f"127.0.0.1:{free_ports(1)[0]}"]
    daemon = site.daemon(server.url, *flags)
    assert wait_for_exit(daemon, 60) == 69
    assert len(daemon.tail().splitlines()) == 1
    assert "--bootstrap-servers" in daemon.tail()


def test_a_missing_topic_is_named_and_not_created(site: Site, server: TorchServe) -> None:
    site.name = next(names)
    for _ in range(2):  # the first one must not have created it for the second
        daemon = site.daemon(server.url)
        assert wait_for_exit(daemon, 60) == 69
        assert site.name in daemon.tail()
