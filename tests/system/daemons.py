"""What the system tests of all brokers share: daemons as an operator runs them."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from PIL import Image

from tools.servers.process import ROOT, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import numpy as np

BOOT = (ROOT / "tests" / "data" / "ankle-boot.png").read_bytes()

names = (f"test-{os.getpid()}-{number}" for number in count())


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def wait_until(condition: Callable[[], object], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not in {within} s"
        time.sleep(0.05)


def wait_for_exit(daemon: Process, within: float = 25.0) -> int:
    """Wait for a daemon and return its exit code."""
    return daemon.child.wait(within)


def drain(daemon: Process) -> int:
    daemon.child.send_signal(signal.SIGTERM)
    return wait_for_exit(daemon)


@dataclass(kw_only=True)
class Daemons(ABC):
    """Daemons between new topics, which are called after `name`; they end with `stack`."""

    folder: Path
    stack: ExitStack
    name: str = field(default_factory=lambda: next(names))
    environment: Mapping[str, str] | None = None
    daemons: list[Process] = field(default_factory=list)

    @abstractmethod
    def flags(self) -> Sequence[str]:
        """The broker, and what a daemon has to know of it and of the topics."""

    def daemon(self, url: str, *flags: str, under: Sequence[str] = ()) -> Process:
        """Start one, `under` another program if one is named."""
        ours = [sys.executable, "-m", "connectors", *self.flags(), "--url", url, *flags]
        command = [*under, *ours]
        log = self.folder / f"daemon{len(self.daemons)}.log"
        process = Process(command, log, self.environment, ROOT).start()
        self.stack.callback(process.kill)
        self.daemons.append(process)
        return process

    def words(self) -> str:
        """Return the end of each daemon's log."""
        return "\n".join(daemon.tail(15) for daemon in self.daemons)
