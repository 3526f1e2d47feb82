"""A relay with one known bug: `python -m tools.chaos.pubsub.patched BUG pubsub …`.

The product has no such switch: one part of it is replaced here before it starts.
"""
# ruff: noqa: SLF001, ANN401 - to break the product one has to reach into its untyped inside

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from google.cloud.pubsub_v1.subscriber._protocol.leaser import Leaser

from connectors import __main__ as program
from connectors.brokers import pubsub as product

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

broken = cast("Any", product)


def _with_each_record(act: Callable[[Any], None]) -> None:
    poll = broken.PubSubBroker.poll

    def polled(self: Any, limit: int, timeout: float) -> Sequence[Any]:
        records: Sequence[Any] = poll(self, limit, timeout)
        for record in records:
            act(record.position)
        return records

    broken.PubSubBroker.poll = polled


def acknowledged_first() -> None:
    """A message is acknowledged as soon as it is read, and its result published later."""
    _with_each_record(lambda message: message.ack())


def given_back() -> None:
    """A message is given back as soon as it is read, and answered all the same."""
    _with_each_record(lambda message: message.nack())


def leases_lapse() -> None:
    """Nothing extends the leases of what is held."""
    cast("Any", Leaser).maintain_leases = lambda self: self._stop_event.wait()


def new_ids() -> None:
    """A message gets another id each time that it comes."""
    record = broken.record

    def renamed(subscription: str, message: Any) -> Any:
        return record(f"{subscription}/{uuid4()}", message)

    broken.record = renamed


def keys_dropped() -> None:
    """Results and dead letters are published without their ordering keys."""
    address = broken._Addressing._address

    def addressed(self: Any, *of_what: Any) -> Any:
        return address(self, *of_what)._replace(key="")

    broken._Addressing._address = addressed


BUGS: Mapping[str, Callable[[], None]] = {
    "acknowledged-first": acknowledged_first,
    "given-back": given_back,
    "leases-lapse": leases_lapse,
    "new-ids": new_ids,
    "keys-dropped": keys_dropped,
}


def main(bug: str, *arguments: str) -> int:
    """Patch, then run the connectors as ever; return their exit code."""
    BUGS[bug]()
    return program.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
