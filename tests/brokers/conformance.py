"""One suite for every broker: what `connectors.records.Broker` promises, asked of each backend.

A backend inherits `Conformance` and gives it a `Harness`. No test sleeps: the harness says how
long its broker may take, in real seconds for a server, in virtual ones for the memory broker.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import ClassVar, Literal, Protocol

import pytest

from connectors.commands.dlq import find_source
from connectors.committer import CommitThread
from connectors.errors import Exit, Rewound, Stop
from connectors.metrics import InstrumentedBroker
from connectors.records import (
    Broker,
    Headers,
    Message,
    Prediction,
    Record,
    Rejection,
    Settled,
    Skipped,
)

Encode = Callable[[Settled], Message | None]
"""What the daemon gives its broker; None: acknowledge without a message."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The three topics of one daemon."""

    input: str
    output: str
    dead: str


@dataclass(frozen=True, slots=True)
class Published:
    """One record as a reader of a topic finds it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Transaction(Protocol):
    """Somebody else's open transaction on an input topic."""

    def commit(self) -> None: ...
    def abort(self) -> None: ...


class Harness(Protocol):
    """What the suite needs of a backend.

    Everything runs in one thread; two members of a group are polled in turn. What the harness
    opened, its fixture closes, also after a failed test.
    """

    def topics(self, partitions: int = 2, output_partitions: int | None = None) -> Topics:
        """Make three new topics under new names; the dead letters have as many as the input.

        `output_partitions` is the same number unless given.
        """
        ...

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int = 0,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> str:
        """Append one record, wait until the server has it, and return the id it will have.

        Where there are no partitions, the number stands for a lane of its own, unless there is a
        key: then that is the lane.
        """
        ...

    def open(
        self,
        topics: Topics,
        encode: Encode,
        *,
        group: str = "group",
        instance: str = "one",
        start: Literal["earliest", "latest"] = "earliest",
        delivery: Literal["exactly-once", "at-least-once"] = "exactly-once",
    ) -> Broker:
        """Start the daemon's face of the broker, fencing an earlier one with the same `instance`.

        Where there is but one promise, or no group, those arguments mean nothing.
        It need not have joined its group yet: `poll` does that, and may return nothing meanwhile.
        For topics that do not exist, here or at a later `poll`, Stop.
        """
        ...

    def read_committed(self, topic: str) -> list[Published]:
        """Return all that readers of committed records find in a topic, up to its end.

        In the order of (partition, offset), or in the order in which it came. An orphaned
        transaction is waited for.
        """
        ...

    def patience(self) -> Iterator[None]:
        """Yield again and again for as long as the slowest step may take, then fail the test.

        Suite and harness put what is waited for into the loop's body, and leave by `return`.
        """
        ...

    # Faults, applied from outside.

    def break_commit(self, broker: Broker, after: int) -> None:
        """Let the next commit of `broker` fail when `after` of its messages have been sent.

        With a transaction this is before its end; without, those `after` stay published.
        """
        ...

    def lose_answer(self, broker: Broker) -> None:
        """Let the next commit of `broker` happen in full, and then look to it as failed."""
        ...


class RedeliveringHarness(Harness, Protocol):
    """What the suite needs of a backend that may deliver again what is still held."""

    def send(self, topic: str, value: bytes) -> str:
        """Append one record of no lane, and return the id it will have."""
        ...

    def deliver_again(self, broker: Broker, held: Sequence[Record]) -> None:
        """Have the service deliver these to `broker` once more, though nobody gave them back."""
        ...


class LogHarness(Harness, Protocol):
    """What the suite needs of a backend with partitions, transactions and groups."""

    def begin(self, topic: str, value: bytes, *, partition: int = 0) -> Transaction:
        """Append one record in a transaction that stays open."""
        ...

    def peek(self, topic: str) -> list[Published]:
        """As `read_committed`, but at once: what lies behind an open transaction is not there."""
        ...

    def committed(self, topics: Topics, group: str = "group") -> Mapping[int, int]:
        """Return the group's next offset for each input partition that has one."""
        ...

    def watch_commit(self, broker: Broker, look: Callable[[], None]) -> None:
        """Call `look` once inside the next commit: all has been sent, nothing is committed."""
        ...

    def expel(self, broker: Broker) -> None:
        """Take this member out of its group, as though its session had run out.

        It keeps running, and is told nothing until it asks. (Kafka: a LeaveGroup in its name.)
        """
        ...


def encode(settled: Settled) -> Message | None:
    """Publish what was predicted, or the record itself as a dead letter, or nothing."""
    record, outcome = settled.record, settled.outcome
    match outcome:
        case Prediction(body):
            value = json.dumps(dict(body)).encode()
            return Message(value, record.key, record.headers, dead=False)
        case Rejection(reason):
            headers = (*record.headers, ("connector.reason", reason.encode()))
            return Message(record.value, record.key, headers, dead=True)
        case Skipped():
            return None


def predicted(records: Sequence[Record]) -> list[Settled]:
    return [Settled(record, Prediction({"of": record.id})) for record in records]


def rejected(record: Record, detail: str = "no image at all") -> Settled:
    return Settled(record, Rejection("not_an_image", detail))


def sources(published: Sequence[Published]) -> list[str]:
    """Return the ids of the records that these results answer."""
    return [json.loads(one.value or b"null")["of"] for one in published]


class Valued(Protocol):
    @property
    def value(self) -> bytes | None: ...


def values(records: Sequence[Valued]) -> list[bytes | None]:
    return [record.value for record in records]


def in_partition(records: Sequence[Record], topic: str, partition: int) -> list[Record]:
    return [record for record in records if record.id.startswith(f"{topic}/{partition}/")]


def take(harness: Harness, broker: Broker, count: int) -> list[Record]:
    """Poll until `count` records are held; what came before a Rewound is void."""
    records: list[Record] = []
    for _ in harness.patience():
        try:
            records += broker.poll(count - len(records), 0.1)
        except Rewound:
            records = []
        if len(records) == count:
            return records
    raise AssertionError


def poll_in_turn(harness: Harness, brokers: Sequence[Broker], count: int) -> list[list[str]]:
    """Poll and commit in turn until `count` are committed; return the ids that each committed."""
    done: list[list[str]] = [[] for _ in brokers]
    for _ in harness.patience():
        for broker, ids in zip(brokers, done, strict=True):
            with suppress(Rewound):
                records = broker.poll(10, 0.1)
                if records:
                    broker.commit(predicted(records))
                ids += [record.id for record in records]
        if sum(map(len, done)) >= count:
            return done
    raise AssertionError


def relay(harness: Harness, broker: Broker, count: int) -> list[Record]:
    """Poll and commit until `count` are committed; what came before a Rewound is void."""
    done: list[Record] = []
    for _ in harness.patience():
        with suppress(Rewound):
            records = broker.poll(10, 0.1)
            if records:
                broker.commit(predicted(records))
            done += records
        if len(done) >= count:
            return done
    raise AssertionError


def by_lane(records: Sequence[Record]) -> list[list[Record]]:
    lanes: dict[Hashable, list[Record]] = {}
    for record in records:
        lanes.setdefault(record.lane, []).append(record)
    return list(lanes.values())


def as_record(dead_letter: Published) -> Record:
    return Record("", dead_letter.value, dead_letter.key, dead_letter.headers, 0, None, None)


def poll_until_rewound(harness: Harness, broker: Broker, others: Sequence[Broker]) -> list[Record]:
    """Poll all in turn until `broker` is told to begin again; return what the others took."""
    taken: list[Record] = []
    for _ in harness.patience():
        for other in others:
            taken += other.poll(10, 0.1)
        try:
            broker.poll(0, 0.1)
        except Rewound:
            return taken
    raise AssertionError


class Conformance:
    """What every backend promises. A subclass gives the `harness`.

    It inherits the further promises that it makes, and says in `absent` why it does not make the
    others. `exactly_once`: each record has one outcome; without it a record whose acknowledgement
    was lost has two of the same id.
    """

    exactly_once: ClassVar[bool] = True
    absent: ClassVar[Mapping[type, str]] = {}

    @pytest.fixture
    def harness(self) -> Harness:
        raise NotImplementedError

    def test_each_further_promise_is_made_or_its_absence_has_a_reason(self) -> None:
        made = {promise for promise in PROMISES if isinstance(self, promise)}
        assert made.isdisjoint(self.absent)
        assert made | set(self.absent) == set(PROMISES)
        assert all(self.absent.values())

    # Reading

    def test_a_record_is_what_was_produced(self, harness: Harness) -> None:
        topics = harness.topics()
        headers = (("a", b""), ("b", b"1"))
        name = harness.produce(topics.input, b"\x00\xff", partition=1, key=b"k", headers=headers)
        (record,) = take(harness, harness.open(topics, encode), 1)
        assert record.id == name
        assert (record.value, record.key, record.headers) == (b"\x00\xff", b"k", headers)
        assert record.time > 0

    def test_a_large_value_arrives_whole(self, harness: Harness) -> None:
        topics = harness.topics()
        value = bytes(range(250)) * 3_600
        harness.produce(topics.input, value)
        assert values(take(harness, harness.open(topics, encode), 1)) == [value]

    def test_an_empty_value_comes_and_can_be_a_dead_letter(self, harness: Harness) -> None:
        topics = harness.topics()
        harness.produce(topics.input, b"", key=b"k", headers=(("a", b"1"),))
        broker = harness.open(topics, encode)
        (record,) = take(harness, broker, 1)
        broker.commit([rejected(record)])
        (dead_letter,) = harness.read_committed(topics.dead)
        assert (record.value, dead_letter.value, dead_letter.key) == (b"", b"", b"k")

    def test_a_lane_comes_in_order_and_its_results_do(self, harness: Harness) -> None:
        topics = harness.topics(partitions=2)
        for number in range(20):
            harness.produce(topics.input, b"%d" % number, partition=number % 2)
        records = relay(harness, harness.open(topics, encode), 20)
        results = sources(harness.read_committed(topics.output))
        assert len(results) == len({record.lane for record in records}) * 10 == 20
        for own in by_lane(records):
            assert [int(record.value or b"") for record in own] == sorted(
                int(record.value or b"") for record in own
            )
            ids = [record.id for record in own]
            assert [one for one in results if one in ids] == ids

    def test_poll_never_takes_more_than_its_limit(self, harness: Harness) -> None:
        topics = harness.topics(partitions=10)
        for partition in range(10):
            harness.produce(topics.input, b"x", partition=partition)
        broker = harness.open(topics, encode)
        sizes: list[int] = []
        for _ in harness.patience():
            sizes.append(len(broker.poll(3, 0.1)))
            if sum(sizes) == 10:
                break
        assert max(sizes) == 3

    def test_a_limit_of_zero_stays_alive_and_takes_nothing(self, harness: Harness) -> None:
        topics = harness.topics()
        harness.produce(topics.input, b"x")
        broker = harness.open(topics, encode)
        assert not any(broker.poll(0, 0.1) for _ in islice(harness.patience(), 30))
        assert values(take(harness, broker, 1)) == [b"x"]

    def test_a_missing_topic_stops_the_daemon(self, harness: Harness) -> None:
        there = harness.topics()
        for name in ("input", "output", "dead"):
            topics = replace(there, **{name: f"{there.input}-missing"})
            with pytest.raises(Stop) as stop:
                take(harness, harness.open(topics, encode), 1)
            assert stop.value.code is Exit.UNAVAILABLE

    # The commit

    def test_a_commit_takes_off_what_it_publishes_and_what_is_skipped(
        self, harness: Harness
    ) -> None:
        topics = harness.topics(partitions=4)
        for partition in range(4):
            harness.produce(topics.input, b"%d" % partition, partition=partition)
        earlier = harness.open(topics, encode)
        taken = take(harness, earlier, 4)
        first, second, third, last = sorted(taken, key=lambda record: record.value or b"")
        earlier.commit([*predicted([first]), rejected(second), Settled(third, Skipped())])
        earlier.close()
        assert sources(harness.read_committed(topics.output)) == [first.id]
        assert values(harness.read_committed(topics.dead)) == [b"1"]
        younger = harness.open(topics, encode, instance="two")
        assert [record.id for record in relay(harness, younger, 1)] == [last.id]
        assert not any(younger.poll(10, 0.1) for _ in islice(harness.patience(), 10))

    @pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
    def test_another_thread_may_commit_between_two_polls(
        self, harness: Harness, delivery: Literal["exactly-once", "at-least-once"]
    ) -> None:
        topics = harness.topics()
        broker = harness.open(topics, encode, delivery=delivery)
        done: list[Record] = []
        with closing(CommitThread()) as committer:
            for value in (b"1", b"2"):
                harness.produce(topics.input, value)
                records = take(harness, broker, 1)
                committer.start(partial(broker.commit, predicted(records)))
                assert any(committer.wait(0.1) for _ in harness.patience())
                done += records
        assert values(done) == [b"1", b"2"]
        assert sources(harness.read_committed(topics.output)) == [one.id for one in done]

    def test_nothing_of_a_commit_that_cannot_publish_is_lost(self, harness: Harness) -> None:
        topics = harness.topics()
        harness.produce(topics.input, b"x")
        broker = harness.open(topics, encode)
        records = take(harness, broker, 1)
        harness.break_commit(broker, after=0)
        with pytest.raises(Rewound):
            broker.commit(predicted(records))
        assert harness.read_committed(topics.output) == []
        assert [record.id for record in take(harness, broker, 1)] == [records[0].id]

    def test_after_a_broken_commit_all_come_in_their_order_and_count_once(
        self, harness: Harness
    ) -> None:
        topics = harness.topics(partitions=4)
        names = [harness.produce(topics.input, b"x", partition=number % 4) for number in range(24)]
        broker = harness.open(topics, encode)
        records = relay(harness, broker, 4)
        held = take(harness, broker, 4)
        harness.break_commit(broker, after=2)
        with pytest.raises(Rewound):
            broker.commit(predicted(held))
        published = len(harness.read_committed(topics.output))
        assert published == len(records) + (0 if self.exactly_once else 2)
        relay(harness, broker, len(names) - published)
        results = sources(harness.read_committed(topics.output))
        assert sorted(results) == sorted(names)
        for lane in range(4):
            own = names[lane::4]
            assert [one for one in results if one in own] == own

    def test_a_commit_whose_answer_was_lost_doubles_nothing_but_its_own(
        self, harness: Harness
    ) -> None:
        topics = harness.topics(partitions=2)
        harness.produce(topics.input, b"1")
        broker = harness.open(topics, encode)
        first = take(harness, broker, 1)
        harness.lose_answer(broker)
        with pytest.raises(Rewound):
            broker.commit(predicted(first))
        second = harness.produce(topics.input, b"2", partition=1)
        relay(harness, broker, 1 if self.exactly_once else 2)
        assert Counter(sources(harness.read_committed(topics.output))) == {
            first[0].id: 1 if self.exactly_once else 2,
            second: 1,
        }

    # What is published

    def test_key_and_headers_go_along(self, harness: Harness) -> None:
        topics = harness.topics()
        headers = (("a", b""), ("topic", b"of the picture"), ("traceparent", b"00-ab-cd-01"))
        harness.produce(topics.input, b"x", key=b"k", headers=headers)
        broker = harness.open(topics, encode)
        broker.commit(predicted(take(harness, broker, 1)))
        (result,) = harness.read_committed(topics.output)
        assert (result.key, result.headers) == (b"k", headers)

    def test_a_dead_letter_is_the_record_and_says_why_and_whose_it_is(
        self, harness: Harness
    ) -> None:
        topics = harness.topics()
        harness.produce(topics.input, b"\x00bad", partition=1, key=b"k", headers=(("a", b"1"),))
        broker = harness.open(topics, encode)
        (bad,) = take(harness, broker, 1)
        broker.commit([rejected(bad, "no image at äll")])
        (dead_letter,) = harness.read_committed(topics.dead)
        headers = dict(dead_letter.headers)
        assert (dead_letter.key, dead_letter.value, headers["a"]) == (b"k", b"\x00bad", b"1")
        assert headers["connector.reason"] == b"not_an_image"
        assert headers["__connect.errors.exception.message"] == "no image at äll".encode()
        assert find_source(as_record(dead_letter)) == bad.id

    def test_the_origin_of_a_dead_letter_is_replaced_not_stacked(self, harness: Harness) -> None:
        topics = harness.topics(partitions=1)
        headers = (("__connect.errors.offset", b"77"), ("__connect.errors.topic", b"elder"))
        harness.produce(topics.input, b"x", headers=headers)
        broker = harness.open(topics, encode)
        (record,) = take(harness, broker, 1)
        broker.commit([rejected(record)])
        (dead_letter,) = harness.read_committed(topics.dead)
        names = [name for name, _ in dead_letter.headers]
        assert sorted(names) == sorted(set(names))
        assert find_source(as_record(dead_letter)) == record.id

    def test_a_large_dead_letter_arrives_whole(self, harness: Harness) -> None:
        topics = harness.topics(partitions=1)
        value = bytes(range(250)) * 3_600
        harness.produce(topics.input, value)
        broker = harness.open(topics, encode)
        broker.commit([rejected(take(harness, broker, 1)[0])])
        assert [one.value for one in harness.read_committed(topics.dead)] == [value]

    # Several daemons, and the end

    def test_daemons_share_the_work(self, harness: Harness) -> None:
        topics = harness.topics(partitions=8)
        names = [harness.produce(topics.input, b"x", partition=number % 8) for number in range(40)]
        brokers = [harness.open(topics, encode, instance=name) for name in ("one", "two")]
        poll_in_turn(harness, brokers, 40)
        assert sorted(sources(harness.read_committed(topics.output))) == sorted(names)

    def test_closing_while_busy_publishes_nothing_and_loses_nothing(self, harness: Harness) -> None:
        topics = harness.topics(partitions=4)
        names = [harness.produce(topics.input, b"x", partition=number % 4) for number in range(20)]
        leaving = harness.open(topics, encode, instance="one")
        take(harness, leaving, 3)
        begin = time.monotonic()
        leaving.close()
        assert time.monotonic() - begin < 10
        assert harness.read_committed(topics.output) == []
        staying = harness.open(topics, encode, instance="two")
        relay(harness, staying, 20)
        results = sources(harness.read_committed(topics.output))
        assert sorted(results) == sorted(names)
        for lane in range(4):
            own = names[lane::4]
            assert [one for one in results if one in own] == own

    def test_close_may_come_twice(self, harness: Harness) -> None:
        topics = harness.topics()
        broker = harness.open(topics, encode)
        broker.poll(0, 0.1)
        broker.close()
        broker.close()
        assert harness.read_committed(topics.output) == []


class RepeatsHeaders:
    """A name may stand in the headers of a record more than once, and their order is kept."""

    def test_headers_are_repeated_and_in_their_order(self, harness: Harness) -> None:
        topics = harness.topics()
        headers = (("b", b"1"), ("a", b""), ("b", b"2"))
        harness.produce(topics.input, b"x", key=b"k", headers=headers)
        broker = harness.open(topics, encode)
        records = take(harness, broker, 1)
        broker.commit(predicted(records))
        (result,) = harness.read_committed(topics.output)
        assert (records[0].headers, result.headers) == (headers, headers)


class TellsNulls:
    """Null is not the same as empty, in keys, values and headers."""

    def test_nulls_and_empty_bytes_are_told_apart(self, harness: Harness) -> None:
        topics = harness.topics()
        harness.produce(topics.input, b"", key=b"")
        harness.produce(topics.input, None, key=None, headers=(("nothing", None),))
        empty, null = take(harness, harness.open(topics, encode), 2)
        assert (empty.value, empty.key) == (b"", b"")
        assert (null.value, null.key, null.headers) == (None, None, (("nothing", None),))

    def test_a_record_of_nulls_can_be_a_dead_letter(self, harness: Harness) -> None:
        """Some clients cannot write nulls: those arrive as empty bytes, but they do arrive."""
        topics = harness.topics(partitions=1)
        harness.produce(topics.input, None, headers=(("nothing", None),))
        harness.produce(topics.input, b"", key=b"")
        broker = harness.open(topics, encode)
        broker.commit([rejected(record) for record in take(harness, broker, 2)])
        null, empty = harness.read_committed(topics.dead)
        assert not null.value
        assert null.headers[0] in {("nothing", None), ("nothing", b"")}
        assert (empty.key, empty.value) == (b"", b"")


class Transactions:
    """Results, dead letters and acknowledgements are one act; what is not committed is not seen."""

    def test_what_is_in_an_open_transaction_is_not_handed_out(self, harness: LogHarness) -> None:
        topics = harness.topics()
        broker = harness.open(topics, encode)
        harness.produce(topics.input, b"before")
        transaction = harness.begin(topics.input, b"inside")
        harness.produce(topics.input, b"after")
        assert values(take(harness, broker, 1)) == [b"before"]
        assert not any(broker.poll(10, 0.1) for _ in islice(harness.patience(), 10))
        transaction.commit()
        assert values(take(harness, broker, 2)) == [b"inside", b"after"]

    def test_what_was_aborted_is_never_handed_out(self, harness: LogHarness) -> None:
        topics = harness.topics()
        harness.begin(topics.input, b"aborted").abort()
        harness.produce(topics.input, b"after")
        broker = harness.open(topics, encode)
        records = take(harness, broker, 1)
        broker.commit(predicted(records))
        assert values(records) == [b"after"]
        assert sources(harness.read_committed(topics.output)) == [records[0].id]

    def test_results_dead_letters_and_offsets_are_one_act(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2", b"3"):
            harness.produce(topics.input, value)
        broker = harness.open(topics, encode)
        first, second, third = take(harness, broker, 3)
        seen: list[Published] = []

        def look() -> None:
            seen.extend(harness.peek(topics.output) + harness.peek(topics.dead))

        harness.watch_commit(broker, look)
        broker.commit([*predicted([first]), rejected(second), *predicted([third])])
        assert seen == []
        assert sources(harness.read_committed(topics.output)) == [first.id, third.id]
        assert [one.value for one in harness.read_committed(topics.dead)] == [b"2"]
        assert harness.committed(topics) == {0: 3}

    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_nothing_of_a_broken_commit_is_visible(self, harness: LogHarness, after: int) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2"):
            harness.produce(topics.input, value)
        broker = harness.open(topics, encode)
        first, second = take(harness, broker, 2)
        harness.break_commit(broker, after)
        with pytest.raises(Rewound):
            broker.commit([*predicted([first]), rejected(second)])
        assert harness.read_committed(topics.output) == []
        assert harness.read_committed(topics.dead) == []
        assert not any(harness.committed(topics).values())

    def test_what_was_not_acknowledged_comes_again_and_counts_once(
        self, harness: LogHarness
    ) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2", b"3"):
            harness.produce(topics.input, value)
        broker = harness.open(topics, encode)
        first, *rest = take(harness, broker, 3)
        broker.commit(predicted([first]))
        harness.break_commit(broker, after=1)
        with pytest.raises(Rewound):
            broker.commit(predicted(rest))
        again = take(harness, broker, 2)
        assert [record.id for record in again] == [record.id for record in rest]
        broker.commit(predicted(again))
        assert sources(harness.read_committed(topics.output)) == [
            record.id for record in (first, *rest)
        ]

    def test_a_commit_whose_answer_was_lost_counts_once(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        harness.produce(topics.input, b"1")
        broker = harness.open(topics, encode)
        first = take(harness, broker, 1)
        harness.lose_answer(broker)
        with pytest.raises(Rewound):
            broker.commit(predicted(first))
        harness.produce(topics.input, b"2")
        second = take(harness, broker, 1)
        broker.commit(predicted(second))
        assert values(second) == [b"2"]
        assert sources(harness.read_committed(topics.output)) == [first[0].id, second[0].id]

    def test_a_younger_daemon_of_the_same_instance_fences_the_elder(
        self, harness: LogHarness
    ) -> None:
        topics = harness.topics(partitions=1)
        harness.produce(topics.input, b"x")
        earlier = harness.open(topics, encode, instance="the same")
        held = take(harness, earlier, 1)
        younger = harness.open(topics, encode, instance="the same")
        younger.poll(0, 0.1)
        with pytest.raises(Stop) as stop:
            earlier.commit(predicted(held))
        earlier.close()
        assert stop.value.code is Exit.FENCED
        assert harness.read_committed(topics.output) == []
        younger.commit(predicted(take(harness, younger, 1)))
        assert sources(harness.read_committed(topics.output)) == [held[0].id]


class Partitions:
    """A lane is a partition; several records of it may be held; offsets say how far it is read."""

    def test_results_come_in_the_order_of_the_commit(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=2)
        for number in range(20):
            harness.produce(topics.input, b"x", partition=number % 2)
        broker = harness.open(topics, encode)
        records = take(harness, broker, 20)
        for begin in range(0, 20, 7):
            broker.commit(predicted(records[begin : begin + 7]))
        for partition in (0, 1):
            own = [
                one for one in harness.read_committed(topics.output) if one.partition == partition
            ]
            assert sources(own) == [
                record.id for record in in_partition(records, topics.input, partition)
            ]

    def test_a_skipped_record_is_acknowledged_without_a_message(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        harness.produce(topics.input, b"x")
        broker = harness.open(topics, encode)
        broker.commit([Settled(take(harness, broker, 1)[0], Skipped())])
        assert harness.committed(topics) == {0: 1}
        assert harness.read_committed(topics.output) == []
        assert harness.read_committed(topics.dead) == []

    def test_a_result_goes_to_its_records_partition(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=3)
        for partition in (2, 0, 1):
            harness.produce(topics.input, b"x", partition=partition, key=b"the same")
        broker = harness.open(topics, encode)
        broker.commit(predicted(take(harness, broker, 3)))
        assert [
            (one.partition, *sources([one])) for one in harness.read_committed(topics.output)
        ] == [(number, f"{topics.input}/{number}/0") for number in range(3)]

    def test_results_of_one_key_share_a_partition_where_the_numbers_differ(
        self, harness: LogHarness
    ) -> None:
        topics = harness.topics(partitions=2, output_partitions=5)
        for number in range(12):
            harness.produce(topics.input, b"x", partition=number % 2, key=b"%d" % (number % 4))
        broker = harness.open(topics, encode)
        broker.commit(predicted(take(harness, broker, 12)))
        results = harness.read_committed(topics.output)
        assert len(results) == 12
        assert len({(one.key, one.partition) for one in results}) == 4

    def test_a_dead_letter_says_where_it_came_from(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=2)
        harness.produce(topics.input, b"first", partition=1)
        harness.produce(topics.input, b"\x00bad", partition=1, key=b"k", headers=(("a", b"1"),))
        broker = harness.open(topics, encode)
        first, bad = take(harness, broker, 2)
        broker.commit([*predicted([first]), rejected(bad, "no image at äll")])
        (dead_letter,) = harness.read_committed(topics.dead)
        assert (dead_letter.partition, dead_letter.key, dead_letter.value) == (1, b"k", b"\x00bad")
        assert dead_letter.headers[0] == ("a", b"1")
        assert set(dead_letter.headers[1:]) == {
            ("connector.reason", b"not_an_image"),
            ("__connect.errors.topic", topics.input.encode()),
            ("__connect.errors.partition", b"1"),
            ("__connect.errors.offset", b"1"),
            ("__connect.errors.exception.message", "no image at äll".encode()),
        }

    def test_at_least_once_acknowledges_what_was_published(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2", b"3"):
            harness.produce(topics.input, value)
        broker = harness.open(topics, encode, delivery="at-least-once")
        records = take(harness, broker, 3)
        broker.commit(predicted(records))
        assert sources(harness.read_committed(topics.output)) == [record.id for record in records]
        assert harness.committed(topics) == {0: 3}

    def test_at_least_once_begins_again_after_the_last_one_published(
        self, harness: LogHarness
    ) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2", b"3"):
            harness.produce(topics.input, value)
        broker = harness.open(topics, encode, delivery="at-least-once")
        records = take(harness, broker, 3)
        harness.break_commit(broker, after=2)
        with pytest.raises(Rewound):
            broker.commit(predicted(records))
        assert len(harness.read_committed(topics.output)) == 2
        assert values(take(harness, broker, 1)) == [b"3"]

    def test_close_gives_back_what_was_never_answered(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2"):
            harness.produce(topics.input, value)
        leaving = harness.open(topics, encode, instance="one")
        take(harness, leaving, 2)
        leaving.close()
        assert not any(harness.committed(topics).values())
        staying = harness.open(topics, encode, instance="two")
        assert values(take(harness, staying, 2)) == [b"1", b"2"]


class Groups:
    """Who reads is a member of a group, which has a beginning and shares out its partitions."""

    def test_a_new_group_begins_at_the_earliest(self, harness: LogHarness) -> None:
        topics = harness.topics()
        harness.produce(topics.input, b"x")
        assert values(take(harness, harness.open(topics, encode), 1)) == [b"x"]

    def test_a_new_group_may_begin_at_the_latest(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        harness.produce(topics.input, b"old")
        broker = harness.open(topics, encode, start="latest")
        for _ in harness.patience():
            harness.produce(topics.input, b"new")
            if records := broker.poll(1, 0.1):
                break
        assert values(records) == [b"new"]

    def test_a_rewind_before_the_first_commit_goes_back_to_the_start(
        self, harness: LogHarness
    ) -> None:
        topics = harness.topics(partitions=1)
        for start in ("earliest", "latest"):
            broker = harness.open(
                topics,
                encode,
                group=start,
                start=start,
            )
            for _ in harness.patience():
                harness.produce(topics.input, b"x")
                if records := broker.poll(1, 0.1):
                    break
            harness.break_commit(broker, after=0)
            with pytest.raises(Rewound):
                broker.commit(predicted(records))
            assert take(harness, broker, 1)[0].id == records[0].id

    def test_a_group_goes_on_where_it_stopped(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2", b"3"):
            harness.produce(topics.input, value)
        earlier = harness.open(topics, encode)
        earlier.commit(predicted(take(harness, earlier, 2)))
        earlier.close()
        younger = harness.open(topics, encode, instance="two", start="latest")
        assert values(take(harness, younger, 1)) == [b"3"]

    def test_a_second_member_rewinds_the_first_and_takes_its_share(
        self, harness: LogHarness
    ) -> None:
        topics = harness.topics(partitions=2)
        for number in range(8):
            harness.produce(topics.input, b"x", partition=number % 2)
        first = harness.open(topics, encode, instance="one")
        everything = take(harness, first, 8)
        second = harness.open(topics, encode, instance="two")
        given = poll_until_rewound(harness, first, [second])
        if given:
            second.commit(predicted(given))
        mine, others = poll_in_turn(harness, [first, second], 8 - len(given))
        others += [record.id for record in given]
        assert sorted(mine + others) == sorted(record.id for record in everything)
        assert {one.rsplit("/", 1)[0] for one in mine}.isdisjoint(
            one.rsplit("/", 1)[0] for one in others
        )
        assert sorted(sources(harness.read_committed(topics.output))) == sorted(mine + others)

    def test_a_member_that_was_put_out_cannot_commit(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2"):
            harness.produce(topics.input, value)
        stale = harness.open(topics, encode, instance="one")
        held = take(harness, stale, 2)
        harness.expel(stale)
        heir = harness.open(topics, encode, instance="two")
        heir.commit(predicted(take(harness, heir, 2)))
        with pytest.raises(Rewound):
            stale.commit(predicted(held))
        assert sources(harness.read_committed(topics.output)) == [record.id for record in held]

    def test_a_member_that_is_put_out_inside_its_commit_has_done_all_of_it_or_nothing(
        self, harness: LogHarness
    ) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2"):
            harness.produce(topics.input, value)
        broker = harness.open(topics, encode, instance="one")
        held = take(harness, broker, 2)
        harness.watch_commit(broker, lambda: harness.expel(broker))
        with suppress(Rewound):
            broker.commit(predicted(held))
        names = [*(one.id for one in held), harness.produce(topics.input, b"3")]
        heir = harness.open(topics, encode, instance="two")
        for _ in harness.patience():
            with suppress(Rewound):
                if records := heir.poll(10, 0.1):
                    heir.commit(predicted(records))
            if harness.committed(topics) == {0: 3}:
                break
        assert sources(harness.read_committed(topics.output)) == names

    def test_a_member_that_was_put_out_joins_again(self, harness: LogHarness) -> None:
        topics = harness.topics(partitions=1)
        for value in (b"1", b"2"):
            harness.produce(topics.input, value)
        broker = harness.open(topics, encode)
        first = take(harness, broker, 1)
        broker.commit(predicted(first))
        assert values(take(harness, broker, 1)) == [b"2"]
        harness.expel(broker)
        poll_until_rewound(harness, broker, [])
        again = take(harness, broker, 1)
        broker.commit(predicted(again))
        assert values(again) == [b"2"]
        assert len(harness.read_committed(topics.output)) == 2


class Redelivers:
    """A record may be delivered again, with the same id, while it is held."""

    @pytest.mark.parametrize("commits", [[[0, 1]], [[1, 0]], [[0], [1]], [[1], [0]]], ids=str)
    def test_a_record_delivered_twice_while_it_is_held_is_committed_twice(
        self, harness: RedeliveringHarness, commits: Sequence[Sequence[int]]
    ) -> None:
        topics = harness.topics()
        name = harness.send(topics.input, b"x")
        broker = harness.open(topics, encode)
        instrumented = InstrumentedBroker(broker, time.monotonic, time.time)
        held = take(harness, instrumented, 1)
        harness.deliver_again(broker, held)
        held += take(harness, instrumented, 1)
        for commit in commits:
            instrumented.commit(predicted([held[place] for place in commit]))
        assert [record.id for record in held] == [name, name]
        assert set(sources(harness.read_committed(topics.output))) == {name}
        assert instrumented.oldest == {}
        assert not any(broker.poll(10, 0.1) for _ in islice(harness.patience(), 10))


PROMISES = (RepeatsHeaders, TellsNulls, Transactions, Partitions, Groups, Redelivers)
"""What a broker may promise beyond `Conformance`."""
