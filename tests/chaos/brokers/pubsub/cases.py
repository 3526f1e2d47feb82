"""Pub/Sub's cases: four for `kills`, and one for each control."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from tests.chaos.brokers.pubsub.testbed import PubSubCase, PubSubTestbed

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

CASES = [
    # 20,000 messages, and relays that die while they hold some.
    PubSubCase(name="kills", duration=100.0, rate=200.0, counts={"relay killed": 10}),
    # 200 messages of each key, and their order.
    PubSubCase(name="keys", duration=100.0, rate=100.0, keys=50, counts={"relay killed": 5}),
    # A service that takes 90 s, and a lease of 10 that must be renewed again and again.
    PubSubCase(
        name="slow",
        duration=1.0,
        rate=300.0,
        delay=90.0,
        relays=1,
        flags=("--timeout", "120"),
        outcome_timeout=200.0,
        silence=200.0,
        once=True,
        counts={},
    ),
    # The stream and all other connections to Pub/Sub break, and stay broken for up to 3 s.
    PubSubCase(name="cuts", duration=60.0, rate=200.0, counts={"stream cut": 10}),
]

NO_FAULTS = PubSubCase(name="no-faults", duration=5.0, rate=100.0, counts={}, outcome_timeout=25.0)
# Each message is held for longer than its lease.
SLOW = replace(NO_FAULTS, name="slow", duration=0.5, relays=1, delay=15.0, once=True)

CONTROLS: Mapping[str, PubSubCase] = {
    # The relays are killed while they wait for answers.
    "acknowledged-first": replace(
        NO_FAULTS, name="kills", duration=20.0, rate=150.0, counts={"relay killed": 4}
    ),
    "given-back": SLOW,
    "leases-lapse": SLOW,
    "new-ids": NO_FAULTS,
    "keys-dropped": replace(NO_FAULTS, keys=10),
}

open_testbed = PubSubTestbed.open


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Cases.add_arguments`."""
    names = [case.name for case in CASES]
    parser.add_argument(
        "--case", dest="cases", action="append", choices=names, help="repeated; default: all"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of length and number of faults")


def select_cases(asked: argparse.Namespace, seed: int) -> Sequence[PubSubCase]:
    """See `Cases.select_cases`."""
    names = asked.cases or [case.name for case in CASES]
    return [replace(scale_case(c, asked.scale), seed=seed) for c in CASES if c.name in names]


def scale_case(case: PubSubCase, scale: float) -> PubSubCase:
    """Return a shorter or longer case, with fewer or more faults."""
    counts = {kind: ceil(count * scale) for kind, count in case.count_required().items()}
    return replace(case, duration=case.duration * scale, counts=counts)
