"""From flags and the `kafka` table to the arguments of kafka-python's clients; no broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kafka import KafkaConsumer, KafkaProducer

from connectors.brokers.kafka import settings as settings_module
from connectors.brokers.kafka.clients import BATCH_BYTES, client_arguments
from connectors.brokers.kafka.published_offsets import SOURCE, source_of
from connectors.brokers.kafka.settings import KafkaSettings
from connectors.errors import Exit, Stop
from tests.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path


def test_a_login_is_handed_on_with_the_password_of_the_file(tmp_path: Path) -> None:
    password, authorities = tmp_path / "password", Authority.make(tmp_path, "ca").file
    word = "s3cret"
    password.write_text(word + "\n", encoding="utf-8")
    settings = KafkaSettings(
        bootstrap_servers="one:9092,two:9092",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="fmnist",
        sasl_password_file=password,
        ssl_cafile=authorities,
    )
    for client in (KafkaConsumer, KafkaProducer):
        arguments = client_arguments(client, settings, {})
        assert arguments["bootstrap_servers"] == ["one:9092", "two:9092"]
        assert arguments["security_protocol"] == "SASL_SSL"
        assert arguments["sasl_mechanism"] == "SCRAM-SHA-512"
        assert arguments["sasl_plain_username"] == "fmnist"
        assert arguments["sasl_plain_password"] == word
        assert arguments["ssl_cafile"] == str(authorities)


def test_a_password_that_was_changed_is_read_again(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("old", encoding="utf-8")
    settings = KafkaSettings(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username="fmnist",
        sasl_password_file=password,
    )
    word = "new"
    password.write_text(word, encoding="utf-8")
    assert client_arguments(KafkaConsumer, settings, {})["sasl_plain_password"] == word


def test_each_client_takes_its_own_of_the_table() -> None:
    settings = KafkaSettings(kafka={"fetch_max_wait_ms": 7, "compression_type": "gzip"})
    consumer = client_arguments(KafkaConsumer, settings, {})
    producer = client_arguments(KafkaProducer, settings, {})
    assert consumer["fetch_max_wait_ms"] == 7
    assert producer["compression_type"] == "gzip"
    assert "compression_type" not in consumer
    assert "fetch_max_wait_ms" not in producer


def test_the_table_goes_over_what_this_program_only_prefers() -> None:
    settings = KafkaSettings(kafka={"request_timeout_ms": 60_000, "batch_size": 16_384})
    assert client_arguments(KafkaConsumer, settings, {})["request_timeout_ms"] == 60_000
    assert client_arguments(KafkaProducer, settings, {})["batch_size"] == 16_384
    preferred = client_arguments(KafkaProducer, KafkaSettings(), {})
    assert preferred["batch_size"] == BATCH_BYTES


@pytest.mark.parametrize(("name", "ours"), [("isolation_levle", {}), ("acks", {"acks": -1})])
def test_the_table_may_not_hold_what_is_unknown_or_decided(
    name: str, ours: dict[str, object]
) -> None:
    settings = KafkaSettings(kafka={name: "hidden"})
    with pytest.raises(Stop, match=name) as stop:
        client_arguments(KafkaConsumer, settings, ours)
    assert stop.value.code is Exit.USAGE
    assert "hidden" not in str(stop.value)


@pytest.mark.parametrize(
    ("value", "offset"),
    [
        (b"images/3/1042 fmnist", 1042),
        (b"images/3/1042 a group/of many words", 1042),
        (b"images/3 fmnist", None),
        (b"images/3/-1 fmnist", None),
        (b"images/3/%s fmnist" % (b"9" * 5000), None),
        (b"\xff", None),
        (None, None),
    ],
)
def test_the_source_of_an_outcome_is_ours_or_none(value: bytes, offset: int | None) -> None:
    source = source_of([("own", b"1"), (SOURCE, value)])
    assert (source.offset if source else None) == offset
    assert source is None or source.encoded() == value


def test_two_containers_on_the_network_of_one_machine_have_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node")
    monkeypatch.setattr("os.getpid", lambda: 1)
    names = []
    for number in range(2):
        namespace = tmp_path / str(number)
        namespace.touch()
        monkeypatch.setattr(settings_module, "PROCESS_NAMESPACE", namespace)
        names.append(KafkaSettings().instance)
    assert len({*names}) == 2
    assert all(name.startswith("node-") and name.endswith("-1") for name in names)


def test_outside_a_container_a_name_is_host_and_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    monkeypatch.setattr("os.getpid", lambda: 42)
    own = tmp_path / "namespace"
    own.touch()
    monkeypatch.setattr(settings_module, "MACHINES_OWN_NAMESPACE", own.stat().st_ino)
    for namespace in (own, tmp_path / "none"):
        monkeypatch.setattr(settings_module, "PROCESS_NAMESPACE", namespace)
        assert KafkaSettings().instance == "host-42"
