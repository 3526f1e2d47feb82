"""Two processes that try inputs, and one that watches them.

A worker says which input it works on before it begins; so one that hangs or dies is noticed, its
input is known, and another goes on behind it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.fuzz.judge import Judge, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

WORKERS = 2
REPORT_EVERY_S = 0.5
HANGS_AFTER_S = 30.0


class Plan(NamedTuple):
    """Which inputs: their formats in turn, a seed, and when to stop."""

    formats: tuple[str, ...]
    seed: int
    inputs: int
    seconds: float

    def format_of(self, index: int) -> str:
        """Return the format of an input."""
        return self.formats[index // WORKERS % len(self.formats)]


class Finding(NamedTuple):
    """An input with a fault."""

    format: str
    number: int
    fault: str


@dataclass(slots=True)
class Tally:
    """What was seen of one format."""

    inputs: int = 0
    passed: int = 0
    decoded: int = 0
    slowest_cpu_s: float = 0.0
    slowest_index: int = -1
    largest_mb: float = 0.0

    def add(self, index: int, verdict: Verdict) -> None:
        """Count an input."""
        self.inputs += 1
        self.passed += verdict.passed
        self.decoded += verdict.decoded
        self.largest_mb = max(self.largest_mb, verdict.growth_mb)
        if verdict.cpu_s > self.slowest_cpu_s:
            self.slowest_cpu_s, self.slowest_index = verdict.cpu_s, index

    def merge(self, other: Tally) -> None:
        """Add what another process saw."""
        self.inputs += other.inputs
        self.passed += other.passed
        self.decoded += other.decoded
        self.largest_mb = max(self.largest_mb, other.largest_mb)
        if other.slowest_cpu_s > self.slowest_cpu_s:
            self.slowest_cpu_s, self.slowest_index = other.slowest_cpu_s, other.slowest_index


@dataclass(slots=True)
class Report:
    """What was seen since the last report."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, name: str, index: int, verdict: Verdict) -> None:
        """Count an input, and keep it if something was wrong."""
        self.tallies.setdefault(name, Tally()).add(index, verdict)
        if verdict.fault:
            self.findings.append(Finding(name, index, verdict.fault))

    def merge(self, other: Report) -> None:
        """Add another report."""
        for name, tally in other.tallies.items():
            self.tallies.setdefault(name, Tally()).merge(tally)
        self.findings += other.findings

    @property
    def inputs(self) -> int:
        """How many inputs were tried."""
        return sum(tally.inputs for tally in self.tallies.values())


def work(plan: Plan, first: int, board: Any, pipe: Connection) -> None:  # noqa: ANN401 - a shared array
    """Try every second input from `first`; the main function of a worker."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libtiff tells what it thinks
    logging.disable(logging.CRITICAL)  # the handler logs each failure of its own
    judge, report = Judge(), Report()
    until, due = time.monotonic() + plan.seconds, time.monotonic() + REPORT_EVERY_S
    for index in range(first, plan.inputs, WORKERS):
        board[0], board[1] = index, int(time.monotonic() * 1000)
        name = plan.format_of(index)
        report.add(name, index, judge.judge(judge.make(name, plan.seed, index)))
        now = time.monotonic()
        if now > due or now > until:
            pipe.send(report)
            report, due = Report(), now + REPORT_EVERY_S
        if now > until:
            break
    pipe.send(report)
    pipe.send(None)


class Worker:
    """A process, what it works on, and what it reports."""

    def __init__(
        self,
        plan: Plan,
        first: int,
        target: Callable[[Plan, int, Any, Connection], None] = work,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._board = context.Array("q", [first, -1], lock=False)
        self._pipe, far = context.Pipe(duplex=False)
        self._process = context.Process(
            target=target, args=(plan, first, self._board, far), daemon=False
        )
        self._process.start()
        far.close()

    @property
    def index(self) -> int:
        """The input it works on, or the first that it will."""
        return int(self._board[0])

    def receive(self) -> Report | str | None:
        """Return a report; None when all is done; a word when it hangs or is dead.

        An empty report means that nothing is new.
        """
        try:
            if self._pipe.poll(0.05):
                report: Report | None = self._pipe.recv()
                return report
        except EOFError:
            self._process.join(5)
            return f"the worker died with {self._process.exitcode}"
        started = int(self._board[1])
        if 0 <= started < (time.monotonic() - HANGS_AFTER_S) * 1000:
            return f"the worker hung for {HANGS_AFTER_S:.0f} s"
        return Report()

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def run(
    plan: Plan, target: Callable[[Plan, int, Any, Connection], None] = work
) -> Iterator[Report]:
    """Yield what the workers report, until all is tried or the time is over."""
    until = time.monotonic() + plan.seconds
    workers = [Worker(plan, first, target) for first in range(WORKERS)]
    try:
        while workers:
            for place, worker in list(enumerate(workers))[::-1]:
                said = worker.receive()
                if isinstance(said, Report):
                    yield said
                    continue
                worker.stop()
                workers.pop(place)
                if said is not None:
                    index = worker.index
                    yield Report({}, [Finding(plan.format_of(index), index, said)])
                    left = until - time.monotonic()
                    if left > 0 and index + WORKERS < plan.inputs:
                        rest = plan._replace(seconds=left)
                        workers.append(Worker(rest, index + WORKERS, target))
    finally:
        for worker in workers:
            worker.stop()
