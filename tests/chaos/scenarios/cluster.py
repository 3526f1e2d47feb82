"""Three brokers in network namespaces: cut off, half cut off, out of disk; and a clock that jumps.

Every topic is on three brokers, and two must have a record before it counts. Two relays, each on a
host of its own, ask a service that answers at once. One fault comes after the other, each when the
cluster is whole again. The promise is exactly once. Needs root, iproute2 and iptables. Load,
observer and service are outside of the namespaces.
"""

from __future__ import annotations

import argparse
import secrets
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tests.chaos.answers import InstantService, classify_bytes, serve
from tests.chaos.brokers.kafka.cluster import KafkaCluster, open_cluster
from tests.chaos.brokers.kafka.cluster_faults import ClusterTarget, RelayHost
from tests.chaos.brokers.kafka.producer import TopicProducer
from tests.chaos.brokers.kafka.testbed import (
    TOPICS,
    KafkaCase,
    check_commits,
    open_observer,
    relay_argv,
)
from tests.chaos.clock import ShiftedClock
from tests.chaos.goodput import sample_outcomes
from tests.chaos.load import PICTURES, POISON, generate_inputs
from tests.chaos.network import GATEWAY, Network, open_network, require_programs
from tests.chaos.patched import make_program, require_patch
from tests.chaos.report import Report
from tests.chaos.runner import run_case
from tests.chaos.scenarios.controls import describe_detection
from tests.chaos.schedule import DURATIONS_S, Fault, Kind
from tests.chaos.targets import RelayProcess, Target
from tests.chaos.testbed import Testbed, make_load
from tests.chaos.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from tests.chaos.load import Input
    from tests.chaos.verdict import Result

    Say = Callable[[str], None]

KINDS: tuple[Kind, ...] = (
    "leader cut",
    "one-way cut",
    "follower cut",
    "coordinator cut",
    "disk full",
    "clock jump",
)
JOINING_S = 10.0  # for the relays, before the first fault
SPACING_S = 22.0  # from one fault to the next, if the cluster is whole again by then
RELAY_ADDRESS = 21
CONTROL = "one-acknowledgement"
CONTROL_TIMEOUT_S = 25.0  # without an outcome, and what is missing is lost
AT_LEAST_ONCE = ("--delivery", "at-least-once")
MAX_INPUTS = 1_000_000  # more than are sent before the faults are over


@dataclass(frozen=True, kw_only=True)
class ClusterCase(KafkaCase):
    """What is run. `kinds`: the faults of each round, in this order."""

    name: str = "cluster"
    rate: float = 120.0
    relays: int = 2
    partitions: int = 6
    brokers: int = 3
    rounds: int = 3
    kinds: tuple[Kind, ...] = KINDS

    def count_required(self) -> Mapping[Kind, int]:
        """See `Case.count_required`."""
        return dict.fromkeys(self.kinds, self.rounds)

    def make_schedule(self) -> list[Fault]:
        """Return the faults, one each SPACING_S."""
        random = self.random_for("faults")
        return [
            Fault(JOINING_S + number * SPACING_S, kind, random.uniform(*DURATIONS_S[kind]), 0)
            for number, kind in enumerate(self.kinds * self.rounds)
        ]


@dataclass(kw_only=True)
class ClusterReport(Report):
    """What happened, and what each fault struck."""

    strikes: list[dict[str, Any]] = field(default_factory=list)

    def _list_rows(self) -> Iterator[tuple[str, object]]:
        for kind in self.wanted:
            some = [one for one in self.strikes if one["kind"] == kind]
            for what in ("silence", "repair"):
                longest = max((one[what] for one in some), default=0.0)
                yield f"{kind}: longest {what}, seconds", f"{longest:.1f}"
        yield from super()._list_rows()


@dataclass(kw_only=True)
class ClusterTestbed(Testbed):
    """Cluster, relays, load and observer, on a network of their own."""

    report_type: ClassVar[type[Report]] = ClusterReport

    case: ClusterCase
    cluster: KafkaCluster
    target: ClusterTarget

    @classmethod
    def open(cls, case: ClusterCase, folder: Path, say: Say, stack: ExitStack) -> Self:
        """Start the brokers, and make the rest ready; all of it ends with `stack`."""
        network = stack.enter_context(open_network())
        cluster = open_cluster(network, case.brokers, folder, stack)
        servers = cluster.bootstrap_servers
        for topic in TOPICS:
            cluster.create_topic(topic, case.partitions)
        say(f"{case.brokers} brokers: {servers}")
        service = stack.enter_context(serve(InstantService(POISON, GATEWAY)))
        hosts = add_relay_hosts(network, case.relays)
        clock, exits = ShiftedClock(folder / "clock"), Counter[int]()
        relays = []
        for one in hosts:
            argv = [*relay_argv(case.program, servers, service.url, one.instance), *case.flags]
            argv = clock.command(argv) if one is hosts[0] else argv
            relays.append(RelayProcess(one.instance, one.host.command(argv), folder, exits))
            stack.callback(relays[-1].kill)
        classes = {picture: classify_bytes(picture) for picture in PICTURES}
        observer = open_observer(servers, case.partitions, classes, stack)
        samples = stack.enter_context(sample_outcomes(observer.log))
        target = ClusterTarget(cluster, hosts, clock, samples, say)
        inputs = generate_load(case, lambda: len(target.strikes) < len(case.make_schedule()))
        return cls(
            case=case,
            cluster=cluster,
            target=target,
            proxy=service,
            observer=observer,
            load=make_load(TopicProducer(servers, TOPICS.images), inputs, case.rate, stack),
            relays=relays,
            exits=exits,
        )

    def find_targets(self) -> dict[Kind, Sequence[Target]]:
        """See `Testbed.find_targets`."""
        targets: list[Target] = [self.target]
        return {kind: targets for kind in self.case.kinds}  # noqa: C420 - they share it

    def assign_faults(self) -> dict[Target, list[Fault]]:
        """See `Testbed.assign_faults`; the relays are supervised and not struck."""
        return {self.target: self.case.make_schedule(), **{relay: [] for relay in self.relays}}

    def find_violations(self, *, ended: bool) -> dict[str, Sequence[object]]:
        """See `Testbed.find_violations`; the group must have committed all that went in."""
        found = super().find_violations(ended=ended)
        return found | check_commits(self.observer.log, self.cluster.bootstrap_servers)

    def describe_broker(self) -> dict[str, Any]:
        """See `Testbed.describe_broker`."""
        return {"strikes": [asdict(one) for one in self.target.strikes]}


def add_relay_hosts(network: Network, count: int) -> list[RelayHost]:
    """Return a host for each relay."""
    names = [f"relay-{number}" for number in range(count)]
    return [
        RelayHost(network.add_host(name, RELAY_ADDRESS + number), name)
        for number, name in enumerate(names)
    ]


def generate_load(case: ClusterCase, wanted: Callable[[], bool]) -> Iterator[Input]:
    """Yield inputs as long as more are wanted."""
    random = case.random_for("load")
    load = generate_inputs(MAX_INPUTS, case.partitions, case.poison, random)
    return takewhile(lambda _: wanted(), load)


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:  # noqa: ARG001 - Kafka's
    """See `Scenario.add_arguments`."""
    parser.add_argument("--seed", type=int, help="of the faults' lengths; default: a random one")
    parser.add_argument("--brokers", type=int, choices=(3, 4, 5), default=3)
    text = "how often each fault comes"
    parser.add_argument("--rounds", type=parse_rounds, metavar="N", default=3, help=text)
    names = [kind.replace(" ", "-") for kind in KINDS]
    parser.add_argument("--faults", nargs="+", choices=names, default=names, help="of each round")
    text = "a relay that asks the leader alone for its acknowledgement; it must lose records"
    parser.add_argument("--control", action="store_true", help=text)
    parser.add_argument("--rate", type=float, default=120.0, help="records a second")
    parser.add_argument("--relays", type=int, default=2)
    parser.add_argument("--partitions", type=int, default=6)


def parse_rounds(text: str) -> int:
    """Return a number; raises ArgumentTypeError when it is none, or below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of rounds: give 1 or more")
    return int(text)


def run(asked: argparse.Namespace, folder: Path, say: Say) -> Result:
    """See `Scenario.run`."""
    require_programs()
    case = select_case(asked)
    say(f"{len(case.make_schedule())} faults, seed {case.seed}; starting {case.brokers} brokers")
    if asked.control:
        require_patch(CONTROL, "kafka")
        case = replace(
            case,
            program=make_program(CONTROL),
            flags=AT_LEAST_ONCE,
            outcome_timeout=CONTROL_TIMEOUT_S,
        )
    report = run_case(partial(ClusterTestbed.open, case, folder, say), say)
    return judge_control(report) if asked.control else report


def judge_control(report: Report) -> Verdict:
    """Say whether the judge has seen that records were lost, by relays that did work."""
    seen = report.findings["lost"] > 0 and report.results > 0
    missed = [] if seen else [f"{CONTROL} was not noticed"]
    return Verdict({CONTROL: describe_detection(report)}, missed)


def select_case(asked: argparse.Namespace) -> ClusterCase:
    """Return what the flags ask for."""
    kinds = [kind for kind in KINDS if kind.replace(" ", "-") in asked.faults]
    return ClusterCase(
        duration=JOINING_S + SPACING_S * len(kinds) * asked.rounds,
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        rate=asked.rate,
        relays=asked.relays,
        partitions=asked.partitions,
        brokers=asked.brokers,
        rounds=asked.rounds,
        kinds=tuple(kinds),
    )
