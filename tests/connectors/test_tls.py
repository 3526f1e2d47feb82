"""Certificates for the service's URL, and what `check` says of what goes in the clear."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from kafka.errors import KafkaTimeoutError

from connectors.__main__ import main
from connectors.brokers.kafka.clients import stop_if_unreachable
from connectors.brokers.kafka.settings import KafkaSettings, RunKafka, SendKafka
from connectors.command_line import explain, load
from connectors.commands import doctor
from connectors.errors import Exit, Stop
from connectors.inference import open_client
from connectors.inference.http import Certificates, HttpClient
from connectors.inference.torchserve import KeyFile, TorchServe
from connectors.records import Busy, Failed, Image, Request
from connectors.tls import is_loopback, require_tls_files
from tests.certificates import ELSEWHERE, Authority, Pair
from tests.connectors.test_client import PATIENCE, Script, Service, ask, connected, predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from connectors.inference.http import HttpClient as Client

TOPICS = ["--input-topic", "images", "--output-topic", "predictions"]
HTTPS = ["--url", "https://127.0.0.1:1/p"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("ours"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("foreign"), "foreign")


def settings(*flags: str) -> RunKafka:
    return load(RunKafka, [*TOPICS, *flags], "connectors")


def refusal(*flags: str, kind: type = RunKafka) -> str:
    with pytest.raises(Stop) as stop:
        load(kind, [*TOPICS, *flags], "connectors")
    assert stop.value.code == Exit.USAGE
    assert "\n" not in str(stop.value)
    return str(stop.value)


# files


@pytest.mark.parametrize("prefix", ["url", "ssl"])
def test_good_files_are_taken_from_any_source(
    prefix: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = authority.sign("client")
    file = tmp_path / "connector.toml"
    file.write_text(f"{prefix}_certfile = '{pair.certificate}'\n")
    monkeypatch.setenv(f"CONNECTOR_{prefix.upper()}_KEYFILE", str(pair.key))
    cafile = [f"--{prefix}-cafile", str(authority.file)]
    found = settings(*HTTPS, "--config", str(file), *cafile)
    names = ("cafile", "certfile", "keyfile")
    files = [getattr(found, f"{prefix}_{name}") for name in names]
    assert files == [authority.file, pair.certificate, pair.key]


@pytest.mark.parametrize("prefix", ["url", "ssl"])
def test_files_that_no_connection_could_be_made_with_are_refused_in_a_sentence(
    prefix: str, authority: Authority, tmp_path: Path
) -> None:
    one, other = authority.sign("one"), authority.sign("other")
    text = tmp_path / "text"
    text.write_text("no PEM")
    empty = tmp_path / "empty"
    empty.touch()
    ca, cert, key = (f"--{prefix}-{name}" for name in ("cafile", "certfile", "keyfile"))
    for wrong in (text, empty, one.key):
        sentence = f"{prefix}_cafile holds no certificate that can be read: {wrong} must be PEM"
        assert sentence in refusal(*HTTPS, ca, str(wrong))
        sentence = f"{prefix}_certfile holds no certificate that can be read: {wrong} must be PEM"
        assert sentence in refusal(*HTTPS, cert, str(wrong), key, str(one.key))
    certified = [*HTTPS, cert, str(one.certificate)]
    for wrong in (text, empty, one.certificate):
        sentence = f"{prefix}_keyfile holds no private key that can be read: {wrong} must be PEM"
        assert sentence in refusal(*certified, key, str(wrong))
    sentence = f"{prefix}_keyfile does not match: {other.key} is not the key of {one.certificate}"
    assert sentence in refusal(*certified, key, str(other.key))
    assert f"{prefix}_certfile holds no private key" in refusal(*certified)
    assert f"{prefix}_keyfile needs {prefix}_certfile" in refusal(*HTTPS, key, str(one.key))
    assert "path does not point to a file" in refusal(*HTTPS, ca, str(tmp_path / "missing"))


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_passphrase(
    authority: Authority, tmp_path: Path
) -> None:
    pair = Pair(authority.file, tmp_path / "encrypted.key")
    pair.key.write_bytes(
        authority.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
        )
    )
    files = ["--url-certfile", str(pair.certificate), "--url-keyfile", str(pair.key)]
    assert "url_keyfile is encrypted" in refusal(*HTTPS, *files)
    require_tls_files("ssl_", None, *pair, password="word")  # noqa: S106 - of this test


def test_a_file_that_cannot_be_opened_is_refused_with_the_reason(
    authority: Authority, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"url_cafile cannot be read: .*directory"):
        require_tls_files("url_", tmp_path, None, None)
    with pytest.raises(ValueError, match=r"url_keyfile cannot be read: .*No such file"):
        require_tls_files("url_", None, authority.file, tmp_path / "gone")


def test_certificates_are_refused_with_a_url_that_would_not_use_them(
    authority: Authority,
) -> None:
    sentence = "need a url that begins with https://"
    assert sentence in refusal("--url-cafile", str(authority.file))
    files = ["--url-cafile", str(authority.file), "a.png"]
    assert "a flag of other commands" in refusal(*files, kind=SendKafka)


@pytest.mark.parametrize("url", ["http://h:99999/", "http://h:x/", "https://[::1/", "http://:80/"])
def test_a_url_without_a_host_or_port_that_can_be_is_refused(url: str) -> None:
    assert "--url: its host or port cannot be" in refusal("--url", url)


# connections


@contextmanager
def secured(
    treat: Callable[[socket.socket], None],
    pair: Pair,
    trusted: Authority | None = None,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> Iterator[str]:
    """A TLS server that treats each connection; with `trusted` it wants a certificate of theirs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = newest
    if newest < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("ALL:@SECLEVEL=0")  # or this server could not speak it
    if trusted:
        context.load_verify_locations(trusted.file)
        context.verify_mode = ssl.CERT_REQUIRED
    over = threading.Event()

    def accept() -> None:
        while not over.is_set():
            with suppress(OSError), closing(listener.accept()[0]) as plain:
                plain.settimeout(PATIENCE)
                context.load_cert_chain(*pair)
                with context.wrap_socket(plain, server_side=True) as connection:
                    treat(connection)

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}/predictions/fmnist"
        finally:
            over.set()
            with suppress(OSError):  # so that nobody waits in `accept`
                socket.create_connection(listener.getsockname(), timeout=1).close()
            thread.join(PATIENCE)


def serve(connection: socket.socket) -> None:
    """Answer one request with a prediction, and hang up."""
    while not connection.recv(1 << 16).endswith(b"--\r\n"):
        pass
    body = predictions(1)
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection.sendall(head + body)


@contextmanager
def trusting(url: str, *files: Path | None) -> Iterator[Client]:
    client = HttpClient(
        url,
        TorchServe(time.time),
        partial(KeyFile, None),
        timeout=PATIENCE,
        in_flight=1,
        certificates=Certificates(*files),
    )
    with closing(client):
        yield client


def test_a_private_authority_is_trusted_when_it_is_named(authority: Authority) -> None:
    with secured(serve, authority.sign("server")) as url, trusting(url, authority.file) as client:
        assert isinstance(ask(client), list)


def test_an_authority_that_is_named_takes_the_place_of_all_others(
    authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with secured(serve, authority.sign("server")) as url, trusting(url, stranger.file) as client:
        assert isinstance(ask(client), Busy)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("expired", "certificate has expired"),
        ("foreign", "unable to get local issuer certificate"),
        ("misnamed", "IP address mismatch"),
        ("unnamed authority", "unable to get local issuer certificate"),
    ],
)
def test_a_wrong_certificate_is_nobodys_fault_and_the_reason_is_told(
    kind: str, why: str, authority: Authority, stranger: Authority
) -> None:
    pair = {
        "expired": partial(authority.sign, "server", expired=True),
        "foreign": partial(stranger.sign, "server"),
        "misnamed": partial(authority.sign, "server", ELSEWHERE),
        "unnamed authority": partial(authority.sign, "server"),
    }[kind]()
    cafile = None if kind == "unnamed authority" else authority.file
    with secured(serve, pair) as url, trusting(url, cafile) as client:
        answer = ask(client)
    assert isinstance(answer, Busy)
    assert why in answer.detail
    assert "\n" not in answer.detail


def test_tls_below_1_2_is_not_spoken(authority: Authority) -> None:
    server = authority.sign("server")
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"),
        secured(serve, server, newest=ssl.TLSVersion.TLSv1_1) as url,
        trusting(url, authority.file) as client,
    ):
        answer = ask(client)
    assert isinstance(answer, Busy)
    assert "version" in answer.detail.lower()


def test_a_client_certificate_is_shown_and_without_one_nobody_is_served(
    authority: Authority, stranger: Authority
) -> None:
    server, client_pair = authority.sign("server"), authority.sign("client")
    one_file = authority.file.with_name("both.pem")
    one_file.write_text(client_pair.both)
    with secured(serve, server, trusted=authority) as url:
        for files in (tuple(client_pair), (one_file,)):
            with trusting(url, authority.file, *files) as client:
                assert isinstance(ask(client), list)
        wrong = [(), stranger.sign("client"), authority.sign("old", expired=True)]
        for files in wrong:
            with trusting(url, authority.file, *files) as client:
                answer = ask(client)
            assert isinstance(answer, Busy | Failed)
            assert not (isinstance(answer, Failed) and answer.final)


def test_a_renewed_certificate_is_taken_with_the_next_connection(
    authority: Authority, tmp_path: Path
) -> None:
    server, old = authority.sign("server"), authority.sign("old", expired=True)
    pair = Pair(tmp_path / "now.crt", tmp_path / "now.key")
    with (
        secured(serve, server, trusted=authority) as url,
        trusting(url, authority.file, *pair) as client,
    ):
        gone = ask(client)
        assert isinstance(gone, Busy)
        assert "now.crt" in gone.detail
        for source in (old, authority.sign("new")):
            pair.certificate.write_bytes(source.certificate.read_bytes())
            pair.key.write_bytes(source.key.read_bytes())
            answer = ask(client)
        assert isinstance(answer, list)


def test_the_operators_files_reach_the_connection(authority: Authority) -> None:
    pair = authority.sign("client")
    files = ["--url-cafile", str(authority.file)]
    shown = ["--url-certfile", str(pair.certificate), "--url-keyfile", str(pair.key)]
    with secured(serve, authority.sign("server"), trusted=authority) as url:
        found = settings("--url", url, *files, *shown)
        with closing(open_client(found, timeout=PATIENCE, in_flight=1)) as client:
            assert isinstance(ask(client), list)
        assert "answers in" in doctor.ask_service(found, PATIENCE).text
        with pytest.raises(Stop, match=r"self-signed|local issuer") as stop:
            doctor.ask_service(settings("--url", url), PATIENCE)
    assert stop.value.code == Exit.UNAVAILABLE


def listen(connection: socket.socket) -> None:
    """Wait for a word, as a broker does."""
    connection.recv(1)


@pytest.mark.parametrize(
    ("server_kind", "client_kind", "why"),
    [
        ("expired", "good", "certificate has expired"),
        ("foreign", "good", "unable to get local issuer certificate"),
        ("misnamed", "good", "IP address mismatch"),
        ("good", "expired", "certificate expired"),
        ("good", "foreign", "alert unknown ca"),
        ("good", "none", "certificate required"),
        ("good", "good", "does not let us in"),
    ],
)
def test_why_tls_with_a_broker_fails_is_told(
    server_kind: str, client_kind: str, why: str, authority: Authority, stranger: Authority
) -> None:
    pairs = {
        "good": authority.sign("good"),
        "expired": authority.sign("old", expired=True),
        "foreign": stranger.sign("other"),
        "misnamed": authority.sign("misnamed", ELSEWHERE),
    }
    pair = pairs.get(client_kind)
    with secured(listen, pairs[server_kind], trusted=authority) as url:
        server = url.split("/")[2]
        found = KafkaSettings(
            bootstrap_servers=server,
            security_protocol="SSL",
            ssl_cafile=authority.file,
            ssl_certfile=pair.certificate if pair else None,
            ssl_keyfile=pair.key if pair else None,
        )
        with pytest.raises(Stop) as stop, stop_if_unreachable(found):
            raise KafkaTimeoutError
    assert stop.value.code == Exit.UNAVAILABLE
    assert server in str(stop.value)
    assert why in str(stop.value)


# a proxy that has had enough


HTML = (
    b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n"
    b"<center><h1>413 Request Entity Too Large</h1></center>\r\n<hr><center>nginx</center>\r\n"
    b"</body>\r\n</html>\r\n"
)
"""As nginx 1.22 writes it with `server_tokens off`."""
LARGE = Request((Image(bytes(24 << 20)),))
"""More than the buffers of two sockets hold."""


def refuse(body: bytes, connection: socket.socket) -> None:
    """Answer 413 before the body is read, and hang up: what is unread makes a reset of it."""
    connection.recv(1 << 12)
    head = (
        b"HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    connection.sendall(head % len(body) + body)


def reset(connection: socket.socket) -> None:
    connection.recv(1 << 12)


@contextmanager
def proxy(
    treat: Callable[[socket.socket], None], authority: Authority, *, tls: bool
) -> Iterator[Client]:
    if tls:
        with secured(treat, authority.sign("proxy")) as url, trusting(url, authority.file) as one:
            yield one
        return
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with closing(listener.accept()[0]) as connection:
            treat(connection)

    thread = threading.Thread(target=accept)
    thread.start()
    with closing(listener), connected(f"http://127.0.0.1:{listener.getsockname()[1]}/") as one:
        yield one
    thread.join(PATIENCE)


def linger(body: bytes, connection: socket.socket) -> None:
    """The same, but take the rest before hanging up, as nginx does: TLS can read no other 413."""
    refuse(body, connection)
    while connection.recv(1 << 20):
        pass


@pytest.mark.parametrize(("treat", "tls"), [(refuse, False), (linger, False), (linger, True)])
@pytest.mark.parametrize("body", [HTML, b'{"error": "too large"}', b""])
def test_a_413_that_comes_while_the_body_is_sent_is_read(
    treat: Callable[[bytes, socket.socket], None], body: bytes, authority: Authority, *, tls: bool
) -> None:
    with proxy(partial(treat, body), authority, tls=tls) as client:
        answer = ask(client, LARGE)
    assert isinstance(answer, Failed)
    assert (answer.final, answer.status, answer.reason) == (True, 413, "too_large")


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_that_breaks_while_the_body_is_sent_speaks_of_its_size_and_is_not_final(
    authority: Authority, *, tls: bool
) -> None:
    with proxy(reset, authority, tls=tls) as client:
        answer = ask(client, LARGE)
    assert isinstance(answer, Failed)
    assert (answer.final, answer.status, answer.reason) == (False, None, "too_large")
    assert answer.detail.endswith("while the request was sent")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 502, 503, 504])
@pytest.mark.parametrize("json_body", [False, True])
def test_what_else_a_proxy_answers_is_no_evidence_against_a_record(
    status: int, *, json_body: bool
) -> None:
    body = json.dumps({"status": status, "message": "no"}).encode() if json_body else HTML
    with Service(Script(status, body)).serving() as url, connected(url) as client:
        answer = ask(client)
    assert isinstance(answer, Busy)
    assert answer.detail.startswith(str(status))


@pytest.mark.parametrize(("header", "after"), [((), None), ((("Retry-After", "7"),), 7.0)])
def test_a_429_waits_as_long_as_it_asks(
    header: tuple[tuple[str, str], ...], after: float | None
) -> None:
    with Service(Script(429, HTML, header)).serving() as url, connected(url) as client:
        answer = ask(client)
    assert isinstance(answer, Busy)
    assert answer.after == after


# what goes in the clear


def exposures(**given: Any) -> list[str]:  # noqa: ANN401 - any field
    return list(KafkaSettings(**given).list_exposures())


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"]
)
def test_loopback_is_known_by_name_and_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "localhost.example", "10.0.0.1", "0.0.0.0", "::", "fe80::1"])  # noqa: S104 - judged, not bound
def test_what_is_not_loopback_is_not_taken_for_it(host: str) -> None:
    assert not is_loopback(host)


def test_on_one_machine_nothing_is_in_the_clear(tmp_path: Path) -> None:
    assert exposures() == []
    assert exposures(token_file=tmp_path / "key") == []
    assert exposures(url="http://[::1]:8080/p", bootstrap_servers="[::1]:9092") == []
    away = {"bootstrap_servers": "kafka:9093", "security_protocol": "SSL"}
    assert exposures(url="https://host/p", token_file=tmp_path / "key", **away) == []


def test_a_token_over_plain_http_to_another_host_is_told(tmp_path: Path) -> None:
    (one,) = exposures(url="http://host:8080/p?key=hunter2", token_file=tmp_path / "key")
    assert one == ("the token and the images go to host:8080 in the clear: give an https:// --url")
    (one,) = exposures(url="http://host/p")
    assert one.startswith("the images go to host in the clear")


def test_kafka_in_the_clear_is_told(tmp_path: Path) -> None:
    (one,) = exposures(bootstrap_servers="127.0.0.1:9092,a:9092,b:9092")
    assert one == "the records go to a, b in the clear: give --security-protocol SSL"
    password = tmp_path / "password"
    password.touch()
    login = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_username": "me",
        "sasl_password_file": password,
    }
    (one,) = exposures(**login)
    assert one == "the password goes to Kafka in the clear: give --security-protocol SASL_SSL"
    both = exposures(**login, bootstrap_servers="a:9092")
    assert [text.split(" go")[0] for text in both] == ["the password", "the records"]
    assert exposures(**login | {"sasl_mechanism": "SCRAM-SHA-256"}) == []
    assert exposures(**login | {"security_protocol": "SASL_SSL"}) == []


def test_the_kafka_table_is_looked_at_too() -> None:
    table = {"security_protocol": "SSL", "ssl_check_hostname": False}
    (one,) = exposures(bootstrap_servers="a:9093", kafka=table)
    assert one.endswith("remove ssl_check_hostname from the kafka table")


def test_check_gives_a_finding_for_each_that_a_machine_can_read() -> None:
    found = settings("--url", "http://h.invalid/p", "--bootstrap-servers", "kafka.invalid:9092")
    findings = list(doctor.run_all(found, [], thorough=False))
    told = [one for one in findings if one.check == "privacy"]
    assert [one.result for one in told] == ["advice", "advice"]
    lines = doctor.render_findings(told, as_json=True)
    assert [json.loads(line)["result"] for line in lines] == ["advice", "advice"]
    assert all(one.check != "privacy" for one in doctor.run_all(settings(), [], thorough=True))


# what is printed


URL = "http://127.0.0.1:1/p?key=hunter2#hunter2"


@pytest.mark.parametrize("as_json", [False, True])
def test_print_config_hides_the_query_of_the_url(
    capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    flags = [*TOPICS, "--url", URL, *(["--json"] if as_json else [])]
    assert main(["print-config", "kafka", *flags]) == Exit.OK
    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert "http://127.0.0.1:1/p?***" in shown


def test_a_url_that_is_hidden_is_a_comment_and_any_other_is_not() -> None:
    for url, begins in ((URL, "# url = "), ("http://127.0.0.1:1/***", "url = ")):
        flags = [*TOPICS, "--url", url]
        found = explain(settings("--url", url), flags, "connectors")
        lines = doctor.render_settings(found, as_json=False)
        (line,) = (one for one in lines if "url = " in one)
        assert line.startswith(begins)


def test_a_url_with_a_password_is_refused_and_not_repeated() -> None:
    assert "hunter2" not in refusal("--url", "https://me:hunter2@host/")


def test_no_sentence_about_the_service_shows_the_query() -> None:
    with pytest.raises(Stop) as stop:
        doctor.ask_service(settings("--url", URL), PATIENCE)
    assert "http://127.0.0.1:1/p?***" in str(stop.value)
    assert "hunter2" not in str(stop.value)
