"""The schedule: which fault strikes which target, and when. Drawn from a seed; pure."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

Kind = Literal[
    "relay killed",  # SIGKILL, and started again
    "zombie",  # SIGSTOP for longer than the session, then SIGCONT
    "scale-up",  # one more relay joins, and leaves in good order
    "broker killed",
    "broker stopped",
    "worker killed",  # TorchServe's
    "service restarted",
    "bad answers",  # a proxy's, in place of TorchServe's
    "stream cut",  # all connections to the broker, and none can be made for a while; Pub/Sub's
    "leader cut",  # the broker that leads a partition hears and reaches nobody; so on of a cluster
    "follower cut",  # it and the leader do not hear each other, all others hear both
    "one-way cut",  # packets are dropped in one direction only
    "coordinator cut",  # a relay and the coordinator of its group, or of its transactions
    "disk full",  # a broker's
    "clock jump",  # a relay's wall clock
]

LEAST_COUNTS: Mapping[Kind, int] = {
    "relay killed": 60,
    "zombie": 20,
    "scale-up": 12,
    "broker killed": 6,
    "broker stopped": 3,
    "worker killed": 5,
    "service restarted": 2,
    "bad answers": 30,
}
"""How many of each, at least, in FULL_DURATION_S of Kafka; in a shorter run so much less."""

FULL_DURATION_S = 1200.0

SPARE_FACTOR = 1.1
"""So many times as many are scheduled: one that finds nothing to strike does not count."""

DURATIONS_S: Mapping[Kind, tuple[float, float]] = {
    "relay killed": (-6.0, 8.0),  # below 0: started again at once
    "zombie": (8.0, 10.0),
    "scale-up": (8.0, 25.0),
    "broker killed": (0.0, 3.0),
    "broker stopped": (0.0, 3.0),
    "worker killed": (0.0, 0.0),
    "service restarted": (0.0, 3.0),
    "bad answers": (0.0, 0.0),
    "stream cut": (-3.0, 3.0),  # below 0: a new connection can be made at once
    "leader cut": (8.0, 12.0),  # longer than a broker's session, and a relay's
    "follower cut": (8.0, 12.0),
    "one-way cut": (8.0, 12.0),
    "coordinator cut": (8.0, 12.0),
    "disk full": (6.0, 10.0),
    "clock jump": (6.0, 10.0),
}
"""The shortest and the longest, but for what stopping and starting take."""


class Fault(NamedTuple):
    """`at`: seconds after the start; `seconds`: how long; `target`: which of several."""

    at: float
    kind: Kind
    seconds: float
    target: int


def count_required(duration: float) -> dict[Kind, int]:
    """Return how many faults of each kind a run of so many seconds must reach."""
    return {kind: ceil(count * duration / FULL_DURATION_S) for kind, count in LEAST_COUNTS.items()}


def make_schedule(
    counts: Mapping[Kind, int], duration: float, targets: Mapping[Kind, int], random: Random
) -> list[Fault]:
    """Spread so many faults of each kind, and the spare ones, over the duration in seconds.

    `targets`: how many targets of a kind there are. Each kind strikes once in each of its equal
    parts of the duration, at a random moment of it, so the kinds meet in every combination.
    """
    faults = [
        Fault(
            (number + random.random()) * duration / count,
            kind,
            random.uniform(*DURATIONS_S[kind]),
            target,
        )
        for kind in get_args(Kind)
        for count in [round(counts.get(kind, 0) * SPARE_FACTOR)]
        for number, target in enumerate(_deal(count, targets.get(kind, 1), random))
    ]
    return sorted(faults)


def _deal(count: int, targets: int, random: Random) -> Sequence[int]:
    """Return so many targets, each about as often as every other, in random order."""
    dealt = [number % targets for number in range(count)]
    random.shuffle(dealt)
    return dealt
