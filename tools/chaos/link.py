"""What a broken connection to the broker cut off, delivered late: `python -m tools.chaos.link`.

A client whose connection breaks while a request is under way sends it again; the first copy may
still arrive, seconds later. A proxy that knows the lengths and names of Kafka's requests holds
one back, cuts the connection, and delivers it in the middle of a later transaction, at the moment
when it would do the most harm; then it kills the relay. Exit code 0 only if that harms nobody, and
does harm a relay that ignores what was cut off.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from tools.chaos.load import Feeder, KafkaOutlet, inputs
from tools.chaos.run import await_quiet
from tools.chaos.scene import QUIET, TOPICS, classes, relay_argv
from tools.chaos.victims import Seat
from tools.chaos.watch import Watch
from tools.stack import StackError, TorchServe, free_ports
from tools.stack_kafka import Kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tools.chaos.ledger import Source

PARTITIONS = 3
RATE = 60.0  # records a second
SKIPPED = 5  # requests of the kind that pass before one is held
ENDLESS = 1_000_000
PATIENCE = 30.0  # seconds
DEFENDED, DEFENCELESS = ("connectors",), ("tools.chaos.patched", "cut-off-ignored")


class Api(IntEnum):
    """Requests of Kafka's protocol, by their api_key."""

    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class Case(NamedTuple):
    """Which request is held, and which one of a later transaction lets it go.

    `passes`: that one is still delivered, after the late one, and answered; only then the relay
    is killed.
    """

    held: Api
    trigger: Api
    passes: bool


CASES: Mapping[str, Case] = {
    # All results of a later transaction are there, its offsets are not: a stray EndTxn would
    # commit the ones without the others.
    "EndTxn": Case(Api.END_TXN, Api.TXN_OFFSET_COMMIT, passes=False),
    # The offsets of a later transaction are there: a stray TxnOffsetCommit would move them back,
    # and whoever starts next would read again what has been answered.
    "TxnOffsetCommit": Case(Api.TXN_OFFSET_COMMIT, Api.END_TXN, passes=True),
}


class Frame(NamedTuple):
    """One request or answer with its length before it; the rest of it is nobody's business here."""

    content: bytes

    @property
    def api(self) -> int:
        """The request's api_key."""
        return int.from_bytes(self.content[4:6])

    @property
    def asked(self) -> int:
        """A request's correlation_id."""
        return int.from_bytes(self.content[8:12])

    @property
    def answered(self) -> int:
        """An answer's correlation_id."""
        return int.from_bytes(self.content[4:8])


def frames(source: socket.socket) -> Iterator[Frame]:
    """Yield what comes, until the connection ends."""
    with source.makefile("rb") as stream, suppress(OSError):
        while len(head := stream.read(4)) == 4:  # noqa: PLR2004 - INT32, the length
            yield Frame(head + stream.read(*struct.unpack(">i", head)))


class Trap:
    """Says which request is held, and which one lets it go."""

    def __init__(self, case: Case, seconds: float, clock: Callable[[], float]) -> None:
        self._case = case
        self._seconds = seconds
        self._clock = clock
        self._passed = 0
        self._caught_at: float | None = None
        self._sprung = False
        self._lock = threading.Lock()

    def catches(self, api: int) -> bool:
        """Say whether to hold this request: one of its kind, not the first."""
        with self._lock:
            if self._caught_at is not None or api != self._case.held:
                return False
            self._passed += 1
            if self._passed > SKIPPED:
                self._caught_at = self._clock()
            return self._caught_at is not None

    def springs(self, api: int) -> bool:
        """Say whether this request lets the other one go."""
        with self._lock:
            if self._sprung or self._caught_at is None or api != self._case.trigger:
                return False
            self._sprung = self._clock() - self._caught_at >= self._seconds
            return self._sprung


class Link:
    """The proxy: listens on `port` of the loopback address for the broker at `target`."""

    def __init__(self, case: Case, seconds: float, port: int, target: int) -> None:
        self.case = case
        self.trap = Trap(case, seconds, time.monotonic)
        self.target = ("127.0.0.1", target)
        self.stray: Connection | None = None
        self.victim: Seat | None = None
        self.struck = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port))

    def serve(self) -> None:
        """Take connections until `close`."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    Connection(self, client).start()
                except ConnectionRefusedError:  # the broker does not listen yet
                    client.close()

    def strike(self) -> None:
        """SIGKILL: the relay has no time to find out what happened."""
        if self.victim:
            self.victim.process.kill()
        self.struck.set()

    def close(self) -> None:
        """Take no more connections."""
        _end(self._listener)
        self._listener.close()


class Connection:
    """One connection of a client, and its continuation to the broker."""

    def __init__(self, link: Link, client: socket.socket) -> None:
        self._link = link
        self._client = client
        self._broker = socket.create_connection(link.target)
        self._held: Frame | None = None
        self._answered = threading.Event()
        self._last: int | None = None  # the answer at which the relay dies

    def start(self) -> None:
        """Carry both ways, in a thread each."""
        for carry in (self._carry_requests, self._carry_answers):
            threading.Thread(target=carry, name="link", daemon=True).start()

    def _carry_requests(self) -> None:
        with self._client:
            for frame in frames(self._client):
                if self._link.trap.catches(frame.api):
                    self._held, self._link.stray = frame, self
                    break
                if self._link.trap.springs(frame.api):
                    self._strike(frame)
                else:
                    _pass_on(frame, self._broker)
            _end(self._client)
        if not self._held:  # what is held keeps its way to the broker
            _end(self._broker)

    def _strike(self, frame: Frame) -> None:
        if not (self._link.stray and self._link.stray.deliver()):
            return
        if self._link.case.passes:
            self._last = frame.asked
            _pass_on(frame, self._broker)
        else:
            self._link.strike()

    def deliver(self) -> bool:
        """Let the broker have what was held; say whether it answered."""
        if self._held:
            _pass_on(self._held, self._broker)
        answered = self._answered.wait(PATIENCE)
        _end(self._broker)
        return answered

    def _carry_answers(self) -> None:
        with self._broker:
            for frame in frames(self._broker):
                if self._held and frame.answered == self._held.asked:
                    self._answered.set()
                elif frame.answered == self._last:
                    self._link.strike()
                else:
                    _pass_on(frame, self._client)
        _end(self._client)


def _pass_on(frame: Frame, to: socket.socket) -> None:
    with suppress(OSError):  # it has hung up: whoever reads from it will notice
        to.sendall(frame.content)


def _end(one: socket.socket) -> None:
    """Wake whoever waits for it."""
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


@contextmanager
def linked(case: Case, seconds: float) -> Iterator[tuple[Link, Kafka]]:
    """A Kafka that clients find behind the proxy only."""
    port, *ports = free_ports(4)
    controller, plain, guarded = ports
    link = Link(case, seconds, port, plain)
    thread = threading.Thread(target=link.serve, name="link")
    thread.start()
    try:
        with Kafka(ports=(controller, plain, guarded), advertised=port) as kafka:
            yield link, kafka
    finally:
        link.close()
        thread.join(PATIENCE)


def run(
    case: Case, server: TorchServe, seconds: float, program: tuple[str, ...], folder: Path
) -> dict[str, list[Source]]:
    """Hold one request for so many seconds; return what it did, as `Ledger.findings` does."""
    with ExitStack() as stack:
        link, kafka = stack.enter_context(linked(case, seconds))
        for topic in TOPICS:
            kafka.create_topic(topic, PARTITIONS)
        servers = kafka.plain_servers
        watch = Watch(servers, TOPICS, PARTITIONS, classes(server))
        stack.callback(watch.close)
        load = inputs(ENDLESS, PARTITIONS, 0.01, Random(1))  # noqa: S311 - no secrets
        until_struck = takewhile(lambda _: not link.struck.is_set(), load)
        feeder = Feeder(KafkaOutlet(servers, TOPICS.images), until_struck, RATE)
        stack.callback(feeder.close)
        argv = relay_argv(program, servers, server.url, "seat")
        link.victim = Seat("seat", argv, folder, Counter())
        stack.callback(link.victim.end)
        link.victim.take()
        watch.start()
        feeder.start()
        if not link.struck.wait(seconds + 2 * PATIENCE):
            raise StackError(f"no {case.held.name} came late; {link.victim.process.tail()}")
        link.victim.take()
        while feeder.feeding() or watch.ledger.entered < feeder.sent:
            watch.check()
            time.sleep(0.1)
        await_quiet(watch, QUIET)
        return {kind: found for kind, found in watch.ledger.findings().items() if found}


def say(text: str) -> None:
    """Print one line."""
    print(f"link: {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Do all cases, with the defence and without; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.chaos.link", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a request is held")
    asked = parser.parse_args(argv)
    right = True
    with TorchServe() as server, tempfile.TemporaryDirectory(prefix="fmnist-link-") as folder:
        for name, case in CASES.items():
            for program in (DEFENDED, DEFENCELESS):
                found = run(case, server, asked.seconds, program, Path(folder))
                what = ", ".join(f"{len(them)} {kind}" for kind, them in found.items())
                say(f"{name} held, {program[-1]}: {what or 'nothing happened'}")
                right = right and bool(found) == (program == DEFENCELESS)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
