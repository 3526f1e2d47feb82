"""A daemon of `--format cloudevents` between real Kafka and real TorchServe, and the way back."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from connectors import registry
from connectors.brokers.kafka.settings import ListenKafka, ReplayKafka
from connectors.commands import dlq, listen
from tests.schemas import as_object
from tests.system.daemons import BOOT, drain
from tests.system.test_relay import QUICK, Site
from tests.test_asyncapi import find_message, find_record_faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.servers.kafka import Cluster
    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system


@pytest.fixture
def site(kafka: Cluster, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(kafka=kafka, folder=tmp_path, stack=stack)
        made.create()
        yield made


def make_event(identity: bytes) -> list[tuple[str, bytes]]:
    return [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"com.example.photo"),
        ("ce_source", b"/camera/7"),
        ("ce_id", identity),
        ("content-type", b"image/png"),
    ]


def test_events_come_out_as_events_and_a_dead_one_goes_back_as_it_came(
    site: Site, server: TorchServe
) -> None:
    broken = make_event(b"photo-2")
    structured = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
    site.produce(
        [
            (0, b"good", BOOT, make_event(b"photo-1")),
            (0, b"broken", b"no image", broken),
            (0, b"structured", b'{"specversion": "1.0"}', structured),
            (0, None, BOOT, []),
        ]
    )
    daemon = site.daemon(server.url, *QUICK, "--format", "cloudevents")
    results = site.read(site.topics[1], 2)
    for one in results:
        message = find_message("sendResultEvents")
        assert find_record_faults(message, as_object(one.headers), one.result) == []
        assert one.result["label"] == "Ankle boot"
        assert as_object(one.headers)["ce_id"] == one.result["id"]
    found = [as_object(one.headers) for one in results]
    assert [one["ce_source"] for one in found] == [f"/fmnist/{site.name}"] * 2
    assert [one.get("ce_subject") for one in found] == ["good", None]
    assert [one.get("ce_causationid") for one in found] == ["photo-1", None]
    dead = site.read(site.topics[2], 2)
    assert [one.headers[:5] for one in dead[:1]] == [broken]
    reasons = [dict(one.headers)["connector.reason"] for one in dead]
    assert reasons == [b"not_an_image", b"unsupported_type"]
    assert drain(daemon) == 0

    servers: dict[str, Any] = {
        "bootstrap_servers": site.kafka.bootstrap_servers,
        "group": site.name,
    }
    replay = ReplayKafka(
        input_topic=site.name, name="again", where=["header.ce_id=photo-2"], **servers
    )
    sent = dlq.send_back(replay, registry.open_replay("kafka", replay, dlq.encode))
    assert sent["sent"] == 1
    back = site.read(site.topics[0], 5)[-1]
    assert (back.key, back.value) == (b"broken", b"no image")
    assert back.headers[:5] == broken
    assert [name for name, _ in back.headers[5:]] == ["connector.replay", "connector.source"]

    listened = ListenKafka(output_topic=site.topics[1], from_beginning=True, **servers)
    with closing(registry.open_reader("kafka", listened)) as reader:
        (shown, *_) = map(listen.to_dict, next(filter(None, iter(lambda: reader.read(1.0), None))))
    assert shown["headers"]["ce_type"] == "fmnist.prediction"
    assert shown["result"]["label"] == "Ankle boot"
