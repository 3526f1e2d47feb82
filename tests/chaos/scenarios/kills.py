"""Relays, broker and TorchServe are killed, stopped and cut off, at random, while a load comes in.

On Kafka the promise is exactly once; on Pub/Sub, in four cases, at least once.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.chaos.brokers import load_cases
from tests.chaos.runner import run_case
from tests.chaos.scenarios.controls import run_controls
from tests.chaos.testbed import start_service

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.chaos.report import Report
    from tests.chaos.verdict import Result


class Reports(NamedTuple):
    """What several cases have shown."""

    cases: Sequence[Report]

    @property
    def passed(self) -> bool:
        """See `Result.passed`."""
        return all(one.passed for one in self.cases)

    def to_dict(self) -> dict[str, Any]:
        """See `Result.to_dict`."""
        return {"passed": self.passed, "cases": [one.to_dict() for one in self.cases]}

    def render(self) -> str:
        """See `Result.render`."""
        return "\n\n".join(one.render() for one in self.cases)


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:
    """See `Scenario.add_arguments`."""
    parser.add_argument("--seed", type=int, help="of the faults; default: a random one")
    cases = load_cases(broker)
    known = list(cases.CONTROLS)
    parser.add_argument("--control", choices=known, help="the same as the scenario controls")
    cases.add_arguments(parser)


def run(asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Result:
    """See `Scenario.run`; Kafka's one case is its own report."""
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    if asked.control:
        return run_controls(asked.broker, [asked.control], asked.seed or 1, say)
    broker = load_cases(asked.broker)
    cases = broker.select_cases(asked, seed)
    reports = []
    with start_service() as service:
        for case in cases:
            say(f"case {case.name}, {case.count_inputs():,} records, seed {case.seed}")
            reports.append(run_case(partial(broker.open_testbed, case, service, folder), say))
    return Reports(reports) if asked.broker == "pubsub" else reports[0]
