"""Every decision of the relay, and nothing else: told what happened, asked what to do.

Pure. Time is an argument, in monotonic seconds, and so is chance: `jitter(upper)` is a number
of seconds in [0, upper]. The relay has one owner and no lock; other threads read `tally` only.

A record without an outcome is in exactly one place: it waits, it is out, it is a suspect, or it
is in doubt. One with an outcome waits in its lane for its elders, then for the commit.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple

from .errors import Exit, Stop
from .records import (
    Answer,
    Busy,
    Failed,
    Image,
    Outcome,
    Prediction,
    Reason,
    Record,
    Rejection,
    Request,
    Settled,
    Skipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    Jitter = Callable[[float], float]

Arrival = tuple[Record, Image | Rejection | Skipped]
"""A record, and what decoding made of it: an image to ask about, or its outcome already."""

Errand = Literal["pack", "trial", "witness"]
"""Why a request is out: the traffic, a suspect alone, or an image known to be good."""

Retry = Literal["busy", "failed", "trial", "witness"]
"""What came back without outcomes: anything refused; the traffic, a trial or a witness failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers behind the decisions; times are in seconds."""

    pack: int = 64  # images in a request
    pack_bytes: int = 5_000_000  # of images in a request; TorchServe takes 6.5 MB of body
    in_flight: int = 4  # requests out at once
    window: int = 4096  # records held
    window_bytes: int = 64 * 2**20  # of values held; exceeded by at most what one poll returns
    tries: int = 3  # failures that condemn a record, each beside a witness that was answered
    commit_interval: float = 0.1  # from the end of one commit to the next
    commit_rest: float = 3.0  # the same, in durations of the last commit
    busy_first: float = 0.05  # the longest wait after the first Busy; doubles
    busy_limit: float = 2.0
    trial_first: float = 2.0  # the longest wait for the first trial; doubles
    trial_limit: float = 60.0
    dead_row: int = 100  # rejections in a row that stop the daemon
    dead_share: float = 0.5  # of the last `dead_history` outcomes, likewise
    dead_history: int = 1000
    dead_least: int = 100  # rejections from which on the share counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a status line shows: counts since the start, and how things stood a moment ago.

    Never changed, only replaced, its counters too: any thread may read it at any time.
    """

    received: int = 0
    predicted: int = 0  # these three: committed
    rejected: Counter[Reason] = field(default_factory=Counter)
    skipped: int = 0
    packs: Counter[int] = field(default_factory=Counter)  # requests by their number of images
    retries: Counter[Retry] = field(default_factory=Counter)
    stale: int = 0  # answers that came after a reset
    rewound: int = 0
    commits: int = 0
    commit_seconds: float = 0.0  # all of them together

    held: int = 0
    held_bytes: int = 0
    waiting: int = 0
    suspects: int = 0  # trials to come
    out: int = 0  # requests, forgotten ones included
    oldest_since: float | None = None  # when the oldest record without an outcome came
    busy_since: float | None = None  # when the service began to serve nobody
    busy_detail: str = ""  # what it said last


@dataclass(slots=True, eq=False)
class Place:
    """A record's place in its lane."""

    record: Record
    since: float
    outcome: Outcome | None = None


@dataclass(slots=True, eq=False)
class Pending:
    """A record without an outcome, and what speaks against it."""

    place: Place
    image: Image
    tries: int = 0  # failures that count against it
    failures: int = 0  # all of them, alone
    detail: str = ""  # of the last one
    status: int | None = None

    def note(self, failed: Failed) -> None:
        """It failed alone."""
        self.failures += 1
        self.detail, self.status = failed.detail, failed.status

    def rejection(self, reason: Reason) -> Rejection:
        """Condemn it by what was noted."""
        return Rejection(reason, self.detail, self.status, self.failures)


Pack = tuple[Pending, ...]


class Sent(NamedTuple):
    """What is out, and for whose sake: a witness speaks about the one record of its pack."""

    errand: Errand
    pack: Pack


def halves(pack: Pack) -> list[Pack]:
    """Cut a pack in two, a single record not at all."""
    middle = (len(pack) + 1) // 2
    return [half for half in (pack[:middle], pack[middle:]) if half]


def doubled(first: float, limit: float, times: int) -> float:
    """Grow `first` twofold, `times` times, up to `limit`."""
    return min(limit, first * 2.0 ** min(times, 64))  # 2.0 ** 1024 would overflow


class Lanes:
    """Records in the order they came, until they and all their elders are committed."""

    def __init__(self) -> None:
        self.ready: list[Settled] = []
        self.held = 0
        self.held_bytes = 0
        self._lanes: dict[Hashable, deque[Place]] = {}
        self._unanswered: OrderedDict[Place, None] = OrderedDict()

    def enter(self, record: Record, now: float) -> Place:
        """Take a place behind everything of the same lane."""
        place = Place(record, now)
        if record.lane is not None:
            self._lanes.setdefault(record.lane, deque()).append(place)
        self._unanswered[place] = None
        self.held += 1
        self.held_bytes += len(record.value or b"")
        return place

    def settle(self, place: Place, outcome: Outcome) -> None:
        """Give a place its outcome, and release what waited for it."""
        place.outcome = outcome
        del self._unanswered[place]
        if place.record.lane is None:
            self.ready.append(Settled(place.record, outcome))
        else:
            self._release(place.record.lane)

    def _release(self, key: Hashable) -> None:
        lane = self._lanes[key]
        while lane and (outcome := lane[0].outcome) is not None:
            self.ready.append(Settled(lane.popleft().record, outcome))
        if not lane:
            del self._lanes[key]

    def forget(self, committed: Sequence[Settled]) -> None:
        """Let go of the first of what was ready."""
        del self.ready[: len(committed)]
        self.held -= len(committed)
        self.held_bytes -= sum(len(settled.record.value or b"") for settled in committed)

    def oldest_since(self) -> float | None:
        """When the oldest record that has no outcome came."""
        oldest = next(iter(self._unanswered), None)
        return oldest.since if oldest else None


class History:
    """The last outcomes; too many rejections among them stop the daemon. Skipped is none."""

    def __init__(self, policy: Policy, last: Sequence[bool] = (), row: int = 0) -> None:
        self._policy = policy
        self._last = deque(last, maxlen=policy.dead_history)  # True: rejected
        self._rejected = sum(self._last)
        self._row = row

    def followed_by(self, batch: Sequence[Settled]) -> History:
        """Tell how it goes on with this batch; raises Stop when it must not."""
        future = History(self._policy, self._last, self._row)
        for settled in batch:
            if not isinstance(settled.outcome, Skipped):
                future._add(rejected=isinstance(settled.outcome, Rejection))
            if isinstance(settled.outcome, Rejection):
                future._judge(settled.record, settled.outcome)
        return future

    def _add(self, *, rejected: bool) -> None:
        if len(self._last) == self._last.maxlen:
            self._rejected -= self._last[0]
        self._last.append(rejected)
        self._rejected += rejected
        self._row = self._row + 1 if rejected else 0

    def _judge(self, record: Record, last: Rejection) -> None:
        policy, count = self._policy, len(self._last)
        if self._row >= policy.dead_row:
            many = f"{self._row} records in a row"
        elif self._rejected >= max(policy.dead_least, policy.dead_share * count):
            many = f"{self._rejected} of {count} records"
        else:
            return
        why = f"{many} were rejected, the last one, {record.id}, as {last.reason} ({last.detail})"
        raise Stop(f"{why}: mend what sends them or raise the limit, then start.", Exit.GIVEN_UP)


class Commits:
    """When a commit is due, what is in it, and whether it may be made."""

    def __init__(self, policy: Policy) -> None:
        self.due_at = -inf
        self._policy = policy
        self._history = self._future = History(policy)
        self._batch: list[Settled] = []
        self._began = -inf

    def begin(self, batch: Sequence[Settled], now: float) -> list[Settled]:
        """Judge what is about to be committed; raises Stop at the limit of dead letters."""
        self._future = self._history.followed_by(batch)
        self._batch = list(batch)
        self._began = now
        return self._batch

    def end(self, now: float) -> tuple[list[Settled], float]:
        """Enter the batch into the history; return it, and how many seconds it took."""
        batch, self._batch = self._batch, []
        seconds = now - self._began
        self._history = self._future
        self.due_at = now + max(self._policy.commit_interval, self._policy.commit_rest * seconds)
        return batch, seconds


class Pause:
    """The wait of the whole relay while the service serves nobody."""

    def __init__(self, policy: Policy, jitter: Jitter) -> None:
        self.until = -inf
        self.since: float | None = None
        self.detail = ""
        self._policy = policy
        self._jitter = jitter
        self._rounds = 0

    def lengthen(self, busy: Busy, now: float) -> None:
        """Wait, longer from round to round; all who are refused meanwhile are one round."""
        self.since = now if self.since is None else self.since
        self.detail = busy.detail
        if busy.after is not None:
            self.until = max(self.until, now + busy.after)
        elif now >= self.until:
            policy = self._policy
            upper = doubled(policy.busy_first, policy.busy_limit, self._rounds)
            self.until = now + self._jitter(upper)
            self._rounds += 1

    def end(self) -> None:
        """Somebody was served: the next wait is a short one again."""
        self.since = None
        self._rounds = 0


class Trials:
    """Suspects, to be tried one at a time with nothing else out.

    The wait before each trial is random, or two relays in step would condemn each other's
    innocents. It grows, or they would meet for ever while a worker restarts.
    """

    def __init__(self, policy: Policy, jitter: Jitter) -> None:
        self.suspects: deque[Pack] = deque()
        self._doubted: Pack = ()  # failed alone, and no witness was heard yet
        self._policy = policy
        self._jitter = jitter
        self._gate = -inf

    def due_at(self) -> float:
        """When something is to go out alone: a witness at once, a suspect after its wait."""
        if self._doubted:
            return -inf
        return self._gate if self.suspects else inf

    def take(self) -> Sent:
        """Hand over what is due."""
        if self._doubted:
            doubted, self._doubted = self._doubted, ()
            return Sent("witness", doubted)
        return Sent("trial", self.suspects.popleft())

    def give_back(self, sent: Sent) -> None:
        """Nobody was served: the same again."""
        if sent.errand == "witness":
            self._doubted = sent.pack
        else:
            self.suspects.appendleft(sent.pack)

    def accuse(self, pack: Pack, now: float) -> None:
        """The traffic failed: its halves are suspects."""
        self.suspects.extend(halves(pack))
        if self._gate <= now:  # one that is still to come is as random; traffic must not delay it
            self._gate = now + self._jitter(self._policy.trial_first)

    def fail(self, pack: Pack, failed: Failed, now: float) -> None:
        """A trial failed: cut the pack, or ask a witness about the record."""
        if len(pack) > 1:
            self.suspects.extendleft(reversed(halves(pack)))
            self._wait(now)
        else:
            pack[0].note(failed)
            self._doubted = pack

    def absolve(self, pack: Pack, now: float) -> None:
        """The witness failed too, so it was the service: nothing counts, to the back."""
        self.suspects.append(pack)
        self._wait(now)

    def convict(self, pack: Pack, now: float) -> bool:
        """The witness was answered, so the try counts; tell whether it was the last."""
        pack[0].tries += 1
        condemned = pack[0].tries >= self._policy.tries
        if not condemned:
            self.suspects.appendleft(pack)
        self._wait(now)
        return condemned

    def _wait(self, now: float) -> None:
        failures = self.suspects[0][0].failures if self.suspects else 0
        policy = self._policy
        self._gate = now + self._jitter(doubled(policy.trial_first, policy.trial_limit, failures))


class Relay:
    """Holds records from their arrival to their commit, and decides what happens next.

    `witness` is an image that the service can answer; the last one it did answer takes its place.
    """

    def __init__(self, policy: Policy, jitter: Jitter, witness: Image) -> None:
        self.tally = Tally()
        self._policy = policy
        self._jitter = jitter
        self._witness = witness
        self._commits = Commits(policy)
        self._pause = Pause(policy, jitter)
        self._out: dict[Request, Sent] = {}
        self._forgotten: set[Request] = set()  # out, but a reset voided what they ask about
        self._deadline: float | None = None
        self._empty()

    def _empty(self) -> None:
        self._lanes = Lanes()
        self._waiting: deque[Pending] = deque()
        self._trials = Trials(self._policy, self._jitter)

    def receive(self, arrivals: Sequence[Arrival], now: float) -> None:
        """Take in what was polled; what decoding settled already asks nothing of the service."""
        for record, found in arrivals:
            place = self._lanes.enter(record, now)
            if isinstance(found, Image):
                self._waiting.append(Pending(place, found))
            else:
                self._lanes.settle(place, found)
        self.tally = replace(self.tally, received=self.tally.received + len(arrivals))
        self._show()

    def requests(self, now: float) -> list[Request]:
        """Return what to send now; it counts as out from here on."""
        if now < self._pause.until:
            return []
        if now >= self._alone_from():
            sent = [] if self._flying() else [self._send(self._trials.take())]
        else:
            sent = list(self._traffic())
        packs = self.tally.packs + Counter(len(request.images) for request in sent)
        self.tally = replace(self.tally, packs=packs)
        self._show()
        return sent

    def _flying(self) -> int:
        return len(self._out) + len(self._forgotten)

    def _alone_from(self) -> float:
        on_trial = any(sent.errand != "pack" for sent in self._out.values())
        return -inf if on_trial else self._trials.due_at()

    def _traffic(self) -> Iterator[Request]:
        while self._waiting and self._flying() < self._policy.in_flight:
            yield self._send(Sent("pack", self._gather()))

    def _gather(self) -> Pack:
        pack = [self._waiting.popleft()]
        room = self._policy.pack_bytes - len(pack[0].image.data)
        while self._waiting and len(pack) < self._policy.pack:
            room -= len(self._waiting[0].image.data)
            if room < 0:
                break
            pack.append(self._waiting.popleft())
        return tuple(pack)

    def _send(self, sent: Sent) -> Request:
        witness = sent.errand == "witness"
        images = (self._witness,) if witness else tuple(pending.image for pending in sent.pack)
        request = Request(images)
        self._out[request] = sent
        return request

    def answer(self, request: Request, answer: Answer, now: float) -> None:
        """Take the answer to a request; to a forgotten one it only frees the place in flight."""
        sent = self._out.pop(request, None)
        if sent is None:
            self._forgotten.discard(request)
            self.tally = replace(self.tally, stale=self.tally.stale + 1)
        elif isinstance(answer, Busy):
            self._refused(sent, answer, now)
        elif isinstance(answer, Failed):
            self._failed(sent, answer, now)
        else:
            self._answered(sent, answer, now)
        self._show()

    def _refused(self, sent: Sent, busy: Busy, now: float) -> None:
        self._again("busy")
        self._pause.lengthen(busy, now)
        if sent.errand == "pack":
            self._waiting.extendleft(reversed(sent.pack))
        else:
            self._trials.give_back(sent)

    def _failed(self, sent: Sent, failed: Failed, now: float) -> None:
        self._again("failed" if sent.errand == "pack" else sent.errand)
        self._pause.end()
        if sent.errand == "witness":
            self._trials.absolve(sent.pack, now)
        elif failed.final and len(sent.pack) == 1:
            sent.pack[0].note(failed)
            self._condemn(sent.pack[0], "rejected")
        elif sent.errand == "trial":
            self._trials.fail(sent.pack, failed, now)
        else:
            self._trials.accuse(sent.pack, now)

    def _answered(self, sent: Sent, outcomes: Sequence[Outcome], now: float) -> None:
        self._pause.end()
        if sent.errand != "witness":
            self._settle(sent.pack, outcomes)
        elif self._trials.convict(sent.pack, now):
            self._condemn(sent.pack[0], "failed")

    def _settle(self, pack: Pack, outcomes: Sequence[Outcome]) -> None:
        for pending, outcome in zip(pack, outcomes, strict=True):
            self._lanes.settle(pending.place, outcome)
            if isinstance(outcome, Prediction):
                self._witness = pending.image

    def _condemn(self, pending: Pending, reason: Reason) -> None:
        self._lanes.settle(pending.place, pending.rejection(reason))

    def _again(self, why: Retry) -> None:
        self.tally = replace(self.tally, retries=self.tally.retries + Counter((why,)))

    def settled(self, now: float) -> list[Settled]:
        """Return what is due to be committed now, elders first; not due: nothing.

        Raises Stop at the limit of dead letters, before anything of that run is committed.
        """
        due = self._deadline is not None or now >= self._commit_at(now)
        return self._commits.begin(self._lanes.ready, now) if due and self._lanes.ready else []

    def _commit_at(self, now: float) -> float:
        """When what is ready is due; at once when a full window waits for nothing else."""
        stalled = not self.room() and len(self._lanes.ready) == self._lanes.held
        return now if stalled else self._commits.due_at

    def committed(self, now: float) -> None:
        """What `settled` returned last is committed."""
        batch, seconds = self._commits.end(now)
        self._lanes.forget(batch)
        outcomes = [settled.outcome for settled in batch]
        rejected = Counter(found.reason for found in outcomes if isinstance(found, Rejection))
        tally = self.tally
        self.tally = replace(
            tally,
            predicted=tally.predicted + sum(isinstance(found, Prediction) for found in outcomes),
            rejected=tally.rejected + rejected,
            skipped=tally.skipped + sum(isinstance(found, Skipped) for found in outcomes),
            commits=tally.commits + 1,
            commit_seconds=tally.commit_seconds + seconds,
        )
        self._show()

    def reset(self) -> None:
        """All that was handed out is void and will come again: hold nothing.

        What is out keeps its place in flight until it is answered.
        """
        self._forgotten.update(self._out)
        self._out.clear()
        self._empty()
        self.tally = replace(self.tally, rewound=self.tally.rewound + 1)
        self._show()

    def drain(self, deadline: float) -> None:
        """Take nothing more, commit at once, be done at the deadline; safe in a signal handler."""
        self._deadline = deadline

    def room(self) -> int:
        """How many records more there is room for."""
        full = self._lanes.held_bytes >= self._policy.window_bytes
        if full or self._deadline is not None:
            return 0
        return max(0, self._policy.window - self._lanes.held)

    def wake_at(self, now: float) -> float:
        """When there is next something to do, if nothing arrives and nothing is answered."""
        commit = self._commit_at(now) if self._lanes.ready else inf
        if self._deadline is None:
            return min(commit, self._send_at(now))
        return now if self._lanes.ready else min(self._deadline, self._send_at(now))

    def _send_at(self, now: float) -> float:
        start, trial = max(now, self._pause.until), self._alone_from()
        if self._waiting and start < trial and self._flying() < self._policy.in_flight:
            return start
        return inf if self._flying() else max(start, trial)

    def done(self, now: float) -> bool:
        """Drained, or out of time: whatever is still held was not committed."""
        deadline = self._deadline
        return deadline is not None and (not self._lanes.held or now >= deadline)

    def _show(self) -> None:
        self.tally = replace(
            self.tally,
            held=self._lanes.held,
            held_bytes=self._lanes.held_bytes,
            waiting=len(self._waiting),
            suspects=len(self._trials.suspects),
            out=self._flying(),
            oldest_since=self._lanes.oldest_since(),
            busy_since=self._pause.since,
            busy_detail=self._pause.detail,
        )
