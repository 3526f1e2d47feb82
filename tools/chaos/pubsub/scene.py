"""Who takes part: the emulator behind a cable, a service behind a proxy, load, reader, relays."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tools.chaos.answers import AnswerProxy, Heard, serving
from tools.chaos.load import Feeder, inputs
from tools.chaos.pubsub.cable import Cable, laid
from tools.chaos.pubsub.load import PubSubOutlet, tagged, tags
from tools.chaos.pubsub.watch import PubSubWatch
from tools.chaos.scene import Scene, Settings
from tools.chaos.victims import Seat, Victim
from tools.chaos.watch import Topics
from tools.demo import await_relaying
from tools.stack_pubsub import HOST, Emulator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager, ExitStack
    from pathlib import Path

    from tools.chaos.plan import Kind

TOPICS = Topics("images", "predictions", "images-dead")
ACK_DEADLINE = 10
"""Seconds, the least that the service takes; so late comes again what a killed relay held."""


@dataclass(frozen=True, kw_only=True)
class Case(Settings):
    """What is run on Pub/Sub.

    `name`: of the case. `keys`: ordering keys that take turns; 0: none. `flags`: more of the
    relay's. `once`: nothing may be asked of the service twice. `silence`: the longest time without
    an outcome that is not too long, seconds.
    """

    name: str
    relays: int = 2
    quiet: float = 2.0
    keys: int = 0
    flags: tuple[str, ...] = ()
    once: bool = False
    silence: float = 60.0


class CountingProxy(AnswerProxy):
    """Counts how often it is asked for each record."""

    def __init__(self, target: str, delay: float) -> None:
        super().__init__(target, delay)
        self.asked: Counter[int] = Counter()
        self._lock = threading.Lock()

    def noted(self, kind: str, body: bytes) -> AbstractContextManager[Heard]:
        """See `AnswerProxy`."""
        with self._lock:
            self.asked.update(tags(body))
        return super().noted(kind, body)


@dataclass(kw_only=True)
class PubSubScene(Scene):
    """Relays between Google's emulator and a real TorchServe."""

    settings: Case
    proxy: CountingProxy
    watch: PubSubWatch
    cable: Cable

    @classmethod
    def set(
        cls, case: Case, url: str, classes: Mapping[bytes, int], folder: Path, stack: ExitStack
    ) -> Self:
        """Start the emulator, and make the rest ready; all of it ends with `stack`."""
        emulator = stack.enter_context(Emulator())
        for topic in TOPICS:
            emulator.create_topic(topic)
            emulator.create_subscription(
                topic, topic, ordering=bool(case.keys), ack_deadline=ACK_DEADLINE
            )
        cable = stack.enter_context(laid(emulator.host))
        proxy = stack.enter_context(serving(CountingProxy(url, case.delay)))
        watch = PubSubWatch(emulator, TOPICS, case.keys, classes)
        stack.callback(watch.close)
        load = inputs(case.records(), case.keys or 1, case.poison, case.chance("load"))
        outlet = PubSubOutlet(emulator, TOPICS.images, case.keys, watch.enter)
        feeder = Feeder(outlet, tagged(load), case.rate)
        stack.callback(feeder.close)
        argv = relay_argv(case, emulator.project, proxy.url)
        env, exits = {**os.environ, HOST: cable.address}, Counter[int]()
        names = [f"{case.name}-{one}" for one in range(case.relays)]
        seats = [Seat(name, argv, folder, exits, env) for name in names]
        for seat in seats:
            stack.callback(seat.end)
        return cls(
            settings=case,
            proxy=proxy,
            watch=watch,
            feeder=feeder,
            seats=seats,
            exits=exits,
            cable=cable,
        )

    def begin(self) -> None:
        """See `Scene`; first the relays make themselves ready, so that kills find them at work."""
        for seat in self.seats:
            seat.take()
        for seat in self.seats:
            await_relaying(seat.process)
        self.watch.start()
        self.started = time.monotonic()
        self.feeder.start()

    def struck(self) -> dict[Kind, Sequence[Victim]]:
        """See `Scene`."""
        return {"relay killed": self.seats, "stream cut": [self.cable]}


def relay_argv(case: Case, project: str, url: str) -> list[str]:
    """The command of a relay."""
    flags = ["--project", project, "--subscription", TOPICS.images]
    flags += ["--output-topic", TOPICS.predictions, "--dead-letter-topic", TOPICS.dead]
    flags += ["--ack-deadline", str(ACK_DEADLINE)]
    return [sys.executable, "-m", *case.program, "pubsub", *flags, "--url", url, *case.flags]
