"""A request that a broken connection cut off arrives late, in the middle of a later transaction.

A client whose connection breaks while a request is under way sends it again; the first copy may
still arrive, seconds later. A proxy that knows the lengths and names of Kafka's requests holds
one back, cuts the connection, and delivers it in the middle of a later transaction, at the moment
when it would do the most harm; then it kills the relay. That must harm nobody, and must harm a
relay that ignores what was cut off.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from itertools import takewhile
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from tests.chaos.brokers.kafka.producer import TopicProducer
from tests.chaos.brokers.kafka.testbed import (
    QUIET_S,
    TOPICS,
    create_topics,
    open_observer,
    relay_argv,
)
from tests.chaos.load import generate_inputs
from tests.chaos.patched import make_program, require_patch
from tests.chaos.runner import wait_for_quiet
from tests.chaos.testbed import Service, make_load, make_relay, start_service
from tests.chaos.verdict import Verdict
from tools.servers.kafka import Kafka
from tools.servers.process import StackError, free_ports

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.chaos.operation_log import Source
    from tests.chaos.targets import RelayProcess

PARTITIONS = 3
RATE = 60.0  # records a second
SKIPPED_REQUESTS = 5  # of the kind that pass before one is held
ENDLESS = 1_000_000
ANSWER_TIMEOUT_S = 30.0
CHECK_INTERVAL_S = 0.1
BUG = "cut-off-ignored"
DEFENDED, DEFENCELESS = ("connectors",), make_program(BUG)


class Api(IntEnum):
    """Requests of Kafka's protocol, by their api_key."""

    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class LateRequest(NamedTuple):
    """Which request is held, and which one of a later transaction lets it go.

    `passes`: that one is still delivered, after the late one, and answered; only then the relay
    is killed.
    """

    held: Api
    trigger: Api
    passes: bool


LATE_REQUESTS: Mapping[str, LateRequest] = {
    # All results of a later transaction are there, its offsets are not: a stray EndTxn would
    # commit the ones without the others.
    "EndTxn": LateRequest(Api.END_TXN, Api.TXN_OFFSET_COMMIT, passes=False),
    # The offsets of a later transaction are there: a stray TxnOffsetCommit would move them back,
    # and whoever starts next would read again what has been answered.
    "TxnOffsetCommit": LateRequest(Api.TXN_OFFSET_COMMIT, Api.END_TXN, passes=True),
}


class Frame(NamedTuple):
    """One request or answer with its length before it; the rest of it is not read here."""

    content: bytes

    @property
    def api(self) -> int:
        """The request's api_key."""
        return int.from_bytes(self.content[4:6])

    @property
    def request_id(self) -> int:
        """A request's correlation_id."""
        return int.from_bytes(self.content[8:12])

    @property
    def answer_id(self) -> int:
        """An answer's correlation_id."""
        return int.from_bytes(self.content[4:8])


def read_frames(source: socket.socket) -> Iterator[Frame]:
    """Yield what comes, until the connection ends."""
    with source.makefile("rb") as stream, suppress(OSError):
        while len(head := stream.read(4)) == 4:
            yield Frame(head + stream.read(*struct.unpack(">i", head)))


class HoldRule:
    """Says which request is held, and which one lets it go."""

    def __init__(self, case: LateRequest, seconds: float, clock: Callable[[], float]) -> None:
        self._case = case
        self._seconds = seconds
        self._clock = clock
        self._passed = 0
        self._held_at: float | None = None
        self._released = False
        self._lock = threading.Lock()

    def should_hold(self, api: int) -> bool:
        """Say whether to hold this request: one of its kind, not the first."""
        with self._lock:
            if self._held_at is not None or api != self._case.held:
                return False
            self._passed += 1
            if self._passed > SKIPPED_REQUESTS:
                self._held_at = self._clock()
            return self._held_at is not None

    def should_release(self, api: int) -> bool:
        """Say whether this request lets the other one go."""
        with self._lock:
            if self._released or self._held_at is None or api != self._case.trigger:
                return False
            self._released = self._clock() - self._held_at >= self._seconds
            return self._released


class FrameProxy:
    """The proxy: listens on `port` of the loopback address for the broker at `target`."""

    def __init__(self, case: LateRequest, seconds: float, port: int, target: int) -> None:
        self.case = case
        self.rule = HoldRule(case, seconds, time.monotonic)
        self.target = ("127.0.0.1", target)
        self.stray: FrameConnection | None = None
        self.relay: RelayProcess | None = None
        self.killed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port))

    def serve(self) -> None:
        """Take connections until `close`."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    FrameConnection(self, client).start()
                except ConnectionRefusedError:  # the broker does not listen yet
                    client.close()

    def kill_relay(self) -> None:
        """SIGKILL: the relay has no time to find out what happened."""
        if self.relay:
            self.relay.process.kill()
        self.killed.set()

    def close(self) -> None:
        """Take no more connections."""
        _shut_down(self._listener)
        self._listener.close()


class FrameConnection:
    """One connection of a client, and its continuation to the broker."""

    def __init__(self, proxy: FrameProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._broker = socket.create_connection(proxy.target)
        self._held: Frame | None = None
        self._answered = threading.Event()
        self._last: int | None = None  # the answer at which the relay dies

    def start(self) -> None:
        """Copy both ways, in a thread each."""
        for copy in (self._copy_requests, self._copy_answers):
            threading.Thread(target=copy, name="link", daemon=True).start()

    def _copy_requests(self) -> None:
        with self._client:
            for frame in read_frames(self._client):
                if self._proxy.rule.should_hold(frame.api):
                    self._held, self._proxy.stray = frame, self
                    break
                if self._proxy.rule.should_release(frame.api):
                    self._release(frame)
                else:
                    _pass_on(frame, self._broker)
            _shut_down(self._client)
        if not self._held:  # what is held keeps its way to the broker
            _shut_down(self._broker)

    def _release(self, frame: Frame) -> None:
        if not (self._proxy.stray and self._proxy.stray.deliver()):
            return
        if self._proxy.case.passes:
            self._last = frame.request_id
            _pass_on(frame, self._broker)
        else:
            self._proxy.kill_relay()

    def deliver(self) -> bool:
        """Let the broker have what was held; say whether it answered."""
        if self._held:
            _pass_on(self._held, self._broker)
        answered = self._answered.wait(ANSWER_TIMEOUT_S)
        _shut_down(self._broker)
        return answered

    def _copy_answers(self) -> None:
        with self._broker:
            for frame in read_frames(self._broker):
                if self._held and frame.answer_id == self._held.request_id:
                    self._answered.set()
                elif frame.answer_id == self._last:
                    self._proxy.kill_relay()
                else:
                    _pass_on(frame, self._client)
        _shut_down(self._client)


def _pass_on(frame: Frame, to: socket.socket) -> None:
    with suppress(OSError):  # it has hung up: whoever reads from it will notice
        to.sendall(frame.content)


def _shut_down(one: socket.socket) -> None:
    """Wake whoever waits for it."""
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


@contextmanager
def open_proxied_kafka(case: LateRequest, seconds: float) -> Iterator[tuple[FrameProxy, Kafka]]:
    """A Kafka that clients find behind the proxy only."""
    port, *ports = free_ports(4)
    controller, plain, guarded = ports
    proxy = FrameProxy(case, seconds, port, plain)
    thread = threading.Thread(target=proxy.serve, name="link")
    thread.start()
    try:
        with Kafka(ports=(controller, plain, guarded), advertised=port) as kafka:
            yield proxy, kafka
    finally:
        proxy.close()
        thread.join(ANSWER_TIMEOUT_S)


def run_held(
    case: LateRequest, service: Service, seconds: float, program: tuple[str, ...], folder: Path
) -> dict[str, list[Source]]:
    """Hold one request for so many seconds; return the violations, by kind, if any."""
    with ExitStack() as stack:
        proxy, kafka = stack.enter_context(open_proxied_kafka(case, seconds))
        create_topics(kafka, PARTITIONS)
        servers, url = kafka.plain_servers, service.server.url
        observer = open_observer(servers, PARTITIONS, service.classes, stack)
        inputs = generate_inputs(ENDLESS, PARTITIONS, 0.01, Random(1))
        until_killed = takewhile(lambda _: not proxy.killed.is_set(), inputs)
        load = make_load(TopicProducer(servers, TOPICS.images), until_killed, RATE, stack)
        argv = relay_argv(program, servers, url, "relay")
        proxy.relay = make_relay("relay", argv, folder, stack)
        proxy.relay.start()
        observer.start()
        load.start()
        if not proxy.killed.wait(seconds + 2 * ANSWER_TIMEOUT_S):
            raise StackError(f"no {case.held.name} came late; {proxy.relay.process.tail()}")
        proxy.relay.start()
        while load.is_running() or observer.log.inputs < load.sent:
            observer.check()
            time.sleep(CHECK_INTERVAL_S)
        wait_for_quiet(observer, QUIET_S)
        return {kind: found for kind, found in observer.log.find_violations().items() if found}


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:  # noqa: ARG001 - Kafka's
    """See `Scenario.add_arguments`."""
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a request is held")


def run(asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Verdict:
    """See `Scenario.run`: all cases, with the defence and without."""
    require_patch(BUG, "kafka")
    results: dict[str, str] = {}
    broken: list[str] = []
    with start_service() as service:
        for name, case in LATE_REQUESTS.items():
            for program in (DEFENDED, DEFENCELESS):
                found = run_held(case, service, asked.seconds, program, folder)
                what = ", ".join(f"{len(them)} {kind}" for kind, them in found.items())
                title = f"{name} held, {program[-1]}"
                results[title] = what or "nothing happened"
                say(f"{title}: {results[title]}")
                if bool(found) != (program == DEFENCELESS):
                    broken.append(f"{title}: that should not be so")
    return Verdict(results, broken)
