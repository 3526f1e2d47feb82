"""docs/production.md as typed: TorchServe with a token, nginx before it, on the usual ports."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import grpc
import psutil
import pytest
import requests

from connectors.inference.http import HttpClient
from connectors.inference.torchserve import KeyFile
from connectors.inference.torchserve import TorchServe as Dialect
from connectors.records import Answer, Busy, Image, Prediction, Request
from tests.conftest import missing
from tests.system.daemons import BOOT, wait_until
from tests.system.proxy import FOLDER, LINES, require_nginx
from tests.system.test_proxy import GRPC_PATHS
from tools.servers.process import ROOT, Process, StackError, check_free
from tools.servers.torchserve import ARCHIVE, ManagementConnection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.system

PORTS = {"inference": 8080, "metrics": 8082, "gRPC inference": 7070, "gRPC management": 7071}
URL = "http://127.0.0.1:8080/predictions/fmnist"
PROXY_URL = "https://localhost:8443/predictions/fmnist"
FILES = ROOT / "run" / "production"
KEY_FILE = FILES / "key_file.json"
AUTHORITY = str(ROOT / FOLDER / "ca.crt")
LIFE_MIN = 0.75
"""Minutes that a token lives here: it is renewed once while these tests run."""


class Typed(NamedTuple):
    """What was typed: `make serve-production`, and the other lines, which end with an answer."""

    program: Process
    printed: str


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """The server and the proxy, in run/ of this checkout."""
    require_nginx()
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    try:
        for port in (*PORTS.values(), 8443):
            check_free(port)
    except StackError as error:
        missing(str(error))
    # What `make serve-production` runs, with tokens that live shorter.
    command = [sys.executable, "-m", "tools.serve", "--profile", "production"]
    command += ["--set", f"token_expiration_min={LIFE_MIN}"]
    log = tmp_path_factory.mktemp("production") / "serve.log"
    program = Process(command, log, cwd=ROOT).start()
    try:
        wait_until(lambda: "ready" in program.tail() or not program.alive(), 120)
        assert program.alive(), program.tail()
        yield Typed(program, type_lines(LINES[1:]))
    finally:
        end_proxy()
        program.child.send_signal(signal.SIGTERM)
        program.child.wait(40)


def type_lines(lines: Sequence[str]) -> str:
    """Return what bash prints for these lines."""
    done = subprocess.run(
        ["bash", "-euc", "\n".join(lines)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def end_proxy() -> None:
    page = (ROOT / "docs" / "production.md").read_text()
    (line,) = re.findall(r"`(nginx .* -s quit)`", page)
    subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, timeout=60, check=False)


def read_token(kind: str = "inference") -> str:
    """Return a token; TorchServe's file is empty for a moment while it is renewed."""
    deadline = time.monotonic() + 10
    while True:
        try:
            key: str = json.loads(KEY_FILE.read_text())[kind]["key"]
        except ValueError:
            assert time.monotonic() < deadline, "no whole key file in 10 s"
        else:
            return key


def ask(method: str, url: str, body: bytes = BOOT, content_type: str = "") -> requests.Response:
    """Ask with the token; once more when it was renewed in between."""
    for _ in range(2):
        token = read_token()
        headers = {"Authorization": f"Bearer {token}"}
        headers |= {"Content-Type": content_type} if content_type else {}
        answer = requests.request(
            method, url, data=body, headers=headers, verify=AUTHORITY, timeout=30
        )
        if token == read_token():
            break
    return answer


def list_workers(program: Process) -> list[int]:
    """Return the process ids of TorchServe's workers."""
    family = psutil.Process(program.child.pid).children(recursive=True)
    return [one.pid for one in family if any("model_service_worker" in w for w in one.cmdline())]


def test_the_lines_of_the_page_end_with_a_prediction(production: Typed) -> None:
    assert LINES[0] == "make serve-production"
    assert json.loads(production.printed)["label"] == "Ankle boot"


def test_with_the_token_an_image_is_predicted_directly_and_through_the_proxy(
    production: Typed,
) -> None:
    assert production.program.alive()
    for url in (URL, f"{URL}/1.0", PROXY_URL, f"{PROXY_URL}/1.0"):
        answer = ask("POST", url)
        assert (answer.status_code, answer.json()["label"]) == (200, "Ankle boot")
    assert ask("GET", PROXY_URL.replace("predictions/fmnist", "ping")).json() == {
        "status": "Healthy"
    }


@pytest.mark.parametrize("key", [None, "", "Bearer ", "Bearer wrong", "Bearer {management}"])
def test_without_the_token_every_request_is_refused(production: Typed, key: str | None) -> None:
    assert production.program.alive()
    headers = (
        {} if key is None else {"Authorization": key.format(management=read_token("management"))}
    )
    for base in ("http://127.0.0.1:8080", "https://localhost:8443"):
        for method, path in {"POST": "/predictions/fmnist", "GET": "/ping"}.items():
            answer = requests.request(
                method, base + path, data=BOOT, headers=headers, verify=AUTHORITY, timeout=30
            )
            assert (answer.status_code, answer.json()["type"]) == (400, "InvalidKeyException")


def test_an_authority_that_the_client_does_not_know_is_no_connection(production: Typed) -> None:
    assert production.program.alive()
    with pytest.raises(requests.exceptions.SSLError):
        requests.post(PROXY_URL, data=BOOT, timeout=30)


def test_everything_that_listens_is_on_loopback_and_management_is_no_port(
    production: Typed,
) -> None:
    family = psutil.Process(production.program.child.pid).children(recursive=True)
    listening = [
        one.laddr
        for process in family
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    ]
    assert {one.port for one in listening} == set(PORTS.values())
    assert {one.ip.removeprefix("::ffff:") for one in listening} == {"127.0.0.1"}


def test_the_folder_the_socket_and_the_tokens_are_of_one_user(production: Typed) -> None:
    assert production.program.alive()
    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in [FILES, *FILES.iterdir()]}
    assert {name for name, mode in modes.items() if mode & 0o077} == set()
    assert {"management.sock", "key_file.json", "torchserve.log"} <= set(modes)


@pytest.mark.parametrize(("kind", "status"), [("management", 200), ("inference", 400)])
def test_management_answers_on_its_socket_and_wants_its_own_token(
    production: Typed, kind: str, status: int
) -> None:
    assert production.program.alive()
    with closing(ManagementConnection(f"unix:{FILES / 'management.sock'}")) as connection:
        headers = {"Authorization": f"Bearer {read_token(kind)}"}
        connection.request("GET", "/models", headers=headers)
        assert connection.getresponse().status == status


def test_no_grpc_method_works_without_a_token_and_none_kills_the_worker(production: Typed) -> None:
    before = list_workers(production.program)
    for path in GRPC_PATHS:
        port = PORTS["gRPC management" if ".management." in path else "gRPC inference"]
        with (
            grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
            pytest.raises(grpc.RpcError) as refused,
        ):
            list(channel.unary_stream(path)(b"", timeout=20))
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED, path
    assert before
    assert list_workers(production.program) == before


def test_a_refused_or_failed_request_is_in_the_log_and_no_body_at_any_level(
    production: Typed,
) -> None:
    assert production.program.alive()
    check_log()
    show_all()
    check_log()


def check_log() -> None:
    """Ask what is refused or fails in three ways, and find it in the log."""
    seen = len(read_log())
    assert ask("POST", f"{URL}?first", b"a=%zz secret", FORM).status_code == 500
    assert ask("POST", f"{URL}?second", b"{secret", "application/json").status_code == 400
    assert requests.post(f"{URL}?third", data=b"secret", timeout=30).status_code == 400
    wait_until(lambda: "?third" in read_log()[seen:])
    lines = read_log()[seen:]
    for name, status in {"first": 500, "second": 400, "third": 400}.items():
        assert re.search(rf'127\.0\.0\.1:\d+ "POST \S+\?{name} HTTP/1\.1" {status} \d', lines)
    assert "secret" not in lines


FORM = "application/x-www-form-urlencoded"


def read_log() -> str:
    return (FILES / "torchserve.log").read_text(errors="replace")


def show_all() -> None:
    """Show all that there is, and wait until TorchServe has read so."""
    levels = FILES / "log4j2.xml"
    text = levels.read_text()
    assert text.count('"server">WARN<') == 1
    levels.write_text(text.replace('"server">WARN<', '"server">DEBUG<'))
    deadline = time.monotonic() + 30
    while "DEBUG" not in read_log():
        assert time.monotonic() < deadline
        ask("POST", URL)
        time.sleep(0.2)


def test_a_token_renewed_in_time_costs_a_connector_no_record(production: Typed) -> None:
    assert production.program.alive()
    before, answers = read_token(), list[Answer]()
    deadline = time.monotonic() + LIFE_MIN * 60
    with closing(
        HttpClient(URL, Dialect(time.time), partial(KeyFile, KEY_FILE), timeout=20.0, in_flight=4)
    ) as client:
        while read_token() == before:
            assert time.monotonic() < deadline, production.program.tail()
            answers += ask_four(client)
        for _ in range(5):
            answers += ask_four(client)
    # An empty or half-written file and a void token are Busy: the relay asks again.
    predicted = [one for one in answers if isinstance(one, list)]
    assert {type(one) for one in answers} <= {list, Busy}
    assert all(isinstance(one, Prediction) for each in predicted for one in each)
    assert answers[-4:] == predicted[-4:]
    assert "renewed the tokens" in production.program.tail()


def ask_four(client: HttpClient) -> list[Answer]:
    """Return the answers to four requests at once."""
    for _ in range(4):
        client.send(Request((Image(BOOT),)))
    answers: list[Answer] = []
    while len(answers) < 4:
        answers += [answer for _, answer in client.collect(30.0)]
    return answers


def test_sigterm_ends_it_with_0_and_leaves_nothing_running(production: Typed) -> None:
    family = psutil.Process(production.program.child.pid).children(recursive=True)
    production.program.child.send_signal(signal.SIGTERM)
    assert production.program.child.wait(40) == 0
    wait_until(lambda: not any(map(runs, family)))
    assert production.program.tail().endswith("serve: stopped")


def runs(process: psutil.Process) -> bool:
    """Say whether it still runs; a zombie only waits for init."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
