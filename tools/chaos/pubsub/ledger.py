"""The judgement where an outcome may be repeated, if it is the same: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.chaos.ledger import Fate, Ledger, Source

if TYPE_CHECKING:
    from collections.abc import Mapping


def source(number: int, keys: int) -> Source:
    """Return the lane and the place of the message of that number.

    `keys`: how many ordering keys take turns; 0: none, and each message is a lane of its own.
    """
    return Source(number % keys, number) if keys else Source(number, 0)


class RepeatLedger(Ledger):
    """A ledger for at least once; the key of a `Fate` is the id that the outcome must carry.

    Only the first outcome of a message has to come in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unlike: list[Source] = []

    def leave(self, source: Source, came: Fate, partition: int) -> None:
        """See `Ledger`."""
        first = self._came.get(source)
        if first is None:
            super().leave(source, came, partition)
            return
        self._doubled[source] += 1
        if came != first:
            self._unlike.append(source)

    @property
    def doubled(self) -> int:
        """How many outcomes repeat one that was there."""
        return self._doubled.total()

    @property
    def broken(self) -> bool:
        """See `Ledger`."""
        return bool(self._unlike or self._disordered or self._astray)

    def findings(self) -> dict[str, list[Source]]:
        """See `Ledger`; what is doubled breaks the promise only if it differs."""
        found = super().findings()
        found["with another key"] = found.pop("in another partition")
        found["doubled with a difference"] = self._unlike
        del found["doubled"]
        return found


def asked_again(asked: Mapping[int, int]) -> list[int]:
    """The numbers that the service was asked for more than once."""
    return [number for number, times in sorted(asked.items()) if times > 1]
