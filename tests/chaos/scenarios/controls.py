"""Negative controls: relays with one known bug each, and the faults that it cannot bear.

The promise must be found broken each time. A bug that stays unnoticed shows that the harness is
too weak.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.brokers import load_cases
from tests.chaos.patched import make_program, require_patch
from tests.chaos.runner import run_case
from tests.chaos.testbed import start_service
from tests.chaos.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.report import Report
    from tests.chaos.testbed import Service


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:
    """See `Scenario.add_arguments`."""
    known = list(load_cases(broker).CONTROLS)
    text = f"{', '.join(known)}; default: all"
    parse = partial(parse_bug, known)
    parser.add_argument("bugs", nargs="*", metavar="BUG", type=parse, default=[], help=text)
    parser.add_argument("--seed", type=int, default=1)


def parse_bug(known: Sequence[str], name: str) -> str:
    """Return the name of a control; raises ArgumentTypeError when there is none of that name."""
    if name not in known:
        raise argparse.ArgumentTypeError(f"there is no control {name}")
    return name


def run(asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Verdict:  # noqa: ARG001 - logs of a bug are no use
    """See `Scenario.run`."""
    return run_controls(asked.broker, asked.bugs, asked.seed, say)


def run_controls(
    broker: str, bugs: Sequence[str], seed: int, say: Callable[[str], None]
) -> Verdict:
    """Run the relays with each of these bugs, or with all if none is named."""
    chosen = bugs or list(load_cases(broker).CONTROLS)
    for bug in chosen:
        require_patch(bug, broker)
    found: dict[str, str] = {}
    missed: list[str] = []
    with start_service() as service:
        for bug in chosen:
            report = run_control(broker, bug, service, seed, say)
            found[bug] = describe_detection(report)
            say(f"{bug}: {found[bug]}")
            if not is_noticed(report):
                missed.append(f"{bug} was not noticed")
    return Verdict(found, missed)


def run_control(
    broker: str, bug: str, service: Service, seed: int, say: Callable[[str], None]
) -> Report:
    """Run the relays with one bug; the report should say that the promise was broken."""
    cases = load_cases(broker)
    case = replace(cases.CONTROLS[bug], seed=seed, program=make_program(bug))
    with tempfile.TemporaryDirectory(prefix="fmnist-control-") as folder:
        return run_case(partial(cases.open_testbed, case, service, Path(folder)), say)


def is_noticed(report: Report) -> bool:
    """Say whether the promise was broken, by relays that did work."""
    return not report.kept and report.results > 0


def describe_detection(report: Report) -> str:
    """Say in one line how a bug was noticed, or that it was not."""
    broken = [
        f"{count} {kind} ({report.examples.get(kind, '')})"
        for kind, count in report.findings.items()
        if count
    ]
    how = ", ".join(broken) if is_noticed(report) else "NOT NOTICED"
    if not report.results:
        how += ", since the relays answered nothing"
    return f"{how}; {report.records} records, {report.seconds:.0f} s"
