"""Decisions of the relay: what to send, whom to believe, what may be committed. Pure.

Time is an argument, in monotonic seconds, and so is chance: `jitter(upper)` is a number of seconds
in [0, upper]. The relay has one owner, the thread of the loop, and no lock; other threads read only
`Relay.stats`, which is replaced as a whole and never changed.

The problem
===========

Records come in lanes (partitions, ordering keys), whose order must be kept. Images travel in packs,
since a request has a price of its own beside that of its images. When a pack fails, the failure
says nothing of one record: a worker may have died of any image in it, of an image in somebody
else's request that TorchServe batched with it, or of nothing at all. Whoever blames the pack loses
good records; whoever asks again for ever is stopped by one bad image. So the relay collects
evidence.

A record's way
==============

Each record that is held is in exactly one of these places:

    received
       |
       v     a pack of many                answered
    waiting ---------------> in flight ----------------> settled ----> committed, gone
       ^                       |    |                       ^
       |    Busy: to the head  |    | Failed, or            |
       `-----------------------'    | Busy for long         |
                                    v                       |
       canary failed:     .--> quarantined                  |
       to the back        |         | a canary goes first   |
       canary answered,   |         v and is answered       |
       then the trial not:`------ trial --------------------'  answered, or the last try
       to the front                                            failed: rejected

The six rules
=============

1. Pack what has gathered. A free place in flight takes up to `pack` waiting records at once, from
   any lane. There is no linger timer: at low load a record travels alone, at once; at high load
   packs fill by themselves. A pack always takes its first image, then as many as fit in
   `pack_bytes`. `capacity` is 0 while `window_bytes` of values are held.

2. Lanes release in order. An outcome waits until all earlier records of its lane have one, so that
   results keep the order of the input and a plain offset is a true commit. The window is one for
   all lanes: a record that blocks its lane stops everybody in the end, so its time is bounded (rule
   3) and always visible (`Stats.oldest_since`).

3. A record is rejected only on evidence. The three kinds of answer are three kinds of evidence:
   - *outcomes*: the service serves, and says itself what is wrong with an image;
   - `Busy`: nobody is served now, as it seems. Nothing counts against anybody: the whole relay
     backs off, and the images return to the head of the queue. But a pack of which a record has
     been refused for `doubt_after` seconds is quarantined, whether or not others were answered
     meanwhile: the service may refuse this body alone, in words that nobody knows;
   - `Failed`: something that was asked about together could not be answered.
   What is quarantined is first cut in halves, then tried one pack at a time with nothing else in
   flight, void requests included: then no neighbour of ours can be to blame. But it may still be
   the service, or one of several servers behind one address. So a *canary*, a request known to be
   good, goes first: the last image that was predicted, at first a blank one. When it is answered
   the trial follows over the same connection, which a server keeps after an answer, and may close
   after an error (TorchServe does).
   - The trial fails, too, in spite of the canary: it is split in halves again, in front of the
     rest. If it is a record alone, the failure counts against it. After `tries` counts it is
     rejected, until then it is tried again, in front.
   - The trial meets Busy: it counts like a failure, but only from a record (of the pack) that has
     been refused for `doubt_after` seconds. Until then it is tried again, in front.
   - The trial was not answered over another connection (`Reopened`): it may have been another
     server. Nothing counts, and the pack goes to the back.
   - The canary fails: it was the service. Nothing counts, and the pack goes to the back. A quarter
     of a failure is taken back from it, once for canaries that fail in a row: a service that fails
     now and then, whomever it meets, would else reject what it meets `tries` times.
   - The canary meets Busy: it is sent again until it is heard. Failures that have counted stay,
     since an image that kills the worker makes everybody wait until there is another.
   A canary that is not answered takes back what refusals counted, and their time begins anew: the
   service refuses others, too.
   A `final` failure of a record alone needs no canary: the server said that it will never answer.
   Before each trial the relay waits a random time, doubled with each failure of the record: random,
   or two relays that share a service and are in step would reject each other's good records;
   growing, or they would meet for ever while a worker restarts. Meanwhile the others go on.

4. A rejection is an outcome. It takes its place in the lane and goes to the dead-letter topic in
   the same commit. Too many of them, in a row or as a ratio of the last ones, stop the daemon
   *before* they are committed, so that it does not empty a topic into its dead letters
   (`DeadLetterLimit`).

5. A rewind empties the relay. Rebalance, aborted transaction, lost stream: all that was handed out
   and not committed is void and will come again. What is in flight keeps its place until it is
   answered, and its answer is ignored. Counts against records are lost; the canary and the
   history of the limit are kept.

6. Drain is a state, not a procedure: the capacity is 0, commits are due at once, and `done` is true
   when nothing is held or the deadline has passed.

Tests that try to break it: tests/connectors/test_relay.py, each rule; test_exhaustive.py, all
orders of events of small worlds; test_simulation.py, random faults in virtual time.
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
    Reopened,
    Request,
    Settled,
    Skipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    Jitter = Callable[[float], float]

Arrival = tuple[Record, Image | Rejection | Skipped]
"""A record, and what decoding made of it: an image to ask about, or its outcome already."""

Purpose = Literal["pack", "trial", "canary"]
"""Why a request is out: the traffic, quarantined records alone, or the one known to be good."""

Retry = Literal["busy", "failed", "trial", "witness"]
"""What came back without outcomes: anything refused; the traffic, a trial or the canary failed.

These are values of a label of `connector_retries_total`, which dashboards know: "witness" stays.
"""

_FAILURES: Mapping[Purpose, Retry] = {"pack": "failed", "trial": "trial", "canary": "witness"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers behind the decisions; times are in seconds.

    What an operator can set has no default here: it is that of the setting (`verbs`).
    """

    pack: int  # images in a request
    in_flight: int  # requests at once
    window: int  # records held
    window_bytes: int  # of values held; exceeded by at most what one poll returns
    tries: int  # failures that reject a record, each behind a canary that was answered
    doubt_after: float  # of refusals: from then on they are held against the record
    commit_interval: float  # from the end of one commit to the next
    max_consecutive_rejections: int  # that stop the daemon
    max_rejection_ratio: float  # of the last `rejection_window` outcomes, likewise

    pack_bytes: int = 5_000_000  # of images in a request; TorchServe takes 6.5 MB of body
    commit_rest: float = 1.0  # least time between commits, in durations of the last one
    busy_first: float = 0.05  # the longest wait after the first Busy; doubles
    busy_limit: float = 2.0
    trial_first: float = 2.0  # the longest wait for the first trial; doubles
    trial_limit: float = 60.0
    rejection_window: int = 1000  # outcomes that the ratio is of
    min_rejections: int = 100  # rejections from which on the ratio counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
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
    quarantined: int = 0  # trials to come
    out: int = 0  # requests, void ones included
    oldest_since: float | None = None  # when the oldest record without an outcome came
    busy_since: float | None = None  # when the service began to serve nobody
    busy_detail: str = ""  # what it said last


@dataclass(slots=True, eq=False)
class Slot:
    """A record's place in its lane."""

    record: Record
    since: float
    outcome: Outcome | None = None


@dataclass(slots=True, eq=False)
class Pending:
    """A record without an outcome, and what speaks against it."""

    slot: Slot
    image: Image
    tries: float = 0.0  # failures that count against it, less what failing canaries take back
    refusals: float = 0.0  # likewise, less half of the canaries that were not answered
    refused_since: float | None = None  # with Busy, first
    failures: int = 0  # all of them, alone
    detail: str = ""  # of the last one
    status: int | None = None
    reason: Reason | None = None  # of the last one, where it said so

    def note_failure(self, answer: Busy | Failed | Reopened) -> None:
        """Take note that it was not answered alone."""
        self.failures += 1
        self.detail = answer.detail
        self.status = answer.status if isinstance(answer, Failed) else None
        self.reason = answer.reason if isinstance(answer, Failed) else None

    def count(self, answer: Busy | Failed) -> float:
        """Hold against it that it was not answered alone; return how often that was done."""
        self.note_failure(answer)
        if isinstance(answer, Busy):
            self.refusals += 1
        else:
            self.tries += 1
        return self.tries + self.refusals

    def take_back_refusal(self, least: float) -> None:
        """Take back half a refusal: a canary in its place was not answered either."""
        self.refusals = max(least, self.refusals - 0.5)

    def take_back_failure(self) -> None:
        """Take back a quarter of a failure: a canary in its place failed, too."""
        self.tries = max(0.0, self.tries - 0.25)

    def rejection(self, reason: Reason) -> Rejection:
        """Make the outcome that says what was noted."""
        return Rejection(reason, self.detail, self.status, self.failures)


Pack = tuple[Pending, ...]


class InFlight(NamedTuple):
    """What a request is for, and whose: a canary goes before its pack, which is on trial then."""

    purpose: Purpose
    pack: Pack
    follows: Request | None = None  # a trial: the canary that was answered


def halves(pack: Pack) -> list[Pack]:
    """Cut a pack in two, a single record not at all."""
    middle = (len(pack) + 1) // 2
    return [half for half in (pack[:middle], pack[middle:]) if half]


def double(first: float, limit: float, times: int) -> float:
    """Grow `first` twofold, `times` times, up to `limit`."""
    return min(limit, first * 2.0 ** min(times, 64))  # 2.0 ** 1024 would overflow


class Lanes:
    """Records in the order they came, until they and all before them are committed."""

    def __init__(self) -> None:
        self.ready: list[Settled] = []
        self.held = 0
        self.held_bytes = 0
        self._lanes: dict[Hashable, deque[Slot]] = {}
        self._unanswered: OrderedDict[Slot, None] = OrderedDict()

    def enter(self, record: Record, now: float) -> Slot:
        """Take a slot behind everything of the same lane."""
        slot = Slot(record, now)
        if record.lane is not None:
            self._lanes.setdefault(record.lane, deque()).append(slot)
        self._unanswered[slot] = None
        self.held += 1
        self.held_bytes += len(record.value or b"")
        return slot

    def settle(self, slot: Slot, outcome: Outcome) -> None:
        """Give a slot its outcome, and release what waited for it."""
        slot.outcome = outcome
        del self._unanswered[slot]
        if slot.record.lane is None:
            self.ready.append(Settled(slot.record, outcome))
        else:
            self._release(slot.record.lane)

    def _release(self, key: Hashable) -> None:
        lane = self._lanes[key]
        while lane and (outcome := lane[0].outcome) is not None:
            self.ready.append(Settled(lane.popleft().record, outcome))
        if not lane:
            del self._lanes[key]

    def remove(self, committed: Sequence[Settled]) -> None:
        """Remove the first of what was ready."""
        del self.ready[: len(committed)]
        self.held -= len(committed)
        self.held_bytes -= sum(len(settled.record.value or b"") for settled in committed)

    def oldest_since(self) -> float | None:
        """When the oldest record that has no outcome came."""
        oldest = next(iter(self._unanswered), None)
        return oldest.since if oldest else None


class DeadLetterLimit:
    """Stops the daemon at too many rejections among the last outcomes; Skipped is none of them."""

    def __init__(self, policy: Policy, last: Sequence[bool] = (), consecutive: int = 0) -> None:
        self._policy = policy
        self._last = deque(last, maxlen=policy.rejection_window)  # True: rejected
        self._rejected = sum(self._last)
        self._consecutive = consecutive

    def followed_by(self, batch: Sequence[Settled]) -> DeadLetterLimit:
        """Tell how it goes on with this batch; raises Stop when it must not."""
        future = DeadLetterLimit(self._policy, self._last, self._consecutive)
        for settled in batch:
            if not isinstance(settled.outcome, Skipped):
                future._add(rejected=isinstance(settled.outcome, Rejection))
            if isinstance(settled.outcome, Rejection):
                future._check(settled.record, settled.outcome)
        return future

    def _add(self, *, rejected: bool) -> None:
        if len(self._last) == self._last.maxlen:
            self._rejected -= self._last[0]
        self._last.append(rejected)
        self._rejected += rejected
        self._consecutive = self._consecutive + 1 if rejected else 0

    def _check(self, record: Record, last: Rejection) -> None:
        policy, count = self._policy, len(self._last)
        if self._consecutive >= policy.max_consecutive_rejections:
            many = f"{self._consecutive} records in a row"
        elif self._rejected >= max(policy.min_rejections, policy.max_rejection_ratio * count):
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
        self._limit = self._future = DeadLetterLimit(policy)
        self._batch: list[Settled] = []
        self._began = -inf

    def begin(self, batch: Sequence[Settled], now: float) -> list[Settled]:
        """Check what is about to be committed; raises Stop at the limit of dead letters."""
        self._future = self._limit.followed_by(batch)
        self._batch = list(batch)
        self._began = now
        return self._batch

    def end(self, now: float) -> tuple[list[Settled], float]:
        """Note that the batch is committed; return it, and how many seconds that took."""
        batch, self._batch = self._batch, []
        seconds = now - self._began
        self._limit = self._future
        self.due_at = now + max(self._policy.commit_interval, self._policy.commit_rest * seconds)
        return batch, seconds


class Backoff:
    """The wait of the whole relay while the service serves nobody."""

    def __init__(self, policy: Policy, jitter: Jitter) -> None:
        self.until = -inf
        self.since: float | None = None
        self.detail = ""
        self._policy = policy
        self._jitter = jitter
        self._rounds = 0

    def extend(self, busy: Busy, now: float) -> None:
        """Wait, longer from round to round; all who are refused meanwhile are one round."""
        self.since = now if self.since is None else self.since
        self.detail = busy.detail
        if busy.after is not None:
            self.until = max(self.until, now + busy.after)
        elif now >= self.until:
            policy = self._policy
            upper = double(policy.busy_first, policy.busy_limit, self._rounds)
            self.until = now + self._jitter(upper)
            self._rounds += 1

    def end(self) -> None:
        """Somebody was served: the next wait is a short one again."""
        self.since = None
        self._rounds = 0


class Quarantine:
    """Packs under suspicion, to be tried one at a time with nothing else in flight.

    See rule 3 at the head of this file, also for why the waits are random and grow.
    """

    def __init__(self, policy: Policy, jitter: Jitter) -> None:
        self.quarantined: deque[Pack] = deque()
        self._trial: InFlight | None = None  # its canary was answered a moment ago
        self._uncertain = False  # something failed, and no canary was answered since
        self._canary_failed = False  # the last one that was heard
        self._policy = policy
        self._jitter = jitter
        self._gate = -inf

    def due_at(self) -> float:
        """When something is to go out alone: a trial at once, the canary before it in time."""
        if self._trial:
            return -inf
        return self._gate if self.quarantined else inf

    def take(self) -> InFlight:
        """Hand over what is due."""
        if self._trial:
            trial, self._trial = self._trial, None
            return trial
        return InFlight("canary", self.quarantined.popleft())

    def quarantine(self, packs: Sequence[Pack], now: float) -> None:
        """Take in the halves of a pack of the traffic."""
        self.quarantined.extend(packs)
        if self._gate <= now:  # a wait that is not over is as random; traffic must not delay it
            self._uncertain = True

    def hear(self, canary: Request, pack: Pack, now: float) -> None:
        """The canary was answered: let the trial follow, or wait where a failure came before it."""
        self._canary_failed = False
        if self._uncertain:
            self._uncertain = False
            self.quarantined.appendleft(pack)
            self._wait(now)
        else:
            self._trial = InFlight("trial", pack, canary)

    def repeat(self, pack: Pack) -> None:
        """Put a pack to the front, due at once: its canary met Busy."""
        self._take_back_refusals(pack)
        self.quarantined.appendleft(pack)

    def postpone(self, pack: Pack, now: float) -> None:
        """Put a pack to the back: its canary failed."""
        if not self._canary_failed:  # one failure of the service may last for many canaries
            for pending in pack:
                pending.take_back_failure()
        self._canary_failed = True
        self._take_back_refusals(pack)
        self.move_to_back(pack, now)

    def _take_back_refusals(self, pack: Pack) -> None:
        if not self._uncertain:  # else the service may be down because of this very pack
            for pending in pack:
                pending.take_back_refusal(-self._policy.tries)
        self._uncertain = True

    def move_to_back(self, pack: Pack, now: float) -> None:
        """Put a pack to the back: nothing counts."""
        self.quarantined.append(pack)
        self._wait(now)

    def retry(self, packs: Sequence[Pack]) -> None:
        """Put what is left of a pack whose trial failed, its halves or itself, to the front."""
        self.quarantined.extendleft(reversed(packs))
        self._uncertain = True

    def _wait(self, now: float) -> None:
        failures = self.quarantined[0][0].failures if self.quarantined else 0
        policy = self._policy
        self._gate = now + self._jitter(double(policy.trial_first, policy.trial_limit, failures))


class Relay:
    """Holds records from their arrival to their commit, and decides what happens next.

    `canary` is an image that the service can answer; the last one that was predicted replaces it.
    """

    def __init__(self, policy: Policy, jitter: Jitter, canary: Image) -> None:
        self.stats = Stats()
        self._policy = policy
        self._jitter = jitter
        self._canary = canary
        self._commits = Commits(policy)
        self._backoff = Backoff(policy, jitter)
        self._out: dict[Request, InFlight] = {}
        self._void: set[Request] = set()  # in flight, but a reset voided what they ask about
        self._deadline: float | None = None
        self._empty()

    def _empty(self) -> None:
        self._lanes = Lanes()
        self._waiting: deque[Pending] = deque()
        self._quarantine = Quarantine(self._policy, self._jitter)

    def receive(self, arrivals: Sequence[Arrival], now: float) -> None:
        """Take in what was polled; what decoding settled already asks nothing of the service."""
        for record, found in arrivals:
            slot = self._lanes.enter(record, now)
            if isinstance(found, Image):
                self._waiting.append(Pending(slot, found))
            else:
                self._lanes.settle(slot, found)
        self.stats = replace(self.stats, received=self.stats.received + len(arrivals))
        self._publish_stats()

    def requests(self, now: float) -> list[Request]:
        """Return what to send now; it counts as out from here on."""
        if now < self._backoff.until:
            return []
        if now >= self._exclusive_from():
            requests = [] if self._count_out() else [self._send(self._quarantine.take())]
        else:
            requests = list(self._fill_packs())
        if not requests:
            return []
        packs = self.stats.packs + Counter(len(request.images) for request in requests)
        self.stats = replace(self.stats, packs=packs)
        self._publish_stats()
        return requests

    def _count_out(self) -> int:
        return len(self._out) + len(self._void)

    def _has_place(self) -> bool:
        return self._count_out() < self._policy.in_flight

    def _exclusive_from(self) -> float:
        on_trial = any(flight.purpose != "pack" for flight in self._out.values())
        return -inf if on_trial else self._quarantine.due_at()

    def _fill_packs(self) -> Iterator[Request]:
        while self._waiting and self._has_place():
            yield self._send(InFlight("pack", self._fill_pack()))

    def _fill_pack(self) -> Pack:
        pack = [self._waiting.popleft()]
        capacity = self._policy.pack_bytes - len(pack[0].image.data)
        while self._waiting and len(pack) < self._policy.pack:
            capacity -= len(self._waiting[0].image.data)
            if capacity < 0:
                break
            pack.append(self._waiting.popleft())
        return tuple(pack)

    def _send(self, flight: InFlight) -> Request:
        canary = flight.purpose == "canary"
        images = (self._canary,) if canary else tuple(pending.image for pending in flight.pack)
        request = Request(images, flight.follows)
        self._out[request] = flight
        return request

    def answer(self, request: Request, answer: Answer, now: float) -> None:
        """Take the answer to a request; to a void one it only frees the place in flight."""
        flight = self._out.pop(request, None)
        if flight is None:
            self._void.discard(request)
            self.stats = replace(self.stats, stale=self.stats.stale + 1)
        elif isinstance(answer, Busy):
            self._refused(flight, answer, now)
        elif isinstance(answer, Failed):
            self._failed(flight, answer, now)
        elif isinstance(answer, Reopened):
            self._note_reopened(flight.pack, answer, now)
        elif flight.purpose == "canary":
            self._backoff.end()
            self._quarantine.hear(request, flight.pack, now)
        else:
            self._backoff.end()
            self._settle(flight.pack, answer)
        self._publish_stats()

    def _refused(self, flight: InFlight, busy: Busy, now: float) -> None:
        self._count_retry("busy")
        if flight.purpose != "trial":  # the canary of a trial was answered: somebody is served
            self._backoff.extend(busy, now)
        if flight.purpose == "canary":
            self._quarantine.repeat(flight.pack)
        elif self._is_doubted(flight.pack, now):
            self._hold_against(flight, busy, now)
        elif flight.purpose == "trial":
            self._quarantine.retry([flight.pack])
        else:
            self._waiting.extendleft(reversed(flight.pack))

    def _is_doubted(self, pack: Pack, now: float) -> bool:
        """Note a refusal; tell whether one of these has been refused for long."""
        for pending in pack:
            if pending.refused_since is None:
                pending.refused_since = now
        since = min(pending.refused_since or 0.0 for pending in pack)
        return now - since >= self._policy.doubt_after

    def _failed(self, flight: InFlight, failed: Failed, now: float) -> None:
        self._count_retry(_FAILURES[flight.purpose])
        self._backoff.end()
        if flight.purpose == "canary":
            self._quarantine.postpone(flight.pack, now)
        elif failed.final and len(flight.pack) == 1:
            flight.pack[0].note_failure(failed)
            self._reject(flight.pack[0], failed.reason or "rejected")
        else:
            self._hold_against(flight, failed, now)

    def _hold_against(self, flight: InFlight, answer: Busy | Failed, now: float) -> None:
        """Cut a pack in halves; for a record alone on trial, count, up to the last try."""
        pack, left = flight.pack, halves(flight.pack)
        if flight.purpose == "pack":
            self._quarantine.quarantine(left, now)
            return
        if len(pack) == 1 and pack[0].count(answer) >= self._policy.tries:
            self._reject(pack[0], pack[0].reason or "failed")
            left = []
        self._quarantine.retry(left)

    def _note_reopened(self, pack: Pack, reopened: Reopened, now: float) -> None:
        self._count_retry("trial")
        if len(pack) == 1:
            pack[0].note_failure(reopened)
        self._quarantine.move_to_back(pack, now)

    def _settle(self, pack: Pack, outcomes: Sequence[Outcome]) -> None:
        for pending, outcome in zip(pack, outcomes, strict=True):
            self._lanes.settle(pending.slot, outcome)
            if isinstance(outcome, Prediction):
                self._canary = pending.image

    def _reject(self, pending: Pending, reason: Reason) -> None:
        self._lanes.settle(pending.slot, pending.rejection(reason))

    def _count_retry(self, why: Retry) -> None:
        self.stats = replace(self.stats, retries=self.stats.retries + Counter((why,)))

    def settled(self, now: float) -> list[Settled]:
        """Return what is due to be committed now, in order; not due: nothing.

        Raises Stop at the limit of dead letters, before anything of that run is committed.
        """
        due = self._deadline is not None or now >= self._commit_at(now)
        return self._commits.begin(self._lanes.ready, now) if due and self._lanes.ready else []

    def _commit_at(self, now: float) -> float:
        """When what is ready is due; at once when a full window waits for nothing else."""
        stalled = not self.capacity() and len(self._lanes.ready) == self._lanes.held
        return now if stalled else self._commits.due_at

    def committed(self, now: float) -> None:
        """What `settled` returned last is committed."""
        batch, seconds = self._commits.end(now)
        self._lanes.remove(batch)
        outcomes = [settled.outcome for settled in batch]
        rejected = Counter(found.reason for found in outcomes if isinstance(found, Rejection))
        stats = self.stats
        self.stats = replace(
            stats,
            predicted=stats.predicted + sum(isinstance(found, Prediction) for found in outcomes),
            rejected=stats.rejected + rejected,
            skipped=stats.skipped + sum(isinstance(found, Skipped) for found in outcomes),
            commits=stats.commits + 1,
            commit_seconds=stats.commit_seconds + seconds,
        )
        self._publish_stats()

    def reset(self) -> None:
        """All that was handed out is void and will come again: hold nothing.

        What is out keeps its place in flight until it is answered.
        """
        self._void.update(self._out)
        self._out.clear()
        self._empty()
        self.stats = replace(self.stats, rewound=self.stats.rewound + 1)
        self._publish_stats()

    def drain(self, deadline: float) -> None:
        """Take nothing more, commit at once, be done at the deadline; safe in a signal handler."""
        self._deadline = deadline

    def capacity(self) -> int:
        """How many records more can be held."""
        full = self._lanes.held_bytes >= self._policy.window_bytes
        if full or self._deadline is not None:
            return 0
        return max(0, self._policy.window - self._lanes.held)

    def sends_at_once(self) -> bool:
        """Say whether a record that came now would not wait for a place in flight."""
        return not self._waiting and self._has_place()

    def wake_at(self, now: float) -> float:
        """When there is next something to do, if nothing arrives and nothing is answered."""
        commit = self._commit_at(now) if self._lanes.ready else inf
        if self._deadline is None:
            return min(commit, self._send_at(now))
        return now if self._lanes.ready else min(self._deadline, self._send_at(now))

    def _send_at(self, now: float) -> float:
        start, trial = max(now, self._backoff.until), self._exclusive_from()
        if self._waiting and start < trial and self._has_place():
            return start
        return inf if self._count_out() else max(start, trial)

    def done(self, now: float) -> bool:
        """Drained, or out of time: whatever is still held was not committed."""
        deadline = self._deadline
        return deadline is not None and (not self._lanes.held or now >= deadline)

    def _publish_stats(self) -> None:
        self.stats = replace(
            self.stats,
            held=self._lanes.held,
            held_bytes=self._lanes.held_bytes,
            waiting=len(self._waiting),
            quarantined=len(self._quarantine.quarantined),
            out=self._count_out(),
            oldest_since=self._lanes.oldest_since(),
            busy_since=self._backoff.since,
            busy_detail=self._backoff.detail,
        )
