"""What strikes a cluster: cuts between hosts, a full disk, a clock that jumps."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tests.chaos.brokers.kafka.testbed import GROUP, TOPICS
from tests.chaos.goodput import find_longest_silence
from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event

    from tests.chaos.brokers.kafka.cluster import KafkaCluster, Node
    from tests.chaos.clock import ShiftedClock
    from tests.chaos.goodput import Sample
    from tests.chaos.network import Chain, Host
    from tests.chaos.schedule import Fault, Kind

REPAIR_TIMEOUT_S = 120.0
CHECK_INTERVAL_S = 0.2
HOUR_S = 3600.0
JUMPS_S = (2 * HOUR_S, -2 * HOUR_S, 24 * HOUR_S)
"""Kafka refuses what is stamped more than an hour ahead (`message.timestamp.after.max.ms`)."""


class Drop(NamedTuple):
    """Packets that a host drops; see `Host.drop`."""

    host: Host
    chain: Chain
    peer: str | None = None


class RelayHost(NamedTuple):
    """Where a relay runs, and under which instance."""

    host: Host
    instance: str


@dataclass
class Strike:
    """One fault: what it struck, when it began (seconds of the run), for how many seconds.

    `packets`: how many it dropped, if it drops any. `repair`: seconds from its end until all was
    whole again; `silence`: the longest time without an outcome until then, in seconds.
    """

    kind: Kind
    at: float
    seconds: float
    what: str = ""
    packets: int | None = None
    repair: float = 0.0
    silence: float = 0.0

    def describe(self) -> str:
        """Say what happened, in one line."""
        packets = "" if self.packets is None else f", {self.packets} packets dropped"
        return (
            f"{self.kind}: {self.what}; for {self.seconds:.0f} s{packets}; "
            f"whole {self.repair:.1f} s later, longest silence {self.silence:.1f} s"
        )


class ClusterTarget:
    """The cluster and the relays' way to it; each round strikes another part of it.

    `samples`: of the outcomes until now, as `sample_outcomes` makes them.
    """

    name = "the cluster"

    def __init__(
        self,
        cluster: KafkaCluster,
        relays: Sequence[RelayHost],
        clock: ShiftedClock,
        samples: Sequence[Sample],
        say: Callable[[str], None],
    ) -> None:
        self.strikes: list[Strike] = []
        self._cluster = cluster
        self._relays = relays
        self._clock = clock
        self._samples = samples
        self._say = say
        self._rounds: Counter[Kind] = Counter()

    def supervise(self) -> None:
        """See `Target.supervise`; a broker has no reason to end by itself."""
        self._cluster.require_alive()

    def inject(self, fault: Fault, over: Event) -> bool:
        """See `Target.inject`; returns when the cluster is whole again."""
        self._wait(self._is_whole, f"before {fault.kind} all is not whole", over)
        strike = Strike(fault.kind, round(fault.at, 1), fault.seconds)
        began = time.monotonic()
        happened = self._strike(strike, self._rounds[fault.kind], over)
        self._rounds[fault.kind] += 1
        strike.repair = self._await_repair(strike, over)
        strike.silence = find_longest_silence(self._samples, began)
        self.strikes.append(strike)
        self._say(strike.describe())
        return happened and not over.is_set()

    def _strike(self, strike: Strike, number: int, over: Event) -> bool:
        match strike.kind:
            case "disk full":
                return self._fill_disk(strike, number, over)
            case "clock jump":
                return self._shift_clock(strike, number, over)
        strike.what, drops = self._choose_drops(strike.kind, number)
        hosts = {drop.host for drop in drops}
        try:
            for drop in drops:
                drop.host.drop(drop.chain, drop.peer)
            over.wait(strike.seconds)
        finally:
            strike.packets = sum(host.heal() for host in hosts)
        return strike.packets > 0  # a cut that met no packet has cut nothing

    def _choose_drops(self, kind: Kind, number: int) -> tuple[str, Sequence[Drop]]:
        """Return what is cut off, in words, and which host drops which packets."""
        leader = self._find_leader(number)
        others = [node for node in self._cluster.nodes if node is not leader]
        match kind:
            case "leader cut":
                return f"{leader} and everybody", cut_off(leader.host)
            case "follower cut":
                follower = others[number % len(others)]
                return f"{follower} and {leader}", separate(follower.host, leader.host)
            case "one-way cut":
                return self._choose_direction(number, leader, others)
        relay = self._relays[number % len(self._relays)]
        coordinator, what = self._find_coordinator(number, relay.instance)
        return f"{relay.instance} and {coordinator}, {what}", separate(relay.host, coordinator.host)

    def _find_leader(self, number: int) -> Node:
        """Return the leader of another partition each time."""
        return self._cluster.find_leader(TOPICS.images, number % len(self._cluster.nodes))

    def _choose_direction(
        self, number: int, leader: Node, others: Sequence[Node]
    ) -> tuple[str, Sequence[Drop]]:
        """Drop what a leader sends to the other brokers, what these send, or what relays send."""
        brokers = [other.host.address for other in others]
        relays = [relay.host.address for relay in self._relays]
        match number % 3:
            case 0:
                what = f"from {leader} to the other brokers"
                return what, [Drop(leader.host, "OUTPUT", one) for one in brokers]
            case 1:
                what = f"from the other brokers to {leader}"
                return what, [Drop(leader.host, "INPUT", one) for one in brokers]
        what = f"from the relays to {leader}"
        return what, [Drop(leader.host, "INPUT", one) for one in relays]

    def _find_coordinator(self, number: int, instance: str) -> tuple[Node, str]:
        """Return the coordinator of the group or of a relay's transactions, in turns."""
        if number % 2:
            found = self._cluster.find_transaction_coordinator(f"{GROUP}-{instance}")
            return found, "coordinator of its transactions"
        return self._cluster.find_group_coordinator(GROUP), "coordinator of its group"

    def _fill_disk(self, strike: Strike, number: int, over: Event) -> bool:
        """Fill the disk of a leader; a broker that ends of it is started again, with room."""
        node = self._find_leader(number)
        node.fill_disk()
        try:
            over.wait(strike.seconds)
        finally:
            node.free_disk()
        ended = not node.process.alive()
        strike.what = f"{node}, which {'ended' if ended else 'did not mind'}"
        if ended and not over.is_set():
            node.process.start()
        return ended

    def _shift_clock(self, strike: Strike, number: int, over: Event) -> bool:
        """Let the clock of the first relay jump, and jump back."""
        jump = JUMPS_S[number % len(JUMPS_S)]
        strike.what = f"{self._relays[0].instance}, {jump / HOUR_S:+g} h and back"
        self._clock.shift(jump)
        try:
            over.wait(strike.seconds)
        finally:
            self._clock.shift(0)
        return True

    def _await_repair(self, strike: Strike, over: Event) -> float:
        """Return after how many seconds all is whole, and an outcome has come since."""
        began = time.monotonic()
        self._wait(self._is_whole, f"after {strike.kind} ({strike.what}) all is not whole", over)
        seen = self._count_outcomes()
        no_outcome = f"after {strike.kind} ({strike.what}) no outcome comes"
        self._wait(lambda: self._count_outcomes() > seen, no_outcome, over)
        return round(time.monotonic() - began, 1)

    def _is_whole(self) -> bool:
        """Say whether every replica is in sync, and every relay has its share."""
        members = self._cluster.count_members(GROUP)
        return self._cluster.is_whole() and members == len(self._relays)

    def _wait(self, condition: Callable[[], bool], otherwise: str, over: Event) -> None:
        """Return when it holds or all is over; raises StackError after REPAIR_TIMEOUT_S."""
        deadline = time.monotonic() + REPAIR_TIMEOUT_S
        while not over.is_set() and not condition():
            if time.monotonic() > deadline:
                raise StackError(f"{otherwise} within {REPAIR_TIMEOUT_S:g} s")
            self.supervise()
            over.wait(CHECK_INTERVAL_S)

    def _count_outcomes(self) -> int:
        return self._samples[-1].total if self._samples else 0


def cut_off(host: Host) -> list[Drop]:
    """Drop all that a host receives and sends."""
    return [Drop(host, "INPUT"), Drop(host, "OUTPUT")]


def separate(one: Host, other: Host) -> list[Drop]:
    """Drop what two hosts send each other."""
    return [Drop(one, "INPUT", other.address), Drop(one, "OUTPUT", other.address)]
