"""The steps of a roll-out, with servers and a proxy of this test: what fails leaves what served."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import psutil
import pytest
import requests

from tests.test_docs import ROOT
from tools import rollout
from tools.rollout import Rollout
from tools.servers.process import Process, StackError, free_ports
from tools.servers.proxy import Proxy, Side, end_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Server:
    """A server's process, as psutil shows it."""

    pid = 4711

    def __init__(self) -> None:
        self.ended = False

    def terminate(self) -> None:
        self.ended = True

    def is_running(self) -> bool:
        return not self.ended


class World:
    """What the program meets: who listens on which side, and what the two answer."""

    def __init__(self) -> None:
        self.servers: dict[str, Server] = {"first": Server()}
        self.connected: set[str] = set()
        self.label: str | None = None
        """That the new server gives; None: the right one."""
        self.version = "2.0"
        self.proxy_follows = True
        self.started: list[Process] = []


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The program sets it for its whole process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World()

    def find_server(side: Side) -> Server | None:
        found = made.servers.get(side.name)
        return None if found is None or found.ended else found

    def ask(side: Side, path: str, body: bytes) -> requests.Response:
        assert (side.name, path) == ("second", "/predictions/fmnist/2.0")
        boot = body == (ROOT / "tests/data/ankle-boot.png").read_bytes()
        return answer(made.label or ("Ankle boot" if boot else "Trouser"), made.version)

    def ask_proxy(proxy: Proxy, path: str, body: bytes, headers: object) -> tuple[int, bytes]:  # noqa: ARG001
        side = proxy.live_side() if made.proxy_follows else "first"
        return 200, answer("Ankle boot", {"first": "1.0", "second": made.version}[side]).content

    def start(self: Rollout) -> None:
        self.server = Process(["sleep", "600"], self.proxy.folder / "new.log").start()
        made.started.append(self.server)
        self.proxy.prepare(self.new)
        made.servers["second"] = Server()

    monkeypatch.setattr(Side, "find_server", find_server)
    monkeypatch.setattr(Side, "count_connections", lambda side: side.name in made.connected)
    monkeypatch.setattr(Side, "ask", ask)
    monkeypatch.setattr(Proxy, "ask", ask_proxy)
    monkeypatch.setattr(Rollout, "start", start)
    yield made
    for process in made.started:
        process.kill()


def answer(label: str, version: str) -> requests.Response:
    made = requests.Response()
    made.status_code = 200
    body: dict[str, Any] = {"label": label, "model": {"name": "fmnist", "version": version}}
    made._content = json.dumps(body).encode()
    return made


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    folder = tmp_path / "proxy"
    folder.mkdir()
    shutil.copyfile(ROOT / "serving" / "nginx.conf", folder / "nginx.conf")
    return Proxy(folder)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "fmnist.mar"
    with ZipFile(path, "w") as written:
        written.writestr("model.json", json.dumps({"version": "2.0"}))
    return path


def run(proxy: Proxy, archive: Path, *flags: str) -> int:
    words = ["--archive", str(archive), "--proxy", str(proxy.folder), "--quiet", "0.2"]
    words += ["--drain", "0.5", "--folder", str(archive.parent / "run"), *flags]
    return rollout.main(words)


def ended(process: Process) -> bool:
    return process.child.wait(10) is not None


def test_the_new_version_is_live_and_the_old_one_ended(
    world: World, proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(proxy, archive, "--version", "2.0") == 0
    assert proxy.live_side() == "second"
    assert world.servers["first"].ended
    assert world.started[0].alive()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed if line.startswith("rollout: ")][1:-1] == [
        *("1/5", "2/5", "3/5", "4/5", "5/5")
    ]


def test_the_way_back_is_the_same_command(world: World, proxy: Proxy, archive: Path) -> None:
    proxy.prepare(proxy.sides(archive)["second"])
    proxy.switch("second")
    world.servers = {"second": Server()}
    assert run(proxy, archive, "--dry-run") == 0
    asked = rollout.make_parser().parse_args(["--proxy", str(proxy.folder)])
    back = Rollout(asked)
    assert (back.old.name, back.new.name) == ("second", "first")


def test_a_dry_run_prints_the_steps_and_changes_nothing(
    world: World, proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(archive.parent.rglob("*"))
    assert run(proxy, archive, "--dry-run") == 0
    assert sorted(archive.parent.rglob("*")) == before
    assert world.started == []
    printed = capsys.readouterr().out
    assert "would start version 2.0 on port 9080" in printed
    assert "would switch the proxy from first to second" in printed


@pytest.mark.parametrize("wrong", ["label", "version"])
def test_a_new_version_that_answers_wrong_is_ended_and_nothing_is_switched(
    wrong: str,
    world: World,
    proxy: Proxy,
    archive: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setattr(world, wrong, "other")
    assert run(proxy, archive) == 69
    assert proxy.live_side() == "first"
    assert ended(world.started[0])
    assert not world.servers["first"].ended
    assert "the new version answers ankle-boot.png with 200" in capsys.readouterr().err


def test_a_new_version_that_cannot_start_changes_nothing(
    world: World,
    proxy: Proxy,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def start(_: Rollout) -> None:
        raise StackError("the new version does not start:\nport 9080 is taken")

    monkeypatch.setattr(Rollout, "start", start)
    assert run(proxy, archive) == 69
    assert (proxy.live_side(), world.servers["first"].ended) == ("first", False)
    assert "port 9080 is taken" in capsys.readouterr().err


def test_a_proxy_that_does_not_follow_is_switched_back_and_the_new_version_is_ended(
    world: World, proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.proxy_follows = False
    assert run(proxy, archive) == 69
    assert proxy.live_side() == "first"
    assert [world.servers[name].ended for name in ("first", "second")] == [False, True]
    assert "the proxy does not follow the switch" in capsys.readouterr().err


class Killed(BaseException):
    """SIGKILL: nothing runs after it."""


@pytest.mark.parametrize(
    ("step", "live"),
    [
        *(("start", "first"), ("smoke", "first"), ("confirm", "second"), ("retire", "second")),
    ],
)
@pytest.mark.parametrize("how", [KeyboardInterrupt, Killed])
def test_whoever_ends_the_program_leaves_a_side_live_that_serves(
    how: type[BaseException],
    step: str,
    live: str,
    world: World,
    proxy: Proxy,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = getattr(Rollout, step)

    def end(self: Rollout, *given: Side) -> None:
        if step == "start":
            before(self, *given)
        raise how

    monkeypatch.setattr(Rollout, step, end)
    if how is Killed:
        with pytest.raises(Killed):
            run(proxy, archive)
    else:
        assert run(proxy, archive) == 130
    assert proxy.live_side() == live
    assert not world.servers[live].ended
    if live == "first":
        assert how is Killed or ended(world.started[0])
    else:
        assert world.started[0].alive()


def test_what_a_killed_roll_out_left_is_ended_by_the_next(
    world: World, proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = world.servers["second"] = Server()
    assert run(proxy, archive) == 0
    assert left.ended
    assert "1/6 end what an earlier roll-out left on port 9080" in capsys.readouterr().out


def test_what_somebody_is_connected_to_is_not_ended(
    world: World, proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.connected = {"first"}
    assert run(proxy, archive) == 75
    assert (proxy.live_side(), world.servers["first"].ended) == ("second", False)
    assert "left running; end it by `kill 4711`" in capsys.readouterr().err


def test_a_side_that_is_used_past_the_proxy_gets_no_new_version(
    world: World, proxy: Proxy, archive: Path
) -> None:
    left = world.servers["second"] = Server()
    world.connected = {"second"}
    assert run(proxy, archive) == 69
    assert (proxy.live_side(), left.ended, world.started) == ("first", False, [])


def test_an_archive_of_another_version_is_refused(
    world: World, proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(proxy, archive, "--version", "3.0") == 69
    assert "is version 2.0, not 3.0" in capsys.readouterr().err
    assert world.started == []


def test_a_live_side_without_a_server_is_refused(
    world: World, proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.servers = {}
    assert run(proxy, archive) == 69
    assert "start it by `make serve-production PORT=8080 " in capsys.readouterr().err


def test_two_roll_outs_at_once_are_refused(
    world: World, proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (proxy.folder / "nginx.conf").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(proxy, archive) == 69
    assert "another roll-out is at work" in capsys.readouterr().err
    assert world.started == []


def test_an_old_configuration_of_the_proxy_is_refused(
    proxy: Proxy, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (proxy.folder / "nginx.conf").write_text("upstream torchserve { server 127.0.0.1:8080; }")
    assert run(proxy, archive) == 69
    assert "has no upstreams `first` and `second`" in capsys.readouterr().err
    (proxy.folder / "nginx.conf").unlink()
    assert run(proxy, archive) == 69
    assert "holds no nginx.conf: name the proxy's folder by --proxy" in capsys.readouterr().err


def test_a_port_of_another_program_is_refused(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        side = Side("second", held.getsockname()[1], tmp_path)
        with pytest.raises(StackError, match="did not start"):
            side.find_server()
    assert Side("second", free_ports(1)[0], tmp_path).find_server() is None


def test_the_tokens_of_the_live_side_are_behind_one_link_and_the_proxy_may_enter(
    proxy: Proxy, archive: Path
) -> None:
    assert run(proxy, archive, "--prepare") == 0
    sides = proxy.sides(archive.parent / "run")
    os.umask(0o077)
    for side in sides.values():
        side.folder.mkdir()
        side.key_file.write_text(side.name)
        proxy.prepare(side)
        assert (proxy.folder / side.name).stat().st_mode & 0o777 == 0o755
    for name in ("first", "second", "first"):
        proxy.switch(name)
        assert proxy.live_side() == name
        assert (proxy.folder / "live" / "key_file.json").read_text() == name


def test_a_process_that_nobody_has_fetched_has_ended() -> None:
    child = subprocess.Popen(["sleep", "600"])
    assert end_process(psutil.Process(child.pid), 10)
    assert child.wait(10) == -signal.SIGTERM


def test_nginx_and_the_program_ask_the_same_file_which_side_is_live() -> None:
    shipped = (ROOT / "serving" / "nginx.conf").read_text()
    assert "root live;" in shipped
    assert "if (-f $document_root/second) {" in shipped
    ports = {side.name: side.port for side in Proxy(ROOT / "serving").sides(ROOT).values()}
    assert ports == {"first": 8080, "second": 9080}


@pytest.mark.parametrize("flags", [("--image", "missing.png"), ("--quiet", "x"), ("more",)])
def test_a_wrong_argument_ends_with_2(flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as end:
        rollout.main(list(flags))
    assert end.value.code == 2


def test_make_passes_what_is_asked_on() -> None:
    words = ["make", "--no-print-directory", "--dry-run", "rollout", "VERSION=2.0", "DRY=1"]
    words += ["ARCHIVE=a.mar", "FOLDER=/run/b", "PROXY=/srv/p"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    last = done.stdout.splitlines()[-1].replace("\\", "").split()
    assert last == [
        *(".venv/bin/python", "-m", "tools.rollout", "--archive", "a.mar", "--version", "2.0"),
        *("--folder", "/run/b", "--proxy", "/srv/p", "--dry-run"),
    ]
