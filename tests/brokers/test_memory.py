import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import count, repeat
from typing import ClassVar, Literal

import pytest

from connectors.errors import Exit, Rewound, Stop
from connectors.records import Broker, Headers, Record
from tests.brokers.conformance import (
    Conformance,
    Groups,
    LogHarness,
    Partitions,
    Published,
    Redelivers,
    RepeatsHeaders,
    TellsNulls,
    Topics,
    Transactions,
    encode,
    predicted,
    values,
)
from tests.brokers.memory import (
    BreakCommit,
    Cell,
    Encode,
    Fenced,
    Memory,
    MemoryBroker,
    Producer,
    Step,
    Subscription,
    Transaction,
    lose_answer,
)


class VirtualClock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class MemoryHarness:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.memory = Memory(self.clock, self.clock.wait)
        self._names = count()

    def topics(self, partitions: int = 2, output_partitions: int | None = None) -> Topics:
        number = next(self._names)
        topics = Topics(f"in-{number}", f"out-{number}", f"dead-{number}")
        self.memory.create(topics.input, partitions)
        self.memory.create(topics.output, output_partitions or partitions)
        self.memory.create(topics.dead, partitions)
        return topics

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int = 0,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> str:
        at = self.memory.produce(topic, value, partition=partition, key=key, headers=headers)
        return f"{topic}/{at.partition}/{at.offset}"

    def begin(self, topic: str, value: bytes, *, partition: int = 0) -> Transaction:
        transaction = Producer(self.memory, f"other-{next(self._names)}", timeout=60).begin()
        transaction.append(topic, partition, Cell(None, value, (), self.memory.now_ms()))
        return transaction

    def open(
        self,
        topics: Topics,
        encode: Encode,
        *,
        group: str = "group",
        instance: str = "one",
        start: Literal["earliest", "latest"] = "earliest",
        delivery: Literal["exactly-once", "at-least-once"] = "exactly-once",
        session: float = 10.0,
    ) -> MemoryBroker:
        subscription = Subscription(
            input=topics.input,
            output=topics.output,
            dead=topics.dead,
            group=group,
            instance=instance,
            start=start,
            delivery=delivery,
            session=session,
        )
        return MemoryBroker(self.memory, subscription, encode)

    def read_committed(self, topic: str) -> list[Published]:
        return [
            Published(entry.partition, entry.offset, entry.key, entry.value, entry.headers)
            for entry in self.memory.read(topic)
        ]

    peek = read_committed

    def committed(self, topics: Topics, group: str = "group") -> Mapping[int, int]:
        offsets = self.memory.offsets(group)
        return {
            partition: at for (topic, partition), at in offsets.items() if topic == topics.input
        }

    def patience(self) -> Iterator[None]:
        yield from repeat(None, 200)
        pytest.fail("the broker took too long")

    def break_commit(self, broker: Broker, after: int) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.fault(BreakCommit(after))

    def lose_answer(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.fault(lose_answer)

    def watch_commit(self, broker: Broker, look: Callable[[], None]) -> None:
        def watch(step: Step) -> None:
            if step == "end":
                look()

        assert isinstance(broker, MemoryBroker)
        broker.fault(watch)

    def expel(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.expel()


class TestMemory(Conformance, RepeatsHeaders, TellsNulls, Transactions, Partitions, Groups):
    absent: ClassVar[Mapping[type, str]] = {
        Redelivers: "within a generation an offset is handed out once, or again after a Rewound"
    }

    @pytest.fixture
    def harness(self) -> LogHarness:
        return MemoryHarness()


class Crash(Exception):
    """The process is gone."""


def crash(step: Step) -> None:
    if step == "end":
        raise Crash


@pytest.fixture
def harness() -> MemoryHarness:
    return MemoryHarness()


def produced(harness: MemoryHarness, *contents: bytes, partitions: int = 1) -> Topics:
    topics = harness.topics(partitions)
    for number, value in enumerate(contents):
        harness.produce(topics.input, value, partition=number % partitions)
    return topics


def killed_in_commit(harness: MemoryHarness, topics: Topics, session: float = 10.0) -> list[Record]:
    """Leave the transaction of instance "one" open, for 8 s."""
    broker = harness.open(topics, encode, session=session)
    records = list(broker.poll(10, 0))
    broker.fault(crash)
    with pytest.raises(Crash):
        broker.commit(predicted(records))
    return records


def test_a_successor_of_the_same_name_aborts_an_orphaned_transaction(
    harness: MemoryHarness,
) -> None:
    topics = produced(harness, b"1")
    killed_in_commit(harness, topics)
    harness.open(topics, encode)
    other = harness.memory.produce(topics.output, b"other", partition=0)
    assert [one.offset for one in harness.read_committed(topics.output)] == [other.offset]


def test_an_orphaned_transaction_keeps_readers_back_until_it_runs_out(
    harness: MemoryHarness,
) -> None:
    topics = produced(harness, b"1")
    killed_in_commit(harness, topics)
    harness.produce(topics.output, b"other")
    harness.clock.wait(7.9)
    assert harness.read_committed(topics.output) == []
    harness.clock.wait(0.1)
    assert values(harness.memory.read(topics.output)) == [b"other"]


def test_nobody_reads_on_while_an_orphan_may_still_move_the_offsets(
    harness: MemoryHarness,
) -> None:
    topics = produced(harness, b"1")
    held = killed_in_commit(harness, topics, session=2.0)
    heir = harness.open(topics, encode, instance="two")
    harness.clock.wait(7.9)
    assert heir.poll(10, 0) == []
    harness.clock.wait(0.1)
    assert [record.id for record in heir.poll(10, 0)] == [record.id for record in held]


def test_a_silent_member_loses_its_partitions(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1")
    silent = harness.open(topics, encode, instance="one")
    held = silent.poll(10, 0)
    heir = harness.open(topics, encode, instance="two")
    assert heir.poll(10, 0) == [], "the elder has not let go yet"
    harness.clock.wait(10)
    assert values(heir.poll(10, 0)) == [b"1"]
    with pytest.raises(Rewound):
        silent.commit(predicted(held))


def test_a_member_that_closes_is_not_waited_for(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1")
    leaving = harness.open(topics, encode, instance="one")
    leaving.poll(10, 0)
    leaving.close()
    assert values(harness.open(topics, encode, instance="two").poll(10, 0)) == [b"1"]


def test_a_rebalance_rewinds_everybody(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1", b"2", partitions=2)
    brokers = [harness.open(topics, encode, instance=name) for name in ("one", "two")]
    for broker in (*brokers, *brokers):
        with suppress(Rewound):
            broker.poll(0, 0)
    harness.memory.rebalance("group")
    brokers[0].poll(0, 0)
    for broker in reversed(brokers):
        with pytest.raises(Rewound):
            broker.poll(0, 0)
    assert {*values(brokers[0].poll(10, 0)), *values(brokers[1].poll(10, 0))} == {b"1", b"2"}


def test_while_the_cluster_is_away_nothing_comes_and_nobody_is_put_out(
    harness: MemoryHarness,
) -> None:
    topics = produced(harness, b"1")
    broker = harness.open(topics, encode)
    held = broker.poll(10, 0)
    harness.produce(topics.input, b"2")
    harness.memory.go_away(60)
    assert broker.poll(10, 30) == []
    broker.commit(predicted(held))
    assert harness.clock.now == 1_060
    assert values(broker.poll(10, 0)) == [b"2"]


def test_a_group_that_lost_its_offsets_begins_at_its_start(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1")
    broker = harness.open(topics, encode)
    broker.commit(predicted(broker.poll(10, 0)))
    broker.close()
    harness.memory.forget("group")
    assert values(harness.open(topics, encode).poll(10, 0)) == [b"1"]


def test_records_that_retention_took_unread_stop_the_daemon(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1", b"2", b"3", b"4")
    broker = harness.open(topics, encode)
    broker.commit(predicted(broker.poll(1, 0)))
    broker.close()
    harness.memory.trim(topics.input, 0, before=3)
    with pytest.raises(Stop, match="2 records are gone") as stop:
        harness.open(topics, encode).poll(10, 0)
    assert stop.value.code is Exit.GIVEN_UP


def test_retention_of_what_was_read_goes_unnoticed(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1", b"2")
    broker = harness.open(topics, encode)
    broker.commit(predicted(broker.poll(1, 0)))
    harness.memory.trim(topics.input, 0, before=1)
    harness.memory.trim(topics.input, 0, before=1)
    assert values(broker.poll(10, 0)) == [b"2"]


def test_retention_of_what_was_aborted_goes_unnoticed(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1")
    broker = harness.open(topics, encode)
    harness.begin(topics.input, b"aborted").abort()
    broker.poll(10, 0)
    harness.produce(topics.input, b"2")
    harness.memory.trim(topics.input, 0, before=3)
    assert values(broker.poll(10, 0)) == [b"2"]


def test_a_record_cannot_be_acknowledged_over_the_head_of_its_elder(
    harness: MemoryHarness,
) -> None:
    topics = produced(harness, b"1", b"2")
    broker = harness.open(topics, encode)
    _, second = broker.poll(10, 0)
    with pytest.raises(ValueError, match="not the eldest"):
        broker.commit(predicted([second]))
    assert harness.read_committed(topics.output) == []


def test_a_commit_of_nothing_asks_for_nothing(harness: MemoryHarness) -> None:
    topics = harness.topics()
    harness.open(topics, encode).commit([])
    assert harness.read_committed(topics.output) == []


def test_partitions_take_turns(harness: MemoryHarness) -> None:
    topics = produced(harness, *[b"0", b"1", b"2"] * 4, partitions=3)
    broker = harness.open(topics, encode)
    assert {value for _ in range(3) for value in values(broker.poll(2, 0))} == {b"0", b"1", b"2"}


def test_a_reader_may_ask_for_what_is_not_committed(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1")
    harness.begin(topics.input, b"open")
    harness.begin(topics.input, b"aborted").abort()
    assert values(harness.memory.read(topics.input)) == [b"1"]
    everything = harness.memory.read(topics.input, "uncommitted")
    assert values(everything) == [b"1", b"open", b"aborted"]


def test_what_has_ended_cannot_go_on(harness: MemoryHarness) -> None:
    transaction = harness.begin(produced(harness).input, b"x")
    transaction.commit()
    with pytest.raises(Fenced):
        transaction.abort()


def test_records_of_one_key_share_a_partition(harness: MemoryHarness) -> None:
    harness.memory.create("keys", partitions=7)
    places = {harness.memory.produce("keys", b"", key=b"%d" % (n % 20)) for n in range(60)}
    assert len(places) == 60
    assert len({(one.key, one.partition) for one in harness.memory.read("keys")}) == 20


def test_the_lag_is_what_the_group_has_not_acknowledged(harness: MemoryHarness) -> None:
    topics = produced(harness, b"1", b"2", b"3")
    broker = harness.open(topics, encode)
    assert broker.lag() == {}
    held = broker.poll(2, 0)
    assert broker.lag() == {f"{topics.input}/0": 3}
    broker.commit(predicted(held))
    assert broker.lag() == {f"{topics.input}/0": 1}


def test_a_face_says_where_it_stands(harness: MemoryHarness) -> None:
    broker = harness.open(produced(harness, b"1", b"2"), encode)
    assert repr(broker) == "<MemoryBroker one-1 generation=0 next={} out=0>"
    broker.poll(1, 0)
    assert repr(broker) == "<MemoryBroker one-1 generation=1 next={0: 1} out=1>"


def test_many_threads_may_share_a_cluster() -> None:
    memory = Memory(lambda: 0.0, lambda _: None)
    for topic in ("images", "predictions", "dead"):
        memory.create(topic, partitions=2)
    broker = MemoryBroker(
        memory, Subscription(input="images", output="predictions", dead="dead"), encode
    )

    def produce(partition: int) -> None:
        for number in range(200):
            memory.produce("images", b"%d" % number, partition=partition)

    with ThreadPoolExecutor(2) as pool:
        producing = [pool.submit(produce, partition) for partition in (0, 1)]
        committed = 0
        while committed < 400:
            records = broker.poll(50, 0)
            broker.commit(predicted(records))
            committed += len(records)
        wait(producing)
    assert len(set(sources_of(memory))) == 400


def sources_of(memory: Memory) -> list[str]:
    return [json.loads(entry.value or b"")["of"] for entry in memory.read("predictions")]
