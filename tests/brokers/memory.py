"""A broker in this process's memory that keeps Kafka's promises, for tests.

    memory = Memory(time.time, time.sleep)
    memory.create("images", partitions=2)
    ...
    broker = MemoryBroker(memory, Subscription(input="images", ...), codec.encode)

It has partitions, consumer groups with generations, leases, transactions, fencing, read_committed
readers and retention, and passes the suite that the real brokers pass. What it has not: threads,
disks and a clock. Time is what `clock` says, in seconds; waiting is what `wait` does, so the same
broker runs by the wall clock or, in a simulation, a thousand times faster. One lock guards the
whole cluster: any thread may call anything.

Where it differs from Kafka: a lease is renewed by `poll` and `commit`, as no thread sends
heartbeats; assignment deals partitions out in turn; keys find their partition by CRC-32.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Literal, NamedTuple

from connectors.errors import Exit, Rewound, Stop
from connectors.records import Headers, Message, Record, Rejection, Settled

Encode = Callable[[Settled], Message | None]
"""What is published for a settled record; None: it is acknowledged without a message."""

Step = Literal["send", "end", "ended"]
"""Before each message, before the end of the commit, after it."""

Fault = Callable[[Step], None]
"""Called at each step of one commit. Raising Unavailable fails it as a lost server would; any
other exception passes through and leaves the transaction open, as a killed process would."""


class Unavailable(Exception):
    """The server did not answer; whether it did what it was asked, nobody knows."""


class Fenced(Exception):
    """A younger producer has taken this one's name."""


class Position(NamedTuple):
    """Where a record lies in its topic."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One record in a topic; `time` is in milliseconds by the cluster's clock."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What one daemon reads and writes, and under which names; times in seconds.

    Members of one `group` share the input's partitions. Of those with the same `instance`, only
    the youngest can commit. A member silent for `session` loses its partitions; a transaction
    left open for `transaction` is aborted. `start` counts where the group has no offset yet.
    """

    input: str
    output: str
    dead: str
    group: str = "connector"
    instance: str = "connector-1"
    start: Literal["earliest", "latest"] = "earliest"
    delivery: Literal["exactly-once", "at-least-once"] = "exactly-once"
    session: float = 10.0
    transaction: float = 8.0


class BreakCommit:
    """The fault of a commit that breaks once `after` messages have been sent."""

    def __init__(self, after: int = 0) -> None:
        self._left = after

    def __call__(self, step: Step) -> None:
        """Count one step."""
        broken = self._left == 0 or (step == "end" and self._left > 0)
        self._left = -1 if broken else self._left - 1
        if broken:
            raise Unavailable("the connection broke")


def lose_answer(step: Step) -> None:
    """Fault: the commit happens in full, its answer is lost."""
    if step == "ended":
        raise Unavailable("the answer was lost")


class Memory:
    """A cluster: topics, and the groups and transactions on them."""

    def __init__(self, clock: Callable[[], float], wait: Callable[[float], None]) -> None:
        self.clock = clock
        self.wait = wait
        self.lock = threading.RLock()
        self._topics: dict[str, list[Log]] = {}
        self._groups: dict[str, Group] = {}
        self._epochs: dict[str, int] = {}
        self._open: dict[str, Transaction] = {}
        self._names = count(1)
        self._back_at = clock()

    def create(self, topic: str, partitions: int = 1) -> None:
        """Make a topic; an existing one of this name is replaced."""
        with self.lock:
            self._topics[topic] = [Log(partition) for partition in range(partitions)]

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        partition: int | None = None,
        key: bytes | None = None,
        headers: Headers = (),
    ) -> Position:
        """Append one record outside any transaction; without a partition, the key decides."""
        with self.lock:
            chosen = self.partition_of(topic, key) if partition is None else partition
            return self.log(topic, chosen).append(Cell(key, value, headers, self.now_ms()))

    def read(
        self, topic: str, isolation: Literal["committed", "uncommitted"] = "committed"
    ) -> list[Entry]:
        """Return what a reader of the whole topic finds, in the order of (partition, offset).

        "committed" leaves out what was aborted, and ends before the first open transaction.
        """
        with self.lock:
            self.expire()
            logs = self._topics[topic]
            return [entry for log in logs for entry in log.read(log.start, isolation)]

    def offsets(self, group: str) -> dict[tuple[str, int], int]:
        """Return the offset of the next record to read, by (topic, partition)."""
        with self.lock:
            return dict(self.group(group).offsets)

    # Faults that strike the cluster. Those of one commit are given to `MemoryBroker.fault`.

    def rebalance(self, group: str) -> None:
        """Start a new generation, for no reason."""
        with self.lock:
            self.group(group).rebalance()

    def go_away(self, seconds: float) -> None:
        """Be out of reach: polls bring nothing, commits wait. Leases start anew afterwards."""
        with self.lock:
            self._back_at = max(self._back_at, self.clock() + seconds)
            for group in self._groups.values():
                group.extend(self._back_at)

    def forget(self, group: str) -> None:
        """Lose the offsets of a group."""
        with self.lock:
            self.group(group).offsets.clear()

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Remove what lies before an offset, as retention does."""
        with self.lock:
            self.log(topic, partition).trim(before)

    # What the brokers, producers and transactions of this module build on; under the lock.

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has; 0 if there is no such topic."""
        return len(self._topics.get(topic, ()))

    def partition_of(self, topic: str, key: bytes | None) -> int:
        """Return the partition of a key; records without one share the first."""
        return zlib.crc32(key) % self.partitions(topic) if key else 0

    def log(self, topic: str, partition: int) -> Log:
        """Return one partition."""
        return self._topics[topic][partition]

    def group(self, name: str) -> Group:
        """Return a group, made on first sight."""
        return self._groups.setdefault(name, Group(self.partitions))

    def member_name(self, instance: str) -> str:
        """Return a name that no other member has."""
        return f"{instance}-{next(self._names)}"

    def now_ms(self) -> int:
        """Return the clock's time in whole milliseconds."""
        return int(self.clock() * 1000)

    def away(self) -> float:
        """Return for how many seconds the cluster stays out of reach."""
        return max(0.0, self._back_at - self.clock())

    def expire(self) -> None:
        """Let go of silent members and abort what was left open too long."""
        now = self.clock()
        for group in self._groups.values():
            group.expire(now)
        for name, transaction in list(self._open.items()):
            if transaction.deadline <= now:
                self.fence(name)

    def fence(self, name: str) -> int:
        """Start a new epoch of a producer's name; what the elder one left open is aborted."""
        self._epochs[name] = self._epochs.get(name, 0) + 1
        if name in self._open:
            self._open[name].abort()
        return self._epochs[name]

    def epoch(self, name: str) -> int:
        """Return the current epoch of a producer's name."""
        return self._epochs[name]

    def opened(self, name: str, transaction: Transaction) -> None:
        """Note the one open transaction of a producer."""
        self._open[name] = transaction

    def ended(self, name: str) -> None:
        """Note that a producer has none open."""
        del self._open[name]

    def unstable(self, group: Group) -> bool:
        """Tell whether an open transaction holds offsets of this group."""
        return any(transaction.holds(group) for transaction in self._open.values())


class Cell(NamedTuple):
    """What a producer appends; `time` in milliseconds."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    time: int


class Log:
    """One partition. An ended transaction leaves a marker, so offsets have gaps, as in Kafka."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.start = 0
        self._cells: list[tuple[Cell | None, Transaction | None]] = []
        self._open: dict[Transaction, int] = {}

    @property
    def end(self) -> int:
        """The offset of the next append."""
        return self.start + len(self._cells)

    @property
    def stable(self) -> int:
        """The last stable offset: where the first open transaction begins, or the end."""
        return min(self._open.values(), default=self.end)

    def append(self, cell: Cell, transaction: Transaction | None = None) -> Position:
        """Append a record, visible at once or with its transaction."""
        position = Position(self.partition, self.end)
        if transaction is not None:
            self._open.setdefault(transaction, position.offset)
        self._cells.append((cell, transaction))
        return position

    def close(self, transaction: Transaction) -> None:
        """Append the marker that ends a transaction."""
        del self._open[transaction]
        self._cells.append((None, transaction))

    def read(
        self, offset: int, isolation: Literal["committed", "uncommitted"] = "committed"
    ) -> Iterator[Entry]:
        """Yield records from an offset on."""
        everything = isolation == "uncommitted"
        for at in range(offset, self.end if everything else self.stable):
            cell, transaction = self._cells[at - self.start]
            if cell and (everything or transaction is None or transaction.committed):
                yield Entry(self.partition, at, *cell)

    def trim(self, before: int) -> None:
        """Remove what lies before an offset."""
        removed = min(before, self.end) - self.start
        if removed > 0:
            del self._cells[:removed]
            self.start += removed


class Producer:
    """A transactional producer: the youngest of its name fences the elder ones."""

    def __init__(self, memory: Memory, name: str, timeout: float) -> None:
        self._memory = memory
        self._name = name
        self._timeout = timeout
        with memory.lock:
            self._epoch = memory.fence(name)

    def begin(self) -> Transaction:
        """Open a transaction, which is aborted by itself after the producer's time-out."""
        memory = self._memory
        with memory.lock:
            if memory.epoch(self._name) != self._epoch:
                raise Fenced(f"a younger producer has taken the name {self._name}")
            transaction = Transaction(memory, self._name, memory.clock() + self._timeout)
            memory.opened(self._name, transaction)
            return transaction


class Transaction:
    """Records on several partitions and offsets of a group that count together or not at all."""

    def __init__(self, memory: Memory, name: str, deadline: float) -> None:
        self.deadline = deadline
        self.committed = False
        self._open = True
        self._memory = memory
        self._name = name
        self._logs: dict[Log, None] = {}
        self._acknowledged: list[tuple[Group, Mapping[tuple[str, int], int]]] = []

    def append(self, topic: str, partition: int, cell: Cell) -> Position:
        """Append a record that counts once this transaction is committed."""
        with self._memory.lock:
            self._require_open()
            log = self._memory.log(topic, partition)
            self._logs[log] = None
            return log.append(cell, self)

    def acknowledge(self, group: Group, offsets: Mapping[tuple[str, int], int]) -> None:
        """Move the group's offsets once this transaction is committed."""
        self._require_open()
        self._acknowledged.append((group, offsets))

    def holds(self, group: Group) -> bool:
        """Tell whether offsets of this group wait for the end of this transaction."""
        return any(mine is group for mine, _ in self._acknowledged)

    def commit(self) -> None:
        """Let all of it count."""
        with self._memory.lock:
            self._require_open()
            self.committed = True
            self._end()
            for group, offsets in self._acknowledged:
                group.offsets.update(offsets)

    def abort(self) -> None:
        """Let none of it count."""
        with self._memory.lock:
            self._require_open()
            self._end()

    def _end(self) -> None:
        self._open = False
        self._memory.ended(self._name)
        for log in self._logs:
            log.close(self)

    def _require_open(self) -> None:
        if not self._open:
            raise Fenced(f"the transaction of {self._name} has been ended by the cluster")


@dataclass(slots=True)
class Member:
    """One member of a group, as its coordinator knows it."""

    topic: str
    session: float
    lease: float
    joined: bool = True


class Group:
    """The coordinator of one consumer group: who is in it, and who has which partitions.

    Rebalances are eager: a generation ends when a member comes or goes; the next one begins when
    all that are left have asked for it, each by a `poll`, or have lost their leases.
    """

    def __init__(self, partitions: Callable[[str], int]) -> None:
        self.generation = 0
        self.offsets: dict[tuple[str, int], int] = {}
        self._partitions = partitions
        self._members: dict[str, Member] = {}
        self._assigned: dict[str, list[int]] = {}
        self._rebalancing = False

    def join(self, name: str, topic: str, session: float, now: float) -> bool:
        """Renew a lease and take part in a rebalance; False while others have yet to join."""
        if name not in self._members:
            self._members[name] = Member(topic, session, now + session)
            self.rebalance()
        self._members[name].joined = True
        self._members[name].lease = now + session
        self._complete()
        return not self._rebalancing

    def renew(self, name: str, generation: int, now: float) -> bool:
        """Renew a lease; False if there is none, or its generation has passed."""
        if name not in self._members or generation != self.generation:
            return False
        self._members[name].lease = now + self._members[name].session
        return True

    def leave(self, name: str) -> None:
        """Let a member go at once."""
        if self._members.pop(name, None):
            self.rebalance()
            self._complete()

    def rebalance(self) -> None:
        """End this generation."""
        self._rebalancing = True
        for member in self._members.values():
            member.joined = False

    def expire(self, now: float) -> None:
        """Let go of all whose leases have run out."""
        for name in [name for name, member in self._members.items() if member.lease <= now]:
            self.leave(name)

    def extend(self, now: float) -> None:
        """Give everybody a whole session from `now` on."""
        for member in self._members.values():
            member.lease = max(member.lease, now + member.session)

    def assigned(self, name: str) -> Sequence[int]:
        """Return the partitions of a member in this generation."""
        return self._assigned.get(name, ())

    def _complete(self) -> None:
        if not self._rebalancing or not all(member.joined for member in self._members.values()):
            return
        self._rebalancing = False
        self.generation += 1
        self._assigned = {name: [] for name in self._members}
        for topic in {member.topic for member in self._members.values()}:
            self._deal(topic)

    def _deal(self, topic: str) -> None:
        names = sorted(name for name, member in self._members.items() if member.topic == topic)
        for partition in range(self._partitions(topic)):
            self._assigned[names[partition % len(names)]].append(partition)


@dataclass(slots=True)
class Holding:
    """What a member reads and has handed out in one generation.

    `next` is the offset to read from, by partition; `out` what is not acknowledged, eldest first.
    """

    next: dict[int, int] = field(default_factory=dict)
    out: dict[int, deque[Record]] = field(default_factory=dict)


class MemoryBroker:
    """One daemon's face of the cluster: `connectors.records.Broker`.

    Beyond what Kafka checks, it refuses with ValueError to acknowledge a record that is not the
    eldest of its partition still out: a plain offset would acknowledge its elders too.
    """

    def __init__(self, memory: Memory, subscription: Subscription, encode: Encode) -> None:
        self._memory = memory
        self._subscription = subscription
        self._encode = encode
        with memory.lock:
            self._require_topics()
            self._group = memory.group(subscription.group)
            self._producer = self._make_producer()
            self._member = memory.member_name(subscription.instance)
        self._generation = 0
        self._holding: Holding | None = None
        self._fault: Fault | None = None

    def __repr__(self) -> str:
        holding = self._holding or Holding()
        out = sum(map(len, holding.out.values()))
        return (
            f"<MemoryBroker {self._member} generation={self._generation} "
            f"next={holding.next} out={out}>"
        )

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """See `connectors.records.Broker`."""
        records = self._take(limit)
        if not records and timeout > 0:
            self._memory.wait(timeout)
            records = self._take(limit)
        return records

    def commit(self, settled: Sequence[Settled]) -> None:
        """See `connectors.records.Broker`."""
        if not settled:
            return
        self._memory.wait(self._memory.away())
        with self._memory.lock:
            self._memory.expire()
            fault, self._fault = self._fault or _no_fault, None
            try:
                self._deliver(settled, fault)
            except Unavailable as error:
                raise self._rewound(str(error)) from error
            except Fenced as error:
                raise Stop(
                    f"Another daemon runs as {self._subscription.instance}: {error}; "
                    "give each its own --instance.",
                    Exit.FENCED,
                ) from error

    def lag(self) -> Mapping[Hashable, int]:
        """How far the group is behind in each partition that this member has, by lane."""
        topic = self._subscription.input
        with self._memory.lock:
            return {
                f"{topic}/{partition}": self._memory.log(topic, partition).stable
                - self._first(partition)
                for partition in (self._holding.next if self._holding else ())
            }

    def joined(self) -> bool:
        """Say whether the group has given this member its share."""
        return self._holding is not None

    def close(self) -> None:
        """Leave the group at once; what was never acknowledged goes to the others."""
        with self._memory.lock:
            self._holding = None
            self._group.leave(self._member)

    def fault(self, fault: Fault) -> None:
        """Let the next commit meet a fault, such as `BreakCommit(3)` or `lose_answer`."""
        self._fault = fault

    def expel(self) -> None:
        """Lose membership as though the session had run out; noticed when something is asked."""
        with self._memory.lock:
            self._group.leave(self._member)

    def _require_topics(self) -> None:
        names = (self._subscription.input, self._subscription.output, self._subscription.dead)
        missing = [name for name in names if not self._memory.partitions(name)]
        if missing:
            raise Stop(f"No such topic: {', '.join(missing)}; create it first.", Exit.UNAVAILABLE)

    def _make_producer(self) -> Producer | None:
        mine = self._subscription
        if mine.delivery == "at-least-once":
            return None
        return Producer(self._memory, f"{mine.group}-{mine.instance}", mine.transaction)

    # Reading

    def _take(self, limit: int) -> list[Record]:
        with self._memory.lock:
            self._memory.expire()
            if self._memory.away() or not self._joined():
                return []
            if self._holding is None:
                self._holding = self._seek()
            if self._holding is None:
                return []
            return list(islice(self._read(self._holding), limit))

    def _joined(self) -> bool:
        mine = self._subscription
        if not self._group.join(self._member, mine.input, mine.session, self._memory.clock()):
            return False
        earlier, self._generation = self._generation, self._group.generation
        if earlier not in (0, self._generation):
            raise self._rewound(f"generation {earlier} of group {mine.group} has ended")
        return True

    def _rewound(self, why: str) -> Rewound:
        self._holding = None
        return Rewound(why)

    def _seek(self) -> Holding | None:
        """Begin at the group's offsets; None while a transaction that is open may move them."""
        if self._memory.unstable(self._group):
            return None
        partitions = self._group.assigned(self._member)
        return Holding(
            {partition: self._first(partition) for partition in partitions},
            {partition: deque() for partition in partitions},
        )

    def _first(self, partition: int) -> int:
        mine = self._subscription
        log = self._memory.log(mine.input, partition)
        at = self._group.offsets.get((mine.input, partition))
        if at is not None:
            return at
        if mine.start == "earliest":
            return log.start
        # Written down at once: the end moves, and a rewind must not skip what was handed out.
        return self._group.offsets.setdefault((mine.input, partition), log.stable)

    def _read(self, holding: Holding) -> Iterator[Record]:
        """Yield from one partition after the other; the one that began comes last next time."""
        for partition in list(holding.next):
            log = self._memory.log(self._subscription.input, partition)
            holding.next[partition] = self._in_range(log, holding.next.pop(partition))
            for entry in log.read(holding.next[partition]):
                record = self._record(entry)
                holding.next[partition] = entry.offset + 1
                holding.out[partition].append(record)
                yield record
            holding.next[partition] = log.stable

    def _in_range(self, log: Log, offset: int) -> int:
        if log.start <= offset <= log.end:
            return offset
        raise Stop(
            f"Offset {offset} of {self._subscription.input}/{log.partition} is out of range "
            f"[{log.start}, {log.end}], {max(0, log.start - offset)} records are gone; "
            "reset the group's offsets to go on without them.",
            Exit.GIVEN_UP,
        )

    def _record(self, entry: Entry) -> Record:
        topic = self._subscription.input
        return Record(
            id=f"{topic}/{entry.partition}/{entry.offset}",
            value=entry.value,
            key=entry.key,
            headers=entry.headers,
            time=entry.time,
            lane=f"{topic}/{entry.partition}",
            position=Position(entry.partition, entry.offset),
        )

    # Writing

    def _deliver(self, settled: Sequence[Settled], fault: Fault) -> None:
        if self._producer:
            self._deliver_once(self._producer.begin(), settled, fault)
        else:
            self._deliver_at_least_once(settled, fault)

    def _deliver_once(
        self, transaction: Transaction, settled: Sequence[Settled], fault: Fault
    ) -> None:
        try:
            self._require_generation()
            for one in settled:
                fault("send")
                self._publish(one, transaction)
            transaction.acknowledge(self._group, self._handed_back(settled))
            fault("end")
            transaction.commit()
            fault("ended")
        except (Rewound, Unavailable, ValueError):
            if not transaction.committed:
                transaction.abort()
            raise

    def _deliver_at_least_once(self, settled: Sequence[Settled], fault: Fault) -> None:
        self._require_generation()
        published: list[Settled] = []
        failure: Unavailable | None = None
        try:
            for one in settled:
                fault("send")
                self._publish(one)
                published.append(one)
        except Unavailable as error:
            failure = error
        fault("end")
        self._group.offsets.update(self._handed_back(published))
        fault("ended")
        if failure:
            raise failure

    def _require_generation(self) -> None:
        if not self._group.renew(self._member, self._generation, self._memory.clock()):
            raise self._rewound(f"generation {self._generation} has ended, and with it the commit")

    def _handed_back(self, settled: Iterable[Settled]) -> dict[tuple[str, int], int]:
        """Return the offsets that acknowledge these; they are no longer out."""
        out = self._holding.out if self._holding else {}
        offsets = {}
        for one in settled:
            partition, offset = one.record.position
            if not out.get(partition) or out[partition].popleft() is not one.record:
                raise ValueError(f"{one.record.id} is not the eldest that is out")
            offsets[self._subscription.input, partition] = offset + 1
        return offsets

    def _publish(self, settled: Settled, transaction: Transaction | None = None) -> None:
        message = self._encode(settled)
        if message is None:
            return
        topic = self._subscription.dead if message.dead else self._subscription.output
        headers = _with_origin(message.headers, settled) if message.dead else message.headers
        cell = Cell(message.key, message.value, headers, self._memory.now_ms())
        partition = self._partition(topic, settled.record, message.key)
        if transaction:
            transaction.append(topic, partition, cell)
        else:
            self._memory.log(topic, partition).append(cell)

    def _partition(self, topic: str, record: Record, key: bytes | None) -> int:
        memory = self._memory
        if memory.partitions(topic) == memory.partitions(self._subscription.input):
            return int(record.position.partition)
        return memory.partition_of(topic, key)


def _no_fault(_: Step) -> None:
    """Let the commit be."""


def _with_origin(headers: Headers, settled: Settled) -> Headers:
    """Put the origin headers that existing tools read in place of any elder ones."""
    topic, partition, offset = settled.record.id.rsplit("/", 2)
    detail = settled.outcome.detail if isinstance(settled.outcome, Rejection) else ""
    origin = {
        "__connect.errors.topic": topic.encode(),
        "__connect.errors.partition": partition.encode(),
        "__connect.errors.offset": offset.encode(),
        "__connect.errors.exception.message": detail.encode(),
    }
    return (*(header for header in headers if header[0] not in origin), *origin.items())
