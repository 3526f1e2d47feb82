"""TorchServe is away under load: it is killed, stays away, and is started again.

Somebody outside the relays asks it by hand until it predicts. No record may be lost, doubled or
blamed, the group may have no rebalance, and the goodput must be back within 5 s of that first
prediction.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import requests

from tests.chaos.brokers.kafka.groups import list_generations
from tests.chaos.brokers.kafka.testbed import GROUP, KafkaCase, KafkaTestbed
from tests.chaos.goodput import (
    STABLE_S,
    Sample,
    compute_rate,
    count_at,
    find_recovery,
    sample_outcomes,
)
from tests.chaos.load import PICTURES
from tests.chaos.runner import stop_relays
from tests.chaos.testbed import start_service
from tests.chaos.verdict import Verdict, list_violations
from tools.servers.process import StackError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

JOINING_S = 30.0  # for the relays to start and to keep up
BEFORE_S = 15.0  # before the outage, once the relays keep up, in which goodput is measured
AFTER_S = 45.0  # of load from the restart on; TorchServe needs some 10 of them
RECOVERED_SHARE = 0.9  # of the goodput before, which counts as back
MAX_RECOVERY_S = 5.0
POLL_INTERVAL_S = 0.05  # between two questions by hand
START_TIMEOUT_S = 120.0


class Times(NamedTuple):
    """Moments of a run, in monotonic seconds."""

    gone: float
    started: float
    predicts: float


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:  # noqa: ARG001 - Kafka's
    """See `Scenario.add_arguments`."""
    parser.add_argument("--away", type=float, default=60.0, help="seconds without TorchServe")
    parser.add_argument("--rate", type=float, default=240.0, help="records a second")
    parser.add_argument("--relays", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=9)


def run(asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Verdict:
    """See `Scenario.run`."""
    case = KafkaCase(
        duration=JOINING_S + BEFORE_S + asked.away + AFTER_S,
        rate=asked.rate,
        relays=asked.relays,
        partitions=asked.partitions,
        poison=0.0,
        delay=0.0,
        proxied=False,
        counts={},
    )
    return run_outage(case, asked.away, folder, say)


def run_outage(case: KafkaCase, away: float, folder: Path, say: Callable[[str], None]) -> Verdict:
    """Do one run; the relays' logs stay in `folder`. `away`: seconds."""
    say("starting Kafka and TorchServe")
    with ExitStack() as stack:
        service = stack.enter_context(start_service())
        testbed = KafkaTestbed.open(case, service, folder, stack)
        samples = stack.enter_context(sample_outcomes(testbed.observer.log))
        testbed.begin()
        testbed.over.wait(JOINING_S)
        say(f"{case.relays} relays, {case.rate:g} records/s")
        testbed.over.wait(BEFORE_S)
        servers = testbed.kafka.bootstrap_servers
        before = list_generations(servers, GROUP)
        times = take_away(testbed, away, say)
        wait_for_all(testbed, times.predicts + STABLE_S + MAX_RECOVERY_S)
        after = list_generations(servers, GROUP)
        stop_relays(testbed)
        violations = testbed.find_violations(ended=True)
        broken = {kind: len(found) for kind, found in violations.items()}
        figures = measure(testbed, samples, times) | {
            "generation_before": max(before, default=None),
            "generation_after": max(after, default=None),
        }
    if not any(broken.values()):
        testbed.discard()
    return Verdict(figures | broken, find_complaints(figures, broken))


def take_away(testbed: KafkaTestbed, away: float, say: Callable[[str], None]) -> Times:
    """Kill TorchServe, wait, start it again, and ask by hand until it predicts."""
    server = testbed.service.server
    server.process.kill()
    gone = time.monotonic()
    say(f"{testbed.clock():5.1f} s  TorchServe is away, for {away:g} s")
    testbed.over.wait(away)
    server.start()
    started = time.monotonic()
    predicts = ask_by_hand(server.url)
    say(f"{testbed.clock():5.1f} s  it predicts, {predicts - started:.1f} s after its start")
    return Times(gone, started, predicts)


def ask_by_hand(url: str) -> float:
    """Return when the service answered its first question, in monotonic seconds."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if requests.post(url, data=PICTURES[0], timeout=2).ok:
                return time.monotonic()
        except requests.RequestException:
            pass
        time.sleep(POLL_INTERVAL_S)
    raise StackError(f"TorchServe did not predict within {START_TIMEOUT_S:g} s of its start")


def wait_for_all(testbed: KafkaTestbed, least: float) -> None:
    """Return when all outcomes are there, not before `least`; or when none comes any more.

    `least`: monotonic seconds.
    """
    while time.monotonic() < least or not (testbed.has_ended_load() and testbed.is_complete()):
        testbed.observer.check()
        if testbed.has_ended_load() and testbed.observer.idle() > testbed.case.outcome_timeout:
            return
        testbed.over.wait(POLL_INTERVAL_S)


def measure(testbed: KafkaTestbed, samples: Sequence[Sample], times: Times) -> dict[str, object]:
    """Return what was measured, by name; seconds, from the first prediction by hand on."""
    before = compute_rate(samples, times.gone - BEFORE_S, times.gone)
    since, stalled = times.predicts, count_at(samples, times.started)
    first = next((one.at - since for one in samples if one.total > stalled), None)
    back = find_recovery(samples, since, RECOVERED_SHARE * before)
    around = [one for one in samples if -1 < one.at - since < 2 * STABLE_S]
    return {
        "relays": testbed.case.relays,
        "records": testbed.load.sent,
        "records_per_second": testbed.case.rate,
        "away_seconds": round(times.started - times.gone, 1),
        "start_to_prediction_seconds": round(since - times.started, 1),
        "goodput_before": round(before, 1),
        "first_outcome_after_seconds": None if first is None else round(first, 2),
        "goodput_back_after_seconds": None if back is None else round(back, 2),
        "goodput_of_the_next_10_seconds": round(compute_rate(samples, since, since + STABLE_S), 1),
        "dead_letters": testbed.observer.log.dead_letters,
        "outcomes": [(round(one.at - since, 2), one.total) for one in around],
    }


def find_complaints(figures: Mapping[str, Any], broken: Mapping[str, int]) -> list[str]:
    """Return what was not as promised, a sentence each; `broken`: records, by way."""
    back, before = figures["goodput_back_after_seconds"], figures["generation_before"]
    late = back is None or back > MAX_RECOVERY_S
    slow = figures["goodput_before"] < RECOVERED_SHARE * figures["records_per_second"]
    moved = before is None or figures["generation_after"] != before
    found = {
        f"{figures['dead_letters']} dead letters": figures["dead_letters"],
        f"the goodput was not back within {MAX_RECOVERY_S:g} s": late,
        "the group had a rebalance, or its generation is not known": moved,
        "the relays did not keep up before the outage: ask for fewer records a second": slow,
    }
    return [*(sentence for sentence, wrong in found.items() if wrong), *list_violations(broken)]
