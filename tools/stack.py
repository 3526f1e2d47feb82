"""Starts the real servers, for tests, the demo and `make serve`: free ports, private folders.

This is the one place that starts a server. Each is a context manager that leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil
import requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "model_store" / "fmnist.mar"
PICTURE = ROOT / "tests" / "data" / "ankle-boot.png"


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
            raise StackError(message + "or change it in config.properties") from None


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

    def start(self) -> Self:
        """Start it; what it prints is appended to `log`."""
        with self.log.open("ab") as log:
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
        """Return the end of what it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def end_session(leader: int, timeout: float) -> None:
    """Ask a process that another program started to end, with its children; then kill the rest."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(leader, number)
        with suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
            psutil.Process(leader).wait(timeout)


def check_archive(archive: Path) -> None:
    """Raise StackError when `archive` is missing or is no whole zip file."""
    if not archive.exists():
        raise StackError(f"{archive} is not there: run `make archive`")
    try:
        with zipfile.ZipFile(archive) as opened:
            broken = opened.testzip()
    except zipfile.BadZipFile:
        broken = archive.name
    if broken:
        raise StackError(f"{archive} is damaged (at {broken}): rm it and run `make archive`")


def properties(path: Path) -> dict[str, str]:
    """Return the keys and values of a Java properties file of the simple kind."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


PORTS = (
    "inference_address",
    "management_address",
    "metrics_address",
    "grpc_inference_port",
    "grpc_management_port",
)


def on_free_ports() -> dict[str, str]:
    """Return the five settings that let another TorchServe run on this machine."""
    ports = free_ports(len(PORTS))
    return {
        key: str(port) if key.endswith("port") else f"http://127.0.0.1:{port}"
        for key, port in zip(PORTS, ports, strict=True)
    }


class TorchServe:
    """A TorchServe with the shipped config.properties, but for `overrides`; one archive.

    Its folder holds everything that it writes; without one it gets a private one, removed at
    the end. Readiness is a real prediction: /ping calls a server healthy that has no worker.
    """

    def __init__(
        self,
        archive: Path = ARCHIVE,
        folder: Path | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        self.archive = archive
        self.settings = properties(ROOT / "config.properties") | dict(overrides or on_free_ports())
        self.settings["model_store"] = str(archive.resolve().parent)
        for key in ("metrics_config", "vmargs"):  # it runs in its folder, not in ours
            self.settings[key] = self.settings[key].replace("serving/", f"{ROOT / 'serving'}/")
        self.model = archive.stem
        self._own = tempfile.TemporaryDirectory(prefix="fmnist-") if folder is None else None
        self.folder = Path(self._own.name) if self._own else folder or ROOT
        self.process = Process(
            [
                *(str(Path(sys.executable).parent / "torchserve"), "--start", "--ncs"),
                *("--foreground", "--ts-config", str(self.folder / "config.properties")),
                *("--models", f"{self.model}={archive.name}"),
            ],
            log=self.folder / "torchserve.log",
            env=self._environment(),
            cwd=self.folder,
        )

    def _environment(self) -> dict[str, str]:
        # Java's temporary folder follows TEMP, the launcher's pid file TMPDIR. TS_CONFIG_FILE
        # would overrule the settings.
        kept = {k: v for k, v in java_environment().items() if k != "TS_CONFIG_FILE"}
        scratch = str(self.folder / "tmp")
        return kept | {"TEMP": scratch, "TMPDIR": scratch}

    @property
    def address(self) -> str:
        """The inference API's address."""
        return self.settings["inference_address"]

    @property
    def url(self) -> str:
        """Where predictions are asked for."""
        return f"{self.address}/predictions/{self.model}"

    def start(self) -> Self:
        """Start it; it does not answer yet. Raises StackError when it cannot."""
        check_archive(self.archive)
        for key in PORTS:
            check_free(int(self.settings[key].rsplit(":", 1)[-1]))
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        lines = [f"{key}={value}\n" for key, value in self.settings.items()]
        (self.folder / "config.properties").write_text("".join(lines))
        self.process.start()
        return self

    def wait(self, timeout: float = 120.0) -> Self:
        """Return when it predicts; raises StackError with the end of its log when it does not."""
        deadline = time.monotonic() + timeout
        while self.process.alive() and time.monotonic() < deadline:
            if self.predicts():
                return self
            time.sleep(0.2)
        raise StackError(f"TorchServe does not predict; its last words:\n{self.process.tail()}")

    def predicts(self) -> bool:
        """Say whether it answers one real question."""
        picture, token = PICTURE.read_bytes(), {}
        with suppress(FileNotFoundError, ValueError):  # not there, or half written
            token = {"Authorization": f"Bearer {self.key('inference')}"}
        try:
            return requests.post(self.url, data=picture, headers=token, timeout=5).ok
        except requests.RequestException:
            return False

    @property
    def key_file(self) -> Path:
        """Where TorchServe writes its tokens when it wants one with each request."""
        return self.folder / "key_file.json"

    def key(self, kind: str) -> str:
        """Return the token of one kind: inference, management or API."""
        found: str = json.loads(self.key_file.read_text())[kind]["key"]
        return found

    def __enter__(self) -> Self:
        """Start it and wait until it predicts."""
        try:
            return self.start().wait()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        """End it and remove what it wrote."""
        self.close()

    def close(self) -> None:
        """End it, and remove its folder when it is its own."""
        if hasattr(self.process, "child"):
            self.process.stop()
        if self._own:
            self._own.cleanup()
