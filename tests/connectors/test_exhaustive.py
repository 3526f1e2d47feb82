"""Relay and memory broker in every order of events: two relays, three records, few faults.

With a limit on the faults there are finitely many states, so the search needs no other bound: it
follows every path to its end. Paths that lead to one state are followed once from there; from each
state the world is left in peace, and must then reach the promised end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from itertools import count
from math import inf
from pickle import Pickler, Unpickler
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pytest

from connectors import codec
from connectors.errors import Rewound, Stop
from connectors.records import (
    Answer,
    Busy,
    Failed,
    Image,
    Message,
    Prediction,
    Record,
    Rejection,
    Reopened,
    Request,
    Settled,
)
from connectors.relay import Lanes, Policy, Relay, Stats
from tests.brokers.memory import (
    Cell,
    Entry,
    Memory,
    MemoryBroker,
    Step,
    Subscription,
    Transaction,
    Unavailable,
    lose_answer,
)
from tests.connectors.policies import policy as make_policy

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator

    Life = tuple["Relay", "Behind"]


INPUT, OUTPUT, DEAD = "images", "predictions", "images.dead"
RECORDS = 3
SUBSCRIPTION = Subscription(
    input=INPUT,
    output=OUTPUT,
    dead=DEAD,
    session=inf,  # whoever is put out is put out by an action
    transaction=1.0,
)
POLICY = make_policy(in_flight=2, tries=1, commit_interval=0.0, commit_rest=0.0)
MOST_STATES = 20_000

Action = tuple[Any, ...]
"""A method of World and its arguments."""

Fault = Callable[..., None]
"""A method of World."""

Kind = Literal["predicted", "failed", "busy"]

Lived = TypeVar("Lived")

Choose = Callable[[int], int]
"""Return one of 0 to n - 1."""


class Killed(Exception):
    """The process is gone, in the middle of a commit."""


class Clock:
    """Time stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Daemon:
    """One process: what the loop does in a lap, in three pieces that others may come between."""

    def __init__(self, memory: Memory, instance: str, policy: Policy) -> None:
        self.clock = memory.clock
        self.instance = instance
        self.relay = Relay(policy, at_once, Image(b"witness"))
        self.broker = MemoryBroker(memory, replace(SUBSCRIPTION, instance=instance), encode)
        self.out: list[Request] = []

    def poll(self) -> None:
        """Take what is there, and send what is due."""
        try:
            records = self.broker.poll(self.relay.capacity(), 0.0)
            self.relay.receive([(one, codec.decode(one)) for one in records], self.clock())
            self.out += self.relay.requests(self.clock())
        except Rewound:
            self.relay.reset()

    def answer(self, place: int, kind: Kind) -> None:
        request = self.out.pop(place)
        self.relay.answer(request, answer(request, kind), self.clock())

    def commit(self) -> None:
        try:
            if settled := self.relay.settled(self.clock()):
                self.broker.commit(settled)
                self.relay.committed(self.clock())
        except Rewound:
            self.relay.reset()


class World:
    """Two daemons, a cluster, and all that can happen to them."""

    def __init__(self, partitions: int, pack: int) -> None:
        self.clock = Clock()
        self.memory = Memory(self.clock, self.clock.wait)
        for topic in (INPUT, OUTPUT, DEAD):
            self.memory.create(topic, partitions)
        for number in range(RECORDS):
            self.memory.produce(INPUT, b"%d" % number, partition=number % partitions)
        self.partitions = partitions
        self.policy = replace(POLICY, pack=pack)
        self.faults = 0
        self.dead: list[MemoryBroker] = []
        self.daemons = [Daemon(self.memory, f"daemon-{who}", self.policy) for who in range(2)]
        for one in (*self.daemons, self.daemons[0]):
            one.poll()  # both have joined; the first has yet to learn what it has

    def calm(self) -> Iterator[Action]:
        """Yield what may happen next if nothing fails."""
        for who, daemon in enumerate(self.daemons):
            yield World.poll, who
            yield from ((World.answer, who, place, "predicted") for place in range(len(daemon.out)))
            if daemon.relay._lanes.ready:
                yield World.commit, who
        if self.dead:
            yield (World.bury,)
        if self.memory._open:
            yield (World.time_out,)

    def faulty(self) -> Iterator[Action]:
        """Yield what may go wrong next; but one fault is all there is."""
        if self.faults:
            return
        yield (World.rebalance,)
        for who, daemon in enumerate(self.daemons):
            yield from ((fault, who) for fault in (World.expel, World.crash))
            for place in range(len(daemon.out)):
                yield from ((World.answer, who, place, kind) for kind in ("failed", "busy"))
            if daemon.relay._lanes.ready:
                yield from ((fault, who) for fault in (World.lose, World.break_off, World.stall))
                yield from ((World.die_in_commit, who, heir) for heir in ("the same", "another"))

    def poll(self, who: int) -> None:
        self.daemons[who].poll()

    def answer(self, who: int, place: int, kind: Kind) -> None:
        self.faults += kind != "predicted"
        self.daemons[who].answer(place, kind)

    def commit(self, who: int) -> None:
        """Commit; a daemon that is told to Stop is started again."""
        try:
            self.daemons[who].commit()
        except Stop:
            self._replace(who)

    # Faults

    def rebalance(self) -> None:
        self.faults += 1
        self.memory.rebalance(SUBSCRIPTION.group)

    def expel(self, who: int) -> None:
        """The session of a paused process runs out; it knows nothing of it."""
        self.faults += 1
        self.daemons[who].broker.expel()

    def crash(self, who: int) -> None:
        self.faults += 1
        self._replace(who)

    def lose(self, who: int) -> None:
        """The commit happens, its answer is lost."""
        self._commit_with(who, lose_answer)

    def break_off(self, who: int) -> None:
        """All is sent, and then the broker cannot be reached: the transaction is aborted."""
        self._commit_with(who, break_at_end)

    def stall(self, who: int) -> None:
        """The process is paused in its commit until the cluster has ended the transaction."""

        def pause(step: Step) -> None:
            if step == "end":
                self.time_out()

        self._commit_with(who, pause)

    def die_in_commit(self, who: int, heir: str) -> None:
        """The process is killed and leaves its transaction open, to an heir of some name."""
        try:
            self._commit_with(who, die_at_end)
        except Killed:
            self._replace(who, "" if heir == "the same" else "+")

    # What follows from faults, sooner or later

    def bury(self) -> None:
        """The sessions of the dead run out."""
        while self.dead:
            self.dead.pop().expel()

    def time_out(self) -> None:
        """Transactions that were left open are aborted."""
        self.clock.wait(SUBSCRIPTION.transaction)
        self.memory.expire()

    def _commit_with(self, who: int, fault: Callable[[Step], None]) -> None:
        self.faults += 1
        self.daemons[who].broker.fault(fault)
        self.commit(who)

    def _replace(self, who: int, suffix: str = "") -> None:
        elder = self.daemons[who]
        self.dead.append(elder.broker)
        self.daemons[who] = Daemon(self.memory, elder.instance + suffix, self.policy)

    def parts(self) -> Iterator[object]:
        """Yield what tells this world from others."""
        yield [daemon.out for daemon in self.daemons]
        yield from (self.daemons, self.memory, self.dead, self.faults, self.clock.now)

    def check_promise(self) -> None:
        """Each record has exactly one outcome, and each topic keeps the order."""
        ends = {(INPUT, one): self.memory.log(INPUT, one).end for one in range(self.partitions)}
        assert self.memory.offsets(SUBSCRIPTION.group) == ends, "stuck"
        topics = [self.memory.read(topic) for topic in (OUTPUT, DEAD)]
        found = sorted(source for topic in topics for source in sources(topic))
        sent = [(one.partition, one.offset) for one in self.memory.read(INPUT)]
        assert found == sent, "lost or doubled"
        for topic in topics:
            assert sources(topic) == sorted(sources(topic)), "order broken"


def answer(request: Request, kind: Kind) -> Answer:
    if kind == "busy":
        return Busy("refused")
    if kind == "failed":
        return Failed("500")
    return [Prediction({}) for _ in request.images]


def encode(settled: Settled) -> Message:
    """Publish where the record lay."""
    record = settled.record
    place = record.id.partition("/")[2].encode()
    return Message(place, None, (), dead=isinstance(settled.outcome, Rejection))


def sources(topic: list[Entry]) -> list[tuple[int, ...]]:
    """Return partition and offset of the records that these speak of."""
    return [tuple(map(int, (one.value or b"").split(b"/"))) for one in topic]


def at_once(_: float) -> float:
    return 0.0


def break_at_end(step: Step) -> None:
    if step == "end":
        raise Unavailable("the connection broke")


def die_at_end(step: Step) -> None:
    if step == "end":
        raise Killed


# What does not tell two states apart: nothing that happens here depends on it.
IDLE = {"stats", "since", "_began", "_limit", "_future", "_policy", "_memory", "lock", "clock"}
PLAIN = {str, bytes, int, float, bool, type(None)}
VALUES = {Record, Image, Cell, Subscription}  # never changed, and no part of them has identity
CONSTANTS = {*VALUES, Policy, Stats}  # never changed


def spell(thing: object, known: dict[int, int], letters: list[Hashable]) -> None:
    """Write down an object with all that it refers to, in a form that can be compared.

    Objects are numbered as they are met, for identity counts in the product too. Whatever a class
    gains is written as well: two states that are taken for one differ in nothing but IDLE.
    """
    kind = type(thing)
    if kind in PLAIN:
        letters.append(thing)
    elif id(thing) in known:
        letters.append(("known", known[id(thing)]))
    elif kind in VALUES:
        known[id(thing)] = len(known)
        letters.append((kind, hash(thing)))
    elif not callable(thing):
        if not isinstance(thing, tuple):  # a value; and a passing one may leave its id to another
            known[id(thing)] = len(known)
        inside = parts(thing, known)
        letters.append((kind, len(inside)))
        for part in inside:
            spell(part, known, letters)


def parts(thing: object, known: dict[int, int]) -> Collection[object]:
    if isinstance(thing, dict):
        return [*thing, *thing.values()]
    if isinstance(thing, list | tuple | deque):
        return thing
    if isinstance(thing, set):  # of requests that are out, which are numbered by now
        return sorted(known[id(each)] for each in thing)
    if isinstance(thing, count):
        return [repr(thing)]
    names = slots(type(thing).__mro__) or vars(thing)
    return [getattr(thing, name) for name in names if name not in IDLE]


@cache
def slots(kinds: tuple[type, ...]) -> tuple[str, ...]:
    return tuple(name for kind in kinds for name in getattr(kind, "__slots__", ()))


def fingerprint(*things: object) -> int:
    """A number of 64 bits: that two of 100,000 states share one is a chance of 1 : 10^9."""
    letters: list[Hashable] = []
    spell(things, {}, letters)
    return hash(tuple(letters))


class Snapshots:
    """Everything there is, so that a state can be gone on from more than once.

    What never changes is not copied: all snapshots share it.
    """

    def __init__(self) -> None:
        self._shared: dict[int, object] = {}

    def take(self, thing: object) -> bytes:
        buffer = BytesIO()
        _Pickler(buffer, self._shared).dump(thing)
        return buffer.getvalue()

    def restore(self, picture: bytes) -> Any:  # noqa: ANN401 - what was taken
        return _Unpickler(picture, self._shared).load()


class _Pickler(Pickler):
    def __init__(self, buffer: BytesIO, shared: dict[int, object]) -> None:
        super().__init__(buffer)
        self.dispatch_table = {
            type(RLock()): lambda _: (RLock, ()),
            count: lambda numbers: (count, (int(repr(numbers)[len("count(") : -1]),)),
        }
        self._shared = shared

    def persistent_id(self, thing: object) -> int | None:
        if type(thing) not in CONSTANTS:
            return None
        self._shared[id(thing)] = thing  # which keeps it, and so its id
        return id(thing)


class _Unpickler(Unpickler):
    def __init__(self, picture: bytes, shared: dict[int, object]) -> None:
        super().__init__(BytesIO(picture))
        self._shared = shared

    def persistent_load(self, number: int) -> object:
        return self._shared[number]


class Search:
    """All paths from the start, the shortest first; a broken promise is raised with its path.

    The promise is due wherever nothing but another fault can change anything.
    """

    def __init__(self, start: World, faults: Collection[Fault]) -> None:
        self._faults = faults
        self._snapshots = Snapshots()
        self._after: dict[int, list[int]] = {}
        self._way: dict[int, tuple[int, str]] = {}
        self._unseen: deque[tuple[int, bytes]] = deque()
        self._start = self._arrive(start)
        while self._unseen:
            self._look_around(*self._unseen.popleft())

    def _look_around(self, here: int, picture: bytes) -> None:
        """Try all that may happen in one state."""
        world = self._snapshots.restore(picture)
        calm = list(world.calm())
        faulty = [action for action in world.faulty() if action[0] in self._faults]
        try:
            after = [self._go(here, picture, action) for action in calm]
            if set(after) <= {here}:
                world.check_promise()
            after += [self._go(here, picture, action) for action in faulty]
        except Exception as error:
            error.add_note(f"after {self._path(here)}")
            raise
        self._after[here] = after

    def _go(self, here: int, picture: bytes, action: Action) -> int:
        world = self._snapshots.restore(picture)
        act, *arguments = action
        act(world, *arguments)
        there = self._arrive(world)
        self._way.setdefault(there, (here, " ".join([act.__name__, *map(str, arguments)])))
        return there

    def _arrive(self, world: World) -> int:
        here = fingerprint(*world.parts())
        if here not in self._after:
            assert len(self._after) < MOST_STATES, "there is no end to it"
            self._after[here] = []
            self._unseen.append((here, self._snapshots.take(world)))
        return here

    def _path(self, here: int) -> str:
        steps = []
        while here != self._start:
            here, step = self._way[here]
            steps.append(step)
        return ", ".join(reversed(steps))

    @property
    def states(self) -> int:
        return len(self._after)

    @property
    def steps(self) -> int:
        return sum(map(len, self._after.values()))

    def paths(self) -> int:
        """How many different paths there are; a step that changes nothing is none."""
        numbers: dict[int, int] = {}

        def number(here: int) -> int:
            if here not in numbers:
                onward = [after for after in self._after[here] if after != here]
                numbers[here] = sum(map(number, onward)) if onward else 1
            return numbers[here]

        return number(self._start)


OF_THE_GROUP = (World.rebalance, World.expel, World.crash)
OF_THE_COMMIT = (World.lose, World.break_off, World.stall, World.die_in_commit)
ANY = (*OF_THE_GROUP, *OF_THE_COMMIT, World.answer)


@pytest.mark.parametrize(
    ("partitions", "pack", "faults"),
    [
        pytest.param(1, 3, ANY, id="one request, any fault"),
        pytest.param(1, 2, OF_THE_COMMIT, id="requests that overtake each other"),
        pytest.param(2, 3, OF_THE_GROUP[:2], id="two relays at work"),
    ],
)
def test_whatever_comes_between_each_record_is_settled_once_and_in_order(
    partitions: int, pack: int, faults: tuple[Fault, ...]
) -> None:
    search = Search(World(partitions, pack), faults)
    print(f"{search.states} states, {search.steps} steps, {search.paths()} paths")  # noqa: T201 - for pytest -rP
    assert search.paths() > 10_000


def try_every_way(live: Callable[[Choose], Lived]) -> Iterator[Lived]:
    """Live once for each sequence of choices."""
    script: list[list[int]] = []
    while True:
        places = count()

        def choose(options: int, places: count[int] = places) -> int:
            place = next(places)
            if place == len(script):
                script.append([0, options])
            return script[place][0]

        yield live(choose)
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return
        script[-1][0] += 1


class Behind:
    """Servers behind one address, some of which refuse all; an error closes its connection."""

    def __init__(self, servers: int, turns: int, refusal: Busy | Failed, choose: Choose) -> None:
        self.refusal = refusal
        self.refuses = [bool(choose(2)) for _ in range(servers)]
        self.turns = turns
        self._kept: tuple[Request, int] | None = None

    def ask(self, request: Request, choose: Choose) -> Answer:
        if self.turns and (turned := choose(len(self.refuses) + 1)):
            self.turns -= 1
            self.refuses[turned - 1] ^= True
        linked = self._kept if self._kept and request.follows is self._kept[0] else None
        server = linked[1] if linked else choose(len(self.refuses))
        odd = any(image.data == b"odd" for image in request.images)
        self._kept = None
        if odd or self.refuses[server]:
            return self.refusal if linked or not request.follows else Reopened("refused")
        self._kept = (request, server)
        return [Prediction({}) for _ in request.images]


class Lives:
    """All that can become of a relay and its servers, a tick at a time.

    Lives that have come to one state go on as one, and are still counted as many.
    """

    def __init__(self, begin: Callable[[Choose], Life]) -> None:
        self._snapshots = Snapshots()
        self._now = self._gather((life, 1) for life in try_every_way(begin))

    def tick(self, now: float) -> None:
        """Let all of them send what is due, and be answered in every way."""
        self._now = self._gather(
            (life, ways)
            for picture, ways in self._now
            for life in try_every_way(partial(self._go_on, picture, now))
        )

    def _go_on(self, picture: bytes, now: float, choose: Choose) -> Life:
        life: Life = self._snapshots.restore(picture)
        relay, behind = life
        for request in relay.requests(now):
            relay.answer(request, behind.ask(request, choose), now)
        return life

    def _gather(self, lives: Iterable[tuple[Life, int]]) -> list[tuple[bytes, int]]:
        found: dict[int, tuple[bytes, int]] = {}
        for life, ways in lives:
            here = fingerprint(*life)
            picture, others = found.get(here) or (self._snapshots.take(life), 0)
            found[here] = (picture, others + ways)
        return list(found.values())

    def __iter__(self) -> Iterator[tuple[Relay, int]]:
        """Yield the relays, and how many ways led to each."""
        return ((self._snapshots.restore(picture)[0], ways) for picture, ways in self._now)


@pytest.mark.parametrize("refusal", [Busy("refused"), Failed("500", status=500)])
@pytest.mark.parametrize(
    ("servers", "turns", "values"),
    [(1, 2, (b"ok", b"ok")), (2, 1, (b"ok", b"ok")), (2, 1, (b"ok", b"odd")), (2, 0, (b"odd",))],
)
def test_however_servers_turn_less_often_than_the_tries_no_innocent_is_rejected(
    servers: int, turns: int, values: tuple[bytes, ...], refusal: Busy | Failed
) -> None:
    policy = make_policy(pack=2, in_flight=1, tries=turns + 1, doubt_after=0.0)

    def begin(choose: Choose) -> Life:
        relay = Relay(policy, at_once, Image(b"canary"))
        records = [Record(f"{n}", None, None, (), 0, None, None) for n in range(len(values))]
        relay.receive([(one, Image(v)) for one, v in zip(records, values, strict=True)], 0.0)
        return relay, Behind(servers, turns, refusal, choose)

    lives = Lives(begin)
    for now in range(1, 11):
        lives.tick(float(now))
    total = done = states = 0
    for relay, ways in lives:
        settled = relay.settled(12.0)
        states, total, done = states + 1, total + ways, done + ways * (len(settled) == len(values))
        dead = [int(one.record.id) for one in settled if isinstance(one.outcome, Rejection)]
        assert all(values[place] == b"odd" for place in dead)
    print(f"{total} ways, {done} to the end, {states} ends")  # noqa: T201 - for pytest -rP
    assert done


class Noted(set[str]):
    """Names, and which of all names were looked up in them."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self.asked: set[object] = set()

    def __contains__(self, name: object) -> bool:
        self.asked.add(name)
        return super().__contains__(name)


def test_each_name_that_tells_no_states_apart_is_that_of_a_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part that is renamed would be compared from then on, and the search take twice as long."""
    idle = Noted(IDLE)
    monkeypatch.setitem(globals(), "IDLE", idle)
    fingerprint(*World(partitions=1, pack=3).parts())
    assert not IDLE - idle.asked


def half_abort(transaction: Transaction) -> None:
    """Leave the results of an aborted transaction where readers see them."""
    transaction.committed = True
    transaction._end()


def nothing(*_: object) -> None:
    """What is not done."""


def release_all(lanes: Lanes, key: Hashable) -> None:
    """Let the younger overtake the elder."""
    lane = lanes._lanes[key]
    lanes.ready += [Settled(one.record, one.outcome) for one in lane if one.outcome]
    lanes._lanes[key] = deque(one for one in lane if not one.outcome)


@pytest.mark.parametrize(
    ("pack", "owner", "name", "bug", "symptom"),
    [
        (3, Transaction, "abort", half_abort, "lost or doubled"),
        (3, Transaction, "acknowledge", nothing, "stuck"),
        (3, MemoryBroker, "_require_generation", nothing, "lost or doubled"),
        (3, Relay, "reset", nothing, "not the eldest"),
        (3, Lanes, "_release", nothing, "stuck"),
        (2, Lanes, "_release", release_all, "not the eldest"),
    ],
)
def test_the_search_finds_a_planted_bug(
    pack: int,
    owner: type,
    name: str,
    bug: Callable[..., None],
    symptom: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises((AssertionError, ValueError), match=symptom) as found:
        Search(World(1, pack), ANY)
    assert found.value.__notes__[0].startswith("after ")
