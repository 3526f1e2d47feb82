"""A coordinator that answers before it has read its log: `python -m tools.chaos.reload`.

Kafka 4 may do so after a restart (docs/decisions/013). Here its log is long and the restarted JVM
has no compiler, so that it does for seconds. Meanwhile a member of the group goes back to the
committed offsets, or, in a second case, one takes its place that knows nothing. Exit code 0 only if
neither doubles anything, and both do if they believe whatever they are told.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import closing, suppress

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from connectors.brokers.kafka import KafkaBroker
from connectors.errors import Exit, Rewound, Stop
from connectors.records import Message, Prediction, Settled
from connectors.settings import KafkaSettings
from tools.chaos.patched import BUGS
from tools.chaos.watch import whole
from tools.stack import StackError
from tools.stack_kafka import JVM, Kafka

GROUP, INPUT, OUTPUT, DEAD, FILLER = "group", "images", "predictions", "images.dead", "filler"
PARTITIONS = 9
RECORDS = 300  # in each partition
FILLING = 10_000  # commits of nine offsets each: about one read of the coordinator's loader
PACK = 64
PATIENCE = 120.0  # seconds
DEFENCELESS = "offsets-believed"

COMPILER = "-XX:TieredStopAtLevel=1"
NO_COMPILER = "-Xint"
"""Both are flags of the JVM; without a compiler it reads the log for seconds."""


class SlowKafka(Kafka):
    """One partition holds all groups; what is started after `slow_down` takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.properties = self.properties.replace(
            "offsets.topic.num.partitions=8", "offsets.topic.num.partitions=1"
        )
        self.properties += "group.coordinator.append.linger.ms=0\n"

    def slow_down(self) -> None:
        """Restart without a compiler from now on."""
        assert COMPILER in JVM  # noqa: S101 - or nothing would be slow
        self.process.argv = [NO_COMPILER if one == COMPILER else one for one in self.process.argv]


def encode(settled: Settled) -> Message:
    """Answer a record with its own name."""
    return Message(settled.record.id.encode(), None, (), dead=False)


def opened(servers: str) -> KafkaBroker:
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


def restarted(servers: str) -> KafkaBroker:
    """Join as one does whom a supervisor starts until Kafka is there."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return opened(servers)
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
    places = [TopicPartition(FILLER, one) for one in range(PARTITIONS)]
    consumer = KafkaConsumer(bootstrap_servers=servers, group_id=GROUP, enable_auto_commit=False)
    consumer.assign(places)
    for offset in range(FILLING):
        consumer.commit({place: OffsetAndMetadata(offset, "", -1) for place in places})
    consumer.close(timeout_ms=5_000)


def taken(broker: KafkaBroker) -> list[Settled]:
    """Take some records and answer them."""
    return [Settled(record, Prediction({})) for record in broker.poll(PACK, 0.2)]


def settle(broker: KafkaBroker, count: int) -> int:
    """Answer records until there were so many; return how many there were."""
    done, until = 0, time.monotonic() + PATIENCE
    while done < count:
        if time.monotonic() > until:
            raise StackError(f"only {done} of {count} records came in {PATIENCE:.0f} s")
        with suppress(Rewound):
            if held := taken(broker):
                broker.commit(held)
                done += len(held)
    return done


def strike(kafka: SlowKafka, broker: KafkaBroker) -> list[Settled]:
    """Kill and restart Kafka while records are held; return them."""
    held: list[Settled] = []
    while not held:
        held = taken(broker)
    kafka.slow_down()
    kafka.kill()
    kafka.process.start()
    return held


def run(*, succeeded: bool) -> list[str]:
    """Return the records that were answered more than once."""
    with SlowKafka() as kafka:
        servers = kafka.plain_servers
        for topic in (INPUT, OUTPUT, DEAD, FILLER):
            kafka.create_topic(topic, PARTITIONS)
        produce(servers)
        with closing(opened(servers)) as early:
            done = settle(early, PARTITIONS * RECORDS // 10)
        fill(servers)
        with closing(opened(servers)) as broker:
            done += settle(broker, PARTITIONS * RECORDS // 2)
            held = strike(kafka, broker)
            if not succeeded:
                with suppress(Rewound):
                    broker.commit(held)
                settle(broker, PARTITIONS * RECORDS - done)
        if succeeded:
            with closing(restarted(servers)) as heir:
                settle(heir, PARTITIONS * RECORDS - done)
        answered = Counter(found.value.decode() for found in whole(servers, OUTPUT))
    return [name for name, count in answered.items() if count > 1]


def say(text: str) -> None:
    """Print one line."""
    print(f"reload: {text}", flush=True)


def tried(who: str) -> list[int]:
    """Run both cases; say and return how many records each doubled."""
    same, new = (len(run(succeeded=one)) for one in (False, True))
    say(f"{who}: {same} doubled by the same daemon, {new} by a new one")
    return [same, new]


def main() -> int:
    """Do it with the defence, then without; return the exit code."""
    try:
        kept = tried("connectors")
        BUGS[DEFENCELESS]()
        doubled = tried(DEFENCELESS)
    except StackError as error:
        say(str(error))
        return 69
    return 0 if all(doubled) and not any(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
