"""The nouns of the relay and the two protocols it lives between. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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
]
"""Why a record has no prediction; the value of `connector.reason` in a dead letter."""


@dataclass(frozen=True, slots=True)
class Record:
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


@dataclass(frozen=True, slots=True)
class Message:
    """What is published; the broker knows which topic is which, and adds origin and partition."""

    value: bytes | None
    key: bytes | None
    headers: Headers
    dead: bool


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Images that travel together; compared by identity, so a forgotten one is known by sight."""

    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Busy:
    """Nobody is served now: the same request again, however long.

    `after` is what a Retry-After header asked for, in seconds.
    """

    detail: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """This request could not be answered; `final`: and never will."""

    detail: str
    final: bool = False
    status: int | None = None


Answer = Sequence[Prediction | Rejection] | Busy | Failed
"""One outcome per image, in order; or why there is none."""


class Broker(Protocol):
    """A source and a sink in one, because publish-and-acknowledge is one act."""

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """Hand out at most `limit` records, waiting at most `timeout` seconds for the first.

        With `limit` 0 it stays alive and takes nothing, not even from partitions assigned
        inside this very call. Raises Rewound or Stop.
        """
        ...

    def commit(self, settled: Sequence[Settled]) -> None:
        """Publish in the order given, then acknowledge: one act.

        With transactions all or nothing. Without, acknowledge exactly what was published and
        raise Rewound for the rest, which may come again with the same id.
        """
        ...

    def close(self) -> None:
        """Give back what was never answered; commit nothing; return in bounded time."""
        ...


class Client(Protocol):
    """The way to the inference API."""

    def send(self, request: Request) -> None:
        """Take the request along; never blocks, never raises."""
        ...

    def collect(self, timeout: float) -> Sequence[tuple[Request, Answer]]:
        """Return what was answered, waiting at most `timeout` seconds for the first."""
        ...

    def close(self) -> None:
        """Drop what is out; return in bounded time."""
        ...
