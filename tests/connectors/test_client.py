from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections import Counter, deque
from contextlib import closing, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import pytest

from connectors.inference import http as client_module
from connectors.inference.http import HttpClient
from connectors.inference.torchserve import KeyFile, TorchServe
from connectors.records import Busy, Failed, Image, Prediction, Rejection, Reopened, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message
    from pathlib import Path

    from connectors.records import Answer

BOOT = {"class": 9, "label": "Ankle boot", "score": 0.97}
MODEL = {"name": "fmnist", "version": "1.0"}
PATIENCE = 10.0


def predictions(count: int) -> bytes:
    return json.dumps({"predictions": [{**BOOT, "top": [BOOT]}] * count, "model": MODEL}).encode()


def request(count: int = 1) -> Request:
    return Request((Image(b"png"),) * count)


class Asked(NamedTuple):
    path: str
    headers: Message
    body: bytes


class Script(NamedTuple):
    """An answer; `length`: the Content-Length to claim."""

    status: int = 200
    body: bytes = predictions(1)
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None


class _Server(ThreadingHTTPServer):
    """Takes many connections at once: with five in its queue, the kernel lets others wait."""

    request_queue_size = 128
    daemon_threads = True


class Service:
    """A local HTTP server that answers from a script, the last answer for ever."""

    def __init__(self, *script: Script) -> None:
        self.asked: list[Asked] = []
        self.peers: set[tuple[str, int]] = set()
        self._script = deque(script)
        self._lock = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()

    def next(self, peer: tuple[str, int], asked: Asked) -> Script:
        with self._lock:
            self.peers.add(peer)
            self.asked.append(asked)
            return self._script.popleft() if len(self._script) > 1 else self._script[0]

    @contextmanager
    def serving(self) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            service: ClassVar = self
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                asked = Asked(self.path, self.headers, self.rfile.read(size))
                script = self.service.next(self.client_address, asked)
                self.service.gate.wait(PATIENCE)
                self.send_response(script.status)
                for header in script.headers:
                    self.send_header(*header)
                length = len(script.body) if script.length is None else script.length
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(script.body)
                self.close_connection = length != len(script.body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        with _Server(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}/predictions/fmnist"
            finally:
                self.gate.set()
                server.shutdown()
                thread.join()


@contextmanager
def raw_server(treat: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does one thing with its first connection."""

    def accept() -> None:
        with closing(server.accept()[0]) as connection:
            treat(connection)

    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/predictions/fmnist"
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextmanager
def connected(
    url: str,
    timeout: float = PATIENCE,
    in_flight: int = 1,
    token_file: Path | None = None,
    connection_age: float = inf,
) -> Iterator[HttpClient]:
    with closing(
        HttpClient(
            url,
            TorchServe(time.time),
            partial(KeyFile, token_file),
            timeout=timeout,
            in_flight=in_flight,
            connection_age=connection_age,
        )
    ) as client:
        yield client


def ask(client: HttpClient, asked: Request | None = None) -> Answer:
    asked = asked or request()
    client.send(asked)
    [(answered, answer)] = client.collect(PATIENCE)
    assert answered is asked
    return answer


def unused_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


DIED = json.dumps({"code": 500, "type": "InternalServerException", "message": "Worker died."})
REFUSALS = [Script(503, b"busy"), Script(500, b"{}"), Script(200, b"?"), Script(500, DIED.encode())]


@pytest.mark.parametrize("in_flight", [1, 2, 4])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_follows_a_request_goes_over_its_connection(refusal: Script, in_flight: int) -> None:
    service = Service(Script(), Script(), Script(), refusal)
    with service.serving() as url, connected(url, in_flight=in_flight) as client:
        for _ in range(2):
            ask(client)
        probe = request()
        ask(client, probe)
        before = len(service.peers)
        answer = ask(client, Request((Image(b"png"),), probe))
    assert isinstance(answer, Busy | Failed)
    assert len(service.peers) == before


class FakeTime:
    """Seconds that pass when a test says so; the module `time` of the client."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    made = FakeTime()
    monkeypatch.setattr(client_module, "time", made)
    return made


def test_a_connection_is_replaced_at_a_random_age_from_half_of_the_one_given(
    fake_time: FakeTime,
) -> None:
    service, ages = Service(Script()), set()
    with service.serving() as url, connected(url, connection_age=60.0) as client:
        ask(client)
        for _ in range(5):
            known, age = len(service.peers), 0
            while len(service.peers) == known:
                fake_time.now += 1.0
                age += 1
                ask(client)
            ages.add(age)
    assert all(30 <= age <= 60 for age in ages)
    assert len(ages) > 1


def test_an_old_connection_is_kept_between_a_canary_and_its_trial(fake_time: FakeTime) -> None:
    service = Service(Script())
    with service.serving() as url, connected(url, connection_age=60.0) as client:
        canary = request()
        ask(client, canary)
        fake_time.now += 1000.0
        ask(client, Request((Image(b"png"),), canary))
        assert len(service.peers) == 1
        ask(client)
        assert len(service.peers) == 2


def test_a_canary_whose_connection_is_old_takes_its_trial_along_to_another(
    fake_time: FakeTime,
) -> None:
    service = Service(Script(), Script(), Script(503, b"busy"))
    with service.serving() as url, connected(url, connection_age=60.0) as client:
        ask(client)
        fake_time.now += 1000.0
        canary = request()
        ask(client, canary)
        assert isinstance(ask(client, Request((Image(b"png"),), canary)), Busy)
    assert len(service.peers) == 2


class Replicas(Service):
    """Several servers behind an address that gives each new connection to the next of them."""

    def __init__(self, count: int) -> None:
        super().__init__(Script())
        self.count = count
        self.requests: Counter[int] = Counter()
        self._of_peer: dict[tuple[str, int], int] = {}

    def next(self, peer: tuple[str, int], asked: Asked) -> Script:
        with self._lock:
            replica = self._of_peer.setdefault(peer, len(self._of_peer) % self.count)
            self.requests[replica] += 1
        return super().next(peer, asked)


@pytest.mark.parametrize(("age", "least", "most"), [(60.0, 0.1, 0.4), (inf, 0.0, 0.0)])
def test_a_server_that_is_added_behind_the_address_gets_work_by_the_age_of_connections(
    age: float, least: float, most: float, fake_time: FakeTime
) -> None:
    service = Replicas(3)
    with service.serving() as url, connected(url, in_flight=16, connection_age=age) as client:
        for _ in range(40):  # ten ages
            service.gate.clear()  # until each connection has its request
            asked = len(service.asked)
            for _ in range(16):
                client.send(request())
            while len(service.asked) < asked + 16:
                time.sleep(0.001)
            service.gate.set()
            left = 16
            while left:
                left -= len(client.collect(PATIENCE))
            service.count = 4
            fake_time.now += 15.0
    assert least <= service.requests[3] / service.requests.total() <= most


@pytest.mark.parametrize("in_flight", [1, 2, 4])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_is_refused_over_a_new_connection_says_nothing(
    refusal: Script, in_flight: int
) -> None:
    service = Service(Script(headers=(("Connection", "close"),)), refusal)
    with service.serving() as url, connected(url, in_flight=in_flight) as client:
        probe = request()
        ask(client, probe)
        assert isinstance(ask(client, Request((Image(b"png"),), probe)), Reopened)
        assert isinstance(ask(client, Request((Image(b"png"),), request())), Reopened)
        assert isinstance(ask(client), Busy | Failed)


def test_what_is_final_is_final_over_a_new_connection_too() -> None:
    service = Service(Script(headers=(("Connection", "close"),)), Script(413))
    with service.serving() as url, connected(url) as client:
        probe = request()
        ask(client, probe)
        answer = ask(client, Request((Image(b"png"),), probe))
    assert isinstance(answer, Failed)
    assert answer.final


def test_what_is_answered_over_a_new_connection_is_answered() -> None:
    service = Service(Script(headers=(("Connection", "close"),)), Script())
    with service.serving() as url, connected(url) as client:
        probe = request()
        ask(client, probe)
        assert ask(client, Request((Image(b"png"),), probe)) == [
            Prediction({**BOOT, "top": [BOOT], "model": MODEL})
        ]


def test_images_go_out_and_outcomes_come_back() -> None:
    service = Service(Script(body=predictions(2)))
    with service.serving() as url, connected(url) as client:
        answer = ask(client, request(2))
    assert answer == [Prediction({**BOOT, "top": [BOOT], "model": MODEL})] * 2
    [asked] = service.asked
    assert asked.path == "/predictions/fmnist"
    assert asked.headers.get_content_type() == "multipart/form-data"
    assert asked.body.count(b"png") == 2


def test_headers_are_few_as_torchserve_hands_each_to_the_worker() -> None:
    service = Service(Script())
    with service.serving() as url, connected(url) as client:
        ask(client)
    assert sorted(service.asked[0].headers.keys()) == [
        "Accept-Encoding",
        "Content-Length",
        "Content-Type",
        "Host",
        "User-Agent",
    ]


def test_one_connection_serves_many_requests() -> None:
    service = Service(Script())
    with service.serving() as url, connected(url) as client:
        for _ in range(3):
            ask(client)
    assert len(service.peers) == 1


def test_as_many_requests_are_out_as_there_are_places() -> None:
    service = Service(Script())
    service.gate.clear()
    asked = [request() for _ in range(3)]
    with service.serving() as url, connected(url, in_flight=3) as client:
        for one in asked:
            client.send(one)
        assert client.collect(0) == []
        service.gate.set()
        answered: list[Request] = []
        while len(answered) < 3:
            answered += [one for one, _ in client.collect(PATIENCE)]
    assert {id(one) for one in answered} == {id(one) for one in asked}


def test_nothing_out_is_nothing_to_collect() -> None:
    with connected("http://127.0.0.1:9/") as client:
        assert client.collect(-1.0) == []


@pytest.mark.parametrize(("seconds", "after"), [("7", 7.0), ("soon", None)])
def test_a_busy_service_is_told_from_its_answer(seconds: str, after: float | None) -> None:
    script = Script(503, b"full", (("Retry-After", seconds),))
    with Service(script).serving() as url, connected(url) as client:
        assert ask(client) == Busy("503: full", after)


def test_a_redirect_is_not_followed() -> None:
    service = Service(Script(302, b"", (("Location", "/elsewhere"),)), Script())
    with service.serving() as url, connected(url) as client:
        assert ask(client) == Busy("302")
    assert len(service.asked) == 1


def test_cookies_are_not_sent_back() -> None:
    service = Service(Script(headers=(("Set-Cookie", "a=b"),)))
    with service.serving() as url, connected(url) as client:
        ask(client)
        ask(client)
    assert "Cookie" not in service.asked[1].headers


def test_a_proxy_in_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with Service(Script()).serving() as url, connected(url) as client:
        assert not isinstance(ask(client), Busy | Failed)


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 100)
    with Service(Script(body=b"x" * 1000)).serving() as url, connected(url) as client:
        assert ask(client) == Busy("200: the answer has more than 100 bytes")


def test_a_service_that_is_not_there_serves_nobody() -> None:
    with connected(f"http://127.0.0.1:{unused_port()}/") as client:
        assert ask(client) == Busy("ConnectionRefusedError: [Errno 111] Connection refused")


def test_a_name_that_does_not_resolve_serves_nobody() -> None:
    with connected("http://nowhere.invalid/") as client:
        assert isinstance(ask(client), Busy)


def hang_up(connection: socket.socket) -> None:
    while not connection.recv(65536).endswith(b"--\r\n"):
        pass


def reset(connection: socket.socket) -> None:
    hang_up(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_connection_reset_after_the_request_is_a_failure() -> None:
    with raw_server(reset) as url, connected(url) as client:
        answer = ask(client)
    assert isinstance(answer, Failed)
    assert "ConnectionResetError" in answer.detail
    assert not answer.final


def test_a_connection_closed_after_the_request_is_a_failure() -> None:
    with raw_server(hang_up) as url, connected(url) as client:
        answer = ask(client)
    assert isinstance(answer, Failed)
    assert "RemoteDisconnected" in answer.detail


def test_an_answer_cut_short_is_a_failure() -> None:
    with Service(Script(length=10_000)).serving() as url, connected(url) as client:
        assert isinstance(ask(client), Failed)


def test_a_service_that_never_answers_is_a_failure() -> None:
    over = threading.Event()

    def be_silent(_: socket.socket) -> None:
        over.wait(PATIENCE)

    with raw_server(be_silent) as url:
        with connected(url, timeout=0.05) as client:
            answer = ask(client)
        over.set()
    assert answer == Failed("TimeoutError: timed out")


def test_a_service_that_stops_within_its_answer_is_a_failure() -> None:
    over = threading.Event()

    def begin(connection: socket.socket) -> None:
        hang_up(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        over.wait(PATIENCE)

    with raw_server(begin) as url:
        with connected(url, timeout=0.2) as client:
            answer = ask(client)
        over.set()
    assert isinstance(answer, Failed)


def test_close_leaves_a_silent_service_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CLOSE_TIMEOUT", 0.01)
    service = Service(Script())
    service.gate.clear()
    with service.serving() as url:
        with connected(url, in_flight=2) as client:
            client.send(request())
            client.send(request())
        assert not service.gate.is_set()


def test_an_idle_client_ends_its_threads() -> None:
    with connected("http://127.0.0.1:9/", in_flight=3) as client:
        pass
    assert not any(thread.is_alive() for thread in client._threads)


def test_an_unexpected_error_ends_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> tuple[str, bytes]:
        raise ZeroDivisionError

    monkeypatch.setattr("connectors.inference.torchserve.encode_multipart", broken)
    with connected("http://127.0.0.1:9/") as client, pytest.raises(ZeroDivisionError):
        ask(client)


# the key


def write_key(path: Path, key: str) -> None:
    path.write_text(json.dumps({"inference": {"key": key}, "API": {"key": "other"}}))


def test_a_key_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "key_file.json"
    write_key(file, "abc")
    key = KeyFile(file)
    first, before = key.header(), file.stat()
    write_key(file, "def")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert key.header() == first == {"Authorization": "Bearer abc"}
    key.forget()
    assert key.header() == {"Authorization": "Bearer def"}


def test_the_inference_key_goes_along(tmp_path: Path) -> None:
    file = tmp_path / "key_file.json"
    write_key(file, "abc")
    service = Service(Script())
    with service.serving() as url, connected(url, token_file=file) as client:
        ask(client)
    assert service.asked[0].headers["Authorization"] == "Bearer abc"


def test_a_new_key_is_read_when_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "key_file.json"
    write_key(file, "old")
    os.utime(file, ns=(1, 1))
    service = Service(Script())
    with service.serving() as url, connected(url, token_file=file) as client:
        ask(client)
        write_key(file, "new")
        ask(client)
    assert [asked.headers["Authorization"] for asked in service.asked] == [
        "Bearer old",
        "Bearer new",
    ]


def test_a_refused_key_is_read_again_though_the_file_looks_the_same(tmp_path: Path) -> None:
    file = tmp_path / "key_file.json"
    write_key(file, "old")
    os.utime(file, ns=(1, 1))
    refusal = json.dumps({"code": 400, "type": "InvalidKeyException", "message": "no"}).encode()
    service = Service(Script(400, refusal), Script())
    with service.serving() as url, connected(url, token_file=file) as client:
        assert isinstance(ask(client), Busy)
        write_key(file, "new")
        os.utime(file, ns=(1, 1))
        assert isinstance(ask(client), list)
    assert service.asked[1].headers["Authorization"] == "Bearer new"


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", '{"inference": {}}', json.dumps({"inference": {"key": "a\r\nX-Evil: 1"}})],
)
def test_without_a_key_nothing_is_sent(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key_file.json"
    if content is not None:
        file.write_text(content)
    service = Service(Script())
    with service.serving() as url, connected(url, token_file=file) as client:
        answer = ask(client)
    assert isinstance(answer, Busy)
    assert "X-Evil" not in answer.detail
    assert service.asked == []


def test_a_rejected_image_is_an_outcome() -> None:
    item = {"error": {"code": "not_an_image", "message": "no"}}
    body = json.dumps({"predictions": [item], "model": MODEL}).encode()
    with Service(Script(body=body)).serving() as url, connected(url) as client:
        assert ask(client) == [Rejection("not_an_image", "no", status=200)]


# An answer that never ends


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def drip(first: bytes, again: bytes, over: threading.Event) -> Callable[[socket.socket], None]:
    def treat(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(first)
            while not over.wait(0.02):
                connection.sendall(again)

    return treat


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (HEAD, b" "),
        (HEAD + b'{"predictions": [', b"1"),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (CHUNKED, b"1\r\n{\r\n"),
        (CHUNKED + b"1;", b"x"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b" "),  # as long as it lasts
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_an_answer_that_drips_has_failed_when_the_time_is_over(first: bytes, again: bytes) -> None:
    over = threading.Event()
    with raw_server(drip(first, again, over)) as url:
        with connected(url, timeout=0.5) as client:
            began = time.monotonic()
            answer = ask(client)
            took = time.monotonic() - began
        over.set()
    assert isinstance(answer, Failed)
    assert took < 2.5


def test_after_an_answer_that_drips_the_next_request_goes_out_anew() -> None:
    over, served = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    whole = predictions(1)

    def serve() -> None:
        with closing(listener.accept()[0]) as first, suppress(OSError):
            first.recv(1 << 16)
            first.sendall(HEAD)
            while not over.wait(0.02):
                first.sendall(b" ")
        with closing(listener.accept()[0]) as second:
            second.recv(1 << 16)
            second.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole)
            served.wait(PATIENCE)

    thread = threading.Thread(target=serve)
    thread.start()
    with closing(listener):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with connected(url, timeout=0.5) as client:
            assert isinstance(ask(client), Failed)
            over.set()
            assert isinstance(ask(client), list)
        served.set()
        thread.join(PATIENCE)


def test_a_slow_answer_that_ends_in_time_is_taken() -> None:
    over, whole = threading.Event(), predictions(1)

    def treat(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole))
        for start in range(0, len(whole), 20):
            connection.sendall(whole[start : start + 20])
            time.sleep(0.01)
        over.wait(PATIENCE)

    with raw_server(treat) as url:
        with connected(url, timeout=PATIENCE) as client:
            assert isinstance(ask(client), list)
        over.set()


def test_four_answers_that_drip_hold_no_worker() -> None:
    over = threading.Event()

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            drip(HEAD, b" ", over)(self.request)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        with connected(url, timeout=0.5, in_flight=4) as client:
            for _ in range(4):
                client.send(request())
            answered: list[Answer] = []
            deadline = time.monotonic() + PATIENCE
            while len(answered) < 4 and time.monotonic() < deadline:
                answered += [answer for _, answer in client.collect(0.1)]
        over.set()
        server.shutdown()
        thread.join()
    assert [type(answer) for answer in answered] == [Failed] * 4
