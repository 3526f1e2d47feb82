"""A roll-out forward and back under load: TorchServe on both sides, nginx before, Kafka behind."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import ExitStack, closing
from http.client import HTTPException, HTTPSConnection
from itertools import count, groupby
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import requests

from tests.chaos.brokers.kafka.observer import KafkaObserver, read_topic
from tests.chaos.brokers.kafka.producer import TopicProducer
from tests.chaos.load import Input
from tests.chaos.observer import Topics
from tests.chaos.testbed import make_load
from tests.conftest import missing
from tests.system.daemons import BOOT, drain, wait_until
from tests.system.proxy import require_nginx, start_nginx
from tests.system.test_relay import PARTITIONS, Site
from tools.archive import MANIFEST
from tools.servers.process import ROOT, Process, StackError, check_free, free_ports
from tools.servers.proxy import Side, end_process
from tools.servers.torchserve import ARCHIVE, PORTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.load import LoadGenerator
    from tools.servers.kafka import Cluster

pytestmark = pytest.mark.system

CLIENTS = 64
PACE_S = 0.5
"""From an answer to the next question of one client."""
PATH = "/predictions/fmnist"
BOOT_CLASS = 9
RATE = 40.0
"""Records a second."""
TICK_MS = 10
"""So much older than it is a file may say that it is, by the kernel's coarse clock."""


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


class Result(NamedTuple):
    """One result of the daemon: times in ms, of its record and of itself, and its version."""

    sent: int
    published: int
    version: str


class Relay(NamedTuple):
    """A daemon between the topics of a real Kafka, its load, and who sees both ends."""

    site: Site
    load: LoadGenerator
    observer: KafkaObserver
    metrics: str

    def is_complete(self) -> bool:
        """Say whether every record that was sent has its outcome."""
        self.observer.check()
        log = self.observer.log
        return log.inputs == self.load.sent and log.missing <= 0

    def end(self) -> None:
        """End the load, let the daemon do what is left, and end it."""
        self.load.close()
        wait_until(self.is_complete)
        (daemon,) = self.site.daemons
        assert drain(daemon) == 0, daemon.tail()

    def count_retries(self) -> dict[str, int]:
        """Return how often something came back without outcomes, by class."""
        text = requests.get(self.metrics, timeout=10).text
        start = "connector_retries_total{"
        lines = [line for line in text.splitlines() if line.startswith(start)]
        assert lines, text
        return {
            line.split('class="')[1].split('"')[0]: int(float(line.split()[-1])) for line in lines
        }

    def read_results(self) -> list[Result]:
        """Return all results."""
        found = read_topic(self.site.kafka.plain_servers, self.site.topics[1])
        bodies = [(json.loads(one.value), one.timestamp) for one in found]
        return [Result(body["time"], at, body["model"]["version"]) for body, at in bodies]


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


@pytest.fixture
def relay(place: Place, kafka: Cluster, tmp_path: Path) -> Iterator[Relay]:
    """A daemon that asks through the proxy, as docs/production.md says, and boots for it."""
    with ExitStack() as stack:
        site = Site(kafka=kafka, folder=tmp_path, stack=stack)
        site.create()
        servers, (port,) = kafka.plain_servers, free_ports(1)
        observer = KafkaObserver(servers, Topics(*site.topics), PARTITIONS, {BOOT: BOOT_CLASS})
        stack.callback(observer.close)
        boots = (Input(BOOT, b"%d" % number, [], number % PARTITIONS) for number in count())
        load = make_load(TopicProducer(servers, site.name), boots, RATE, stack)
        flags = ["--token-file", str(place.proxy / "live" / "key_file.json")]
        flags += ["--url-cafile", str(place.proxy / "ca.crt"), "--metrics-port", str(port)]
        site.daemon(f"https://localhost:{place.port}{PATH}", *flags)
        observer.start()
        load.start()
        made = Relay(site, load, observer, f"http://127.0.0.1:{port}/metrics")
        wait_until(lambda: observer.log.results)
        yield made


def test_forward_and_back_under_load_no_request_fails_and_each_version_has_its_time(
    place: Place, relay: Relay
) -> None:
    end = Event()
    clients = [Client(number, place, end) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    forward = place.roll_out("2.0")
    assert forward.returncode == 0, forward.stdout + forward.stderr
    switched = place.switched_at()
    assert place.sides["first"].find_server() is None
    back = place.roll_out("1.0")
    assert back.returncode == 0, back.stdout + back.stderr
    switched_back = place.switched_at()
    assert place.sides["second"].find_server() is None
    end.set()
    for client in clients:
        client.join(60)
    retries = relay.count_retries()
    relay.end()
    assert [failure for client in clients for failure in client.failures] == []
    for client in clients:
        versions = [version for version, _ in groupby(one.version for one in client.answers)]
        assert versions == ["1.0", "2.0", "1.0"]
        newer = [one.time for one in client.answers if one.version == "2.0"]
        assert switched <= min(newer)
        assert max(one.time for one in client.answers) > switched_back
    check_relay(relay, switched, switched_back)
    # A token that a switch made void is busy, and the daemon asks again; nothing has failed.
    assert {kind for kind, number in retries.items() if number} <= {"busy"}, retries
    answers = sum(len(client.answers) for client in clients)
    sys.stdout.write(f"rollout: {answers:,} answers to {CLIENTS} clients, 0 failed\n")
    sys.stdout.write(f"rollout: {relay.load.sent:,} records and results, retries {retries}\n")


def check_relay(relay: Relay, switched: float, switched_back: float) -> None:
    """Assert that each record has one result, none a dead letter, and which version it has."""
    log, results = relay.observer.log, relay.read_results()
    assert {kind: found for kind, found in log.find_violations().items() if found} == {}
    assert (log.dead_letters, log.results, len(results)) == (0, relay.load.sent, relay.load.sent)
    assert read_topic(relay.site.kafka.plain_servers, relay.site.topics[2]) == []
    forward, back = int(switched * 1000), int(switched_back * 1000)
    newer = [one for one in results if one.version == "2.0"]
    older = [one for one in results if one.version == "1.0"]
    assert newer
    assert len(newer) + len(older) == len(results)
    # What was published before a switch was answered before it, what was sent after it, after it.
    assert min(one.published for one in newer) >= forward
    assert max(one.sent for one in newer) <= back + TICK_MS
    assert [one for one in older if one.sent > forward + TICK_MS and one.published < back] == []
    assert max(one.sent for one in older) > back
