"""The operation log where an outcome may be repeated, if it is the same. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.operation_log import OperationLog, Outcome, Source

if TYPE_CHECKING:
    from collections.abc import Mapping


def make_source(number: int, keys: int) -> Source:
    """Return the lane of the message of that number, and its position there.

    `keys`: how many ordering keys take turns; 0: none, and each message is a lane of its own.
    """
    return Source(number % keys, number) if keys else Source(number, 0)


class RepeatedOperationLog(OperationLog):
    """An operation log for at least once; the key of an `Outcome` is the id that it must carry.

    Only the first outcome of a message has to come in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unlike: list[Source] = []

    def note_outcome(self, source: Source, outcome: Outcome, partition: int) -> None:
        """See `OperationLog.note_outcome`."""
        first = self._seen.get(source)
        if first is None:
            super().note_outcome(source, outcome, partition)
            return
        self._doubled[source] += 1
        if outcome != first:
            self._unlike.append(source)

    @property
    def doubled(self) -> int:
        """How many outcomes repeat one that was there."""
        return self._doubled.total()

    @property
    def violated(self) -> bool:
        """See `OperationLog.violated`."""
        return bool(self._unlike or self._out_of_order or self._misplaced)

    def find_violations(self) -> dict[str, list[Source]]:
        """See `OperationLog.find_violations`; a double breaks the promise only if it differs."""
        found = super().find_violations()
        found["with another key"] = found.pop("in another partition")
        found["doubled with a difference"] = self._unlike
        del found["doubled"]
        return found


def find_repeated(requested: Mapping[int, int]) -> list[int]:
    """Return the numbers of the messages that the service was asked about more than once."""
    return [number for number, times in sorted(requested.items()) if times > 1]
