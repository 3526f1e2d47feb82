"""One case: start everything, hurt it while the load lasts, let it finish, judge."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from tools.chaos.ledger import examples
from tools.chaos.pubsub.ledger import asked_again
from tools.chaos.pubsub.report import CaseReport
from tools.chaos.pubsub.scene import Case, PubSubScene
from tools.chaos.run import await_the_end, part, suffering

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tools.chaos.plan import Kind

    Say = Callable[[str], None]


def run(case: Case, url: str, classes: Mapping[bytes, int], folder: Path, say: Say) -> CaseReport:
    """Do one case against the service at `url`; the relays' logs stay in `folder`.

    `classes`: what the model says of each picture of the load. Raises StackError when the emulator
    fails.
    """
    say(f"{case.name}: {case.records():,} messages, seed {case.seed}")
    with ExitStack() as stack:
        scene = PubSubScene.set(case, url, classes, folder, stack)
        with suffering(scene, say) as lives:
            ended = await_the_end(scene, lives, say)
        part(scene)
        happened = sum((each.result() for each in lives), Counter())
        return report(scene, happened, findings(scene, ended=ended))


def findings(scene: PubSubScene, *, ended: bool) -> Mapping[str, Sequence[object]]:
    """Judge; of a run that ended early nothing can be said to be lost."""
    found: dict[str, Sequence[object]] = {**scene.watch.ledger.findings()}
    if not ended:
        found["lost"] = ()
    if scene.settings.once:
        found["asked again"] = asked_again(scene.proxy.asked)
    return found


def report(
    scene: PubSubScene, happened: Counter[Kind], found: Mapping[str, Sequence[object]]
) -> CaseReport:
    """Say what happened."""
    case, watch, ledger = scene.settings, scene.watch, scene.watch.ledger
    silence = watch.pulse.silence(time.monotonic()) if ledger.open > 0 else 0.0
    return CaseReport(
        case=case.name,
        seed=case.seed,
        settings=asdict(case),
        records=scene.feeder.sent,
        results=ledger.results,
        dead_letters=ledger.dead_letters,
        poison=ledger.poison,
        seconds=round(scene.clock(), 1),
        longest_silence=round(max(watch.pulse.longest, silence), 1),
        silence=case.silence,
        wanted={str(kind): count for kind, count in case.wanted().items()},
        faults={str(kind): happened[kind] for kind in case.wanted()},
        bad_answers={},
        exits=dict(sorted(scene.exits.items())),
        findings={kind: len(broken) for kind, broken in found.items()},
        examples={kind: examples(broken) for kind, broken in found.items() if broken},
        doubled=ledger.doubled,
        asked=scene.proxy.asked.total(),
        asked_again=len(asked_again(scene.proxy.asked)),
    )
