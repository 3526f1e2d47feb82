"""The testbed: what takes part in a run, whichever broker it is on, and its settings."""

from __future__ import annotations

import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import requests

from tests.chaos.load import PICTURES, LoadGenerator, generate_inputs
from tests.chaos.operation_log import format_examples
from tests.chaos.report import LONGEST_SILENCE_S, Report
from tests.chaos.schedule import FULL_DURATION_S, Fault, Kind, count_required, make_schedule
from tests.chaos.targets import RelayProcess, Target
from tools.servers.process import StackError, check_free
from tools.servers.torchserve import PORTS, TorchServe, on_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from tests.chaos.answers import AnswerProxy
    from tests.chaos.load import Input, Producer
    from tests.chaos.observer import Observer

EPHEMERAL_PORTS_FROM = 32_768
"""The kernel gives those from here on to any client that connects to somebody."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is run, whichever the broker. Times are in seconds.

    `counts`: how many faults to reach; None: as many as belong to the duration. `rate`: records a
    second. `poison`: the share that is no image. `delay`: before each answer of the service, so
    that the relays hold records whenever a fault comes. `outcome_timeout`: so long without an
    outcome after the load, and what is missing counts as lost. `quiet`: so long without an outcome
    when the relays have left, and there are no more. `program`: what `python -m` starts as a relay.
    `stop_at_violation`: the first outcome that is one too many ends the run. `silence`: the longest
    time without an outcome that is not too long.
    """

    name: str = "kills"
    duration: float = FULL_DURATION_S
    seed: int = 0
    rate: float = 180.0
    relays: int = 3
    poison: float = 0.005
    delay: float = 0.3
    outcome_timeout: float = 90.0
    quiet: float = 2.0
    program: tuple[str, ...] = ("connectors",)
    stop_at_violation: bool = False
    counts: Mapping[Kind, int] | None = None
    silence: float = LONGEST_SILENCE_S

    def count_required(self) -> Mapping[Kind, int]:
        """Return how many faults of each kind must happen."""
        return count_required(self.duration) if self.counts is None else self.counts

    def random_for(self, purpose: str) -> Random:
        """Return random numbers for one purpose: the same for the same seed."""
        return Random(f"{self.seed} {purpose}")

    def count_inputs(self) -> int:
        """Return how many records go in."""
        return round(self.rate * self.duration)

    def generate_inputs(self, partitions: int) -> Iterator[Input]:
        """Yield the load."""
        count, random = self.count_inputs(), self.random_for("load")
        return generate_inputs(count, partitions, self.poison, random)


class Service(NamedTuple):
    """A running TorchServe, and the class of each picture of the load, asked with no faults."""

    server: TorchServe
    classes: Mapping[bytes, int]


@contextmanager
def start_service() -> Iterator[Service]:
    """Start a TorchServe that finds its ports free again when it is started again."""
    with TorchServe(overrides=on_ports(find_steady_ports(len(PORTS)))) as server:
        yield Service(server, ask_classes(server))


def ask_classes(server: TorchServe, headers: Mapping[str, str] | None = None) -> dict[bytes, int]:
    """Return what the model says of each picture, asked alone and with nothing in between."""
    answers = (
        requests.post(server.url, data=one, headers=headers, timeout=20).json() for one in PICTURES
    )
    return {one: int(answer["class"]) for one, answer in zip(PICTURES, answers, strict=True)}


def find_steady_ports(count: int) -> list[int]:
    """Return free ports that a server finds free again when it is started again."""
    free: list[int] = []
    for port in secrets.SystemRandom().sample(range(16_384, EPHEMERAL_PORTS_FROM), 64):
        with suppress(StackError):
            check_free(port)
            free.append(port)
    return free[:count]


@dataclass(kw_only=True)
class Testbed(ABC):
    """Everything that takes part in one run. Made by `open`, and closed with its ExitStack."""

    __test__: ClassVar[bool] = False  # no test, whatever pytest makes of its name
    report_type: ClassVar[type[Report]] = Report

    case: Case
    proxy: AnswerProxy
    observer: Observer
    load: LoadGenerator
    relays: Sequence[RelayProcess]
    exits: Counter[int]  # of relays that ended by themselves, by exit code
    over: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)

    @abstractmethod
    def find_targets(self) -> dict[Kind, Sequence[Target]]:
        """Return what the faults of each kind may strike."""

    def begin(self) -> None:
        """Let the load come in and the relays work."""
        self.started = time.monotonic()
        for relay in self.relays:
            relay.start()
        self.observer.start()
        self.load.start()

    def clock(self) -> float:
        """Return the seconds since the load began."""
        return time.monotonic() - self.started

    def has_ended_load(self) -> bool:
        """Say whether load and faults are over."""
        return not self.load.is_running() and self.clock() >= self.case.duration

    def is_complete(self) -> bool:
        """Say whether all has gone in, and no outcome is missing."""
        log = self.observer.log
        return log.inputs == self.load.sent and log.missing <= 0

    def assign_faults(self) -> dict[Target, list[Fault]]:
        """Return each target, and the faults that strike it, by the schedule of the seed."""
        targets, case = self.find_targets(), self.case
        counts = {kind: len(some) for kind, some in targets.items()}
        faults: dict[Target, list[Fault]] = {one: [] for some in targets.values() for one in some}
        random = case.random_for("faults")
        for fault in make_schedule(case.count_required(), case.duration, counts, random):
            faults[targets[fault.kind][fault.target]].append(fault)
        return faults

    def find_violations(self, *, ended: bool) -> dict[str, Sequence[object]]:
        """Check the promise; of a run that ended early nothing can be said to be lost."""
        found: dict[str, Sequence[object]] = {**self.observer.log.find_violations()}
        return found if ended else found | {"lost": ()}

    def make_report(
        self, happened: Counter[Kind], violations: Mapping[str, Sequence[object]]
    ) -> Report:
        """Say what happened."""
        log, required = self.observer.log, self.case.count_required()
        return self.report_type(
            seed=self.case.seed,
            settings=asdict(self.case),
            records=self.load.sent,
            results=log.results,
            dead_letters=log.dead_letters,
            poison=log.poison,
            seconds=round(self.clock(), 1),
            longest_silence=round(self.observer.longest_silence(), 1),
            silence=self.case.silence,
            wanted={str(kind): count for kind, count in required.items()},
            faults={str(kind): happened[kind] for kind in required},
            bad_answers={str(bad): count for bad, count in sorted(self.proxy.given.items())},
            exits=dict(sorted(self.exits.items())),
            findings={kind: len(broken) for kind, broken in violations.items()},
            examples={kind: format_examples(one) for kind, one in violations.items() if one},
            **self.describe_broker(),
        )

    def describe_broker(self) -> dict[str, Any]:
        """Return what the report of this broker has beside the common figures."""
        return {}

    def discard(self) -> None:  # noqa: B027 - a broker may keep nothing
        """Remove what is kept only for those who have to find out what went wrong."""


def make_load(
    producer: Producer, load: Iterator[Input], rate: float, stack: ExitStack
) -> LoadGenerator:
    """Make the load generator, not started yet; it is closed with `stack`."""
    generator = LoadGenerator(producer, load, rate)
    stack.callback(generator.close)
    return generator


def make_relay(
    name: str,
    argv: Sequence[str],
    folder: Path,
    stack: ExitStack,
    env: Mapping[str, str] | None = None,
) -> RelayProcess:
    """Make one relay whose exits nobody counts, not started yet; it is killed with `stack`."""
    relay = RelayProcess(name, argv, folder, Counter(), env)
    stack.callback(relay.kill)
    return relay


def wait_until(
    condition: Callable[[], object],
    timeout: float,
    check: Callable[[], object],
    explain: Callable[[], str],
    interval: float,
) -> None:
    """Return when the condition holds; raises StackError when it does not in `timeout` seconds.

    `check` is called every `interval` seconds, and may raise; `explain` says what may have gone
    wrong.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        check()
        if time.monotonic() > deadline:
            raise StackError(f"not done in {timeout:g} s; {explain()}")
        time.sleep(interval)
