"""Inference servers: foreign ones, each in an environment of its own, from a lock; our archive."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import requests

from tests.chaos.testbed import find_steady_ports
from tools.servers.process import ROOT, Process, StackError, free_ports
from tools.servers.torchserve import PORTS, TorchServe, on_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

HERE = Path(__file__).parent
RUNTIMES = HERE / "runtimes"
ENVIRONMENTS = ROOT / "build" / "peers"
MODEL = "image-sum"
OCR_MODEL = "ddddocr"
CANARY = ROOT / "tests" / "data" / "trouser.png"
START_TIMEOUT_S = 120.0
MAKE_TIMEOUT_S = 540.0
CHECK_INTERVAL_S = 0.2


class Peer(NamedTuple):
    """How one server is started and asked.

    `argv`: its command, from the `bin` of its environment and its ports. `variables`: from its
    ports. `path`: what the connectors ask; `flags`: theirs. `ready`: the path that says so.
    """

    environment: str
    argv: Callable[[Path, Sequence[int]], list[str]]
    variables: Callable[[Sequence[int]], Mapping[str, str]]
    path: str
    flags: Sequence[str]
    ready: str


def _start_mlserver(programs: Path, _: Sequence[int]) -> list[str]:
    return [str(programs / "mlserver"), "start", str(RUNTIMES)]


def _name_ports(ports: Sequence[int]) -> dict[str, str]:
    names = "MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT"
    found = {name: str(port) for name, port in zip(names, ports, strict=True)}
    return {**found, "MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_HOST": "127.0.0.1"}


def _start_kserve(runtime: str, programs: Path, ports: Sequence[int]) -> list[str]:
    program = str(RUNTIMES / f"{runtime}_runtime.py")
    return [str(programs / "python"), program, "--http_port", str(ports[0]), "--enable_grpc=false"]


V2_JSON = ["--protocol=v2", "--tensor-input=image", "--no-v2-binary"]
PEERS = {
    "mlserver": Peer(
        "mlserver",
        _start_mlserver,
        _name_ports,
        f"/v2/models/{MODEL}/infer",
        V2_JSON,
        f"/v2/models/{MODEL}/ready",
    ),
    "kserve-v1": Peer(
        "kserve",
        partial(_start_kserve, "kserve"),
        lambda _: {},
        f"/v1/models/{MODEL}:predict",
        ["--protocol=v1"],
        f"/v1/models/{MODEL}",
    ),
    "kserve-v2": Peer(
        "kserve",
        partial(_start_kserve, "kserve"),
        lambda _: {},
        f"/v2/models/{MODEL}/infer",
        V2_JSON,
        f"/v2/models/{MODEL}/ready",
    ),
    "ocr": Peer(
        "ocr",
        partial(_start_kserve, "ocr"),
        lambda _: {},
        f"/v1/models/{OCR_MODEL}:predict",
        ["--protocol=v1", "--canary", str(CANARY)],
        f"/v1/models/{OCR_MODEL}",
    ),
}


OWN = {
    "torchserve-v1": ("/v1/models/{model}:predict", ["--protocol=v1"]),
    "torchserve-v2": (
        "/v2/models/{model}/infer",
        ["--protocol=v2", "--tensor-input=images", "--tensor-output=class"],
    ),
}
"""Our archive: what the connectors ask, and their flags."""

SERVERS = {name: peer.flags for name, peer in PEERS.items()} | {
    name: flags for name, (_, flags) in OWN.items()
}
"""The flags of the connectors for each server."""


class Server(Protocol):
    """A server that is ready, and can be killed and started again."""

    @property
    def url(self) -> str:
        """Where the connectors ask."""
        ...

    def start(self) -> object:
        """Start it, and return when it answers; raises StackError when it does not."""
        ...

    def kill(self) -> None:
        """End it at once, with what it has in hand."""
        ...


def open_server(name: str, log: Path, environments: Path) -> AbstractContextManager[Server]:
    """Return a server of SERVERS, which is started on entry; a foreign one writes to `log`."""
    if name in OWN:
        return ArchiveServer(OWN[name][0])
    return PeerServer(PEERS[name], log, environments)


class ArchiveServer:
    """Our archive in TorchServe, which finds its ports free again."""

    def __init__(self, path: str) -> None:
        self._server = TorchServe(overrides=on_ports(find_steady_ports(len(PORTS))))
        self.url = self._server.address + path.format(model=self._server.model)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def start(self) -> None:
        """Start it, and return when it predicts; raises StackError when it does not."""
        self._server.start().wait()

    def kill(self) -> None:
        """End Java and its worker at once."""
        self._server.process.kill()


def make_environment(name: str, folder: Path = ENVIRONMENTS) -> Path:
    """Return the `bin` of a server's environment; make it when it, or its lock, is new."""
    lock, target = HERE / f"requirements-{name}.txt", folder / name
    stamp, digest = target / ".requirements", hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return target / "bin"
    uv = Path(sys.executable).parent / "uv"
    python = str(target / "bin" / "python")
    install = ["pip", "install", "--python", python, "--require-hashes", "--only-binary=:all:"]
    for command in (["venv", "--clear", str(target)], [*install, "-r", str(lock)]):
        made = subprocess.run(
            [str(uv), *command], capture_output=True, text=True, timeout=MAKE_TIMEOUT_S, check=False
        )
        if made.returncode:
            raise StackError(f"uv {command[0]} failed for {lock.name}: {made.stderr.strip()}")
    stamp.write_text(digest)
    return target / "bin"


class PeerServer:
    """One server, which can be killed and started again on the same ports."""

    def __init__(self, peer: Peer, log: Path, environments: Path = ENVIRONMENTS) -> None:
        self._peer = peer
        ports = free_ports(3)
        programs = make_environment(peer.environment, environments)
        variables = {**os.environ, **peer.variables(ports), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = Process(peer.argv(programs, ports), log, variables, cwd=RUNTIMES)
        self.root = f"http://127.0.0.1:{ports[0]}"
        self.url = self.root + peer.path

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def start(self) -> None:
        """Start it, and return when its model is ready; raises StackError when it is not."""
        self.process.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if not self.process.alive() or time.monotonic() > deadline:
                self.process.kill()
                raise StackError(f"{self.url} is not ready; its log ends with:\n{self.tail()}")
            time.sleep(CHECK_INTERVAL_S)

    def kill(self) -> None:
        """End it at once, with what it has in hand."""
        self.process.kill()

    def tail(self) -> str:
        """Return the end of its log."""
        return self.process.tail()

    def _is_ready(self) -> bool:
        try:
            return requests.get(self.root + self._peer.ready, timeout=2).ok
        except requests.RequestException:
            return False
