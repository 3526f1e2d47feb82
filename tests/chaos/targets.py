"""The targets of faults: relays, TorchServe and its answers. Faults come from outside.

A target is supervised: a process that ended by itself is started again, as an operator would.
What only one broker has is a target of its package in `brokers/`.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, get_args

import requests

from tests.chaos.answers import AnswerProxy, Bad
from tools.servers.process import ROOT, Process, StackError, check_free
from tools.servers.torchserve import PORTS, TorchServe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from random import Random
    from threading import Event

    from tests.chaos.schedule import Fault, Kind

SUPERVISION_INTERVAL_S = 0.5
RELAY_STOP_TIMEOUT_S = 40.0  # a drain takes 25 s at the longest
WORKER_START_TIMEOUT_S = 60.0
MAX_BAD_ANSWERS = 6  # in a row


class Target(Protocol):
    """What faults strike, one at a time."""

    name: str

    def inject(self, fault: Fault, over: Event) -> bool:
        """Strike, wait, restore, unless it is `over`; say whether it happened."""
        ...

    def supervise(self) -> None:
        """Start again what ended by itself."""
        ...


class RelayProcess:
    """One relay: its command, and a process while it is wanted."""

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
        self.wanted = False
        self._exits = exits  # of those that ended by themselves, by exit code

    def start(self) -> None:
        """Start it."""
        self.process.start()
        self.wanted = True

    def stop(self) -> int:
        """End it in good order; return its exit code."""
        self.wanted = False
        self.process.signal(signal.SIGCONT)
        self.process.stop(RELAY_STOP_TIMEOUT_S)
        return self.process.child.wait(RELAY_STOP_TIMEOUT_S)

    def kill(self) -> None:
        """Leave nothing behind."""
        if hasattr(self.process, "child"):
            self.process.kill()

    def supervise(self) -> None:
        """See `Target.supervise`."""
        if self.wanted and not self.process.alive():
            self._exits[self.process.child.returncode] += 1
            self.process.start()

    def inject(self, fault: Fault, over: Event) -> bool:
        """See `Target.inject`."""
        happened = self.process.alive()
        if fault.kind == "relay killed":
            self._kill_and_restart(fault.seconds, over)
        else:
            self._suspend(fault.seconds, over)
        return happened

    def _kill_and_restart(self, seconds: float, over: Event) -> None:
        """SIGKILL, and a successor of the same name."""
        self.process.kill()
        over.wait(seconds)
        self.process.start()

    def _suspend(self, seconds: float, over: Event) -> None:
        """SIGSTOP, and SIGCONT when everybody has gone on without it."""
        self.process.signal(signal.SIGSTOP)
        over.wait(seconds)
        self.process.signal(signal.SIGCONT)


class ExtraRelay(RelayProcess):
    """One more relay, which joins and leaves."""

    def inject(self, fault: Fault, over: Event) -> bool:
        """See `Target.inject`."""
        self.start()
        until = time.monotonic() + fault.seconds
        while time.monotonic() < until and not over.wait(SUPERVISION_INTERVAL_S):
            self.supervise()
        return self.stop() == 0


class TorchServeTarget:
    """TorchServe and its worker."""

    name = "TorchServe"

    def __init__(self, server: TorchServe) -> None:
        self._server = server

    def inject(self, fault: Fault, over: Event) -> bool:
        """See `Target.inject`."""
        if fault.kind == "worker killed":
            return self._kill_worker(over)
        self._server.process.stop()
        over.wait(fault.seconds)
        self._wait_for_ports()
        self._server.start().wait()
        return True

    def _wait_for_ports(self) -> None:
        """Its Java may outlive the launcher a little."""
        deadline = time.monotonic() + WORKER_START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(StackError):
                for key in PORTS:
                    check_free(int(self._server.settings[key].rsplit(":", 1)[-1]))
                return
            time.sleep(SUPERVISION_INTERVAL_S)

    def _kill_worker(self, over: Event) -> bool:
        deadline = time.monotonic() + WORKER_START_TIMEOUT_S
        while time.monotonic() < deadline and not over.wait(SUPERVISION_INTERVAL_S):
            if pid := self._find_worker():
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    def _find_worker(self) -> int | None:
        """Return the process id of a worker that serves, as the management API says."""
        url = f"{self._server.settings['management_address']}/models/{self._server.model}"
        try:
            (model,) = requests.get(url, timeout=5).json()
        except requests.RequestException:
            return None
        ready = (one["pid"] for one in model["workers"] if one["status"] == "READY")
        return next(ready, None)

    def supervise(self) -> None:
        """See `Target.supervise`; it has no reason to end by itself."""
        require_alive(self.name, self._server.process)


class AnswerTarget:
    """The answers to the relays: a few bad ones in a row, of one kind."""

    name = "the proxy"

    def __init__(self, proxy: AnswerProxy, random: Random) -> None:
        self._proxy = proxy
        self._random = random
        self._kinds: list[Bad] = []

    def inject(self, _fault: Fault, _over: Event) -> bool:
        """See `Target.inject`."""
        if not self._kinds:  # each before any comes again
            self._kinds = self._random.sample(get_args(Bad), len(get_args(Bad)))
        bad = self._kinds.pop()
        count = 1 if bad == "timeout" else self._random.randint(1, MAX_BAD_ANSWERS)
        self._proxy.order(bad, count)
        return True

    def supervise(self) -> None:
        """See `Target.supervise`; it lives in this process."""


def require_alive(name: str, process: Process) -> None:
    """Raise StackError when a server has ended by itself."""
    if not process.alive():
        raise StackError(f"{name} has ended; its log ends with:\n{process.tail()}")


def run_faults(
    target: Target,
    faults: Sequence[Fault],
    clock: Callable[[], float],
    over: Event,
    say: Callable[[str], None],
) -> Counter[Kind]:
    """Inject faults into a target, each at its time, until it is over; count those that happened.

    `clock`: seconds since the start of the schedule. Supervises the target in between.
    """
    happened: Counter[Kind] = Counter()
    for fault in faults:
        while clock() < fault.at and not over.is_set():
            target.supervise()
            over.wait(min(SUPERVISION_INTERVAL_S, max(0.0, fault.at - clock())))
        if over.is_set():
            break
        say(f"{fault.kind}: {target.name}")
        if target.inject(fault, over):
            happened[fault.kind] += 1
        else:
            say(f"{fault.kind}: {target.name}, did not happen")
    while not over.wait(SUPERVISION_INTERVAL_S):
        target.supervise()
    return happened
