"""Containers by podman: a run, a question inside, a stop, and why there are none here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIGURATION = Path(__file__).with_name("containers.conf")
COMMAND_TIMEOUT_S = 120.0

FIND_WORKERS = """
import os, pathlib
def list_workers():
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found = b"model_service_worker.py" in entry.read_bytes()
        except OSError:
            continue
        if found and int(entry.parent.name) != os.getpid():
            yield int(entry.parent.name)
"""
"""Python for inside the server's container; the workers are processes of its own user."""


def podman(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Return what podman prints; raises StackError with its words when it fails."""
    done = try_podman(*arguments, timeout_s=timeout_s)
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-800:]
        raise StackError(f"podman {arguments[0]} failed with {done.returncode}: {words}")
    return done.stdout.strip()


def try_podman(
    *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run podman and return how it ended."""
    environment = {"CONTAINERS_CONF": str(CONFIGURATION), **os.environ}
    return subprocess.run(
        ["podman", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        env=environment,
    )


def check_podman(*images: str) -> None:
    """Raise StackError when podman, an image or a right that a container needs is missing."""
    if not shutil.which("podman"):
        raise StackError("podman is not there: run `tools/setup.sh images` as root")
    for image in images:
        if try_podman("image", "exists", image).returncode:
            raise StackError(f"the image {image} is not there: run `make images`")
    started = try_podman(
        *("run", "--rm", "--network", "none", "--read-only", "--user", "10001:10001"),
        *("--entrypoint", "true", images[0]),
    )
    if started.returncode:
        raise StackError(f"podman cannot start a container here: {started.stderr.strip()[-500:]}")


def image_size_bytes(image: str) -> int:
    """Return the size of an image, all its layers unpacked."""
    return int(podman("image", "inspect", "--format", "{{.Size}}", image))


class Container(NamedTuple):
    """A container that was started, by its name."""

    name: str

    def ask(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return how it ended."""
        return try_podman("exec", self.name, *command)

    def ask_python(self, program: str) -> str:
        """Return what a Python program prints inside."""
        return podman("exec", self.name, "python3", "-c", program)

    def wait_until_ready(self, probe: Sequence[str], within_s: float = 180.0) -> float:
        """Return after how many seconds the command of the probe said 0."""
        start = time.monotonic()
        while (done := self.ask(probe)).returncode:
            if time.monotonic() > start + within_s:
                raise StackError(f"{self.name} is not ready: {done.stderr.strip()}\n{self.tail()}")
            time.sleep(0.5)
        return time.monotonic() - start

    def signal_workers(self, number: int) -> int:
        """Send a signal to TorchServe's workers; return how many there are."""
        send = f"found = list(list_workers()); [os.kill(one, {number}) for one in found]"
        return int(self.ask_python(f"{FIND_WORKERS}\n{send}; print(len(found))"))

    def list_workers(self) -> str:
        """Return the numbers of TorchServe's workers."""
        return self.ask_python(f"{FIND_WORKERS}\nprint(sorted(list_workers()))")

    def stop(self, grace_s: int) -> float:
        """Send SIGTERM, after the grace SIGKILL; return the seconds that it took."""
        start = time.monotonic()
        podman("stop", "--time", str(grace_s), self.name, timeout_s=grace_s + COMMAND_TIMEOUT_S)
        return time.monotonic() - start

    def kill(self) -> None:
        """SIGKILL, behind podman's back: what it kills itself it does not start again."""
        command = ["kill", "-KILL", str(self.state()["Pid"])]
        if os.geteuid():  # the processes are another user's, of ours
            podman("unshare", *command)
        else:
            subprocess.run(command, check=True, timeout=COMMAND_TIMEOUT_S)

    def state(self) -> dict[str, Any]:
        """Return podman's State of it: ExitCode, StartedAt, Running and more."""
        found: dict[str, Any] = json.loads(podman("inspect", self.name))[0]["State"]
        return found

    def tail(self) -> str:
        """Return the end of what it printed."""
        done = try_podman("logs", "--tail", "15", self.name)
        return done.stdout + done.stderr

    def remove(self) -> None:
        """Kill it and remove it, if it is there."""
        try_podman("rm", "--force", "--volumes", self.name)
