"""The order of the stages, and where the loop sleeps. Sleeping advances the clock, no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from connectors import loop
from connectors.errors import Exit, Rewound, Stop
from connectors.records import (
    Failed,
    Image,
    Prediction,
    Record,
    Rejection,
    Request,
    Settled,
    Skipped,
)
from connectors.relay import Relay
from tests.connectors.policies import policy as make_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connectors.records import Answer


BLANK = Image(b"blank")


def record(offset: int) -> Record:
    return Record(f"images/0/{offset}", b"%d" % offset, None, (), 0, 0, offset)


def decode(one: Record) -> Image | Rejection | Skipped:
    return Image(one.value) if one.value else Rejection("empty", "no bytes")


def predict(request: Request) -> Answer:
    return [Prediction({"image": image.data}) for image in request.images]


def drain_and_predict(relay: Relay, deadline: float, request: Request) -> Answer:
    """The signal comes right before the answer."""
    relay.drain(deadline)
    return predict(request)


@dataclass
class World:
    """A broker with one partition, a service and a clock, in one: everything the loop touches."""

    arrivals: list[tuple[float, Record]]
    answer: Callable[[Request], Answer] = predict
    latency: float = 0.01
    commit_s: float = 0.0
    now: float = 0.0
    position: int = 0
    committed: list[Settled] = field(default_factory=list)
    out: list[tuple[float, Request]] = field(default_factory=list)
    sent: list[tuple[float, Request]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    polls: list[tuple[float, int, float]] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    failing: dict[str, list[Exception]] = field(default_factory=dict)
    committing: tuple[float, Callable[[], None]] | None = None
    on_iteration: Callable[[], None] = lambda: None

    def clock(self) -> float:
        return self.now

    def begin_iteration(self) -> None:
        assert self.committing is None
        self._called("iteration")
        self.on_iteration()

    def lag(self) -> None:
        """Not known."""

    def joined(self) -> bool:
        return True

    def start(self, commit: Callable[[], None]) -> None:
        assert self.committing is None
        self._called("start")
        self.committing = self.now + self.commit_s, commit

    def wait(self, timeout: float) -> bool:
        assert self.committing
        end, commit = self.committing
        self._sleep(timeout, end)
        if self.now < end:
            return False
        self.committing = None
        commit()
        return True

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        assert self.committing is None
        self._called("poll")
        self.polls.append((self.now, limit, timeout))
        rest = self.arrivals[self.position :]
        if timeout:
            self._sleep(timeout, rest[0][0] if rest and limit else None)
        records = [one for time, one in rest if time <= self.now][:limit]
        self.position += len(records)
        return records

    def commit(self, settled: Sequence[Settled]) -> None:
        self._called("commit")
        self.commits.append(self.now)
        self.committed += settled

    def send(self, request: Request) -> None:
        self._called("send")
        self.sent.append((self.now, request))
        self.out.append((self.now + self.latency, request))

    def collect(self, timeout: float) -> Sequence[tuple[Request, Answer]]:
        self._called("collect")
        if timeout:
            self._sleep(timeout, min((time for time, _ in self.out), default=None))
        ready = [(time, request) for time, request in self.out if time <= self.now]
        self.out = [one for one in self.out if one not in ready]
        return [(request, self.answer(request)) for _, request in ready]

    def close(self) -> None:
        raise AssertionError("whoever opened it closes it")

    def rewind(self) -> None:
        self.position = len(self.committed)

    def ids(self) -> list[str]:
        return [settled.record.id for settled in self.committed]

    def _sleep(self, timeout: float, until: float | None) -> None:
        wake = self.now + timeout
        self.now = wake if until is None else max(self.now, min(wake, until))

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.failing.get(name):
            self.rewind()
            raise self.failing[name].pop()


def run(world: World, relay: Relay | None = None, *, until: float = 10.0) -> Relay:
    """Run until everything has arrived and is committed, or until the time is over."""
    relay = relay or Relay(make_policy(), lambda upper: upper, Image(b"blank"))

    def drain_at_the_end() -> None:
        if world.now >= until or len(world.committed) == len(world.arrivals):
            relay.drain(world.now)

    world.on_iteration = drain_at_the_end
    loop.run(relay, world, world, world, decode, world.clock, world.begin_iteration)
    return relay


def test_records_in_predictions_out() -> None:
    world = World([(0.0, record(0)), (0.0, record(1))])
    run(world)
    assert [settled.outcome for settled in world.committed] == [
        Prediction({"image": b"0"}),
        Prediction({"image": b"1"}),
    ]


def test_the_stages_come_in_their_order() -> None:
    world = World([(0.0, record(0))], latency=0.001)
    run(world)
    assert world.calls[:6] == ["iteration", "poll", "send", "collect", "start", "commit"]


def test_the_watchdog_is_optional() -> None:
    relay = Relay(make_policy(), lambda upper: upper, Image(b"blank"))
    world = World([])
    relay.drain(0.0)
    loop.run(relay, world, world, world, decode, world.clock)
    assert world.calls == []


def test_what_cannot_be_decoded_is_committed_without_a_request() -> None:
    empty = Record("images/0/0", b"", None, (), 0, 0, 0)
    world = World([(0.0, empty)])
    run(world)
    assert world.committed == [Settled(empty, Rejection("empty", "no bytes"))]
    assert world.sent == []


def test_an_idle_loop_sleeps_in_poll_and_sends_a_record_the_moment_it_comes() -> None:
    world = World([(7.3, record(0))])
    run(world)
    assert [time for time, _ in world.sent] == [7.3]
    assert len(world.polls) <= 10


def test_an_answer_is_committed_the_moment_it_comes() -> None:
    world = World([(7.3, record(0))], latency=0.2)
    run(world)
    assert world.commits == pytest.approx([7.5])


def test_a_record_that_comes_while_another_is_out_soon_follows_it() -> None:
    world = World([(0.0, record(0)), (1.5, record(1))], latency=5.0)
    run(world, until=30.0)
    (_, _), (time, _) = world.sent
    assert 1.5 <= time <= 1.5 + loop.POLL_INTERVAL


def measure_poll_intervals(world: World, relay: Relay, until: float) -> list[float]:
    run(world, relay, until=until)
    return [later - time for (time, _, _), (later, _, _) in pairwise(world.polls)]


def test_who_sends_at_once_polls_more_often_as_long_as_records_come() -> None:
    times = [0.0, 0.004, 0.008, 0.012]
    world = World([(time, record(n)) for n, time in enumerate(times)], latency=5.0)
    intervals = measure_poll_intervals(world, Relay(make_policy(in_flight=9), float, BLANK), 0.1)
    assert intervals == pytest.approx([0.005, 0.005, 0.005, 0.005, 0.01, 0.02, 0.02, 0.02, 0.02])


def test_who_has_no_place_in_flight_polls_at_the_longer_interval() -> None:
    world = World([(0.001 * n, record(n)) for n in range(9)], latency=5.0)
    intervals = measure_poll_intervals(world, Relay(make_policy(in_flight=1), float, BLANK), 0.1)
    assert intervals == pytest.approx([0.02] * 5)


def test_the_broker_is_polled_once_a_second_while_there_is_no_room() -> None:
    world = World([(0.0, record(0))], latency=20.0)
    run(world, Relay(make_policy(window=1), lambda upper: upper, Image(b"blank")), until=50.0)
    assert {limit for _, limit, _ in world.polls[1:]} == {0}
    times = [time for time, _, _ in world.polls]
    assert len(times) == 21
    assert all(later - time <= loop.MAX_BLOCK for time, later in pairwise(times))


def test_a_loop_without_room_sleeps_until_the_alarm_and_does_not_spin() -> None:
    world = World([(0.0, record(0))], answer=lambda _: Failed("500"))
    relay = Relay(make_policy(window=1, trial_limit=2.0), lambda upper: upper, Image(b"blank"))
    run(world, relay, until=100.0)
    assert len(world.polls) < 400
    assert {timeout for _, limit, timeout in world.polls if limit == 0} == {0.0}


@pytest.mark.parametrize("stage", ["poll", "commit"])
def test_after_a_rewound_everything_not_committed_comes_again(
    stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World([(float(number), record(number)) for number in range(3)])
    world.failing[stage] = [Rewound("a rebalance")]
    relay = run(world)
    assert world.ids() == ["images/0/0", "images/0/1", "images/0/2"]
    assert relay.stats.rewound == 1
    assert "Beginning again from the last commit: a rebalance" in caplog.messages


@pytest.mark.parametrize("error", [Stop("fenced", Exit.FENCED), RuntimeError("unexpected")])
def test_any_other_error_ends_the_loop_and_commits_nothing(error: Exception) -> None:
    world = World([(0.0, record(0))])
    world.failing["collect"] = [error]
    with pytest.raises(type(error)):
        run(world)
    assert world.committed == []


def test_the_dead_letter_limit_ends_the_loop_before_the_commit() -> None:
    world = World([(0.0, Record(f"images/0/{n}", b"", None, (), 0, 0, n)) for n in range(100)])
    with pytest.raises(Stop, match="100 records in a row"):
        run(world)
    assert world.committed == []


def test_a_drain_answers_and_commits_what_is_held_and_takes_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    relay = Relay(make_policy(), lambda upper: upper, Image(b"blank"))
    world = World([(0.0, record(0)), (1.0, record(1))], latency=3.0)
    world.on_iteration = lambda: relay.drain(20.0) if world.sent else None
    loop.run(relay, world, world, world, decode, world.clock, world.begin_iteration)
    assert world.ids() == ["images/0/0"]
    assert world.now == pytest.approx(3.0)
    assert caplog.messages == []


def test_the_drain_limit_binds_and_a_warning_counts_what_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    relay = Relay(make_policy(), lambda upper: upper, Image(b"blank"))
    world = World([(0.0, record(0)), (0.0, record(1))], latency=60.0)
    world.on_iteration = lambda: relay.drain(4.5) if world.sent else None
    loop.run(relay, world, world, world, decode, world.clock, world.begin_iteration)
    assert world.now == pytest.approx(4.5)
    assert world.committed == []
    assert caplog.messages == ["Left 2 records without a commit; they will be delivered again."]


def test_a_commit_that_was_aborted_does_not_count() -> None:
    world = World([(0.0, record(0))])
    world.failing["commit"] = [Rewound("aborted")]
    stats = run(world).stats
    assert (stats.received, stats.predicted, stats.commits) == (2, 1, 1)


def calls_of_first_commit(world: World) -> list[str]:
    """What was called from its start to its end."""
    return world.calls[world.calls.index("start") : world.calls.index("commit") + 1]


def relay_of() -> Relay:
    """One record in a request, one request at a time, and commits that follow one another."""
    policy = make_policy(pack=1, in_flight=1, commit_rest=0.0, commit_interval=0.0)
    return Relay(policy, lambda upper: upper, Image(b"blank"))


def test_requests_go_out_and_answers_come_in_while_a_commit_takes_its_time() -> None:
    world = World([(0.0, record(n)) for n in range(4)], latency=0.2, commit_s=0.7)
    run(world, relay_of())
    assert world.commits == pytest.approx([0.9, 1.6])
    assert [time for time, _ in world.sent] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert world.ids() == [f"images/0/{n}" for n in range(4)]


def test_what_is_settled_during_a_commit_waits_for_the_next_one() -> None:
    world = World([(0.0, record(n)) for n in range(3)], latency=0.1, commit_s=1.0)
    relay = run(world, relay_of())
    assert (relay.stats.commits, relay.stats.predicted, relay.stats.held) == (2, 3, 0)
    assert world.calls.count("start") == 2


def test_nothing_touches_the_broker_and_no_iteration_begins_before_a_commit_has_ended() -> None:
    world = World([(0.0, record(n)) for n in range(4)], latency=0.2, commit_s=0.7)
    run(world, relay_of())
    assert set(calls_of_first_commit(world)) == {"start", "send", "collect", "commit"}


def test_a_loop_with_nothing_out_sleeps_until_the_commit_has_ended() -> None:
    world = World([(0.0, record(0)), (0.5, record(1))], latency=0.1, commit_s=3.0)
    run(world)
    assert world.commits[0] == pytest.approx(3.1)
    assert len(calls_of_first_commit(world)) < 3.0 / loop.POLL_INTERVAL + 3
    assert [time for time, _ in world.sent] == pytest.approx([0.0, 3.1])


def test_a_rewound_commit_voids_what_was_answered_and_what_is_out_beside_it() -> None:
    world = World([(0.0, record(n)) for n in range(4)], latency=0.3, commit_s=0.7)
    world.failing["commit"] = [Rewound("a rebalance")]
    relay = run(world, relay_of())
    assert world.ids() == [f"images/0/{n}" for n in range(4)]
    assert [request.images[0].data for _, request in world.sent[:4]] == [b"0", b"1", b"2", b"3"]
    assert (relay.stats.rewound, relay.stats.stale, relay.stats.received) == (1, 1, 8)


def test_a_stop_of_a_commit_ends_the_loop_when_it_has_ended() -> None:
    world = World([(0.0, record(n)) for n in range(2)], latency=0.2, commit_s=0.7)
    world.failing["commit"] = [Stop("fenced", Exit.FENCED)]
    with pytest.raises(Stop, match="fenced"):
        run(world, relay_of())
    assert world.committed == []
    assert len(world.sent) == 2


def test_a_drain_asked_for_during_a_commit_waits_for_it_and_commits_what_was_answered() -> None:
    relay = relay_of()
    world = World([(0.0, record(n)) for n in range(3)], latency=0.2, commit_s=1.0)
    world.answer = partial(drain_and_predict, relay, 20.0)
    loop.run(relay, world, world, world, decode, world.clock, world.begin_iteration)
    assert world.ids() == [f"images/0/{n}" for n in range(3)]
    assert relay.stats.commits == 2


def test_a_commit_that_outlasts_the_drain_limit_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    relay = relay_of()
    world = World([(0.0, record(n)) for n in range(2)], latency=0.2, commit_s=5.0)
    world.answer = partial(drain_and_predict, relay, 1.0)
    loop.run(relay, world, world, world, decode, world.clock, world.begin_iteration)
    assert world.ids() == ["images/0/0"]
    assert caplog.messages == ["Left 1 records without a commit; they will be delivered again."]


def test_a_pack_that_fails_during_a_commit_is_tried_beside_it() -> None:
    world = World([(0.0, record(n)) for n in range(3)], latency=0.2, commit_s=30.0)
    world.answer = lambda request: (
        Failed("500") if request.images[0].data == b"1" else predict(request)
    )
    run(world, relay_of(), until=120.0)
    assert world.commits[0] == pytest.approx(30.2)
    assert [one.outcome for one in world.committed] == [
        Prediction({"image": b"0"}),
        Rejection("failed", "500", None, 3),
        Prediction({"image": b"2"}),
    ]
    beside = [request.images[0].data for time, request in world.sent if time < 30.0]
    assert beside.count(b"1") == 4
