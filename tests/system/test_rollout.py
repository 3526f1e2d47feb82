"""A roll-out forward and back under load: real TorchServe on both sides, nginx before them."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPException, HTTPSConnection
from itertools import groupby
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from connectors.inference.http import Certificates, HttpClient
from connectors.inference.torchserve import KeyFile
from connectors.inference.torchserve import TorchServe as Dialect
from connectors.records import Answer, Busy, Image, Prediction, Request
from tests.conftest import missing
from tests.system.daemons import BOOT, wait_until
from tests.system.proxy import require_nginx, start_nginx
from tools.archive import MANIFEST
from tools.servers.process import ROOT, Process, StackError, check_free, free_ports
from tools.servers.proxy import Side, end_process
from tools.servers.torchserve import ARCHIVE, PORTS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

CLIENTS = 64
PACE_S = 0.5
"""From an answer to the next question of one client."""
PATH = "/predictions/fmnist"


class Answered(NamedTuple):
    """An answer of the service: when it came, and its version."""

    time: float
    version: str


class Client(Thread):
    """Asks over one connection, from an address of its own, until it is told to end.

    A token that is void it reads again until there is another, as docs/production.md says.
    """

    def __init__(self, number: int, place: Place, end: Event) -> None:
        super().__init__(daemon=True)
        context = ssl.create_default_context(cafile=str(place.proxy / "ca.crt"))
        self.connection = HTTPSConnection(
            "localhost",
            place.port,
            context=context,
            timeout=60,
            source_address=(f"127.0.1.{number + 1}", 0),
        )
        self.place, self.end = place, end
        self.answers: list[Answered] = []
        self.failures: list[str] = []
        self.token = place.read_token()

    def run(self) -> None:
        with closing(self.connection):
            while not self.end.wait(PACE_S):
                try:
                    self.ask()
                except (OSError, HTTPException) as error:
                    self.failures.append(repr(error))

    def ask(self) -> None:
        status, body = self.exchange()
        if status == 400 and body.get("type") == "InvalidKeyException":
            void = self.token
            wait_until(lambda: self.place.read_token() not in ("", void), 10)
            self.token = self.place.read_token()
            status, body = self.exchange()
        if (status, body.get("label")) != (200, "Ankle boot"):
            self.failures.append(f"{status} {body}")
        else:
            self.answers.append(Answered(time.time(), body["model"]["version"]))

    def exchange(self) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "image/png"}
        self.connection.request("POST", PATH, BOOT, headers)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())


class Connector(Thread):
    """The daemon's client of the inference API, with its reading of tokens; four requests out."""

    def __init__(self, place: Place, end: Event) -> None:
        super().__init__(daemon=True)
        self.end = end
        self.answers: list[Answer] = []
        self.client = HttpClient(
            f"https://localhost:{place.port}{PATH}",
            Dialect(time.time),
            partial(KeyFile, place.proxy / "live" / "key_file.json"),
            timeout=60.0,
            in_flight=4,
            certificates=Certificates(cafile=place.proxy / "ca.crt"),
        )

    def run(self) -> None:
        with closing(self.client):
            while not self.end.wait(PACE_S):
                for _ in range(4):
                    self.client.send(Request((Image(BOOT),)))
                asked = len(self.answers) + 4
                while len(self.answers) < asked:
                    self.answers += [answer for _, answer in self.client.collect(60.0)]


class Place(NamedTuple):
    """The proxy's folder and port, the two archives, and the two sides."""

    proxy: Path
    port: int
    archives: dict[str, Path]
    sides: dict[str, Side]

    def read_token(self) -> str:
        """Return the live side's token; "" while it is written."""
        try:
            key: str = json.loads((self.proxy / "live" / "key_file.json").read_text())["inference"][
                "key"
            ]
        except ValueError:
            return ""
        return key

    def roll_out(self, version: str, *flags: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m tools.rollout` with the archive of this version, to its end."""
        command = [sys.executable, "-m", "tools.rollout", "--archive", str(self.archives[version])]
        command += ["--version", version, "--proxy", str(self.proxy), "--quiet", "2"]
        command += ["--folder", str(self.sides["first"].folder), *flags]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )

    def switched_at(self) -> float:
        """Return when the link `live` was made; the clock of files is never ahead."""
        return (self.proxy / "live").lstat().st_mtime


def row_of_ports() -> int:
    """Return the first of five free ports in a row."""
    while True:
        (first,) = free_ports(1)
        try:
            for port in range(first, first + len(PORTS)):
                check_free(port)
        except StackError:
            continue
        return first


def copy_as_version(archive: Path, version: str) -> Path:
    """Return a copy of the shipped archive that says another version."""
    archive.parent.mkdir()
    with zipfile.ZipFile(ARCHIVE) as shipped, zipfile.ZipFile(archive, "w") as written:
        for name in shipped.namelist():
            content = shipped.read(name)
            if name in (MANIFEST, "model.json"):
                card = json.loads(content)
                (card["model"] if name == MANIFEST else card)[
                    "modelVersion" if name == MANIFEST else "version"
                ] = version
                content = json.dumps(card).encode()
            written.writestr(name, content)
    return archive


@pytest.fixture
def place() -> Iterator[Place]:
    """nginx, and TorchServe with a token on the first side."""
    require_nginx()
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    # Not pytest's folder: TorchServe's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="fmnist-") as name, ExitStack() as stack:
        folder = Path(name)
        archives = {v: copy_as_version(folder / v / ARCHIVE.name, v) for v in ("1.0", "2.0")}
        ports = {"first": row_of_ports(), "second": row_of_ports()}
        sides = {
            "first": Side("first", ports["first"], folder / "run"),
            "second": Side("second", ports["second"], folder / "run-second"),
        }
        (folder / "proxy").mkdir()
        # The clients, a daemon and the roll-out itself may all be at work at once.
        changes = {
            f"server 127.0.0.1:{shipped} max_conns=64": f"server 127.0.0.1:{port} max_conns=80"
            for shipped, port in zip((8080, 9080), ports.values(), strict=True)
        }
        port, _ = stack.enter_context(start_nginx(folder / "proxy", changes))
        stack.callback(end_servers, sides)
        program = start_first(sides["first"], archives["1.0"], folder / "serve.log")
        made = Place(folder / "proxy", port, archives, sides)
        assert main_prepares(made) == 0
        yield made
        end_servers(sides)
        program.child.wait(40)


def main_prepares(place: Place) -> int:
    """Make live/key_file.json, as an operator does once."""
    return place.roll_out("1.0", "--prepare").returncode


def start_first(side: Side, archive: Path, log: Path) -> Process:
    """Start what `make serve-production` starts, and return when it predicts."""
    command = [sys.executable, "-m", "tools.serve", "--profile", "production"]
    command += ["--archive", str(archive), "--port", str(side.port), "--folder", str(side.folder)]
    program = Process(command, log, cwd=ROOT).start()
    wait_until(lambda: "serve: ready" in program.tail() or not program.alive(), 150)
    assert program.alive(), program.tail()
    return program


def end_servers(sides: dict[str, Side]) -> None:
    """End what serves on both sides, whoever started it."""
    for side in sides.values():
        server = side.find_server()
        if server is not None:
            assert end_process(server, 40)


def test_forward_and_back_under_load_no_request_fails_and_each_version_has_its_time(
    place: Place,
) -> None:
    end = Event()
    clients = [Client(number, place, end) for number in range(CLIENTS)]
    connector = Connector(place, end)
    for thread in (*clients, connector):
        thread.start()
    forward = place.roll_out("2.0")
    assert forward.returncode == 0, forward.stdout + forward.stderr
    switched = place.switched_at()
    assert place.sides["first"].find_server() is None
    back = place.roll_out("1.0")
    assert back.returncode == 0, back.stdout + back.stderr
    switched_back = place.switched_at()
    assert place.sides["second"].find_server() is None
    end.set()
    for thread in (*clients, connector):
        thread.join(60)
    assert [failure for client in clients for failure in client.failures] == []
    # A void token is Busy: the relay asks again, and nothing goes to the dead letters.
    assert {type(one) for one in connector.answers} <= {list, Busy}
    predicted = [one for each in connector.answers if isinstance(each, list) for one in each]
    assert {type(one) for one in predicted} == {Prediction}, connector.answers[:3]
    assert connector.answers[-1] == predicted[-1:]
    for client in clients:
        versions = [version for version, _ in groupby(one.version for one in client.answers)]
        assert versions == ["1.0", "2.0", "1.0"]
        newer = [one.time for one in client.answers if one.version == "2.0"]
        assert switched <= min(newer)
        assert max(one.time for one in client.answers) > switched_back
