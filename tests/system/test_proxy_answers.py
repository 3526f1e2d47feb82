"""The real nginx before a fake service: its own answers, and TLS with a private authority."""

from __future__ import annotations

import shutil
import socket
import time
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING

import pytest

from connectors import loop
from connectors.committer import CommitThread
from connectors.inference.http import Certificates, HttpClient
from connectors.inference.torchserve import KeyFile, TorchServe
from connectors.records import Busy, Failed, Image, Prediction, Record, Rejection, Request
from connectors.relay import Relay
from tests.certificates import Authority
from tests.conftest import missing
from tests.connectors.policies import policy
from tests.connectors.test_client import PATIENCE, Script, Service, ask, predictions
from tests.system.daemons import wait_until
from tools.servers.process import Process, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from connectors.records import Settled

pytestmark = pytest.mark.system

LIMIT = 1 << 16
CONFIGURATION = """\
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  server_tokens off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  limit_req_zone $server_port zone=one:1m rate=1r/m;
  limit_req_status 429;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_client_certificate {authority};
    ssl_verify_client on;
    client_max_body_size {limit};
    location /html {{ proxy_pass {upstream}; }}
    location /json {{
      error_page 413 @json;
      proxy_pass {upstream};
    }}
    location @json {{
      default_type application/json;
      return 413 '{{"error": "too large"}}';
    }}
    location /limited {{
      limit_req zone=one;
      proxy_pass {upstream};
    }}
    location /retry {{
      default_type text/html;
      add_header Retry-After 7 always;
      return 429;
    }}
    location /away {{ proxy_pass http://127.0.0.1:{nobody}; }}
    location /silent {{
      proxy_read_timeout 1s;
      proxy_pass http://127.0.0.1:{silent};
    }}
    location /closed {{ return 503; }}
    location /forbidden {{ deny all; }}
    location / {{ return 404; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="module")
def nginx(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; a service that predicts one image each is behind it."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        missing("nginx is not installed: apt-get install nginx")
    folder = tmp_path_factory.mktemp("nginx")
    folder.parent.chmod(0o755)  # its workers are another user's when root starts it
    port, nobody = free_ports(2)
    pair = authority.sign("proxy")
    with ExitStack() as stack:
        silent = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        upstream = stack.enter_context(Service(Script(body=predictions(1))).serving())
        file = folder / "nginx.conf"
        file.write_text(
            CONFIGURATION.format(
                folder=folder,
                port=port,
                certificate=pair.certificate,
                key=pair.key,
                authority=authority.file,
                limit=LIMIT,
                upstream=upstream,
                nobody=nobody,
                silent=silent.getsockname()[1],
            )
        )
        command = [program, "-c", str(file), "-p", str(folder), "-e", "stderr"]
        process = Process(command, folder / "log").start()
        stack.callback(process.stop)

        def answers() -> bool:
            assert process.alive(), process.tail()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(answers)
        yield f"https://127.0.0.1:{port}"


@pytest.fixture
def client_files(authority: Authority) -> Certificates:
    return Certificates(authority.file, *authority.sign("client"))


def connect(url: str, certificates: Certificates) -> HttpClient:
    return HttpClient(
        url,
        TorchServe(time.time),
        partial(KeyFile, None),
        timeout=PATIENCE,
        in_flight=1,
        certificates=certificates,
    )


def large(size: int = 2 * LIMIT) -> Request:
    return Request((Image(bytes(size)),))


def test_a_request_passes_with_a_private_authority_and_a_client_certificate(
    nginx: str, client_files: Certificates
) -> None:
    with closing(connect(f"{nginx}/html", client_files)) as client:
        assert isinstance(ask(client), list)


def test_without_a_client_certificate_nobody_is_served(
    nginx: str, client_files: Certificates
) -> None:
    with closing(connect(f"{nginx}/html", Certificates(client_files.cafile))) as client:
        answer = ask(client)
    assert isinstance(answer, Busy)
    assert "400 No required SSL certificate was sent" in answer.detail


@pytest.mark.parametrize(("path", "words"), [("html", "<html>"), ("json", '{"error": "too')])
@pytest.mark.parametrize("size", [2 * LIMIT, 24 << 20])
def test_its_413_is_too_large_in_any_form_and_however_much_is_still_to_be_sent(
    path: str, words: str, size: int, nginx: str, client_files: Certificates
) -> None:
    with closing(connect(f"{nginx}/{path}", client_files)) as client:
        answer = ask(client, large(size))
    assert isinstance(answer, Failed)
    assert (answer.final, answer.status, answer.reason) == (True, 413, "too_large")
    assert words in answer.detail


@pytest.mark.parametrize(
    ("path", "status", "after"),
    [
        ("retry", 429, 7.0),
        ("away", 502, None),
        ("closed", 503, None),
        ("silent", 504, None),
        ("forbidden", 403, None),
        ("nowhere", 404, None),
    ],
)
def test_what_else_it_answers_is_no_evidence_against_a_record(
    path: str, status: int, after: float | None, nginx: str, client_files: Certificates
) -> None:
    with closing(connect(f"{nginx}/{path}", client_files)) as client:
        answer = ask(client)
    assert isinstance(answer, Busy)
    assert answer.detail.startswith(f"{status}: <html>")
    assert answer.after == after


def test_its_limit_of_the_rate_is_waited_for(nginx: str, client_files: Certificates) -> None:
    with closing(connect(f"{nginx}/limited", client_files)) as client:
        assert isinstance(ask(client), list)
        answer = ask(client)
    assert isinstance(answer, Busy)
    assert answer.detail.startswith("429: <html>")


class Records:
    """A broker that hands out records once and keeps what is committed; the last commit ends it."""

    def __init__(self, relay: Relay, values: Sequence[bytes]) -> None:
        self.relay = relay
        self.left = [Record(str(n), v, None, (), 0, 0, n) for n, v in enumerate(values)]
        self.count = len(values)
        self.settled: list[Settled] = []

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        taken, self.left = self.left[:limit], self.left[limit:]
        if not taken:
            time.sleep(timeout)
        return taken

    def commit(self, settled: Sequence[Settled]) -> None:
        self.settled += settled
        if len(self.settled) == self.count:
            self.relay.drain(0.0)

    def lag(self) -> None:
        """Not known."""

    def joined(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


def test_a_pack_that_it_refuses_is_split_and_the_one_large_image_is_the_only_dead_letter(
    nginx: str, client_files: Certificates
) -> None:
    relay = Relay(policy(pack=3, in_flight=1), lambda upper: upper, Image(b"canary"))
    broker = Records(relay, [b"small", bytes(2 * LIMIT), b"small too"])

    def decode(record: Record) -> Image:
        return Image(record.value or b"")

    deadline = time.monotonic() + 60

    def begin_iteration() -> None:
        assert time.monotonic() < deadline

    with (
        closing(connect(f"{nginx}/html", client_files)) as client,
        closing(CommitThread()) as committer,
    ):
        loop.run(relay, broker, client, committer, decode, time.monotonic, begin_iteration)
    first, second, third = (one.outcome for one in broker.settled)
    assert isinstance(first, Prediction)
    assert isinstance(third, Prediction)
    assert isinstance(second, Rejection)
    assert (second.reason, second.status) == ("too_large", 413)
