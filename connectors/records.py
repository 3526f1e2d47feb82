"""Nouns of the connectors, and the protocols between their rooms. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Headers = tuple[tuple[str, bytes | None], ...]
"""In the order they came, repeats kept."""

Reason = Literal[
    "empty",  # the value has no bytes
    "tombstone",  # the value is null
    "not_an_image",  # these five are the handler's own words
    "too_large",
    "wrong_shape",
    "bad_request",
    "unsupported_type",
    "rejected",  # the handler refused it with a word that we do not know
    "failed",  # the service failed on it, again and again, while it answered others
    "result_too_large",  # the topic does not take the answer
    "result_refused",  # nor this one, for another reason than its size
]
"""Why a record has no prediction; the value of `connector.reason` in a dead letter."""


class Record(NamedTuple):
    """One record as the broker handed it out.

    `id` is "<topic>/<partition>/<offset>" or "<subscription>/<message id>", made by the broker.
    `time` is in milliseconds since the epoch, at the source.
    Records of one `lane` settle in order; None: in any order.
    `position` is opaque to everybody but the broker that made it.
    """

    id: str
    value: bytes | None
    key: bytes | None
    headers: Headers
    time: int
    lane: Hashable | None
    position: Any


@dataclass(frozen=True, slots=True)
class Image:
    """What travels to the service: the bytes of one image file, and its type if it was named."""

    data: bytes
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The service's answer for one image, as the JSON object it sent."""

    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rejection:
    """This record has no prediction and never will; it goes to the dead letters."""

    reason: Reason
    detail: str
    status: int | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Skipped:
    """Acknowledged without a message, because the operator said so (`--tombstones skip`)."""


Outcome = Prediction | Rejection | Skipped


@dataclass(frozen=True, slots=True)
class Settled:
    """A record and what became of it."""

    record: Record
    outcome: Outcome


class Message(NamedTuple):
    """What is published; the broker knows which topic is which, and adds origin and partition."""

    value: bytes | None
    key: bytes | None
    headers: Headers
    dead: bool


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Images that travel together; compared by identity, so that a void one is recognised.

    `follows`: the request whose connection this one should take, or its failure says nothing.
    """

    images: tuple[Image, ...]
    follows: Request | None = None


@dataclass(frozen=True, slots=True)
class Busy:
    """Nobody is served now, as it seems: the same request again; but it ends in doubt (`relay`).

    `after` is what a Retry-After header asked for, in seconds.
    """

    detail: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """This request could not be answered; `final`: and never will.

    `reason` is why a record has no prediction that is rejected for this; None: `rejected` when
    it is final, else `failed`.
    """

    detail: str
    final: bool = False
    status: int | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Reopened:
    """Busy or Failed, but over another connection than that of the request that it follows."""

    detail: str


Answer = Sequence[Prediction | Rejection] | Busy | Failed | Reopened
"""One outcome per image, in order; or why there is none."""


class Broker(Protocol):
    """A source and a sink in one, because publish-and-acknowledge is one act.

    It has one caller at a time, so it needs no lock against its callers: the thread of the loop,
    which opened it and closes it, and for `commit` another one (`Committer`), until whose end the
    loop calls nothing. Two errors cross this border (`connectors.errors`):

        Rewound   All that was handed out and not acknowledged is void and will be handed out again
                  by later polls, with the same ids. The loop empties the relay and goes on. It is
                  raised when the broker can be polled again; two in a row are spaced by the
                  broker's own back-off.
        Stop      Time will not cure it: a topic is missing, access is refused, another daemon has
                  fenced this one. The process ends with the code of the error.

    Whatever else is raised is unexpected, and ends the process with 70.
    """

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """Hand out at most `limit` records, waiting at most `timeout` seconds for the first.

        Called once an iteration, also when nothing is wanted: with `limit` 0 it stays alive
        (heartbeats, rebalances) and takes nothing, not even from partitions assigned inside this
        very call. Raises Rewound when what was handed out before is somebody else's by now, or
        when the way to the broker broke; Stop for what only a person can mend.
        """
        ...

    def commit(self, settled: Sequence[Settled]) -> None:
        """Publish in the order given, then acknowledge: one act.

        Called with what the relay released, in the order of each lane. With transactions all of it
        is done or nothing: Rewound says nothing. Without, acknowledge exactly what was published
        and raise Rewound for the rest. Raises Stop when a topic takes not even the smallest form
        of a dead letter, or when this daemon was fenced.
        """
        ...

    def lag(self) -> Mapping[Hashable, int] | None:
        """Return the records of each lane that are not acknowledged; None: the broker cannot say.

        Called once an iteration; asks nobody, so it may be a little old. Raises nothing.
        """
        ...

    def joined(self) -> bool:
        """Say whether records can be handed out now: a member of the group, nothing to be mended.

        Called once an iteration. Raises nothing.
        """
        ...

    def close(self) -> None:
        """Give back what was never answered; commit nothing; return in bounded time.

        Called once, also after Stop. Raises nothing on purpose.
        """
        ...


class Committer(Protocol):
    """Runs one commit at a time beside the loop; all methods are called by the loop's thread."""

    def start(self, commit: Callable[[], None]) -> None:
        """Begin; the one before has ended."""
        ...

    def wait(self, timeout: float) -> bool:
        """Say whether it has ended, after at most `timeout` seconds; raises what it raised."""
        ...


class Client(Protocol):
    """The way to an inference server.

    `send`, `collect` and `close` are called by the thread of the loop; the work is done in threads
    of the client.
    """

    def send(self, request: Request) -> None:
        """Take the request along; never blocks, never raises.

        Called with at most as many requests as the relay may have in flight.
        """
        ...

    def collect(self, timeout: float) -> Sequence[tuple[Request, Answer]]:
        """Return what was answered, waiting at most `timeout` seconds for the first.

        Each request comes back exactly once: with outcomes, Busy or Failed. Raises what went wrong
        unexpectedly in a thread of the client.
        """
        ...

    def close(self) -> None:
        """Drop what is in flight; return in bounded time. Called once."""
        ...


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """Bytes of one record that a topic takes, key and headers included; `fix`: what raises it."""

    bytes: int
    fix: str


class Publisher(Protocol):
    """Puts images into one topic: the way of `send`. Called by the main thread.

    Made by `open_publisher(settings)` of a broker's `endpoints`.
    """

    @property
    def limit(self) -> SizeLimit | None:
        """What the topic takes; None where that is not known."""
        ...

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """Hand over one record; waits, in bounded time, while the buffer is full.

        Raises Stop when the topic is missing or an earlier record could not be delivered.
        """
        ...

    def flush(self) -> None:
        """Return when all is acknowledged by the broker; raises Stop when it is not."""
        ...

    def close(self) -> None:
        """Drop what is not acknowledged; return in bounded time."""
        ...


class Reader(Protocol):
    """Reads committed records of one topic, outside any group: the way of `listen`.

    Called by the main thread. Made by `open_reader(settings)` of a broker's `endpoints`, which
    raises Stop when the topic is missing.
    """

    def read(self, timeout: float) -> Sequence[Record]:
        """Return what has come, waiting at most `timeout` seconds for the first."""
        ...

    def close(self) -> None:
        """Return in bounded time."""
        ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """A result or, if `dead`, a dead letter that was read; `earlier`: it was there before."""

    record: Record
    dead: bool = False
    earlier: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a group is: records of each lane that it has not acknowledged, and its members."""

    lag: Mapping[str, int]
    members: int


class Watcher(Protocol):
    """Looks at what daemons do, from outside: the way of `watch`. Changes nothing at the broker.

    Called by the main thread. Made by `open_watcher(settings)` of a broker's `watcher`, which
    raises Stop when a topic is missing. Later a broker that is away raises nothing: `trouble`.
    """

    def read(self, timeout: float) -> Sequence[Sighting]:
        """Return what has come, in `timeout` seconds or little more; at first the last few."""
        ...

    def measure(self) -> Progress | None:
        """Ask how far the group is; None: the broker cannot say, or not now."""
        ...

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Return the values of those source records that are still there, in bounded time."""
        ...

    def trouble(self) -> str:
        """Say why the broker did not answer last time; empty: it did."""
        ...

    def close(self) -> None:
        """Return in bounded time."""
        ...


@dataclass(frozen=True, slots=True)
class Ok:
    """A check found nothing to be better; `text` says what it found."""

    text: str


@dataclass(frozen=True, slots=True)
class Advice:
    """A check did not fail, but something could be better; `text` is one sentence with the fix."""

    text: str


Check = tuple[str, Callable[[], Ok | Advice]]
"""A name, and what makes the check; it raises Stop when a daemon could not work."""
