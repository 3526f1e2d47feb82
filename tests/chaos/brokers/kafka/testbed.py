"""Relays between a real Kafka and a real TorchServe."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from tests.chaos.answers import AnswerProxy, serve
from tests.chaos.brokers.kafka.observer import KafkaObserver, read_committed_offsets
from tests.chaos.brokers.kafka.producer import TopicProducer
from tests.chaos.observer import Topics
from tests.chaos.operation_log import find_uncommitted
from tests.chaos.targets import (
    AnswerTarget,
    ExtraRelay,
    RelayProcess,
    Target,
    TorchServeTarget,
    require_alive,
)
from tests.chaos.testbed import Case, Service, Testbed, find_steady_ports, make_load
from tools.servers.kafka import Kafka

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path
    from threading import Event

    from tests.chaos.operation_log import OperationLog
    from tests.chaos.schedule import Fault, Kind

QUIET_S = 8.0
"""So long without a record: an orphan transaction hides what follows it for 5 s."""

GROUP = "chaos"
TOPICS = Topics("images", "predictions", "images.dead")
SHORT_TIMEOUTS = [
    *("--session-timeout", "6", "--heartbeat-interval", "1.5", "--transaction-timeout", "4")
]
RESTART_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class KafkaCase(Case):
    """What is run on Kafka. `proxied`: whether the relays ask the proxy, which can answer badly.

    `flags`: of each relay, beside those that all have.
    """

    quiet: float = QUIET_S
    partitions: int = 9
    proxied: bool = True
    flags: tuple[str, ...] = ()


class KafkaTarget:
    """Kafka, one node: bounced on the same ports and data."""

    name = "Kafka"

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    def inject(self, fault: Fault, over: Event) -> bool:
        """See `Target.inject`."""
        end = self._kafka.kill if fault.kind == "broker killed" else self._kafka.stop
        end()
        over.wait(fault.seconds)
        self._kafka.start(RESTART_TIMEOUT_S)
        return True

    def supervise(self) -> None:
        """See `Target.supervise`; it has no reason to end by itself."""
        require_alive(self.name, self._kafka.process)


@dataclass(kw_only=True)
class KafkaTestbed(Testbed):
    """A Kafka of its own, whose data stays in `folder` until `discard`."""

    case: KafkaCase
    folder: Path
    kafka: Kafka
    service: Service
    extra_relay: ExtraRelay

    @classmethod
    def open(cls, case: KafkaCase, service: Service, folder: Path, stack: ExitStack) -> Self:
        """Start Kafka, and make the rest ready; all of it ends with `stack`."""
        _remove_data(folder)
        kafka = _start_kafka(folder, case.partitions, stack)
        proxy = stack.enter_context(serve(AnswerProxy(service.server.url, case.delay)))
        servers = kafka.bootstrap_servers
        observer = open_observer(servers, case.partitions, service.classes, stack)
        load = case.generate_inputs(case.partitions)
        url, exits = proxy.url if case.proxied else service.server.url, Counter[int]()
        argv = partial(relay_argv, case.program, servers, url)
        names = [f"relay-{one}" for one in range(case.relays)]
        relays = [RelayProcess(one, [*argv(one), *case.flags], folder, exits) for one in names]
        extra_relay = ExtraRelay("relay-extra", argv("relay-extra"), folder, exits)
        for relay in (*relays, extra_relay):
            stack.callback(relay.kill)

        return cls(
            case=case,
            folder=folder,
            kafka=kafka,
            service=service,
            proxy=proxy,
            observer=observer,
            load=make_load(TopicProducer(servers, TOPICS.images), load, case.rate, stack),
            relays=relays,
            extra_relay=extra_relay,
            exits=exits,
        )

    def find_targets(self) -> dict[Kind, Sequence[Target]]:
        """See `Testbed.find_targets`."""
        broker, service = KafkaTarget(self.kafka), TorchServeTarget(self.service.server)
        return {
            "relay killed": self.relays,
            "zombie": self.relays,
            "scale-up": [self.extra_relay],
            "broker killed": [broker],
            "broker stopped": [broker],
            "worker killed": [service],
            "service restarted": [service],
            "bad answers": [AnswerTarget(self.proxy, self.case.random_for("answers"))],
        }

    def find_violations(self, *, ended: bool) -> dict[str, Sequence[object]]:
        """See `Testbed.find_violations`; the group must have committed all that went in."""
        found = super().find_violations(ended=ended)
        if ended:
            found |= check_commits(self.observer.log, self.kafka.bootstrap_servers)
        return found

    def discard(self) -> None:
        """Remove what Kafka wrote."""
        _remove_data(self.folder)


def check_commits(log: OperationLog, servers: str) -> dict[str, Sequence[object]]:
    """Return the partitions whose committed offset is not the end of what went in."""
    committed = read_committed_offsets(servers, GROUP)
    return {"partitions not committed": find_uncommitted(log.end_offsets(), committed)}


def _start_kafka(folder: Path, partitions: int, stack: ExitStack) -> Kafka:
    controller, plain, guarded = find_steady_ports(3)
    kafka = stack.enter_context(Kafka(folder / "kafka", ports=(controller, plain, guarded)))
    create_topics(kafka, partitions)
    return kafka


def create_topics(kafka: Kafka, partitions: int, **config: object) -> None:
    """Create the three topics of a relay."""
    for topic in TOPICS:
        kafka.create_topic(topic, partitions, **config)


def open_observer(
    servers: str, partitions: int, classes: Mapping[bytes, int], stack: ExitStack
) -> KafkaObserver:
    """Open the observer of the three topics; it is closed with `stack`."""
    observer = KafkaObserver(servers, TOPICS, partitions, classes)
    stack.callback(observer.close)
    return observer


def _remove_data(folder: Path) -> None:
    shutil.rmtree(folder / "kafka", ignore_errors=True)


def relay_argv(program: Sequence[str], servers: str, url: str, instance: str) -> list[str]:
    """Return the command of a relay."""
    flags = ["--input-topic", TOPICS.images, "--output-topic", TOPICS.predictions]
    flags += ["--dead-letter-topic", TOPICS.dead, "--group", GROUP]
    flags += ["--bootstrap-servers", servers, "--url", url, "--instance", instance]
    return [sys.executable, "-m", *program, "kafka", *flags, *SHORT_TIMEOUTS]
