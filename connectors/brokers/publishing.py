"""What publishing has in common, whichever broker it is for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..errors import Exit, Stop
from ..text import MAX_DETAIL_BYTES, truncate_utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

    from ..records import Message, Record, Rejection, Settled

    Encode = Callable[[Settled], Message | None]


class Sized(Protocol):
    """A message, addressed."""

    @property
    def topic(self) -> str:
        """Where it goes."""
        ...

    def size(self) -> int:
        """Bytes, but for the few that the format adds."""
        ...


M = TypeVar("M", bound=Sized)


class PendingMessage(Generic[M]):
    """A record and its message, in the largest form that was not refused yet.

    `fallbacks`: each smaller than the one before, none if nothing is published; a generator is sent
    why the last one was refused, if not for its size. `advice`: what to do when the topic takes not
    even the last one.
    """

    def __init__(self, record: Record, fallbacks: Iterator[M], advice: str) -> None:
        self.record = record
        self._fallbacks = fallbacks
        self._advice = advice
        self.message = next(fallbacks, None)

    def fall_back(self, why: str | None = None) -> None:
        """Go on to the next form; raises Stop when there is none. `why`: if not for its size."""
        refused, self.message = self.message, self._take_next(why)
        if refused and not self.message:
            raise Stop(
                f"{refused.topic} takes not even the {refused.size()} bytes that say why "
                f"{self.record.id} has no prediction: {why or self._advice}",
                Exit.GIVEN_UP,
            )

    def _take_next(self, why: str | None) -> M | None:
        if why and isinstance(self._fallbacks, Generator):
            with suppress(StopIteration):
                return self._fallbacks.send(why)  # type: ignore[no-any-return]  # an M
            return None
        return next(self._fallbacks, None)

    def is_as_large_as(self, message: M) -> bool:
        """Say whether a topic that refuses `message` refuses this, too."""
        mine = self.message
        return mine is not None and mine.topic == message.topic and mine.size() >= message.size()


P = TypeVar("P", bound=PendingMessage[Any])


def select_published(pending_messages: Iterable[P], lost: Mapping[P, Exception]) -> Iterator[P]:
    """Those of each lane that come before the first one lost; without a lane, those not lost."""
    ended: set[Hashable] = set()
    for pending in pending_messages:
        if pending in lost:
            ended.add(pending.record.lane or pending)
        if (pending.record.lane or pending) not in ended:
            yield pending


def replace_headers(headers: Iterable[tuple[str, Any]], ours: Mapping[str, Any]) -> tuple[Any, ...]:
    """The headers as they are, with ours at the end instead of those of an earlier trip."""
    return (*[header for header in headers if header[0] not in ours], *ours.items())


def error_message(rejection: Rejection) -> bytes:
    """Say why a record has no prediction, in at most MAX_DETAIL_BYTES of UTF-8."""
    return truncate_utf8(rejection.detail, MAX_DETAIL_BYTES)


class RetryDelay:
    """Spaces what fails again and again: 0.1 s, doubled each time, up to 5 s."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock = clock
        self._sleep = sleep
        self.reset()

    def reset(self) -> None:
        """Forget the failures: something has succeeded."""
        self._until = self._clock()
        self._delay = 0.1

    def wait(self) -> None:
        """Return at once after a success, later after a failure."""
        self._sleep(max(0.0, self._until - self._clock()))
        self._until = self._clock() + self._delay
        self._delay = min(2 * self._delay, 5.0)
