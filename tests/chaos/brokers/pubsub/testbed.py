"""Relays between Google's emulator, behind a proxy that can be cut, and a real TorchServe."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tests.chaos.answers import AnswerProxy, OnAnswer, serve
from tests.chaos.brokers.pubsub.observer import PubSubObserver
from tests.chaos.brokers.pubsub.operation_log import find_repeated
from tests.chaos.brokers.pubsub.producer import TopicProducer, add_numbers, find_numbers
from tests.chaos.brokers.pubsub.report import PubSubReport
from tests.chaos.observer import Topics
from tests.chaos.targets import RelayProcess, Target
from tests.chaos.tcp_proxy import TcpProxy, open_tcp_proxy
from tests.chaos.testbed import Case, Service, Testbed, make_load
from tools.connector import wait_for_daemon
from tools.servers.pubsub import HOST, Emulator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager, ExitStack
    from pathlib import Path

    from tests.chaos.schedule import Kind

TOPICS = Topics("images", "predictions", "images-dead")
ACK_DEADLINE_S = 10
"""The least that Pub/Sub takes; so late comes again what a killed relay held."""


@dataclass(frozen=True, kw_only=True)
class PubSubCase(Case):
    """What is run on Pub/Sub.

    `keys`: ordering keys that take turns; 0: none. `flags`: more of the relay's. `once`: nothing
    may be asked of the service twice.
    """

    relays: int = 2
    keys: int = 0
    flags: tuple[str, ...] = ()
    once: bool = False


class CountingProxy(AnswerProxy):
    """Counts how often it is asked for each record, in `requested`, by the record's number."""

    def __init__(self, target: str, delay: float) -> None:
        super().__init__(target, delay)
        self.requested: Counter[int] = Counter()
        self._lock = threading.Lock()

    def enclose(self, kind: str, body: bytes) -> AbstractContextManager[OnAnswer]:
        """See `AnswerProxy.enclose`."""
        with self._lock:
            self.requested.update(find_numbers(body))
        return super().enclose(kind, body)


@dataclass(kw_only=True)
class PubSubTestbed(Testbed):
    """An emulator of its own."""

    report_type = PubSubReport

    case: PubSubCase
    proxy: CountingProxy
    observer: PubSubObserver
    tcp_proxy: TcpProxy

    @classmethod
    def open(cls, case: PubSubCase, service: Service, folder: Path, stack: ExitStack) -> Self:
        """Start the emulator, and make the rest ready; all of it ends with `stack`."""
        emulator = stack.enter_context(Emulator())
        _create_topics(emulator, ordering=bool(case.keys))
        tcp_proxy = stack.enter_context(open_tcp_proxy(emulator.host))
        proxy = stack.enter_context(serve(CountingProxy(service.server.url, case.delay)))
        observer = PubSubObserver(emulator, TOPICS, case.keys, service.classes)
        stack.callback(observer.close)
        producer = TopicProducer(emulator, TOPICS.images, case.keys, observer.note_input)
        load = add_numbers(case.generate_inputs(case.keys or 1))
        argv = relay_argv(case, emulator.project, proxy.url)
        env, exits = {**os.environ, HOST: tcp_proxy.address}, Counter[int]()
        names = [f"{case.name}-{one}" for one in range(case.relays)]
        relays = [RelayProcess(name, argv, folder, exits, env) for name in names]
        for relay in relays:
            stack.callback(relay.kill)
        return cls(
            case=case,
            proxy=proxy,
            observer=observer,
            load=make_load(producer, load, case.rate, stack),
            relays=relays,
            exits=exits,
            tcp_proxy=tcp_proxy,
        )

    def begin(self) -> None:
        """See `Testbed.begin`; first the relays get ready, so that kills find them at work."""
        for relay in self.relays:
            relay.start()
        for relay in self.relays:
            wait_for_daemon(relay.process)
        self.observer.start()
        self.started = time.monotonic()
        self.load.start()

    def find_targets(self) -> dict[Kind, Sequence[Target]]:
        """See `Testbed.find_targets`."""
        return {"relay killed": self.relays, "stream cut": [self.tcp_proxy]}

    def find_violations(self, *, ended: bool) -> dict[str, Sequence[object]]:
        """See `Testbed.find_violations`."""
        found = super().find_violations(ended=ended)
        if self.case.once:
            found["asked again"] = find_repeated(self.proxy.requested)
        return found

    def describe_broker(self) -> dict[str, Any]:
        """See `Testbed.describe_broker`."""
        return {
            "case": self.case.name,
            "doubled": self.observer.log.doubled,
            "asked": self.proxy.requested.total(),
            "asked_again": len(find_repeated(self.proxy.requested)),
        }


def _create_topics(emulator: Emulator, *, ordering: bool) -> None:
    """Create the three topics, each with a subscription of its name."""
    for topic in TOPICS:
        emulator.create_topic(topic)
        emulator.create_subscription(topic, topic, ordering=ordering, ack_deadline=ACK_DEADLINE_S)


def relay_argv(case: PubSubCase, project: str, url: str) -> list[str]:
    """Return the command of a relay."""
    flags = ["--project", project, "--subscription", TOPICS.images]
    flags += ["--output-topic", TOPICS.predictions, "--dead-letter-topic", TOPICS.dead]
    flags += ["--ack-deadline", str(ACK_DEADLINE_S)]
    return [sys.executable, "-m", *case.program, "pubsub", *flags, "--url", url, *case.flags]
