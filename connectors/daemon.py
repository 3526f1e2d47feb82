"""The daemon: broker, relay and service put together, run until a signal, and closed.

Threads: the main one runs the loop and owns broker and relay; `committer` has the broker while it
commits, and the main one waits for its end before the next poll; `watchdog` watches and reports;
`metrics` answers probes; the transport of `inference` and the broker's library have their own.
Whoever is not the main thread reads only what the main one replaces as a whole (`Relay.stats`).
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import time
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from . import __version__, codec, instrumentation, loop, metrics, page_server
from .cloudevents import CloudEvents
from .commands import doctor
from .committer import CommitThread
from .description import make_baseline_finder
from .errors import Exit, Stop
from .images import load_canary
from .inference import open_client
from .logs import configure_logging, set_library_log_level
from .relay import Policy, Relay
from .status import Report
from .watchdog import Watchdog, run_watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from .brokers.publishing import Encode
    from .records import Broker, Client, Image, Record, Rejection, Skipped
    from .verbs import Daemon

    Decode = Callable[[Record], Image | Rejection | Skipped]

CLOSING_SHARE = 0.2
"""The share of the drain limit that is kept for the last commit and for closing."""

MARGIN = 5.0
"""Seconds past the drain limit at which a process that hangs is ended."""

READINESS_TIMEOUT = 2.0
"""Seconds that /readyz waits for the service."""

PARK_INTERVAL = 0.25
"""Seconds between two looks at whether a parked daemon has been asked to stop."""

_log = logging.getLogger("connectors")


def run(settings: Daemon, open_broker: Callable[[Encode], Broker]) -> None:
    """Relay until a signal asks to stop; raises Stop, and whatever is unexpected."""
    configure_logging(settings.log)
    relay = Relay(make_policy(settings), draw_jitter, load_canary(settings.canary))
    watchdog = Watchdog(settings.stuck_after)
    report = Report(relay, settings, time.monotonic())

    def drain() -> None:  # inside a signal handler: assignments only
        relay.drain(time.monotonic() + settings.drain_limit * (1 - CLOSING_SHARE))
        watchdog.set_deadline(settings.drain_limit + MARGIN)
        report.draining = True

    with ExitStack() as stack:
        stack.enter_context(handle_signals(drain))
        stack.enter_context(run_watchdog(watchdog, report))
        connections = stack.enter_context(ExitStack())
        client: Client
        client = open_client(settings, timeout=settings.timeout, in_flight=settings.in_flight)
        connections.enter_context(closing(client))
        client, decode, encode = trace_packs(settings, client)
        broker = connections.enter_context(closing(open_broker(encode)))
        set_library_log_level(logging.ERROR)
        report.relaying = True
        _log.info("Relaying by way of %s.", settings.shown_url)
        monitor = stack.enter_context(serve_metrics(settings, relay, broker))

        def begin_iteration() -> None:
            watchdog.note_iteration()
            report.lag = monitor.broker.lag()  # here, since a broker belongs to the loop's thread
            monitor.note_iteration(report.lag)

        def begin_wait(why: str) -> None:
            watchdog.note_iteration()
            monitor.note_parked(why)

        committer = connections.enter_context(closing(CommitThread()))
        relay_all = partial(loop.run, relay, monitor.broker, client, committer, decode)
        stack.enter_context(keep_from_collector())
        try:
            relay_all(time.monotonic, begin_iteration)
        except Stop as stop:
            if stop.code != Exit.GIVEN_UP or settings.when_given_up != "park":
                raise
            connections.close()  # leaves the group: others have its partitions now
            relay.reset()
            park(str(stop), report, begin_wait)
    _log.info("Stopped as asked.")


def choose_format(settings: Daemon) -> tuple[Decode, Encode]:
    """Return decode and encode of `--format`."""
    decode = partial(codec.decode, tombstones=settings.tombstones)
    if settings.format == "plain":
        return decode, codec.encode
    source = f"/fmnist/{quote(settings.describe_source()['group'], safe='')}"
    events = CloudEvents(settings.attribute_prefix, source)
    return partial(events.decode, decode), events.encode


def trace_packs(settings: Daemon, client: Client) -> tuple[Client, Decode, Encode]:
    """Return client, decode and encode, with spans if the process has an SDK of OpenTelemetry."""
    decode, encode = choose_format(settings)
    traces = instrumentation.open_traces(settings)
    if traces is None:
        return client, decode, encode
    _log.info("Making spans of packs, by OpenTelemetry.")
    return (
        traces.follow(client),
        partial(traces.decode, decode),
        partial(traces.encode, encode),
    )


def park(why: str, report: Report, begin_wait: Callable[[str], None]) -> None:
    """Wait until a signal asks to stop; `begin_wait` at each look whether one has.

    A supervisor that started the daemon again would let it commit more dead letters each time.
    """
    report.relaying = False
    _log.error("%s", why)
    _log.error("Parked, out of its group, until SIGTERM: mend that, then start it again.")
    while not report.draining:
        begin_wait(why)
        time.sleep(PARK_INTERVAL)


class Monitor(NamedTuple):
    """The broker to use, and what to tell of each iteration of the loop, or while it is parked."""

    broker: Broker
    note_iteration: Callable[[Mapping[Hashable, int] | None], None]
    note_parked: Callable[[str], None]


@contextmanager
def serve_metrics(settings: Daemon, relay: Relay, broker: Broker) -> Iterator[Monitor]:
    """Serve `--metrics-port`, if there is one."""
    if settings.metrics_port is None:
        yield Monitor(broker, lambda _: None, lambda _: None)
        return
    clock, wall = time.monotonic, time.time
    health = metrics.Health(
        relay,
        clock,
        partial(describe_trouble, settings),
        stuck_after=settings.stuck_after,
        stalled_after=settings.stalled_after,
    )
    instrumented = metrics.InstrumentedBroker(broker, clock, wall)

    def note_iteration(lag: Mapping[Hashable, int] | None) -> None:
        health.note_iteration(lag, instrumented.take_moved(), joined=instrumented.joined())

    info = {"version": __version__, **settings.describe_source()}
    find_baseline = make_baseline_finder(settings.baseline_url, settings.url_cafile, clock)
    collector = metrics.RelayCollector(
        relay, health, instrumented, clock, wall, info, find_baseline
    )
    pages = metrics.make_pages(collector, health)
    address = settings.metrics_address
    with page_server.serve_pages(address, settings.metrics_port, pages) as port:
        _log.info("Serving metrics at http://%s:%d/metrics.", address, port)
        yield Monitor(instrumented, note_iteration, health.note_parked)


def describe_trouble(settings: Daemon) -> str | None:
    """Say why the service does not predict; None when it does."""
    try:
        doctor.ask_service(settings, READINESS_TIMEOUT)
    except Stop as stop:
        return str(stop)
    return None


def make_policy(settings: Daemon) -> Policy:
    """Hand the operator's numbers to the relay."""
    return Policy(
        pack=min(settings.pack, settings.max_batch or settings.pack),
        in_flight=settings.in_flight,
        window=settings.window,
        window_bytes=settings.window_bytes,
        tries=settings.tries,
        doubt_after=settings.doubt_after,
        commit_interval=settings.commit_interval,
        max_consecutive_rejections=settings.max_consecutive_dead_letters,
        max_rejection_ratio=settings.max_dead_letter_ratio,
    )


def draw_jitter(upper: float) -> float:
    """Draw a number of seconds from [0, upper]."""
    return random.uniform(0.0, upper)  # noqa: S311 - spreads load, guards nothing


@contextmanager
def keep_from_collector() -> Iterator[None]:
    """Let the garbage collector leave alone what is there now, which is mostly code.

    The window's records live for long, so that full collections are frequent; looking through the
    imported libraries each time took a tenth of the daemon's CPU (docs/results/kafka.txt, 14).
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def handle_signals(ask: Callable[[], None]) -> Iterator[None]:
    """Let the first SIGTERM or SIGINT ask; the second leaves at once with 130 or 143."""
    asked = False

    def handle(number: int, _: object) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        ask()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
