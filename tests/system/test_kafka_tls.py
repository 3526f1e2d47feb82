"""TLS to a real Kafka: SASL_SSL and client certificates, and the certificates that are refused."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest
from kafka import KafkaConsumer, KafkaProducer

from tests.certificates import ELSEWHERE, Authority, Pair
from tests.conftest import missing
from tests.connectors.test_client import Script, Service, predictions
from tests.system.daemons import BOOT, drain, names
from tools.servers.kafka import Kafka, Secured
from tools.servers.process import ROOT, Process, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.system

RECORDS = 5


class Site(NamedTuple):
    """One broker with a listener for each kind of certificate, and what clients may show it."""

    kafka: Kafka
    authority: Authority
    foreign: Authority
    password: Path
    quick: Path

    def flags(self, listener: str, *security: str) -> Sequence[str]:
        """The settings of a daemon that speaks with one listener and trusts our authority."""
        servers = ["--bootstrap-servers", self.kafka.secured_servers[listener]]
        topics = ["--input-topic", "in", "--output-topic", "out", "--config", str(self.quick)]
        return [*topics, *servers, "--ssl-cafile", str(self.authority.file), *security]

    def certified(self, listener: str, pair: Pair | None) -> Sequence[str]:
        """Those of one that shows a certificate, or none."""
        shows = ["--ssl-certfile", str(pair[0]), "--ssl-keyfile", str(pair[1])] if pair else []
        return self.flags(listener, "--security-protocol", "SSL", *shows)

    def login(self, listener: str) -> Sequence[str]:
        """Those of one that logs in with a password."""
        who = ["--sasl-mechanism", "PLAIN", "--sasl-username", self.kafka.username]
        word = ["--sasl-password-file", str(self.password)]
        return self.flags(listener, "--security-protocol", "SASL_SSL", *who, *word)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    ours, foreign = Authority.make(folder / "ours", "ours"), Authority.make(folder / "f", "foreign")
    pairs = {
        "good": ours.sign("good"),
        "expired": ours.sign("expired", expired=True),
        "foreign": foreign.sign("foreign"),
        "misnamed": ours.sign("misnamed", ELSEWHERE),
    }
    secured = {}
    for name, pair in pairs.items():
        keystore = folder / f"{name}.pem"
        keystore.write_text(pair.both)
        secured[name] = Secured(keystore, ours.file)
    secured["login"] = Secured(folder / "good.pem", ours.file, sasl=True)
    password, quick = folder / "password", folder / "connector.toml"
    quick.write_text("[kafka]\nbootstrap_timeout_ms = 3000\n")
    with ExitStack() as stack:
        try:
            kafka = stack.enter_context(Kafka(secured=secured))
        except StackError as error:
            missing(str(error))
        password.write_text(kafka.password)
        for topic in ("in", "out", "in.dead"):
            kafka.create_topic(topic)
        yield Site(kafka, ours, foreign, password, quick)


def relay(site: Site, flags: Sequence[str], log: Path) -> list[bytes]:
    """Send records, relay them with a daemon of these settings, and return the new results."""
    plain = site.kafka.plain_servers
    reader = KafkaConsumer(
        "out", bootstrap_servers=plain, consumer_timeout_ms=60_000, group_id=None
    )
    producer = KafkaProducer(bootstrap_servers=plain)
    service = Service(Script(body=predictions(1)))
    with ExitStack() as stack:
        stack.callback(reader.close)
        stack.callback(producer.close)
        reader.poll(0)
        while not reader.assignment():
            reader.poll(100)
        for partition in reader.assignment():
            reader.position(partition)  # from now on
        url = stack.enter_context(service.serving())
        own = ["--url", url, "--pack", "1", "--group", "tls", "--instance", next(names)]
        daemon = Process([sys.executable, "-m", "connectors", "kafka", *flags, *own], log, cwd=ROOT)
        stack.callback(daemon.start().kill)
        for _ in range(RECORDS):
            producer.send("in", BOOT)
        producer.flush(10)
        results = [next(reader).value for _ in range(RECORDS)]
        assert drain(daemon) == 0, daemon.tail()
    return results


def test_records_pass_by_a_certificate_of_the_client(site: Site, tmp_path: Path) -> None:
    flags = site.certified("good", site.authority.sign("client"))
    assert len(relay(site, flags, tmp_path / "log")) == RECORDS


def test_records_pass_by_a_password_over_tls(site: Site, tmp_path: Path) -> None:
    assert len(relay(site, site.login("login"), tmp_path / "log")) == RECORDS


def refuse(flags: Sequence[str]) -> str:
    """Run a daemon that must leave by itself, as one that cannot reach its broker; its sentence."""
    command = [sys.executable, "-m", "connectors", "kafka", *flags]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69, done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("listener", "why"),
    [
        ("expired", "certificate has expired"),
        ("foreign", "self-signed certificate"),
        ("misnamed", "IP address mismatch"),
    ],
)
def test_a_wrong_certificate_of_the_broker_ends_the_daemon_with_its_reason(
    site: Site, listener: str, why: str
) -> None:
    line = refuse(site.certified(listener, site.authority.sign("client")))
    assert site.kafka.secured_servers[listener] in line
    assert why in line


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("expired", "alert"),
        ("foreign", "alert"),
        ("none", "alert"),
    ],
)
def test_a_wrong_certificate_of_the_client_ends_the_daemon_with_its_reason(
    site: Site, kind: str, why: str
) -> None:
    pair = {
        "expired": site.authority.sign("old", expired=True),
        "foreign": site.foreign.sign("stranger"),
        "none": None,
    }[kind]
    line = refuse(site.certified("good", pair))
    assert why in line
