"""Who takes part in a run: servers, load, reader, relays."""

from __future__ import annotations

import secrets
import shutil
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Protocol, Self

import requests

from tools.chaos.answers import AnswerProxy, serving
from tools.chaos.load import PICTURES, Feeder, KafkaOutlet, inputs
from tools.chaos.plan import FULL, Fault, Kind, plan, wanted
from tools.chaos.victims import Answers, Broker, Guest, Seat, Service, Victim
from tools.chaos.watch import Topics, Watch
from tools.stack import PORTS, StackError, TorchServe, check_free
from tools.stack_kafka import Kafka

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from tools.chaos.ledger import Ledger, Pulse

QUIET = 8.0  # seconds without a record; an orphan transaction hides what follows it for 5
GROUP = "chaos"
TOPICS = Topics()
QUICK = ["--session-timeout", "6", "--heartbeat-interval", "1.5", "--transaction-timeout", "4"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is run. Times are in seconds.

    `counts`: how many faults to reach; None: as many as belong to the duration. `delay`: before
    each answer of the service, so that the relays hold records whenever they are struck;
    `proxied`: whether there is anybody in between who could do that and answer badly.
    `patience`: so long without an outcome after the load, and what is missing counts as lost.
    `quiet`: so long without an outcome when the relays have left, and there are no more.
    `program`: what `python -m` starts as a relay. `hasty`: the first outcome that is one too many
    ends the run.
    """

    duration: float = FULL
    seed: int = 0
    rate: float = 180.0
    partitions: int = 9
    relays: int = 3
    poison: float = 0.005
    delay: float = 0.3
    proxied: bool = True
    patience: float = 90.0
    quiet: float = QUIET
    program: tuple[str, ...] = ("connectors",)
    hasty: bool = False
    counts: Mapping[Kind, int] | None = None

    def wanted(self) -> Mapping[Kind, int]:
        """How many faults of each kind must happen."""
        return wanted(self.duration) if self.counts is None else self.counts

    def chance(self, purpose: str) -> Random:
        """Return the source of chance for one purpose: the same for the same seed."""
        return Random(f"{self.seed} {purpose}")  # noqa: S311 - faults, not secrets

    def records(self) -> int:
        """How many records go in."""
        return round(self.rate * self.duration)


class Witness(Protocol):
    """A reader that sees what goes in and what comes out, in a thread of its own."""

    @property
    def ledger(self) -> Ledger:
        """Where it is noted."""
        ...

    @property
    def pulse(self) -> Pulse:
        """How long nothing came out."""
        ...

    def start(self) -> None:
        """Begin."""
        ...

    def check(self) -> None:
        """Raise what ended it."""
        ...


@dataclass(kw_only=True)
class Scene(ABC):
    """Everybody, and the clock: seconds since the load began."""

    settings: Settings
    proxy: AnswerProxy
    watch: Witness
    feeder: Feeder
    seats: Sequence[Seat]
    exits: Counter[int]
    over: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)

    @abstractmethod
    def struck(self) -> dict[Kind, Sequence[Victim]]:
        """Whom the faults of each kind may strike."""

    def begin(self) -> None:
        """Let the load come in and the relays work."""
        self.started = time.monotonic()
        for seat in self.seats:
            seat.take()
        self.watch.start()
        self.feeder.start()

    def clock(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.started

    def fed(self) -> bool:
        """Say whether load and faults are over."""
        return not self.feeder.feeding() and self.clock() >= self.settings.duration

    def complete(self) -> bool:
        """Say whether all has gone in, and no outcome is missing."""
        ledger = self.watch.ledger
        return ledger.entered == self.feeder.sent and ledger.open <= 0

    def victims(self) -> dict[Victim, list[Fault]]:
        """Everybody who is struck, and the faults that each will suffer."""
        struck = self.struck()
        places = {kind: len(victims) for kind, victims in struck.items()}
        faults: dict[Victim, list[Fault]] = {one: [] for few in struck.values() for one in few}
        settings = self.settings
        for fault in plan(settings.wanted(), settings.duration, places, settings.chance("faults")):
            faults[struck[fault.kind][fault.place]].append(fault)
        return faults


@dataclass(kw_only=True)
class KafkaScene(Scene):
    """Relays between a real Kafka and a real TorchServe."""

    kafka: Kafka
    server: TorchServe
    watch: Watch
    guest: Guest

    @classmethod
    def set(cls, settings: Settings, folder: Path, stack: ExitStack) -> Self:
        """Start the servers, and make the rest ready; all of it ends with `stack`.

        What Kafka wrote stays in `folder`, for those who have to find out what went wrong.
        """
        controller, plain, guarded, *ports = steady_ports(3 + len(PORTS))
        forget(folder)
        kafka = stack.enter_context(Kafka(folder / "kafka", ports=(controller, plain, guarded)))
        for topic in TOPICS:
            kafka.create_topic(topic, settings.partitions)
        server = stack.enter_context(TorchServe(overrides=on_ports(ports)))
        proxy = stack.enter_context(serving(AnswerProxy(server.url, settings.delay)))
        servers = kafka.bootstrap_servers
        watch = Watch(servers, TOPICS, settings.partitions, classes(server))
        stack.callback(watch.close)
        load = inputs(
            settings.records(), settings.partitions, settings.poison, settings.chance("load")
        )
        feeder = Feeder(KafkaOutlet(servers, TOPICS.images), load, settings.rate)
        stack.callback(feeder.close)
        url = proxy.url if settings.proxied else server.url
        argv, exits = partial(relay_argv, settings.program, servers, url), Counter[int]()
        guest = Guest("guest", argv("guest"), folder, exits)
        names = [f"seat-{one}" for one in range(settings.relays)]
        seats = [Seat(name, argv(name), folder, exits) for name in names]
        for seat in (*seats, guest):
            stack.callback(seat.end)
        return cls(
            settings=settings,
            kafka=kafka,
            server=server,
            proxy=proxy,
            watch=watch,
            feeder=feeder,
            seats=seats,
            guest=guest,
            exits=exits,
        )

    def struck(self) -> dict[Kind, Sequence[Victim]]:
        """See `Scene`."""
        broker, service = Broker(self.kafka), Service(self.server)
        return {
            "relay killed": self.seats,
            "zombie": self.seats,
            "visit": [self.guest],
            "broker killed": [broker],
            "broker stopped": [broker],
            "worker killed": [service],
            "service restarted": [service],
            "bad answers": [Answers(self.proxy, self.settings.chance("answers"))],
        }


def forget(folder: Path) -> None:
    """Remove what Kafka wrote in a run."""
    shutil.rmtree(folder / "kafka", ignore_errors=True)


def steady_ports(count: int) -> list[int]:
    """Return free ports that a server finds free again when it is started again.

    The kernel gives those from 32768 on to any client that connects to somebody.
    """
    free: list[int] = []
    for port in secrets.SystemRandom().sample(range(16_384, 32_768), 64):
        with suppress(StackError):
            check_free(port)
            free.append(port)
    return free[:count]


def on_ports(ports: Sequence[int]) -> dict[str, str]:
    """Return the settings that let TorchServe listen there."""
    return {
        key: str(port) if key.endswith("port") else f"http://127.0.0.1:{port}"
        for key, port in zip(PORTS, ports, strict=True)
    }


def relay_argv(program: Sequence[str], servers: str, url: str, instance: str) -> list[str]:
    """The command of a relay."""
    flags = ["--input-topic", TOPICS.images, "--output-topic", TOPICS.predictions]
    flags += ["--dead-letter-topic", TOPICS.dead, "--group", GROUP]
    flags += ["--bootstrap-servers", servers, "--url", url, "--instance", instance, *QUICK]
    return [sys.executable, "-m", *program, "kafka", *flags]


def classes(server: TorchServe) -> dict[bytes, int]:
    """What the model says of each picture, asked alone and with nothing in between."""
    asked = (requests.post(server.url, data=one, timeout=20).json() for one in PICTURES)
    return {one: int(said["class"]) for one, said in zip(PICTURES, asked, strict=True)}
