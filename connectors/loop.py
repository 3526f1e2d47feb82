"""The one loop: the whole program, in one screen."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .errors import Rewound

if TYPE_CHECKING:
    from collections.abc import Callable

    from .records import Broker, Client, Image, Record, Rejection, Skipped
    from .relay import Relay

HEARTBEAT = 1.0  # seconds; a lap takes no longer: rebalances and signals are noticed in between
GLANCE = 0.02  # seconds; while requests are out, so often is looked for records to send beside them

_log = logging.getLogger(__name__)


def run(
    relay: Relay,
    broker: Broker,
    client: Client,
    decode: Callable[[Record], Image | Rejection | Skipped],
    clock: Callable[[], float],
    lap: Callable[[], None] = lambda: None,
) -> None:
    """Relay until `relay.drain` is called and obeyed; `lap` is called once a lap.

    Raises Stop, and whatever is unexpected. The caller closes the broker and the client.
    """
    while not relay.done(clock()):
        lap()
        try:
            records = broker.poll(relay.room(), patience_for_records(relay, clock()))
            relay.receive([(record, decode(record)) for record in records], clock())
            for request in relay.requests(clock()):
                client.send(request)
            for request, answer in client.collect(patience_for_answers(relay, clock())):
                relay.answer(request, answer, clock())
            if settled := relay.settled(clock()):
                broker.commit(settled)
                relay.committed(clock())
        except Rewound as why:
            _log.warning("Beginning again from the last commit: %s", why)
            relay.reset()
    if left := relay.tally.held:
        _log.warning("Left %d records without a commit; they will be delivered again.", left)


def patience_for_records(relay: Relay, now: float) -> float:
    """Sleep in `poll` when idle: then a record is sent the moment it comes."""
    if relay.tally.out or not relay.room():
        return 0.0
    return _until_alarm(relay, now, HEARTBEAT)


def patience_for_answers(relay: Relay, now: float) -> float:
    """Sleep in `collect` when requests are out, or when there is no room for records."""
    if not relay.room():
        return _until_alarm(relay, now, HEARTBEAT)
    return _until_alarm(relay, now, GLANCE) if relay.tally.out else 0.0


def _until_alarm(relay: Relay, now: float, longest: float) -> float:
    return max(0.0, min(longest, relay.wake_at(now) - now))
