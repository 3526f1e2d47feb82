"""The command line of `make serve` and `make serve-production`, and the renewal of the tokens."""

from __future__ import annotations

import json
import os
import subprocess
from http.server import BaseHTTPRequestHandler
from socketserver import UnixStreamServer
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.test_docs import ROOT
from tools import serve
from tools.servers.process import StackError
from tools.servers.torchserve import PORTS, TorchServe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The program sets it for its whole process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def configure(*flags: str) -> TorchServe:
    return serve.configured_server(serve.make_parser().parse_args(flags))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_production_adds_its_lines_and_a_socket_in_a_folder_of_its_own(tmp_path: Path) -> None:
    server = configure("--profile", "production", "--folder", str(tmp_path / "run" / "new"))
    expected = {
        "disable_token_authorization": "false",
        "management_address": f"unix:{tmp_path}/run/new/management.sock",
        "inference_address": "http://127.0.0.1:8080",
    }
    assert expected.items() <= server.settings.items()
    assert [mode(tmp_path / "run"), mode(tmp_path / "run" / "new")] == [0o755, 0o700]


def test_every_address_of_both_profiles_is_of_this_machine(tmp_path: Path) -> None:
    for profile in ("development", "production"):
        settings = configure("--profile", profile, "--folder", str(tmp_path / profile)).settings
        bound = [settings[key] for key in settings if key.endswith("_address")]
        assert len(bound) == 5
        assert [
            one for one in bound if not one.startswith("unix:") and "127.0.0.1" not in one
        ] == []


def test_another_archive_and_other_ports_are_served(tmp_path: Path) -> None:
    archive = tmp_path / "flowers.mar"
    server = configure("--archive", str(archive), "--port", "9080", "--folder", str(tmp_path))
    assert server.url == "http://127.0.0.1:9080/predictions/flowers"
    assert [server.settings[key].rsplit(":", 1)[-1] for key in PORTS] == [
        *("9080", "9081", "9082", "9083", "9084")
    ]


def test_port_0_takes_free_ports(tmp_path: Path) -> None:
    server = configure("--port", "0", "--folder", str(tmp_path))
    assert "0" not in {server.settings[key].rsplit(":", 1)[-1] for key in PORTS}


def test_a_setting_of_the_command_line_wins(tmp_path: Path) -> None:
    flags = ("--set", "token_expiration_min=15", "--set", "job_queue_size=10=1")
    server = configure("--profile", "production", "--folder", str(tmp_path / "new"), *flags)
    expected = {"token_expiration_min": "15", "job_queue_size": "10=1"}
    assert expected.items() <= server.settings.items()


@pytest.mark.parametrize(
    "flags",
    [
        *(("--set", "token"), ("--set", "=1"), ("--set", "a=1\nb=2"), ("--port", "65531")),
        *(("--port", "-1"), ("--port", "x"), ("--profile", "prod"), ("flowers.mar",)),
    ],
)
def test_a_wrong_argument_ends_with_2(
    flags: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        serve.main(list(flags))
    assert end.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_a_folder_that_others_can_enter_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o755)
    assert serve.main(["--profile", "production", "--folder", str(tmp_path)]) == 69
    assert "name a folder of your own by --folder" in capsys.readouterr().err
    assert mode(tmp_path) == 0o755


@pytest.mark.parametrize("profile", ["development", "production"])
def test_a_folder_that_cannot_be_made_is_one_sentence(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    flags = ["--profile", profile, "--folder", str(tmp_path / "file" / "new")]
    assert serve.main(flags) == 69
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "cannot be made" in sentence
    assert "name another by --folder" in sentence


@pytest.mark.parametrize("life", ["0", "-1", "nan", "inf", "an hour", ""])
def test_a_token_that_never_lives_is_refused_before_the_start(
    life: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--folder", str(tmp_path / "new"), "--set", f"token_expiration_min={life}"]
    assert serve.main(["--profile", "production", *flags]) == 69
    assert f"token_expiration_min={life} is no number of minutes" in capsys.readouterr().err


def test_an_archive_that_is_a_folder_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(["--folder", str(tmp_path), "--archive", str(tmp_path)]) == 69
    assert "run `make archive`" in capsys.readouterr().err


@pytest.mark.parametrize("profile", ["development", "production"])
def test_a_path_that_is_too_long_for_a_socket_is_one_sentence(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("a" * 100)
    assert serve.main(["--profile", profile, "--port", "0", "--folder", str(folder)]) == 69
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "takes 107: choose a folder with a shorter path by --folder" in sentence


def test_make_passes_archive_port_and_folder_on() -> None:
    words = ["make", "--no-print-directory", "--dry-run", "serve-production"]  # also inside a make
    words += ["ARCHIVE=a.mar", "PORT=9", "FOLDER=/run/b"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    last = done.stdout.splitlines()[-1].replace("\\", "").split()
    assert last == [
        *(".venv/bin/python", "-m", "tools.serve", "--archive", "a.mar", "--port", "9"),
        *("--folder", "/run/b", "--profile", "production"),
    ]


class Management(NamedTuple):
    """What a management API of this test was asked, and answers next."""

    asked: list[tuple[str, str | None]]
    answers: list[int]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[TorchServe, Management]]:
    """A server that is not started, whose management socket is answered by the test."""
    server = configure("--profile", "production", "--folder", str(tmp_path / "new"))
    server.key_file.write_text(json.dumps({"API": {"key": "secret"}}))
    management = Management([], [])

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            management.asked.append((self.path, self.headers["Authorization"]))
            self.send_response(management.answers.pop(0))
            self.end_headers()

        def address_string(self) -> str:
            return "a socket"

    path = server.settings["management_address"].removeprefix("unix:")
    with UnixStreamServer(path, Answering) as listening:
        Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield server, management
        listening.shutdown()


def test_both_tokens_are_renewed_over_the_socket_with_the_api_key(
    guarded: tuple[TorchServe, Management],
) -> None:
    server, management = guarded
    management.answers.extend([200, 200])
    assert serve.renew_tokens(server)
    assert management.asked == [
        ("/token?type=inference", "Bearer secret"),
        ("/token?type=management", "Bearer secret"),
    ]


def test_a_renewal_that_is_refused_is_said_and_tried_again_soon(
    guarded: tuple[TorchServe, Management], capsys: pytest.CaptureFixture[str]
) -> None:
    server, management = guarded
    management.answers.extend([400, 200, 200])
    waits = count_waits(server, ends_at=3)
    assert serve.run_until_end(server) == 7
    assert waits == [1800.0, 180.0, 1800.0]
    assert "answers 400; it is tried again" in capsys.readouterr().err


def test_a_renewal_that_nobody_answers_is_said_and_tried_again(
    guarded: tuple[TorchServe, Management], capsys: pytest.CaptureFixture[str]
) -> None:
    server, _ = guarded
    server.settings["management_address"] += ".gone"
    assert not serve.renew_tokens(server)
    assert "the inference token could not be renewed: " in capsys.readouterr().err


def test_a_token_is_renewed_at_half_of_its_life(guarded: tuple[TorchServe, Management]) -> None:
    server, management = guarded
    management.answers.extend([200] * 4)
    waits = count_waits(server, ends_at=3)
    assert serve.run_until_end(server) == 7
    assert waits == [1800.0] * 3
    assert len(management.asked) == 4


def test_without_a_token_nothing_is_renewed(guarded: tuple[TorchServe, Management]) -> None:
    server, _ = guarded
    server.key_file.unlink()
    waits = count_waits(server, ends_at=1)
    assert serve.run_until_end(server) == 7
    assert waits == [None]


def count_waits(server: TorchServe, ends_at: int) -> list[float | None]:
    """Let the server's process end with 7 at that wait; return the waits, in seconds."""
    waits: list[float | None] = []

    class Child:
        def wait(self, timeout: float | None) -> int:
            waits.append(timeout)
            if len(waits) < ends_at:
                raise subprocess.TimeoutExpired("torchserve", timeout or 0)
            return 7

    server.process.child = Child()  # type: ignore[assignment]
    return waits


def test_a_missing_key_file_is_said(guarded: tuple[TorchServe, Management]) -> None:
    server, _ = guarded
    server.key_file.unlink()
    with pytest.raises(StackError, match="could not be renewed"):
        server.renew_token("inference")
