"""The main loop: poll, receive, send, collect, answer, commit; the whole program in one screen.

Commits beside the loop
=======================

A commit takes 20 ms to 0.2 s, for most of which it waits for the broker. A service
that got no requests meanwhile would be idle for as long, so the commit runs in a thread of its own
(`Committer`), and the loop exchanges requests and answers until it has ended:

    loop's thread    poll  receive  exchange  settled | exchange  exchange  ... | committed  poll
    commit's thread                                   | broker.commit(settled)  |

What may not change meanwhile, and why it does not:

- The broker has one caller at a time. The loop does not touch it, nor begin an iteration, before
  the commit has ended. A rebalance is therefore met as if the commit had run in the loop: by the
  coordinator, which refuses offsets of an earlier generation, or by the next poll.
- The batch stays what it was. Records settled meanwhile come behind those that are being
  committed, in the relay as in their lanes; the next commit takes them.
- The relay is not reset: Rewound comes from polls and commits alone. When a commit raises it, the
  relay forgets what was answered meanwhile too, since all of that comes again.
- One commit at a time: the next one is asked for after the end of this one.
- An iteration is over when its commit is, so the watchdog notices one that does not end. A drain
  that is asked for meanwhile waits for the end, as does whatever ends the loop with an error:
  whoever closes the broker closes the committer first.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from .errors import Rewound

if TYPE_CHECKING:
    from collections.abc import Callable

    from .records import Broker, Client, Committer, Image, Record, Rejection, Skipped
    from .relay import Relay

MAX_BLOCK = 1.0
"""Seconds that one wait takes at most: rebalances and signals are noticed in between."""

MIN_POLL_INTERVAL = 0.005
POLL_INTERVAL = 0.02
"""Seconds between two polls while requests are out, for records to send beside them.

The shorter one is for records that are sent at once, as long as each poll brings some: one that
brings none doubles it, since a poll costs a millisecond of CPU. The longer one is also between two
looks at a commit, and at what is due beside it.
"""

_log = logging.getLogger(__name__)


def run(
    relay: Relay,
    broker: Broker,
    client: Client,
    committer: Committer,
    decode: Callable[[Record], Image | Rejection | Skipped],
    clock: Callable[[], float],
    begin_iteration: Callable[[], None] = lambda: None,
) -> None:
    """Relay until `relay.drain` is called and obeyed; `begin_iteration` at each iteration.

    Raises Stop, and whatever is unexpected. The caller closes the committer, then the broker and
    the client.
    """
    interval = POLL_INTERVAL
    while not relay.done(clock()):
        begin_iteration()
        try:
            records = broker.poll(relay.capacity(), poll_timeout(relay, clock()))
            relay.receive([(record, decode(record)) for record in records], clock())
            send_due(relay, client, clock)
            interval = choose_interval(relay, interval, came=bool(records))
            take_answers(relay, client, clock, collect_timeout(relay, clock(), interval))
            if settled := relay.settled(clock()):
                committer.start(partial(broker.commit, settled))
                exchange_until_committed(relay, client, committer, clock)
                relay.committed(clock())
        except Rewound as why:
            _log.warning("Beginning again from the last commit: %s", why)
            relay.reset()
    if left := relay.stats.held:
        _log.warning("Left %d records without a commit; they will be delivered again.", left)


def exchange_until_committed(
    relay: Relay, client: Client, committer: Committer, clock: Callable[[], float]
) -> None:
    """Go on asking the service until the commit has ended; raises what the commit raised.

    It sleeps where the next thing to do comes from: in `collect` while requests are out.
    """
    send_due(relay, client, clock)
    while not committer.wait(0.0 if relay.stats.out else POLL_INTERVAL):
        take_answers(relay, client, clock, POLL_INTERVAL if relay.stats.out else 0.0)
        send_due(relay, client, clock)


def send_due(relay: Relay, client: Client, clock: Callable[[], float]) -> None:
    """Send the requests that the relay wants out now."""
    for request in relay.requests(clock()):
        client.send(request)


def take_answers(relay: Relay, client: Client, clock: Callable[[], float], timeout: float) -> None:
    """Hand the relay what was answered, waiting at most `timeout` seconds for the first."""
    for request, answer in client.collect(timeout):
        relay.answer(request, answer, clock())


def poll_timeout(relay: Relay, now: float) -> float:
    """Sleep in `poll` when idle: then a record is sent the moment it comes."""
    if relay.stats.out or not relay.capacity():
        return 0.0
    return _seconds_until_wake(relay, now, MAX_BLOCK)


def choose_interval(relay: Relay, last: float, *, came: bool) -> float:
    """Return the seconds to the next poll.

    `last`: those to the poll just made; `came`: it brought records.
    """
    if not relay.sends_at_once():
        return POLL_INTERVAL
    return MIN_POLL_INTERVAL if came else min(2 * last, POLL_INTERVAL)


def collect_timeout(relay: Relay, now: float, interval: float) -> float:
    """Sleep in `collect` when requests are out, or when there is no room for records."""
    if not relay.capacity():
        return _seconds_until_wake(relay, now, MAX_BLOCK)
    return _seconds_until_wake(relay, now, interval) if relay.stats.out else 0.0


def _seconds_until_wake(relay: Relay, now: float, longest: float) -> float:
    return max(0.0, min(longest, relay.wake_at(now) - now))
