"""The main loop: poll, receive, send, collect, answer, commit; the whole program in one screen."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .errors import Rewound

if TYPE_CHECKING:
    from collections.abc import Callable

    from .records import Broker, Client, Image, Record, Rejection, Skipped
    from .relay import Relay

MAX_BLOCK = 1.0
"""Seconds that one wait takes at most: rebalances and signals are noticed in between."""

POLL_INTERVAL = 0.02
"""Seconds between two polls while requests are out, for records to send beside them."""

_log = logging.getLogger(__name__)


def run(
    relay: Relay,
    broker: Broker,
    client: Client,
    decode: Callable[[Record], Image | Rejection | Skipped],
    clock: Callable[[], float],
    begin_iteration: Callable[[], None] = lambda: None,
) -> None:
    """Relay until `relay.drain` is called and obeyed; `begin_iteration` at each iteration.

    Raises Stop, and whatever is unexpected. The caller closes the broker and the client.
    """
    while not relay.done(clock()):
        begin_iteration()
        try:
            records = broker.poll(relay.capacity(), poll_timeout(relay, clock()))
            relay.receive([(record, decode(record)) for record in records], clock())
            for request in relay.requests(clock()):
                client.send(request)
            for request, answer in client.collect(collect_timeout(relay, clock())):
                relay.answer(request, answer, clock())
            if settled := relay.settled(clock()):
                broker.commit(settled)
                relay.committed(clock())
        except Rewound as why:
            _log.warning("Beginning again from the last commit: %s", why)
            relay.reset()
    if left := relay.stats.held:
        _log.warning("Left %d records without a commit; they will be delivered again.", left)


def poll_timeout(relay: Relay, now: float) -> float:
    """Sleep in `poll` when idle: then a record is sent the moment it comes."""
    if relay.stats.out or not relay.capacity():
        return 0.0
    return _seconds_until_wake(relay, now, MAX_BLOCK)


def collect_timeout(relay: Relay, now: float) -> float:
    """Sleep in `collect` when requests are out, or when there is no room for records."""
    if not relay.capacity():
        return _seconds_until_wake(relay, now, MAX_BLOCK)
    return _seconds_until_wake(relay, now, POLL_INTERVAL) if relay.stats.out else 0.0


def _seconds_until_wake(relay: Relay, now: float, longest: float) -> float:
    return max(0.0, min(longest, relay.wake_at(now) - now))
