"""One run: start everything, hurt it while the load lasts, let it finish, judge."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from tools.chaos.ledger import behind, examples
from tools.chaos.report import Report
from tools.chaos.scene import GROUP, KafkaScene, forget
from tools.chaos.victims import live
from tools.chaos.watch import committed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tools.chaos.plan import Kind
    from tools.chaos.scene import Scene, Settings, Witness

    Lives = Sequence[Future[Counter[Kind]]]
    Say = Callable[[str], None]

LOOK = 0.2  # seconds between two looks at how it goes
TOLD = 10.0  # seconds between two lines about it


def run(settings: Settings, folder: Path, say: Say) -> Report:
    """Do one run; the relays' logs stay in `folder`, and what Kafka wrote if the promise broke.

    Raises StackError when a server fails.
    """
    say(f"seed {settings.seed}; starting Kafka and TorchServe")
    with ExitStack() as stack:
        scene = KafkaScene.set(settings, folder, stack)
        with suffering(scene, say) as lives:
            ended = await_the_end(scene, lives, say)
        say("the relays leave, and the last outcomes are read")
        part(scene)
        happened = sum((each.result() for each in lives), Counter())
        found = report(scene, happened, findings(scene, ended=ended))
    if found.kept:
        forget(folder)
    return found


@contextmanager
def suffering(scene: Scene, say: Say) -> Iterator[Lives]:
    """Begin, and let everybody live through their faults until the end of the block."""

    def tell(text: str) -> None:
        say(f"{scene.clock():7.1f} s  {text}")

    victims = scene.victims()
    with ThreadPoolExecutor(len(victims), "victim") as pool:
        scene.begin()
        try:
            yield [
                pool.submit(live, *each, scene.clock, scene.over, tell) for each in victims.items()
            ]
        finally:
            scene.over.set()


def await_the_end(scene: Scene, lives: Lives, say: Say) -> bool:
    """Return when load and faults are over and nothing is missing, or nothing more comes.

    False: it ended early, since a promise was broken and nobody wants to know the rest.
    """
    settings, watch, told = scene.settings, scene.watch, 0.0
    while not (scene.fed() and scene.complete()):
        for ended in (each for each in lives if each.done()):
            ended.result()
        watch.check()
        if scene.clock() > told + TOLD:
            told = scene.clock()
            say(f"{told:7.1f} s  {watch.ledger.entered:,} in, {watch.ledger.open:,} open")
        if settings.hasty and watch.ledger.broken:
            return False
        after = scene.clock() - settings.duration
        if min(after, watch.pulse.silence(time.monotonic())) > settings.patience:
            break
        time.sleep(LOOK)
    return True


def part(scene: Scene) -> None:
    """Let the relays leave, and the reader find what they published last."""
    for seat in scene.seats:
        if code := seat.leave():
            scene.exits[code] += 1
    await_quiet(scene.watch, scene.settings.quiet)


def await_quiet(watch: Witness, seconds: float) -> None:
    """Return when for so long no outcome has appeared."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        watch.check()
        if seen != watch.ledger.settled:
            seen, since = watch.ledger.settled, time.monotonic()
        time.sleep(LOOK)


def findings(scene: KafkaScene, *, ended: bool) -> dict[str, Sequence[object]]:
    """Judge; of a run that ended early nothing can be said to be lost."""
    ledger = scene.watch.ledger
    found: dict[str, Sequence[object]] = {**ledger.findings()}
    if not ended:
        return found | {"lost": ()}
    offsets = committed(scene.kafka.bootstrap_servers, GROUP)
    return found | {"partitions not committed": behind(ledger.ends(), offsets)}


def report(
    scene: KafkaScene, happened: Counter[Kind], found: dict[str, Sequence[object]]
) -> Report:
    """Say what happened."""
    watch, ledger, wanted = scene.watch, scene.watch.ledger, scene.settings.wanted()
    silence = watch.pulse.silence(time.monotonic()) if ledger.open > 0 else 0.0
    return Report(
        seed=scene.settings.seed,
        settings=asdict(scene.settings),
        records=scene.feeder.sent,
        results=ledger.results,
        dead_letters=ledger.dead_letters,
        poison=ledger.poison,
        seconds=round(scene.clock(), 1),
        longest_silence=round(max(watch.pulse.longest, silence), 1),
        wanted={str(kind): count for kind, count in wanted.items()},
        faults={str(kind): happened[kind] for kind in wanted},
        bad_answers={str(bad): count for bad, count in sorted(scene.proxy.given.items())},
        exits=dict(sorted(scene.exits.items())),
        findings={kind: len(broken) for kind, broken in found.items()},
        examples={kind: examples(broken) for kind, broken in found.items() if broken},
    )
