"""A restarted Kafka that answers with old offsets, before it has read its log.

Kafka 4 may do so (docs/decisions/013). Here its log is long and the restarted JVM compiles late, so
that it does for seconds. Meanwhile a member of the group goes back to the committed offsets, or,
in a second case, one takes its place that knows nothing. Neither must double anything, and both
must if they believe whatever they are told.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing, suppress
from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from connectors.brokers.kafka.broker import KafkaBroker
from connectors.brokers.kafka.settings import KafkaSettings
from connectors.errors import Exit, Rewound, Stop
from connectors.records import Message, Prediction, Settled
from tests.chaos.brokers.kafka.bugs import BUGS
from tests.chaos.brokers.kafka.observer import read_topic
from tests.chaos.verdict import Verdict
from tools.servers.kafka import Kafka
from tools.servers.process import StackError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

GROUP, INPUT, OUTPUT, DEAD, FILLER = "group", "images", "predictions", "images.dead", "filler"
PARTITIONS = 9
RECORDS = 300  # in each partition
FILLER_COMMITS = 10_000  # of nine offsets each: about one read of the coordinator's loader
PACK = 64
SETTLE_TIMEOUT_S = 120.0
BUG = "offsets-believed"

LATE_COMPILER = "-XX:CompileThresholdScaling=1000"
"""A flag of the JVM, which compiles what it has run for so many times as often as by default.

It reads the log for seconds then, and is as fast as ever soon afterwards. With no compiler at all
(`-Xint`) the broker of a slow machine stayed too slow for its own clients.
"""

MANY_PARTITIONS = "offsets.topic.num.partitions=8"
ONE_PARTITION = "offsets.topic.num.partitions=1"


class SlowKafka(Kafka):
    """One partition holds all groups; what is started after `slow_down` takes its time."""

    def __init__(self) -> None:
        super().__init__()
        assert MANY_PARTITIONS in self.properties
        self.properties = self.properties.replace(MANY_PARTITIONS, ONE_PARTITION)
        self.properties += "group.coordinator.append.linger.ms=0\n"

    def slow_down(self) -> None:
        """Restart with a late compiler from now on."""
        java, *rest = self.process.argv
        self.process.argv = [java, LATE_COMPILER, *rest]


def encode(settled: Settled) -> Message:
    """Answer a record with its own name."""
    return Message(settled.record.id.encode(), None, (), dead=False)


def open_broker(servers: str) -> KafkaBroker:
    """Join the group."""
    settings = KafkaSettings(
        bootstrap_servers=servers,
        input_topic=INPUT,
        output_topic=OUTPUT,
        dead_letter_topic=DEAD,
        group=GROUP,
        instance="one",
    )
    return KafkaBroker(settings, encode)


def open_successor(servers: str) -> KafkaBroker:
    """Join as a daemon does that a supervisor starts until Kafka is there."""
    until = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        try:
            return open_broker(servers)
        except Stop as stop:
            if stop.code is not Exit.UNAVAILABLE or time.monotonic() > until:
                raise


def produce(servers: str) -> None:
    """Put the same number of records into each partition."""
    producer = KafkaProducer(bootstrap_servers=servers)
    for partition in range(PARTITIONS):
        for _ in range(RECORDS):
            producer.send(INPUT, b"image", partition=partition)
    producer.close(timeout=30)


def fill(servers: str) -> None:
    """Make the group's log long, by offsets of a topic that nobody reads."""
    partitions = [TopicPartition(FILLER, one) for one in range(PARTITIONS)]
    consumer = KafkaConsumer(bootstrap_servers=servers, group_id=GROUP, enable_auto_commit=False)
    consumer.assign(partitions)
    for offset in range(FILLER_COMMITS):
        consumer.commit({one: OffsetAndMetadata(offset, "", -1) for one in partitions})
    consumer.close(timeout_ms=5_000)


def take_records(broker: KafkaBroker) -> list[Settled]:
    """Take some records and answer them."""
    return [Settled(record, Prediction({})) for record in broker.poll(PACK, 0.2)]


def settle(broker: KafkaBroker, count: int) -> int:
    """Answer records until there were so many; return how many there were."""
    done, until = 0, time.monotonic() + SETTLE_TIMEOUT_S
    while done < count:
        if time.monotonic() > until:
            raise StackError(f"only {done} of {count} records came in {SETTLE_TIMEOUT_S:.0f} s")
        with suppress(Rewound):
            if held := take_records(broker):
                broker.commit(held)
                done += len(held)
    return done


def restart_kafka(kafka: SlowKafka, broker: KafkaBroker) -> list[Settled]:
    """Kill and restart Kafka while records are held; return them."""
    held: list[Settled] = []
    while not held:
        held = take_records(broker)
    kafka.slow_down()
    kafka.kill()
    kafka.process.start()
    return held


def count_doubled(*, succeeded: bool) -> int:
    """Return how many records were answered more than once; `succeeded`: by a new daemon."""
    with SlowKafka() as kafka:
        servers = kafka.plain_servers
        for topic in (INPUT, OUTPUT, DEAD, FILLER):
            kafka.create_topic(topic, PARTITIONS)
        produce(servers)
        with closing(open_broker(servers)) as early:
            done = settle(early, PARTITIONS * RECORDS // 10)
        fill(servers)
        with closing(open_broker(servers)) as broker:
            done += settle(broker, PARTITIONS * RECORDS // 2)
            held = restart_kafka(kafka, broker)
            if not succeeded:
                with suppress(Rewound):
                    broker.commit(held)
                settle(broker, PARTITIONS * RECORDS - done)
        if succeeded:
            with closing(open_successor(servers)) as successor:
                settle(successor, PARTITIONS * RECORDS - done)
        answered = Counter(found.value.decode() for found in read_topic(servers, OUTPUT))
    return sum(count > 1 for count in answered.values())


class Doubled(NamedTuple):
    """How many records were doubled, by the daemon that met the restart and by a new one."""

    same: int
    new: int

    def __str__(self) -> str:
        return f"{self.same} doubled by the same daemon, {self.new} by a new one"


def run_both(who: str, say: Callable[[str], None]) -> Doubled:
    """Run both cases; say and return how many records each doubled."""
    found = Doubled(count_doubled(succeeded=False), count_doubled(succeeded=True))
    say(f"{who}: {found}")
    return found


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:
    """See `Scenario.add_arguments`; it has none of its own."""


def run(asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Verdict:  # noqa: ARG001 - it has no flags, and its relays run in this process
    """See `Scenario.run`: with the defence, then without."""
    defended = run_both("connectors", say)
    BUGS[BUG]()
    defenceless = run_both(BUG, say)
    broken = {
        "the connectors doubled records": any(defended),
        f"{BUG} doubled nothing: nothing is shown": not all(defenceless),
    }
    figures = {"connectors": str(defended), BUG: str(defenceless)}
    return Verdict(figures, [sentence for sentence, wrong in broken.items() if wrong])
