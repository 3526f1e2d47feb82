"""Kafka's cases: one for `kills`, made from its flags, and one for each control."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.chaos.brokers.kafka.testbed import KafkaCase, KafkaTestbed
from tests.chaos.schedule import FULL_DURATION_S

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

SHORT = KafkaCase(duration=75.0, rate=150.0, outcome_timeout=25.0, stop_at_violation=True)

# A relay that is stopped while it waits for answers commits, when it goes on, what has become
# another relay's.
ZOMBIES = replace(SHORT, counts={"zombie": 14})

CONTROLS: Mapping[str, KafkaCase] = {
    # Partitions change hands while their records are still held.
    "late-generation": replace(SHORT, counts={"scale-up": 4, "zombie": 7}),
    "no-generation": ZOMBIES,
    "offsets-first": replace(SHORT, counts={"relay killed": 5}),
    "letters-outside": replace(ZOMBIES, poison=0.2),
    "abort-ignored": replace(SHORT, counts={"broker killed": 3}),
}

open_testbed = KafkaTestbed.open


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Cases.add_arguments`."""
    parser.add_argument(
        "--duration", type=float, default=FULL_DURATION_S, help="seconds of load and faults"
    )
    parser.add_argument("--rate", type=float, default=180.0, help="records a second")
    parser.add_argument("--partitions", type=int, default=9)
    parser.add_argument("--relays", type=int, default=3)


def select_cases(asked: argparse.Namespace, seed: int) -> Sequence[KafkaCase]:
    """See `Cases.select_cases`."""
    return [
        KafkaCase(
            duration=asked.duration,
            seed=seed,
            rate=asked.rate,
            partitions=asked.partitions,
            relays=asked.relays,
        )
    ]
