"""One run: start everything, inject faults while the load lasts, let it finish, check."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.chaos.targets import run_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.chaos.observer import Observer
    from tests.chaos.report import Report
    from tests.chaos.schedule import Kind
    from tests.chaos.testbed import Testbed

    FaultRuns = Sequence[Future[Counter[Kind]]]
    Say = Callable[[str], None]

CHECK_INTERVAL_S = 0.2
STATUS_INTERVAL_S = 10.0


def run_case(open_testbed: Callable[[ExitStack], Testbed], say: Say) -> Report:
    """Do one run on the testbed that `open_testbed` makes; raises StackError when a server fails.

    What is kept to find out what went wrong stays only if the promise was broken.
    """
    with ExitStack() as stack:
        testbed = open_testbed(stack)
        with inject_faults(testbed, say) as runs:
            ended = wait_for_end(testbed, runs, say)
        say("the relays leave, and the last outcomes are read")
        stop_relays(testbed)
        happened = sum((each.result() for each in runs), Counter())
        report = testbed.make_report(happened, testbed.find_violations(ended=ended))
    if report.kept:
        testbed.discard()
    return report


@contextmanager
def inject_faults(testbed: Testbed, say: Say) -> Iterator[FaultRuns]:
    """Begin, and strike each target by the schedule, in a thread each, until the block ends."""

    def say_when(text: str) -> None:
        say(f"{testbed.clock():7.1f} s  {text}")

    faults = testbed.assign_faults()
    with ThreadPoolExecutor(len(faults), "faults") as pool:
        testbed.begin()
        try:
            yield [
                pool.submit(run_faults, *each, testbed.clock, testbed.over, say_when)
                for each in faults.items()
            ]
        finally:
            testbed.over.set()


def wait_for_end(testbed: Testbed, runs: FaultRuns, say: Say) -> bool:
    """Return when load and faults are over and nothing is missing, or nothing more comes.

    False: it ended early, since a promise was broken and nobody wants to know the rest.
    """
    case, observer, status_at = testbed.case, testbed.observer, STATUS_INTERVAL_S
    while not (testbed.has_ended_load() and testbed.is_complete()):
        for ended in (each for each in runs if each.done()):
            ended.result()
        observer.check()
        if (now := testbed.clock()) > status_at:
            status_at = now + STATUS_INTERVAL_S
            say(f"{now:7.1f} s  {observer.log.inputs:,} in, {observer.log.missing:,} open")
        if case.stop_at_violation and observer.log.violated:
            return False
        if min(testbed.clock() - case.duration, observer.idle()) > case.outcome_timeout:
            break
        time.sleep(CHECK_INTERVAL_S)
    return True


def stop_relays(testbed: Testbed) -> None:
    """Let the relays leave, and the observer find what they published last."""
    for relay in testbed.relays:
        if code := relay.stop():
            testbed.exits[code] += 1
    wait_for_quiet(testbed.observer, testbed.case.quiet)


def wait_for_quiet(observer: Observer, seconds: float) -> None:
    """Return when no outcome has appeared for so long."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        observer.check()
        if seen != observer.log.outcomes:
            seen, since = observer.log.outcomes, time.monotonic()
        time.sleep(CHECK_INTERVAL_S)
