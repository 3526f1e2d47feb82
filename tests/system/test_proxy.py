"""What the shipped nginx lets through to TorchServe: whole requests for predictions, no other."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest
import requests

from connectors.inference.dialect import parse_retry_after
from tests.system.proxy import start_proxy
from tests.test_docs import ROOT

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from tests.system.proxy import Proxy

pytestmark = pytest.mark.system

PATH = "/predictions/fmnist"
LIMIT = 6_553_500


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One for all tests here."""
    with start_proxy(tmp_path_factory.mktemp("proxy")) as running:
        yield running


def ask(proxy: Proxy, method: str, path: str, **options: object) -> requests.Response:
    return requests.request(
        method,
        proxy.url + path,
        verify=proxy.authority,
        timeout=30,
        **options,  # type: ignore[arg-type]
    )


def error_of(answer: requests.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


@pytest.mark.parametrize("path", [PATH, f"{PATH}/1.0", f"{PATH}/2", f"{PATH}?top=1"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_prediction_goes_through_with_its_body_type_and_token_and_no_other_header(
    proxy: Proxy, path: str, method: str
) -> None:
    headers = {"Authorization": "Bearer x", "Content-Type": "image/png", "ts_stream_next": "true"}
    assert ask(proxy, method, path, data=b"pixels", headers=headers).ok
    head = proxy.reached.heads[-1].decode().split("\r\n")
    assert head[0] == f"{method} {path} HTTP/1.1"
    assert {line.split(":")[0].lower() for line in head[1:-2]} == {
        *("host", "authorization", "content-type", "content-length")
    }
    assert proxy.reached.bodies[-1] == b"pixels"


def test_a_probe_goes_through(proxy: Proxy) -> None:
    assert ask(proxy, "GET", "/ping", headers={"Authorization": "Bearer x"}).ok
    assert proxy.reached.heads[-1].startswith(b"GET /ping HTTP/1.1\r\n")


CLOSED = [
    *("/", "/models", "/models/fmnist", "/models/fmnist/1.0/set-default", "/token?type=inference"),
    *("/metrics", "/api-description", "/workflows", "/wfpredict/x", "/invocations", "/predictions"),
    *("/predictions/", "/predictions/other", "/predictions/fmnist/", "/predictions/fmnist/x"),
    *("/predictions/fmnist/1.0/x", "/predictions/fmnist/../../models", "/explanations/fmnist"),
    *("/predictions/fmnist%2f..%2f..%2fmodels", "/predictions/fmnist%00", "/predictions/fmnist%0d"),
    *("/v1/models/fmnist:predict", "/v2/models/fmnist/infer", "/models/../predictions/fmnist/x"),
    "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions",
    "/org.pytorch.serve.grpc.management.ManagementAPIsService/RegisterModel",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"]


def raw(method: str, path: str) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n"
    return f"{head}Content-Length: 1\r\nConnection: close\r\n\r\nx".encode()


def status_of(answer: bytes) -> int:
    (status,) = re.findall(rb"\AHTTP/1\.1 (\d{3}) ", answer)
    return int(status)


@pytest.mark.parametrize("path", CLOSED)
def test_every_other_route_is_refused_whatever_the_method(proxy: Proxy, path: str) -> None:
    before = len(proxy.reached.heads)
    statuses = {method: status_of(proxy.exchange(raw(method, path))) for method in METHODS}
    assert {one for one in statuses.values() if one not in (400, 404, 405)} == set(), statuses
    assert len(proxy.reached.heads) == before


@pytest.mark.parametrize("path", [PATH, f"{PATH}/1.0", "/ping"])
def test_a_method_that_is_not_meant_is_refused(proxy: Proxy, path: str) -> None:
    meant = ["GET"] if path == "/ping" else ["POST", "PUT"]
    before = len(proxy.reached.heads)
    for method in set(METHODS) - set(meant):
        assert status_of(proxy.exchange(raw(method, path))) == 405 or method == "CONNECT"
    assert len(proxy.reached.heads) == before


def test_a_path_that_only_looks_like_another_reaches_the_server_as_it_was_judged(
    proxy: Proxy,
) -> None:
    for path in ("/models/../predictions/fmnist", "//predictions//fmnist", "/%70redictions/fmnist"):
        assert status_of(proxy.exchange(raw("POST", path))) == 200
        assert proxy.reached.heads[-1].startswith(b"POST /predictions/fmnist HTTP/1.1\r\n")


GRPC_METHODS = {
    "inference.InferenceAPIsService": [
        *("Ping", "Predictions", "StreamPredictions", "StreamPredictions2")
    ],
    "management.ManagementAPIsService": [
        *("DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "SetDefault"),
        "UnregisterModel",
    ],
}
"""Of TorchServe 0.12.0, by service below org.pytorch.serve.grpc."""

GRPC_PATHS = [
    f"/org.pytorch.serve.grpc.{service}/{method}"
    for service, methods in GRPC_METHODS.items()
    for method in methods
]


@pytest.mark.parametrize("path", GRPC_PATHS)
def test_no_grpc_method_passes(proxy: Proxy, path: str) -> None:
    before = len(proxy.reached.heads)
    with open(proxy.authority, "rb") as file:  # noqa: PTH123 - bytes
        credentials = grpc.ssl_channel_credentials(file.read())
    with grpc.secure_channel(f"localhost:{proxy.port}", credentials) as channel:
        call = channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=10, wait_for_ready=False)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert len(proxy.reached.heads) == before


def test_http_2_without_a_handshake_is_refused(proxy: Proxy) -> None:
    before = len(proxy.reached.heads)
    answer = proxy.exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
    assert answer == b"" or status_of(answer) >= 400
    assert len(proxy.reached.heads) == before


HIDDEN = b"POST /hidden HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
HEAD = b"POST /predictions/fmnist HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"0\r\n\r\n" + HIDDEN

SMUGGLED = {
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 70\r\n\r\nx" + HIDDEN,
    "two equal lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx" + HIDDEN,
    "a list of lengths": HEAD + b"Content-Length: 1, 70\r\n\r\nx" + HIDDEN,
    "a signed length": HEAD + b"Content-Length: +3\r\n\r\nabc" + HIDDEN,
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + HIDDEN,
    "a length in hex": HEAD + b"Content-Length: 0x3\r\n\r\nabc" + HIDDEN,
    "a length too long": HEAD + b"Content-Length: 99999999999999999999\r\n\r\nabc" + HIDDEN,
    "length and chunks": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    + CHUNKED,
    "chunks and length": HEAD
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    + CHUNKED,
    "an unknown coding": HEAD + b"Transfer-Encoding: cow\r\n\r\n" + CHUNKED,
    "two codings": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED,
    "two coding headers": HEAD
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"
    + CHUNKED,
    "a coding with a tab": HEAD + b"Transfer-Encoding:\tchunked\x0b\r\n\r\n" + CHUNKED,
    "a blank before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "a folded header": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKED,
    "a bad chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n" + CHUNKED,
    "a chunk size with a bare line feed": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n1;\nx\r\nx\r\n"
    + CHUNKED,
    "a null byte": HEAD + b"X: \x00\r\nContent-Length: 1\r\n\r\nx" + HIDDEN,
}


def end(raw_request: bytes) -> bytes:
    """Let the hidden request ask for the end of the connection, so that nobody waits for more."""
    return raw_request.replace(
        b"Host: x\r\nContent-Length: 1\r\n\r\nx", b"Host: x\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize("kind", SMUGGLED)
def test_a_request_of_doubtful_length_never_reaches_the_server(proxy: Proxy, kind: str) -> None:
    before = len(proxy.reached.heads)
    answer = proxy.exchange(end(SMUGGLED[kind]))
    assert b" 200 OK" not in answer
    assert proxy.reached.heads[before:] == []


BARE = {
    "bare line feeds": HEAD.replace(b"\r", b"") + b"Content-Length: 1\n\nx",
    "one bare line feed": HEAD + b"X: y\nContent-Length: 1\r\n\r\nx",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    "a header hidden by a carriage return": HEAD
    + b"X: y\rContent-Length: 70\r\nContent-Length: 1\r\n\r\nx",
    "pipelined": HEAD + b"Content-Length: 1\r\n\r\nx",
}


@pytest.mark.parametrize("kind", BARE)
def test_what_nginx_forgives_reaches_the_server_as_one_strict_request_or_not_at_all(
    proxy: Proxy, kind: str
) -> None:
    before = len(proxy.reached.heads)
    proxy.exchange(BARE[kind] + end(HIDDEN))
    for head, body in zip(proxy.reached.heads[before:], proxy.reached.bodies[before:], strict=True):
        assert head.startswith(b"POST /predictions/fmnist HTTP/1.1\r\n")
        assert head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")
        assert re.findall(rb"(?im)^(?:content-length|transfer-encoding).*\r$", head) == [
            b"Content-Length: 1\r"
        ]
        assert body == b"x"
    assert len(proxy.reached.heads) <= before + 1


def test_slow_and_held_bodies_never_reach_the_server_and_others_are_served(proxy: Proxy) -> None:
    connections, requests_before = proxy.reached.connections, len(proxy.reached.heads)
    with ExitStack() as stack:
        held = [stack.enter_context(proxy.connect()) for _ in range(200)]
        for connection in held:
            connection.sendall(HEAD + b"Content-Length: 6000000\r\n\r\n" + bytes(1000))
        refused = [one for one in held if status_or_none(one) == 429]
        assert len(held) - len(refused) <= 32
        for connection in set(held) - set(refused):
            connection.sendall(bytes(10))  # they go on, slowly
        assert proxy.reached.connections == connections
        other = HEAD + b"Content-Length: 1\r\nConnection: close\r\n\r\nx"
        assert status_of(proxy.exchange(other, source="127.0.0.2")) == 200
    assert proxy.reached.bodies[requests_before:] == [b"x"]


def status_or_none(connection: ssl.SSLSocket) -> int | None:
    """Return the status of an answer that is there, None when there is none yet."""
    connection.settimeout(0.1)
    try:
        return status_of(connection.recv(65536))
    except TimeoutError:
        return None
    finally:
        connection.settimeout(30)


def test_its_limit_of_bytes_is_that_of_the_server() -> None:
    properties = (ROOT / "config.properties").read_text()
    shipped = (ROOT / "serving" / "nginx.conf").read_text()
    assert f"max_request_size={LIMIT}\n" in properties
    assert f"client_max_body_size {LIMIT};" in shipped
    assert f"more than {LIMIT} bytes" in shipped


def test_a_request_of_the_largest_size_passes_and_one_byte_more_is_413(proxy: Proxy) -> None:
    assert ask(proxy, "POST", PATH, data=bytes(LIMIT)).ok
    assert len(proxy.reached.bodies[-1]) == LIMIT
    with proxy.connect() as connection:
        connection.sendall(HEAD + f"Content-Length: {LIMIT + 1}\r\n\r\n".encode())
        refused = connection.recv(65536)
    assert status_of(refused) == 413
    assert json.loads(refused.split(b"\r\n\r\n")[1])["error"]["code"] == "too_large"


def test_too_many_at_once_are_429_and_told_when_to_come_again(proxy: Proxy) -> None:
    with ExitStack() as stack:
        for _ in range(32):
            held = stack.enter_context(proxy.connect("127.0.0.3"))
            held.sendall(HEAD + b"Content-Length: 2\r\n\r\nx")
        answer = proxy.exchange(raw("POST", PATH), source="127.0.0.3")
    assert status_of(answer) == 429
    assert b"\r\nRetry-After: 1\r\n" in answer
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "busy"


def test_a_server_that_is_away_is_502_and_told_when_to_come_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with start_proxy(tmp_path_factory.mktemp("away")) as alone:
        alone.upstream.server_close()
        answer = ask(alone, "POST", PATH, data=b"x")
    assert (answer.status_code, error_of(answer)) == (502, "busy")
    assert parse_retry_after(answer.headers["Retry-After"], 0.0) == 5.0


def test_a_server_that_is_late_is_504_in_json(tmp_path_factory: pytest.TempPathFactory) -> None:
    changes = {"proxy_read_timeout 25s": "proxy_read_timeout 1s"}
    with start_proxy(tmp_path_factory.mktemp("late"), changes) as patient:
        patient.upstream.silent = True
        answer = ask(patient, "POST", PATH, data=b"x")
    assert (answer.status_code, error_of(answer)) == (504, "busy")


def test_the_access_log_names_who_was_refused_and_shows_no_body_and_no_token(proxy: Proxy) -> None:
    headers = {"Authorization": "Bearer secret-token"}
    ask(proxy, "POST", "/models?url=x", data=b"secret-body", headers=headers)
    ask(proxy, "POST", PATH, data=b"secret-body", headers=headers)
    log = (proxy.folder / "access.log").read_text()
    assert re.search(r'127\.0\.0\.1 "POST /models\?url=x HTTP/1\.1" 404 .* upstream=- ', log)
    written = "".join(file.read_text() for file in proxy.folder.glob("*.log"))
    assert "secret" not in written
