"""Processes of servers: free ports, Java, a session of their own, and their end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


ROOT = Path(__file__).resolve().parents[2]


class StackError(Exception):
    """A server cannot be started; the message is one sentence with the fix."""


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports of the loopback address that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def check_free(port: int) -> None:
    """Raise StackError when somebody listens on `port` of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            message = f"port {port} is taken: end the program that listens there (ss -ltnp), "
            raise StackError(
                message + "or choose others (make serve PORT=9080, config.properties)"
            ) from None


def java() -> str:
    """Return the path of a `java`: of the virtual environment first, then of the machine."""
    beside_python = Path(sys.executable).parent / "java"
    found = str(beside_python) if beside_python.exists() else shutil.which("java")
    if found is None:
        raise StackError("there is no java on this machine: run `make setup`, which brings one")
    return found


def java_environment() -> dict[str, str]:
    """Return this process's variables, made so that a program finds our `java` on its PATH."""
    kept = {k: v for k, v in os.environ.items() if k != "JAVA_HOME"}  # it would overrule the PATH
    return kept | {
        "PATH": os.pathsep.join([str(Path(java()).parent), kept.get("PATH", os.defpath)])
    }


@dataclass
class Process:
    """A server in a session of its own, so that its children can be ended with it."""

    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    _log_start: int = field(default=0, init=False, repr=False)

    def start(self) -> Self:
        """Start it; what it prints is appended to `log`."""
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                cwd=self.cwd,
                start_new_session=True,
            )
        return self

    def alive(self) -> bool:
        """Say whether it still runs."""
        return self.child.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all its children."""
        try:
            os.killpg(self.child.pid, number)
        except ProcessLookupError:
            return

    def stop(self, timeout: float = 20.0) -> None:
        """Ask all of it to end, wait up to `timeout` seconds, then kill what is left."""
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """Kill it and its children at once."""
        self.signal(signal.SIGKILL)
        self.child.wait(10)

    def tail(self, lines: int = 20) -> str:
        """Return the end of what it printed since it was started, and no other before it."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:])


def end_session(leader: int, timeout: float) -> None:
    """Ask a process that another program started to end, with its children; then kill the rest."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(leader, number)
        with suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
            psutil.Process(leader).wait(timeout)
