"""Whom the faults strike: relays, Kafka, TorchServe and its answers; always from outside.

A victim is supervised: what ended by itself is started again, as an operator would have it.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, get_args

import requests

from tools.chaos.answers import AnswerProxy, Bad
from tools.stack import PORTS, ROOT, Process, StackError, TorchServe, check_free

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from random import Random
    from threading import Event

    from tools.chaos.plan import Fault, Kind
    from tools.stack_kafka import Kafka

LOOK = 0.5  # seconds between two looks of a supervisor
LEAVING = 40.0  # seconds; a drain takes 25 at the longest
READY = 60.0  # seconds for a worker to come back


class Victim(Protocol):
    """Somebody that faults strike, one at a time."""

    name: str

    def suffer(self, fault: Fault, over: Event) -> bool:
        """Strike, wait, restore, unless it is `over`; say whether it happened."""
        ...

    def look_after(self) -> None:
        """Start again what ended by itself."""
        ...


class Seat:
    """A place for one relay: its command, and a process if it is taken."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        folder: Path,
        exits: Counter[int],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.process = Process(argv, folder / f"{name}.log", env, cwd=ROOT)
        self.taken = False
        self._exits = exits  # by themselves, by code

    def take(self) -> None:
        """Start a relay."""
        self.process.start()
        self.taken = True

    def leave(self) -> int:
        """End it in good order; return its exit code."""
        self.taken = False
        self.process.signal(signal.SIGCONT)
        self.process.stop(LEAVING)
        return self.process.child.wait(LEAVING)

    def end(self) -> None:
        """Leave nothing behind."""
        if hasattr(self.process, "child"):
            self.process.kill()

    def look_after(self) -> None:
        """Start it again if it ended by itself."""
        if self.taken and not self.process.alive():
            self._exits[self.process.child.returncode] += 1
            self.process.start()

    def killed(self, seconds: float, over: Event) -> bool:
        """SIGKILL, and a successor of the same name."""
        happened = self.process.alive()
        self.process.kill()
        over.wait(seconds)
        self.process.start()
        return happened

    def zombie(self, seconds: float, over: Event) -> bool:
        """SIGSTOP, and SIGCONT when everybody has gone on without it."""
        happened = self.process.alive()
        self.process.signal(signal.SIGSTOP)
        over.wait(seconds)
        self.process.signal(signal.SIGCONT)
        return happened

    def suffer(self, fault: Fault, over: Event) -> bool:
        """See `Victim`."""
        return (self.killed if fault.kind == "relay killed" else self.zombie)(fault.seconds, over)


class Guest(Seat):
    """One more relay, which comes and goes."""

    def suffer(self, fault: Fault, over: Event) -> bool:
        """See `Victim`."""
        self.take()
        until = time.monotonic() + fault.seconds
        while time.monotonic() < until and not over.wait(LOOK):
            self.look_after()
        return self.leave() == 0


class Broker:
    """Kafka, one node: bounced on the same ports and data."""

    name = "Kafka"

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    def suffer(self, fault: Fault, over: Event) -> bool:
        """See `Victim`."""
        end: Callable[[], None] = (
            self._kafka.kill if fault.kind == "broker killed" else self._kafka.stop
        )
        end()
        over.wait(fault.seconds)
        self._kafka.start(120)
        return True

    def look_after(self) -> None:
        """It has no reason to end by itself."""
        if not self._kafka.process.alive():
            raise StackError(f"Kafka has ended; its last words:\n{self._kafka.process.tail()}")


class Service:
    """TorchServe and its worker."""

    name = "TorchServe"

    def __init__(self, server: TorchServe) -> None:
        self._server = server

    def suffer(self, fault: Fault, over: Event) -> bool:
        """See `Victim`."""
        if fault.kind == "worker killed":
            return self._kill_worker(over)
        self._server.process.stop()
        over.wait(fault.seconds)
        self._await_ports()
        self._server.start().wait()
        return True

    def _await_ports(self) -> None:
        """Its Java may outlive the launcher a little."""
        deadline = time.monotonic() + READY
        while time.monotonic() < deadline:
            with suppress(StackError):
                for key in PORTS:
                    check_free(int(self._server.settings[key].rsplit(":", 1)[-1]))
                return
            time.sleep(LOOK)

    def _kill_worker(self, over: Event) -> bool:
        deadline = time.monotonic() + READY
        while time.monotonic() < deadline and not over.wait(LOOK):
            if pid := self._worker():
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def _worker(self) -> int | None:
        """The process of a worker that serves, as the management API tells it."""
        url = f"{self._server.settings['management_address']}/models/{self._server.model}"
        try:
            (model,) = requests.get(url, timeout=5).json()
        except requests.RequestException:
            return None
        ready = (one["pid"] for one in model["workers"] if one["status"] == "READY")
        return next(ready, None)

    def look_after(self) -> None:
        """It has no reason to end by itself."""
        if not self._server.process.alive():
            words = self._server.process.tail()
            raise StackError(f"TorchServe has ended; its last words:\n{words}")


class Answers:
    """What the relays are told: a few bad answers in a row, of one kind."""

    name = "the proxy"

    def __init__(self, proxy: AnswerProxy, random: Random) -> None:
        self._proxy = proxy
        self._random = random
        self._kinds: list[Bad] = []

    def suffer(self, _fault: Fault, _over: Event) -> bool:
        """See `Victim`."""
        if not self._kinds:  # each before any comes again
            self._kinds = self._random.sample(get_args(Bad), len(get_args(Bad)))
        bad = self._kinds.pop()
        self._proxy.order(bad, 1 if bad == "timeout" else self._random.randint(1, 6))
        return True

    def look_after(self) -> None:
        """It lives in this process."""


def live(
    victim: Victim,
    faults: Sequence[Fault],
    clock: Callable[[], float],
    over: Event,
    say: Callable[[str], None],
) -> Counter[Kind]:
    """Lead a victim through its faults until it is over; count those that happened."""
    happened: Counter[Kind] = Counter()
    for fault in faults:
        while clock() < fault.at and not over.is_set():
            victim.look_after()
            over.wait(min(LOOK, max(0.0, fault.at - clock())))
        if over.is_set():
            break
        say(f"{fault.kind}: {victim.name}")
        if victim.suffer(fault, over):
            happened[fault.kind] += 1
        else:
            say(f"{fault.kind}: {victim.name}, did not happen")
    while not over.wait(LOOK):
        victim.look_after()
    return happened
