"""Relay, loop and memory broker against a model of TorchServe: hours of it in seconds."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from math import inf
from random import Random
from typing import TYPE_CHECKING, Literal
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from connectors import codec, loop
from connectors.errors import Exit, Stop
from connectors.inference.answers import Model
from connectors.inference.v1 import KServeV1
from connectors.inference.v2 import OpenInference, Tensors
from connectors.records import Image
from connectors.relay import Policy, Relay
from tests.brokers.memory import (
    BreakCommit,
    Entry,
    Memory,
    MemoryBroker,
    Step,
    Subscription,
    lose_answer,
)
from tests.connectors.policies import policy as make_policy
from tests.connectors.service import (
    Balancer,
    Killed,
    Machine,
    Process,
    Service,
    ServiceClient,
    StandardServer,
    Timeline,
    Weather,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from connectors.inference.dialect import Dialect
    from connectors.records import Answer, Record, Request, Settled

INPUT, OUTPUT, DEAD = "images", "predictions", "images.dead"
SUBSCRIPTION = Subscription(input=INPUT, output=OUTPUT, dead=DEAD)
DRAIN = 20.0  # seconds from SIGTERM to leaving what is not answered
BOUNDLESS = 10**9  # a limit of dead letters that nobody reaches
CANARY = Image(b"ok witness")
REASONS = {
    b"odd": "failed",
    b"bad": "not_an_image",
    b"kil": "failed",
    b"": "empty",
    None: "tombstone",
}
SEED = st.integers(0, 2**32 - 1)
many_seeds = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a smaller seed is not a simpler one
    suppress_health_check=[HealthCheck.too_slow],
)


class World:
    """The topics, the service, and the daemons between them, in virtual time."""

    def __init__(
        self,
        timeline: Timeline,
        *,
        seed: int = 0,
        partitions: int = 1,
        machine: Machine | None = None,
        policy: Policy | None = None,
        delivery: Literal["exactly-once", "at-least-once"] = "exactly-once",
        predict: Callable[[Request], Answer] | None = None,
    ) -> None:
        self.timeline = timeline
        self.delivery = delivery
        self.random = Random(seed)
        self.policy = policy or make_policy(
            max_consecutive_rejections=BOUNDLESS, min_rejections=BOUNDLESS
        )
        self.memory = Memory(timeline, timeline.sleep)
        self.service = Service(timeline, self.random, machine or Machine(), predict)
        self.balancer: Balancer | None = None
        self.partitions = partitions
        for topic in (INPUT, OUTPUT, DEAD):
            self.memory.create(topic, partitions)

    def produce(self, *values: bytes | None) -> None:
        """Append records, each to the next partition."""
        for number, value in enumerate(values):
            self.memory.produce(INPUT, value, partition=number % self.partitions)

    def results(self) -> list[Entry]:
        return self.memory.read(OUTPUT)

    def dead(self) -> list[Entry]:
        return self.memory.read(DEAD)

    def sent(self) -> dict[tuple[int, int], Entry]:
        """Return the input, by partition and offset."""
        return {(one.partition, one.offset): one for one in self.memory.read(INPUT)}

    def outcomes(self) -> list[tuple[int, int]]:
        """Return partition and offset of the records that have an outcome readers see."""
        return [source(one) for one in (*self.results(), *self.dead())]

    def run_until(self, reached: Callable[[], bool], within: float = 3600.0) -> None:
        """Let time pass until something is reached, as it must be within so many seconds."""
        limit = self.timeline.now + within
        while not reached():
            assert self.timeline.now < limit, "it does not end"
            self.timeline.sleep(0.5)

    def run_until_settled(
        self, within: float = 3600.0, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Let time pass until the group has acknowledged everything."""
        ends = {
            (INPUT, partition): self.memory.log(INPUT, partition).end
            for partition in range(self.partitions)
        }

        def settled() -> bool:
            meanwhile()
            return self.memory.offsets(SUBSCRIPTION.group) == ends

        self.run_until(settled, within)

    def check_promise(self) -> None:
        """Each record has exactly one outcome, the right one; each topic keeps the order."""
        sent = self.sent()
        assert Counter(self.outcomes()) == Counter(sent.keys())
        for topic in (self.results(), self.dead()):
            assert [source(one) for one in topic] == sorted(source(one) for one in topic)
        assert not [one for one in self.results() if reason_for(sent[source(one)].value)]
        for letter in self.dead():
            assert reason_of(letter) in {reason_for(letter.value), "failed"}

    def condemned(self) -> list[Entry]:
        """Dead letters that the service could have answered."""
        return [letter for letter in self.dead() if reason_for(letter.value) is None]


def source(entry: Entry) -> tuple[int, int]:
    """Return partition and offset of the record that an outcome speaks of."""
    headers = dict(entry.headers)
    if "__connect.errors.offset" in headers:
        partition = headers["__connect.errors.partition"] or b""
        offset = headers["__connect.errors.offset"] or b""
    else:
        _, partition, offset = json.loads(entry.value or b"")["id"].split("/")
    assert int(partition) == entry.partition
    return int(partition), int(offset)


def reason_of(letter: Entry) -> str:
    return (dict(letter.headers)["connector.reason"] or b"").decode()


def reason_for(value: bytes | None) -> str | None:
    """Return why a record must be a dead letter; None if it must not."""
    return REASONS.get(value and value[:3])


class Daemon:
    """One process: the real loop and relay, until it is stopped, killed or told to Stop."""

    def __init__(self, world: World, instance: str = "one") -> None:
        self.instance = instance
        self.exit: Exit | None = None
        self.client = ServiceClient(world.balancer or world.service, world.policy.in_flight)
        self.relay = Relay(world.policy, partial(Random(world.random.random()).uniform, 0), CANARY)
        self.broker = SlowBroker(world, instance)
        self._world = world
        self._committer = CommitProcess(world.timeline, self.kill)
        self._iterated_at = -1.0
        self._iterations = 0
        self._process = world.timeline.start(self._run)

    @property
    def alive(self) -> bool:
        return not self._process.ended

    def stop(self) -> None:
        """Ask for a drain, as SIGTERM does."""
        self.relay.drain(self._world.timeline.now + DRAIN)

    def kill(self) -> None:
        """End at once: nothing is closed, nothing given back."""
        self._world.timeline.kill(self._process)
        self._committer.kill()

    def _run(self) -> None:
        timeline = self._world.timeline
        try:
            loop.run(
                self.relay,
                self.broker,
                self.client,
                self._committer,
                codec.decode,
                timeline,
                self._begin_iteration,
            )
            self.exit = Exit.OK
        except Stop as stop:
            self.exit = stop.code
        self._committer.kill()
        self.broker.close()
        self.client.close()

    def _begin_iteration(self) -> None:
        """Check the window, and that time goes on: a loop that spins would stop it."""
        assert self.relay.stats.held <= self._world.policy.window
        now = self._world.timeline.now
        self._iterations = self._iterations + 1 if now == self._iterated_at else 0
        self._iterated_at = now
        assert self._iterations < 100, "the loop spins"


class CommitProcess:
    """A `Committer` whose thread lives in virtual time, and dies with its daemon."""

    def __init__(self, timeline: Timeline, die: Callable[[], None]) -> None:
        self._timeline = timeline
        self._die = die
        self._commit: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._waiting: Process | None = None
        self._process = timeline.start(self._run)

    def start(self, commit: Callable[[], None]) -> None:
        assert self._commit is None, "one commit at a time"
        self._commit, self._error = commit, None
        self._timeline.wake(self._process)

    def wait(self, timeout: float) -> bool:
        if self._commit and timeout > 0:
            self._waiting = self._timeline.current
            self._timeline.sleep(timeout)
            self._waiting = None
        if self._error:
            raise self._error
        return self._commit is None

    def kill(self) -> None:
        self._timeline.kill(self._process)

    def _run(self) -> None:
        while True:
            if self._commit:
                self._try(self._commit)
                self._commit = None
                if self._waiting:
                    self._timeline.wake(self._waiting)
            else:
                self._timeline.sleep(inf)

    def _try(self, commit: Callable[[], None]) -> None:
        try:
            commit()
        except Killed:
            self._die()
            raise
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error


class SlowBroker(MemoryBroker):
    """The memory broker over a network: a commit takes its time."""

    def __init__(self, world: World, instance: str) -> None:
        subscription = replace(SUBSCRIPTION, instance=instance, delivery=world.delivery)
        super().__init__(world.memory, subscription, codec.encode)
        self.stall = 0.0
        self._timeline = world.timeline

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        records = super().poll(limit, timeout)
        assert len(records) <= limit
        return records

    def commit(self, settled: Sequence[Settled]) -> None:
        """Commit; after a `stall`, as of a process that was stopped and resumed."""
        seconds, self.stall = 0.02 + self.stall, 0.0
        self._timeline.sleep(seconds)
        super().commit(settled)


def die(step: Step) -> None:
    """Fault: the process is killed and leaves its transaction open."""
    if step == "end":
        raise Killed


class Trouble:
    """Random faults: to daemons, to the broker, to the service."""

    def __init__(self, world: World, daemons: list[Daemon]) -> None:
        self._world = world
        self._daemons = daemons
        self._random = world.random
        self._kinds: list[Callable[[], None]] = [
            self._rebalance,
            self._expel,
            self._break_commit,
            self._lose_answer,
            self._kill,
            self._kill_in_commit,
            self._stop,
            self._stall,
            self._go_away,
            self._change_weather,
        ]

    def run(self, seconds: float) -> None:
        """Make trouble for so long, then let everything heal."""
        world, random = self._world, self._random
        end = world.timeline.now + seconds
        while world.timeline.now < end:
            world.timeline.sleep(random.expovariate(1 / 4))
            random.choice(self._kinds)()
            self.supervise()
            world.produce(*images(random, random.randrange(10)))
        world.service.weather = "fine"
        world.timeline.sleep(1.0)  # whoever was killed last has time to die

    def supervise(self) -> None:
        """Start again what has ended, under the same name or another one."""
        for place, daemon in enumerate(self._daemons):
            if not daemon.alive:
                assert daemon.exit in {None, Exit.OK}
                name = self._random.choice((daemon.instance, f"{daemon.instance}+"))
                self._daemons[place] = Daemon(self._world, name)

    def _one(self) -> Daemon:
        return self._random.choice(self._daemons)

    def _rebalance(self) -> None:
        self._world.memory.rebalance(SUBSCRIPTION.group)

    def _expel(self) -> None:
        self._one().broker.expel()

    def _break_commit(self) -> None:
        self._one().broker.fault(BreakCommit(self._random.randrange(6)))

    def _lose_answer(self) -> None:
        self._one().broker.fault(lose_answer)

    def _kill(self) -> None:
        self._one().kill()

    def _kill_in_commit(self) -> None:
        self._one().broker.fault(die)

    def _stop(self) -> None:
        self._one().stop()

    def _stall(self) -> None:
        self._one().broker.stall = self._random.uniform(1, 20)

    def _go_away(self) -> None:
        self._world.memory.go_away(self._random.uniform(0.1, 8))

    def _change_weather(self) -> None:
        weathers: list[Weather] = ["fine", "busy", "500", "507", "413", "silent", "forgetful"]
        self._world.service.weather = self._random.choice([*weathers, "flapping"])


def images(random: Random, number: int, killers: float = 0.02) -> Iterator[bytes | None]:
    """Yield values of records: most can be answered, some cannot, few kill a worker."""
    for _ in range(number):
        kind = random.random()
        if kind < killers:
            yield b"kill"
        elif kind < killers + 0.1:
            yield random.choice((b"bad", b"", None))
        else:
            yield b"ok %d" % random.randrange(1000)


def small_policy(random: Random) -> Policy:
    return make_policy(
        pack=random.choice((1, 2, 7, 16)),
        in_flight=random.choice((1, 2, 4)),
        window=random.choice((1, 5, 40, 200)),
        max_consecutive_rejections=BOUNDLESS,
        min_rejections=BOUNDLESS,
    )


def any_machine(random: Random) -> Machine:
    return Machine(
        workers=random.choice((1, 1, 2)),
        batch=random.choice((1, 2, 8)),
        death=random.choice((0.01, 8.0)),
        restart=random.choice((0.5, 3.0, 6.0)),
        refuses=random.random() < 0.5,
    )


def fewer_iterations() -> AbstractContextManager[float]:
    """Look less often for records while requests are out: virtual time is free, a lap is not."""
    return patch.object(loop, "POLL_INTERVAL", 1.0)


def live_through(
    seed: int,
    relays: int,
    tries: int = 3,
    delivery: Literal["exactly-once", "at-least-once"] = "exactly-once",
) -> World:
    """Run daemons through a minute of trouble; check what must be true of every such minute."""
    random = Random(seed)
    with Timeline() as timeline, fewer_iterations():
        world = World(
            timeline,
            seed=seed,
            partitions=random.choice((1, 3)),
            machine=any_machine(random),
            policy=replace(small_policy(random), tries=tries),
            delivery=delivery,
        )
        world.produce(*images(random, 100))
        daemons = [Daemon(world, f"daemon-{number}") for number in range(relays)]
        trouble = Trouble(world, daemons)
        trouble.run(60.0)
        world.run_until_settled(meanwhile=trouble.supervise)
        for daemon in daemons:
            daemon.stop()
        world.run_until(lambda: not any(daemon.alive for daemon in daemons), within=25.0)
        assert {daemon.exit for daemon in daemons} == {Exit.OK}
        return world


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Leave out what the loop says to its operator: here it begins again thousands of times."""
    logger = logging.getLogger(loop.__name__)
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(logging.NOTSET)


@many_seeds
@given(SEED)
def test_one_relay_settles_each_record_once_and_condemns_no_innocent(seed: int) -> None:
    world = live_through(seed, relays=1)
    world.check_promise()
    assert world.condemned() == []


@many_seeds
@given(SEED)
def test_relays_that_share_a_service_settle_each_record_once(seed: int) -> None:
    """Each is trouble for the others' trials: that no innocent is condemned is only very likely."""
    world = live_through(seed, relays=3, tries=5)
    world.check_promise()
    assert len(world.condemned()) <= 2


@settings(many_seeds, max_examples=30)
@given(SEED)
def test_at_least_once_loses_nothing(seed: int) -> None:
    world = live_through(seed, relays=2, delivery="at-least-once")
    assert set(world.outcomes()) == set(world.sent())


@pytest.mark.parametrize("pack", [1, 8])
@pytest.mark.parametrize("refuses", [True, False])
def test_a_killer_as_the_very_first_record_is_the_one_dead_letter(
    pack: int,
    refuses: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """No image was predicted yet: the witness that is built in has to speak."""
    with Timeline() as timeline:
        world = World(
            timeline, machine=Machine(refuses=refuses, restart=6.0), policy=rules(pack=pack)
        )
        world.produce(b"kill", *oks(50))
        Daemon(world)
        world.run_until_settled(within=120.0)
        world.check_promise()
        assert [letter.value for letter in world.dead()] == [b"kill"]


def test_a_killer_among_eight_packs_is_the_one_dead_letter() -> None:
    with Timeline() as timeline:
        machine = Machine(batch=8)
        world = World(timeline, machine=machine, policy=rules(pack=64, in_flight=8))
        world.produce(*oks(300), b"kill", *oks(211))
        Daemon(world)
        world.run_until_settled(within=300.0)
        world.check_promise()
        assert [letter.value for letter in world.dead()] == [b"kill"]


def test_nothing_but_killers_for_a_while_are_all_condemned() -> None:
    with Timeline() as timeline:
        world = World(timeline, policy=rules(pack=8))
        world.produce(*[b"kill"] * 30, *oks(30))
        Daemon(world)
        world.run_until_settled(within=3600.0)
        world.check_promise()
        assert len(world.dead()) == 30


@pytest.mark.parametrize("later", [0.0, 1.5, 3.0])
def test_relays_in_step_or_in_antiphase_do_not_condemn_each_others_innocents(
    later: float,
) -> None:
    with Timeline() as timeline, fewer_iterations():
        world = World(timeline, partitions=2, policy=rules(pack=8, tries=5))
        world.produce(*[b"kill"] * 6, *oks(60))
        Daemon(world, "one")
        timeline.sleep(later)
        Daemon(world, "two")
        world.run_until_settled(within=7200.0)
        world.check_promise()
        assert len(world.dead()) == 6


@pytest.mark.parametrize("pack", [1, 8])
def test_a_rewind_in_the_middle_of_a_trial_forgets_the_trial(pack: int) -> None:
    with Timeline() as timeline:
        world = World(timeline, machine=Machine(death=8.0), policy=rules(pack=pack))
        world.produce(b"ok", b"kill", *oks(30))
        daemon = Daemon(world)
        for _ in range(3):
            world.run_until(lambda: in_trial(daemon), within=120.0)
            world.memory.rebalance(SUBSCRIPTION.group)
            world.run_until(lambda: not in_trial(daemon), within=5.0)
            assert daemon.relay.stats.out, "what was forgotten is still out"
        world.run_until_settled(within=300.0)
        world.check_promise()
        assert [letter.value for letter in world.dead()] == [b"kill"]


def test_forgotten_requests_are_no_evidence_against_the_record_on_trial() -> None:
    """Killers that a rewind has voided are still out, and take the worker along."""
    with Timeline() as timeline:
        world = World(timeline, machine=Machine(death=8.0), policy=rules(pack=1, in_flight=4))
        world.produce(b"kill", b"ok 1", b"kill", b"ok 2", *oks(20))
        daemon = Daemon(world)
        for _ in range(20):
            world.run_until(lambda: daemon.relay.stats.out > 0, within=60.0)
            world.memory.rebalance(SUBSCRIPTION.group)
            timeline.sleep(1.0)
        world.run_until_settled(within=600.0)
        world.check_promise()
        assert len(world.dead()) == 2


def test_a_flapping_service_condemns_nobody() -> None:
    with Timeline() as timeline, fewer_iterations():
        world = World(timeline, partitions=3, policy=rules(pack=8))
        world.service.weather = "flapping"
        world.produce(*oks(200))
        Daemon(world)
        timeline.sleep(300.0)
        world.service.weather = "fine"
        world.run_until_settled(within=600.0)
        world.check_promise()
        assert world.dead() == []


@pytest.mark.parametrize("weather", ["500", "507", "silent", "busy"])
def test_ten_minutes_of_a_failing_service_reject_nothing_and_heal(weather: Weather) -> None:
    with Timeline() as timeline, fewer_iterations():
        world = World(timeline, partitions=3, policy=rules(pack=8))
        world.service.weather = weather
        world.produce(*oks(500))
        Daemon(world)
        timeline.sleep(600.0)
        assert (world.results(), world.dead()) == ([], [])
        world.service.weather = "fine"
        world.run_until_settled(within=600.0)
        world.check_promise()
        assert world.dead() == []


@pytest.mark.parametrize("pack", [1, 8, 64])
@pytest.mark.parametrize("odd", [1, 3])
def test_a_record_that_is_refused_for_ever_is_the_one_dead_letter(pack: int, odd: int) -> None:
    """The service answers others meanwhile, and says of this one what nobody knows."""
    with Timeline() as timeline, fewer_iterations():
        world = World(timeline, partitions=3, policy=rules(pack=pack))
        world.produce(*oks(100), *[b"odd"] * odd, *oks(300))
        Daemon(world)
        world.run_until_settled(within=1800.0)
        world.check_promise()
        assert [letter.value for letter in world.dead()] == [b"odd"] * odd


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "weather",
    ["busy", "crowded", "foreign", "500", "507", "silent", "forgetful", "flapping", "flaky"],
)
def test_an_hour_of_an_outage_rejects_nothing_and_heals(weather: Weather, seed: int) -> None:
    with Timeline() as timeline, fewer_iterations():
        world = World(timeline, seed=seed, partitions=3, policy=rules(pack=8))
        world.service.weather = weather
        world.produce(*oks(500))
        Daemon(world)
        timeline.sleep(3600.0)
        world.service.weather = "fine"
        world.run_until_settled(within=3600.0)
        world.check_promise()
        assert world.dead() == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("servers", [2, 3, 5])
@pytest.mark.parametrize("weather", ["busy", "foreign", "500", "507"])
@pytest.mark.parametrize("guilty", [[], [b"odd"], [b"kill"]])
def test_a_server_of_several_that_answers_nobody_costs_no_innocent(
    weather: Weather, guilty: list[bytes], servers: int, seed: int
) -> None:
    with Timeline() as timeline, fewer_iterations():
        world = World(timeline, seed=seed, partitions=3, policy=rules(pack=8))
        behind = [Service(timeline, world.random, Machine()) for _ in range(servers)]
        behind[0].weather = weather
        world.balancer = Balancer(behind, world.random)
        world.produce(*oks(300), *guilty, *oks(300))
        Daemon(world)
        world.run_until_settled(within=7200.0)
        world.check_promise()
        assert [letter.value for letter in world.dead()] == guilty


def test_packs_that_are_too_large_for_the_service_are_cut() -> None:
    with Timeline() as timeline, fewer_iterations():
        world = World(timeline, policy=rules(pack=8))
        world.service.weather = "413"
        world.produce(*oks(50))
        Daemon(world)
        world.run_until_settled()
        world.check_promise()
        assert world.dead() == []


def test_a_drain_in_the_middle_of_a_trial_ends_and_leaves_the_rest_to_the_next() -> None:
    with Timeline() as timeline:
        world = World(timeline, machine=Machine(death=8.0), policy=rules(pack=8))
        world.produce(*oks(20), b"kill", *oks(30))
        first = Daemon(world)
        world.run_until(lambda: in_trial(first), within=60.0)
        first.stop()
        world.run_until(lambda: not first.alive, within=DRAIN + 5.0)
        assert first.exit is Exit.OK
        assert len(world.results()) < 50
        Daemon(world)
        world.run_until_settled(within=300.0)
        world.check_promise()
        assert [letter.value for letter in world.dead()] == [b"kill"]


def test_a_rewind_while_draining_ends_the_drain() -> None:
    with Timeline() as timeline:
        world = World(timeline, machine=Machine(death=8.0), policy=rules(pack=8))
        world.produce(*oks(20), b"kill")
        daemon = Daemon(world)
        world.run_until(lambda: in_trial(daemon), within=60.0)
        daemon.stop()
        world.memory.rebalance(SUBSCRIPTION.group)
        world.run_until(lambda: not daemon.alive, within=2.0)
        assert daemon.exit is Exit.OK


def test_a_drain_commits_all_that_the_service_still_answers() -> None:
    with Timeline() as timeline:
        world = World(timeline, policy=rules(pack=8, window=100))
        world.produce(*oks(1000))
        daemon = Daemon(world)
        world.run_until(lambda: len(world.results()) > 100)
        daemon.stop()
        world.run_until(lambda: not daemon.alive, within=DRAIN)
        received, committed = daemon.relay.stats.received, len(world.results())
        assert committed == received < 1000
        assert world.memory.offsets(SUBSCRIPTION.group) == {(INPUT, 0): received}


def test_a_hundred_rejections_in_a_row_stop_the_daemon_before_they_are_committed() -> None:
    with Timeline() as timeline:
        world = World(timeline, policy=make_policy(pack=8))
        world.produce(*oks(20), *[b"bad"] * 300)
        daemon = Daemon(world)
        world.run_until(lambda: not daemon.alive, within=60.0)
        assert daemon.exit is Exit.GIVEN_UP
        assert len(world.dead()) < 100


def test_the_elder_of_two_daemons_with_one_name_is_fenced() -> None:
    with Timeline() as timeline:
        world = World(timeline, policy=rules(pack=8))
        elder, younger = Daemon(world, "same"), Daemon(world, "same")
        for _ in range(20):
            world.produce(*oks(10))
            timeline.sleep(1.0)
        world.run_until_settled()
        world.check_promise()
        assert elder.exit is Exit.FENCED
        assert younger.alive


def test_a_run_is_the_same_each_time() -> None:
    first, second = live_through(7, relays=2), live_through(7, relays=2)
    assert first.results() == second.results()
    assert first.timeline.now == second.timeline.now


def oks(number: int) -> list[bytes]:
    return [b"ok %d" % one for one in range(number)]


def in_trial(daemon: Daemon) -> bool:
    """Tell whether a suspect is out."""
    return any(sent.purpose == "trial" for sent in daemon.relay._out.values())


def rules(**changes: int) -> Policy:
    return replace(
        make_policy(max_consecutive_rejections=BOUNDLESS, min_rejections=BOUNDLESS), **changes
    )


# Standard protocols

SIZES = Model("sizes")
STANDARD: dict[str, Dialect] = {
    "v1": KServeV1(float, SIZES),
    "v2": OpenInference(float, SIZES, Tensors("image")),
    "v2 json": OpenInference(float, SIZES, Tensors("image", binary=False)),
}


@pytest.mark.parametrize("dialect", STANDARD.values(), ids=STANDARD.keys())
@pytest.mark.parametrize("status", [400, 500])
def test_a_server_without_errors_of_items_has_exactly_the_poison_as_dead_letters(
    dialect: Dialect, status: int
) -> None:
    """10,000 records, one in 200 of which fails its whole pack."""
    server = StandardServer(dialect, status)
    random = Random(f"{status}")
    values = [b"ok" * random.randrange(1, 50) for _ in range(10_000)]
    for number in random.sample(range(len(values)), 50):
        values[number] = b"bad"
    with Timeline() as timeline:
        world = World(timeline, partitions=3, predict=server)
        world.produce(*values)
        Daemon(world)
        world.run_until_settled(within=7 * 3600.0)
        world.check_promise()
        assert [letter.value for letter in world.dead()] == [b"bad"] * 50
        sent = world.sent()
        for one in world.results():
            answered = json.loads(one.value or b"")["outputs"]
            size = answered if isinstance(answered, int) else answered[0]["data"][0]
            assert size == len(sent[source(one)].value or b"")
