"""The library of the specification's authors reads results, and writes what a daemon reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given

from connectors.records import Image
from tests.connectors.test_cloudevents import (
    HEADERS,
    KAFKA_EXAMPLE,
    decode,
    encode,
    read_strictly,
    record,
)

if TYPE_CHECKING:
    from cloudevents.core.base import BaseCloudEvent

    from connectors.records import Headers, Message


def read(message: Message) -> BaseCloudEvent:
    """Read a message as its reader would, but for headers of others, which need not be text."""
    names = {name for name, _ in message.headers if name == "content-type" or name[:3] == "ce_"}
    headers = {name: value or b"" for name, value in message.headers if name in names}
    return from_binary_event(KafkaMessage(headers, None, message.value or b""))


def test_the_library_reads_a_result() -> None:
    message = encode(record(*KAFKA_EXAMPLE))
    event = read(message)
    assert (event.get_type(), event.get_source()) == ("fmnist.prediction", "/fmnist/group")
    assert (event.get_id(), event.get_subject()) == ("images/3/1042", "boot.png")
    assert event.get_time() == datetime(2026, 11, 28, 21, 32, 13, 378_000, UTC)
    assert event.get_datacontenttype() == "application/json"
    assert event.get_extension("causationid") == "1234-1234-1234"
    assert event.get_data() == json.loads(message.value or b"")


@given(headers=HEADERS)
def test_the_library_reads_every_result_whatever_came_in(headers: Headers) -> None:
    message = encode(record(*headers))
    event = read(message)
    read_strictly(message.headers, "ce_")
    assert (event.get_source(), event.get_id()) == ("/fmnist/group", "images/3/1042")


def test_a_daemon_reads_what_the_library_writes() -> None:
    attributes = {
        "type": "com.example.photo",
        "source": "/camera/7",
        "id": "photo-1",
        "time": datetime(2026, 11, 29, tzinfo=UTC),
        "datacontenttype": "image/png",
        "subject": "shelf/7",
        "partitionkey": "shelf 7",
    }
    written = to_binary_event(CloudEvent(attributes, b"png"))
    one = record(*written.headers.items(), value=written.value, key=b"shelf 7")
    assert decode(one) == Image(b"png", "image/png")
    event = read(encode(one))
    assert event.get_extension("causationid") == "photo-1"
    assert event.get_subject() == "shelf/7"
    assert event.get_extension("partitionkey") == "shelf 7"
