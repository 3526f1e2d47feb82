"""TorchServe is away under load: `python -m tools.chaos.outage`, or `make outage`.

It is killed, stays away, and is started again; somebody outside the relays asks it by hand until it
predicts. Exit code 0 only if no record was lost, doubled or blamed, the group had no rebalance, and
the goodput was back within 5 s of that first prediction. Needs Kafka, TorchServe and the archive.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import requests

from tools.chaos.groups import generations
from tools.chaos.load import PICTURES
from tools.chaos.meter import HELD, Sample, back_after, count_at, metered, rate
from tools.chaos.run import findings, part
from tools.chaos.scene import GROUP, KafkaScene, Settings, forget
from tools.chaos.verdict import Verdict, concluded, logs_of
from tools.stack import ROOT, StackError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BEFORE = 15.0  # seconds before the outage, once the relays keep up, in which goodput is measured
JOINING = 30.0  # seconds for the relays to start and to keep up
AFTER = 45.0  # seconds of load from the restart on; TorchServe needs some 10 of them
SHARE = 0.9  # of the goodput before that counts as back
WITHIN = 5.0  # seconds
POLL = 0.05  # seconds between two questions by hand
PATIENCE = 120.0  # seconds


class Times(NamedTuple):
    """Moments of a run, in monotonic seconds."""

    gone: float
    started: float
    predicts: float


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"outage: {text}", flush=True)


def run(settings: Settings, away: float, folder: Path) -> Verdict:
    """Do one run; the relays' logs stay in `folder`. Raises StackError when a server fails."""
    say("starting Kafka and TorchServe")
    with ExitStack() as stack:
        scene = KafkaScene.set(settings, folder, stack)
        samples = stack.enter_context(metered(lambda: scene.watch.ledger.settled))
        scene.begin()
        scene.over.wait(JOINING)
        say(f"{settings.relays} relays, {settings.rate:g} records/s")
        scene.over.wait(BEFORE)
        servers = scene.kafka.bootstrap_servers
        before = generations(servers, GROUP)
        times = outage(scene, away)
        await_all(scene, times.predicts + HELD + WITHIN)
        after = generations(servers, GROUP)
        part(scene)
        broken = {kind: len(found) for kind, found in findings(scene, ended=True).items()}
        figures = measured(scene, samples, times) | {
            "generation_before": max(before, default=None),
            "generation_after": max(after, default=None),
        }
    if not any(broken.values()):
        forget(folder)
    return Verdict(figures | broken, complaints(figures, broken))


def outage(scene: KafkaScene, away: float) -> Times:
    """Kill TorchServe, wait, start it again, and ask by hand until it predicts."""
    scene.server.process.kill()
    gone = time.monotonic()
    say(f"{scene.clock():5.1f} s  TorchServe is away, for {away:g} s")
    scene.over.wait(away)
    scene.server.start()
    started = time.monotonic()
    predicts = by_hand(scene.server.url)
    say(f"{scene.clock():5.1f} s  it predicts, {predicts - started:.1f} s after its start")
    return Times(gone, started, predicts)


def by_hand(url: str) -> float:
    """Return when the service answered its first question."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if requests.post(url, data=PICTURES[0], timeout=2).ok:
                return time.monotonic()
        except requests.RequestException:
            pass
        time.sleep(POLL)
    raise StackError(f"TorchServe did not predict within {PATIENCE:g} s of its start")


def await_all(scene: KafkaScene, least: float) -> None:
    """Return when all outcomes are there, not before `least`; or when none comes any more."""
    while time.monotonic() < least or not (scene.fed() and scene.complete()):
        scene.watch.check()
        if scene.fed() and scene.watch.pulse.silence(time.monotonic()) > scene.settings.patience:
            return
        scene.over.wait(POLL)


def measured(scene: KafkaScene, samples: Sequence[Sample], times: Times) -> dict[str, object]:
    """What was measured, by name; seconds, from the first prediction by hand on."""
    before = rate(samples, times.gone - BEFORE, times.gone)
    since, stalled = times.predicts, count_at(samples, times.started)
    first = next((one.at - since for one in samples if one.total > stalled), None)
    back = back_after(samples, since, SHARE * before)
    shown = [one for one in samples if -1 < one.at - since < 2 * HELD]
    return {
        "relays": scene.settings.relays,
        "records": scene.feeder.sent,
        "records_per_second": scene.settings.rate,
        "away_seconds": round(times.started - times.gone, 1),
        "start_to_prediction_seconds": round(since - times.started, 1),
        "goodput_before": round(before, 1),
        "first_outcome_after_seconds": None if first is None else round(first, 2),
        "goodput_back_after_seconds": None if back is None else round(back, 2),
        "goodput_of_the_next_10_seconds": round(rate(samples, since, since + HELD), 1),
        "dead_letters": scene.watch.ledger.dead_letters,
        "outcomes": [(round(one.at - since, 2), one.total) for one in shown],
    }


def complaints(figures: Mapping[str, Any], broken: Mapping[str, int]) -> list[str]:
    """What was not as promised, a sentence each; `broken`: records, by the way it was broken."""
    back, before = figures["goodput_back_after_seconds"], figures["generation_before"]
    late = back is None or back > WITHIN
    slow = figures["goodput_before"] < SHARE * figures["records_per_second"]
    moved = before is None or figures["generation_after"] != before
    found = {
        f"{figures['dead_letters']} dead letters": figures["dead_letters"],
        f"the goodput was not back within {WITHIN:g} s": late,
        "the group had a rebalance, or its generation is not known": moved,
        "the relays did not keep up before the outage: ask for fewer records a second": slow,
        **{f"{count} {kind}": count for kind, count in broken.items()},
    }
    return [sentence for sentence, wrong in found.items() if wrong]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.chaos.outage", description=__doc__)
    made.add_argument("--away", type=float, default=60.0, help="seconds without TorchServe")
    made.add_argument("--rate", type=float, default=240.0, help="records a second")
    made.add_argument("--relays", type=int, default=3)
    made.add_argument("--partitions", type=int, default=9)
    made.add_argument("--output", type=Path, default=ROOT / "run" / "outage.json")
    return made


def main(argv: list[str] | None = None) -> int:
    """Do one run; return the exit code."""
    asked = parser().parse_args(argv)
    settings = Settings(
        duration=JOINING + BEFORE + asked.away + AFTER,
        rate=asked.rate,
        relays=asked.relays,
        partitions=asked.partitions,
        poison=0.0,
        delay=0.0,
        proxied=False,
        counts={},
    )
    folder = logs_of(asked.output)
    return concluded(lambda: run(settings, asked.away, folder), asked.output, say)


if __name__ == "__main__":
    sys.exit(main())
