"""Relay images from a message broker to an inference API, and its predictions back.

Usage: python -m connectors VERB BROKER [flags]

  run BROKER           the daemon; `python -m connectors BROKER` is short for it
  send BROKER          send images
  listen BROKER        watch predictions
  dlq list BROKER      list dead letters
  dlq show BROKER      show whole dead letters, or write the value of one to a file
  dlq replay BROKER    send dead letters back: once under one name (pubsub: at least once)
  check BROKER         check whether a daemon with these settings could work
  doctor BROKER        the same, and what could be better
  print-config BROKER  print each setting, its value and where that came from

BROKER is kafka or pubsub.

Examples:
  python -m connectors kafka --input-topic images --output-topic predictions
  python -m connectors send kafka --input-topic images --test-set --limit 1000
  python -m connectors listen kafka --output-topic predictions
  python -m connectors check kafka --input-topic images --output-topic predictions
  python -m connectors dlq replay kafka --input-topic images --name after-fix --dry-run
  python -m connectors pubsub --project mine --subscription images --output-topic predictions

`--help` after a verb and a broker lists the flags.

Exit codes: 0 asked to stop and left; 2 wrong usage or settings; 69 a broker, topic or
subscription is not there; 70 unexpected or stuck; 75 fenced, start again; 78 do not start again
before it is mended; 130, 143 a second signal
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import random
import signal
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from math import inf
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from . import clients, codec, deadletters, doctor, loop, metrics
from .client import HttpClient
from .errors import Exit, Stop
from .relay import Policy, Relay
from .settings import (
    KINDS,
    Check,
    Daemon,
    Doctor,
    KafkaSettings,
    Letters,
    ListDead,
    Listen,
    PrintConfig,
    PubSubSettings,
    Replay,
    Send,
    SendPubSub,
    Settings,
    ShowDead,
    explained,
    load,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from .clients import Publisher, Reader
    from .deadletters import Archive, Backlog
    from .doctor import Check as Asked
    from .records import Broker
    from .relay import Tally

TICK = 1.0
"""Seconds between two looks of the watchdog."""

CLOSING = 0.2
"""The share of the drain limit that is kept for the last commit and for closing."""

MARGIN = 5.0
"""Seconds past the drain limit at which a process that hangs is ended."""

BUSY_FIRST, BUSY_AGAIN = 10.0, 30.0
"""Seconds after which an outage is logged, and between two mentions of it."""

PROBE = 2.0
"""Seconds that /readyz waits for the service."""

SELDOM = 30.0
"""Seconds in which a library says the same thing once: it retries, and complains, for ever."""

_log = logging.getLogger("connectors")
_LIBRARIES = [logging.getLogger(name) for name in ("kafka", "google", "grpc")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    logging.basicConfig(format="connectors: %(message)s")
    _hear(logging.CRITICAL)  # while a library starts, its trouble is our one sentence
    try:
        return _command(sys.argv[1:] if arguments is None else arguments)
    except Stop as stop:
        _log.error("%s", stop)
        return stop.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:  # noqa: BLE001 - this is where 70 comes from
        _log.exception("Unexpected; the supervisor may start again.")
        return Exit.UNEXPECTED


def _command(arguments: Sequence[str]) -> int:
    verb, broker, flags = grammar(arguments)
    prog = f"python -m connectors {verb} {broker}"
    settings = load(KINDS[verb, broker], flags, prog)
    match settings:
        case Send():
            clients.send(settings, _open_publisher(settings))
        case Listen():
            clients.listen(settings, _open_reader(settings))
        case ListDead():
            show(deadletters.listed(settings, _open_letters(settings)))
        case ShowDead():
            show(deadletters.shown(settings, _open_letters(settings)))
        case Replay():
            show(deadletters.replayed(settings, _open_replay(settings)))
        case Check():
            show(doctor.told(_findings(settings), as_json=settings.json_lines))
        case PrintConfig():
            parts = explained(settings, flags, prog)
            show(doctor.printed(parts, as_json=settings.json_lines))
        case Daemon():
            run(settings, _open_broker)
    return Exit.OK


def _hear(level: int) -> None:
    """From the brokers' libraries, nothing below this level."""
    for library in _LIBRARIES:
        library.setLevel(level)


def show(lines: Iterable[str]) -> None:
    """Print each line as it comes, until the reader has enough, as `head` has."""
    try:
        for line in lines:
            print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit flush fails


def _findings(settings: Check) -> Iterator[doctor.Finding]:
    """What the checks find, one after the other; the service is asked whatever the broker says."""
    if isinstance(settings, Doctor):
        yield doctor.find("surroundings", doctor.surroundings)
    yield doctor.find("settings", doctor.settings_are_valid)
    yield from doctor.examined(_checks(settings))
    yield doctor.find(*doctor.service(settings))


def grammar(arguments: Sequence[str]) -> tuple[str, str, Sequence[str]]:
    """Verb, broker and flags; raises Stop(2) for anything else."""
    match arguments:
        case ["-h" | "--help", *_]:
            print(__doc__)
            raise SystemExit(Exit.OK)
        case [verb, broker, *flags] if (verb, broker) in KINDS:
            return verb, broker, flags
        case [first, second, broker, *flags] if (f"{first} {second}", broker) in KINDS:
            return f"{first} {second}", broker, flags
        case [broker, *flags] if ("run", broker) in KINDS:
            return "run", broker, flags
    commands = ", ".join(map(" ".join, KINDS))
    raise Stop(f"name one of these commands: {commands}; --help explains them", Exit.USAGE)


# Each broker's library is an extra: it is imported when it is asked for.


def _open_broker(settings: Settings) -> Broker:
    match settings:
        case KafkaSettings():
            from .brokers.kafka import KafkaBroker  # noqa: PLC0415

            return KafkaBroker(settings, codec.encode)
        case PubSubSettings():
            from .brokers.pubsub import PubSubBroker  # noqa: PLC0415
            from .brokers.pubsub_operations import complete  # noqa: PLC0415

            complete(settings)
            return PubSubBroker(settings, codec.encode)
    raise _no_broker(settings)


def _open_publisher(settings: Settings) -> Publisher:
    match settings:
        case KafkaSettings():
            from .brokers import kafka  # noqa: PLC0415

            return kafka.open_publisher(settings)
        case PubSubSettings():
            from .brokers import pubsub  # noqa: PLC0415

            publisher = pubsub.open_publisher(_created(settings))
            ordered = isinstance(settings, SendPubSub) and settings.ordering_keys
            return publisher if ordered else clients.Unordered(publisher)
    raise _no_broker(settings)


def _open_reader(settings: Listen) -> Reader:
    match settings:
        case KafkaSettings():
            from .brokers import kafka  # noqa: PLC0415

            return kafka.open_reader(settings, settings.output_topic, settings.from_beginning)
        case PubSubSettings():
            from .brokers import pubsub  # noqa: PLC0415

            topic = settings.output_topic
            return pubsub.open_reader(_created(settings), topic, settings.from_beginning)
    raise _no_broker(settings)


def _open_letters(settings: Letters) -> Archive:
    match settings:
        case KafkaSettings():
            from .brokers import kafka_operations  # noqa: PLC0415

            return kafka_operations.open_letters(settings)
        case PubSubSettings():
            from .brokers import pubsub_operations  # noqa: PLC0415

            return pubsub_operations.open_letters(_created(settings))
    raise _no_broker(settings)


def _open_replay(settings: Replay) -> Backlog:
    match settings:
        case KafkaSettings():
            from .brokers import kafka_operations  # noqa: PLC0415

            note = deadletters.note(settings.where)
            return kafka_operations.open_replay(settings, settings.name, note, deadletters.encode)
        case PubSubSettings():
            from .brokers import pubsub_operations  # noqa: PLC0415

            whole = _created(settings)
            return pubsub_operations.open_replay(whole, settings.name, deadletters.encode)
    raise _no_broker(settings)


def _checks(settings: Check) -> list[Asked]:
    """What to ask of the broker."""
    match settings:
        case KafkaSettings():
            from .brokers import kafka_operations as kafka  # noqa: PLC0415

            thorough = isinstance(settings, Doctor)
            return kafka.findings(settings) if thorough else kafka.checks(settings)
        case PubSubSettings():
            from .brokers import pubsub_operations as pubsub  # noqa: PLC0415

            thorough = isinstance(settings, Doctor)
            return pubsub.findings(settings) if thorough else pubsub.checks(settings)
    raise _no_broker(settings)


def _created(settings: PubSubSettings) -> PubSubSettings:
    """The same; what they name and is missing has been made, if `--create` said so."""
    from .brokers.pubsub_operations import create  # noqa: PLC0415

    if settings.create:
        create(settings)
    return settings


def _no_broker(settings: Settings) -> NotImplementedError:
    return NotImplementedError(f"no broker for {type(settings).__name__}")


def run(settings: Daemon, open_broker: Callable[[Settings], Broker]) -> None:
    """Relay until a signal asks to stop; raises Stop, and whatever is unexpected."""
    configure_log(settings.log)
    relay = Relay(_policy(settings), _jitter, codec.WITNESS)
    watchdog = Watchdog(settings.stuck_after)
    report = Report(relay, settings, time.monotonic())

    def drain() -> None:  # inside a signal handler: assignments only
        relay.drain(time.monotonic() + settings.drain_limit * (1 - CLOSING))
        watchdog.hurry(settings.drain_limit + MARGIN)
        report.draining = True

    with ExitStack() as stack:
        stack.enter_context(obeyed(drain))
        stack.enter_context(watched(watchdog, report))
        client = stack.enter_context(closing(_client(settings)))
        broker = stack.enter_context(closing(open_broker(settings)))
        _hear(logging.ERROR)
        report.relaying = True
        _log.info("Relaying by way of %s.", settings.url)
        decode = partial(codec.decode, tombstones=settings.tombstones)
        lag = getattr(broker, "lag", lambda: None)  # records by lane; not every broker knows
        broker, seen = stack.enter_context(monitored(settings, relay, broker))

        def lap() -> None:
            watchdog.lap()
            report.lag = lag()  # here, since a broker belongs to the loop's thread
            seen(report.lag)

        loop.run(relay, broker, client, decode, time.monotonic, lap)
    _log.info("Stopped as asked.")


@contextmanager
def monitored(
    settings: Daemon, relay: Relay, broker: Broker
) -> Iterator[tuple[Broker, Callable[[Mapping[Hashable, int] | None], None]]]:
    """Serve `--metrics-port`, if there is one; gives the broker to use, and what a lap tells."""
    if settings.metrics_port is None:
        yield broker, lambda _: None
        return
    clock, wall = time.monotonic, time.time
    health = metrics.Health(
        relay,
        clock,
        partial(_trouble, settings),
        stuck_after=settings.stuck_after,
        stalled_after=settings.stalled_after,
    )
    metered = metrics.Metered(broker, clock, wall)
    joined = getattr(broker, "joined", lambda: True)

    def seen(lag: Mapping[Hashable, int] | None) -> None:
        health.lap(lag, metered.moved(), joined=joined())

    pages = metrics.pages(metrics.RelayCollector(relay, health, metered, clock, wall), health)
    with metrics.served(settings.metrics_address, settings.metrics_port, pages) as port:
        _log.info("Serving metrics at http://%s:%d/metrics.", settings.metrics_address, port)
        yield metered, seen


def _trouble(settings: Daemon) -> str | None:
    """Why the service does not predict, if it does not."""
    try:
        doctor.ask(settings, PROBE)
    except Stop as stop:
        return str(stop)
    return None


def _policy(settings: Daemon) -> Policy:
    return Policy(
        pack=settings.pack,
        in_flight=settings.in_flight,
        window=settings.window,
        window_bytes=settings.window_bytes,
        tries=settings.tries,
        commit_interval=settings.commit_interval,
        dead_row=settings.dead_letter_row,
        dead_share=settings.dead_letter_share,
    )


def _jitter(upper: float) -> float:
    return random.uniform(0.0, upper)  # noqa: S311 - spreads load, guards nothing


def _client(settings: Daemon) -> HttpClient:
    return HttpClient(
        settings.url,
        timeout=settings.timeout,
        in_flight=settings.in_flight,
        token_file=settings.token_file,
    )


@contextmanager
def obeyed(ask: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM or SIGINT asks, the second leaves at once with 130 or 143."""
    asked = False

    def obey(number: int, _: object) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        ask()

    before = {number: signal.signal(number, obey) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watchdog:
    """Tells whether the loop is stuck: no lap during so many of its own ticks.

    It counts ticks, not time: a process that was stopped and resumed is judged by what it does
    next. Laps and signals come from the main thread, ticks from the watching one.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit / TICK
        self._left = inf
        self._laps = 0
        self._seen = 0
        self._silent = 0

    def lap(self) -> None:
        """The loop goes round."""
        self._laps += 1

    def hurry(self, limit: float) -> None:
        """So many seconds more, whatever the loop does."""
        self._left = limit / TICK

    def stuck(self) -> bool:
        """One more tick: was it one too many?"""
        laps = self._laps
        self._silent = self._silent + 1 if laps == self._seen else 0
        self._seen = laps
        self._left -= 1
        return self._silent >= self._limit or self._left < 0


class Line(NamedTuple):
    """What is to be logged; `fields` are for `--log json`."""

    level: int
    text: str
    fields: Mapping[str, Any] = {}


class Report:
    """What an operator is told, drawn from the relay's tally. `now`: monotonic seconds."""

    def __init__(self, relay: Relay, settings: Daemon, now: float) -> None:
        self.lag: Mapping[Hashable, int] | None = None
        self.relaying = False  # not yet: there is nothing to tell of
        self.draining = False
        self._relay = relay
        self._url = settings.url
        self._every = settings.status_every
        self._last = now
        self._settled = 0
        self._mentioned: float | None = None
        self._drain_limit = settings.drain_limit
        self._asked = False

    def lines(self, now: float) -> Iterator[Line]:
        """What is due now."""
        tally = self._relay.tally
        if self.draining and not self._asked:
            self._asked = True
            yield Line(logging.INFO, f"Draining, for {self._drain_limit:g} s at the longest.")
        yield from self._outage(tally, now)
        if self.relaying and now - self._last >= self._every:
            yield self._status(tally, now)

    def _outage(self, tally: Tally, now: float) -> Iterator[Line]:
        if tally.busy_since is None:
            if self._mentioned is not None:
                yield Line(logging.INFO, f"{self._url} serves again.")
            self._mentioned = None
            return
        seconds = now - tally.busy_since
        again = self._mentioned is None or now - self._mentioned >= BUSY_AGAIN
        if seconds >= BUSY_FIRST and again:
            self._mentioned = now
            text = f"{self._url} has served nobody for {seconds:.0f} s: {tally.busy_detail}"
            yield Line(logging.WARNING, text, {"url": self._url, "seconds": round(seconds)})

    def _status(self, tally: Tally, now: float) -> Line:
        settled = tally.predicted + tally.rejected.total() + tally.skipped
        fields = {
            "records_per_second": round((settled - self._settled) / (now - self._last), 1),
            "held": tally.held,
            "out": tally.out,
            "oldest_unanswered": _age(tally.oldest_since, now),
            "lag": None if self.lag is None else sum(self.lag.values()),
            "retries": dict(tally.retries),
            "dead_letters": dict(tally.rejected),
        }
        self._last, self._settled = now, settled
        return Line(logging.INFO, _sentence(fields), fields)


def _age(since: float | None, now: float) -> float:
    return 0.0 if since is None else round(now - since, 1)


def _sentence(status: Mapping[str, Any]) -> str:
    lag = "unknown" if status["lag"] is None else status["lag"]
    return (
        f"{status['records_per_second']} records/s, {status['held']} held, {status['out']} out, "
        f"oldest unanswered {status['oldest_unanswered']} s, lag {lag}, "
        f"retries: {_counts(status['retries'])}, dead letters: {_counts(status['dead_letters'])}"
    )


def _counts(counts: Mapping[str, int]) -> str:
    return " ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


@contextmanager
def watched(watchdog: Watchdog, report: Report) -> Iterator[None]:
    """A thread looks after the loop, and reports, until the end of the block."""
    over = Event()

    def watch() -> None:
        while not over.wait(TICK):
            if watchdog.stuck():
                _give_up()
            for line in report.lines(time.monotonic()):
                _log.log(line.level, line.text, extra={"fields": line.fields})

    thread = Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(TICK)


def _give_up() -> NoReturn:
    _log.critical("Stuck: the loop makes no laps, or did not end in time; the stacks follow.")
    faulthandler.dump_traceback(all_threads=True)
    os._exit(Exit.UNEXPECTED)


def configure_log(form: str) -> None:
    """Lines of text or of JSON on stderr, from now on."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    handler.addFilter(Seldom())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


class Seldom(logging.Filter):
    """Lets pass whatever is ours, and each complaint of a library once in SELDOM seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """By the line of its source, since the text may hold a count or an address."""
        line = (record.pathname, record.lineno)
        if record.name.partition(".")[0] not in {library.name for library in _LIBRARIES}:
            return True
        if record.created - self._said.get(line, -inf) < SELDOM:
            return False
        self._said[line] = record.created
        return True


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (seconds since the epoch), level, message, and what else there is to say."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


if __name__ == "__main__":
    sys.exit(main())
