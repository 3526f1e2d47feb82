"""Which fault strikes whom, and when: drawn from a seed, before anything starts. Pure."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

Kind = Literal[
    "relay killed",  # SIGKILL, and started again
    "zombie",  # SIGSTOP for longer than the session, then SIGCONT
    "visit",  # one more relay joins, and leaves in good order
    "broker killed",
    "broker stopped",
    "worker killed",  # TorchServe's
    "service restarted",
    "bad answers",  # a proxy's, in place of TorchServe's
    "stream cut",  # all connections to the broker, and none can be made for a while; Pub/Sub's
]

WANTED: Mapping[Kind, int] = {
    "relay killed": 60,
    "zombie": 20,
    "visit": 12,
    "broker killed": 6,
    "broker stopped": 3,
    "worker killed": 5,
    "service restarted": 2,
    "bad answers": 30,
}
"""How many of each, at least, in `FULL` seconds of Kafka; in a shorter run so much less."""

FULL = 1200.0

SPARE = 1.1
"""So many more are planned: one that finds nobody to strike does not count."""

SECONDS: Mapping[Kind, tuple[float, float]] = {
    "relay killed": (-6.0, 8.0),  # below 0: started again at once
    "zombie": (8.0, 10.0),
    "visit": (8.0, 25.0),
    "broker killed": (0.0, 3.0),
    "broker stopped": (0.0, 3.0),
    "worker killed": (0.0, 0.0),
    "service restarted": (0.0, 3.0),
    "bad answers": (0.0, 0.0),
    "stream cut": (-3.0, 3.0),  # below 0: a new connection can be made at once
}
"""From when to when it lasts, but for what stopping and starting take."""


class Fault(NamedTuple):
    """`at`: seconds after the start; `seconds`: how long; `place`: which of several victims."""

    at: float
    kind: Kind
    seconds: float
    place: int


def wanted(duration: float) -> dict[Kind, int]:
    """How many faults of each kind a run of so many seconds must reach."""
    return {kind: ceil(count * duration / FULL) for kind, count in WANTED.items()}


def plan(
    counts: Mapping[Kind, int], duration: float, places: Mapping[Kind, int], random: Random
) -> list[Fault]:
    """Spread so many faults of each kind, and the spare ones, over the duration.

    `places`: how many victims of a kind there are. Each kind strikes once in each of its equal
    parts of the duration, at a random moment of it, so the kinds meet in every combination.
    """
    faults = [
        Fault(
            (number + random.random()) * duration / count,
            kind,
            random.uniform(*SECONDS[kind]),
            place,
        )
        for kind in get_args(Kind)
        for count in [round(counts.get(kind, 0) * SPARE)]
        for number, place in enumerate(_dealt(count, places.get(kind, 1), random))
    ]
    return sorted(faults)


def _dealt(count: int, places: int, random: Random) -> Sequence[int]:
    """As many places, each about as often as every other, in random order."""
    dealt = [number % places for number in range(count)]
    random.shuffle(dealt)
    return dealt
