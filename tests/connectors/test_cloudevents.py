"""CloudEvents: what a result is, whatever its record was, and that a dead letter stays a record."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connectors import codec, daemon
from connectors.brokers.kafka.settings import RunKafka
from connectors.brokers.pubsub.settings import RunPubSub
from connectors.cloudevents import MAX_SUBJECT_BYTES, STRUCTURED, CloudEvents
from connectors.commands import listen
from connectors.commands.dlq import restore_record
from connectors.headers import REPLAY, strip_earlier
from connectors.records import Image, Prediction, Record, Rejection, Settled, Skipped

if TYPE_CHECKING:
    from connectors.records import Headers, Message

KAFKA = CloudEvents("ce_", "/fmnist/group")
PUBSUB = CloudEvents("ce-", "/fmnist/images")
TOP = [{"class": 9, "label": "Ankle boot", "score": 0.97}]
BOOT = Prediction({**TOP[0], "top": TOP, "model": {"name": "fmnist", "version": "1.0"}})
DEAD = Rejection("failed", "why", status=500, attempts=3)
TIME = 1_795_901_533_378
OWN = {"specversion", "type", "source", "id", "time", "subject", "causationid"}


def record(
    *headers: tuple[str, bytes | None],
    value: bytes | None = b"png",
    key: bytes | None = b"boot.png",
    time: int = TIME,
) -> Record:
    return Record("images/3/1042", value, key, headers, time, None, None)


def encode(one: Record, events: CloudEvents = KAFKA) -> Message:
    message = events.encode(Settled(one, BOOT))
    assert message
    return message


def decode(one: Record, events: CloudEvents = KAFKA) -> Image | Rejection | Skipped:
    return events.decode(codec.decode, one)


def read_strictly(headers: Headers, prefix: str) -> dict[str, str]:
    """Read the attributes as the specification asks, heeding no case, as some readers do."""
    found: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower != "content-type" and not lower.startswith(prefix):
            continue
        attribute = "datacontenttype" if lower == "content-type" else lower.removeprefix(prefix)
        assert name == lower
        assert attribute not in found, "each at most once"
        assert re.fullmatch("[a-z0-9]+", attribute)
        assert value
        text = value.decode()
        assert not re.search("[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef]", text)
        assert all(ord(one) & 0xFFFE != 0xFFFE for one in text)
        found[attribute] = text
    assert found["specversion"] == "1.0"
    assert all(found[name] for name in ("id", "source", "type"))
    return found


# The examples of the bindings, with an image in the place of their data

KAFKA_EXAMPLE: Headers = (
    ("ce_specversion", b"1.0"),
    ("ce_type", b"com.example.someevent"),
    ("ce_source", b"/mycontext/subcontext"),
    ("ce_id", b"1234-1234-1234"),
    ("ce_time", b"2018-04-05T03:56:24Z"),
    ("content-type", b"image/png"),
)
PUBSUB_EXAMPLE: Headers = (
    ("ce-datacontenttype", b"image/png"),
    ("ce-id", b"1234-1234-1234"),
    ("ce-source", b"/mycontext/subcontext"),
    ("ce-specversion", b"1.0"),
    ("ce-time", b"2020-03-10T03:56:24Z"),
    ("ce-type", b"com.example.someevent"),
)


@pytest.mark.parametrize(
    ("events", "headers"), [(KAFKA, KAFKA_EXAMPLE), (PUBSUB, PUBSUB_EXAMPLE)], ids=["kafka", "ps"]
)
def test_an_event_goes_along_as_an_image_and_its_result_is_an_event_of_its_own(
    events: CloudEvents, headers: Headers
) -> None:
    one = record(*headers)
    assert decode(one, events) == Image(b"png", "image/png")
    assert encode(one, events).headers == (
        (f"{events.prefix}specversion", b"1.0"),
        (f"{events.prefix}type", b"fmnist.prediction"),
        (f"{events.prefix}source", events.source.encode()),
        (f"{events.prefix}id", b"images/3/1042"),
        (f"{events.prefix}time", b"2026-11-28T21:32:13.378Z"),
        (f"{events.prefix}subject", b"boot.png"),
        (f"{events.prefix}causationid", b"1234-1234-1234"),
        ("content-type", b"application/json"),
    )


def test_a_result_has_the_key_and_the_value_that_it_has_in_the_other_format() -> None:
    plain = codec.encode(Settled(record(*KAFKA_EXAMPLE), BOOT))
    event = encode(record(*KAFKA_EXAMPLE))
    assert plain
    assert (event.value, event.key, event.dead) == (plain.value, plain.key, plain.dead)
    assert json.loads(event.value or b"")["id"] == read_strictly(event.headers, "ce_")["id"]


def test_a_record_that_is_no_event_gets_a_result_that_is_one() -> None:
    event = read_strictly(encode(record(("index", b"7"))).headers, "ce_")
    assert event["subject"] == "boot.png"
    assert "causationid" not in event


# What goes along, and what does not


@pytest.mark.parametrize("name", ["tenant", "traceparent", "partitionkey", "correlationid"])
def test_an_extension_goes_along(name: str) -> None:
    headers = encode(record((f"ce_{name}", "ä 1".encode()))).headers
    assert read_strictly(headers, "ce_")[name] == "ä 1"


@pytest.mark.parametrize("name", ["dataschema", "dataref", "sequence", "recordedtime"])
def test_what_an_event_says_of_itself_or_of_its_image_does_not_go_along(name: str) -> None:
    headers = encode(record((f"ce_{name}", b"1"), ("ce_causationid", b"2"))).headers
    assert read_strictly(headers, "ce_").keys() == OWN - {"causationid"} | {"datacontenttype"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce_Tenant", b"1"),
        ("CE_TENANT", b"1"),
        ("ce_ten-ant", b"1"),
        ("ce_", b"1"),
        ("ce_data", b"1"),
        ("ce_tenant", None),
        ("ce_tenant", b""),
        ("ce_tenant", b"\xff"),
        ("ce_tenant", b"a\nb"),
        ("ce_tenant", "\x85".encode()),
        ("ce_tenant", "\ufffe".encode()),
        ("ce_tenant", "\U0010ffff".encode()),
    ],
)
def test_what_is_no_valid_attribute_does_not_spoil_the_result(
    name: str, value: bytes | None
) -> None:
    headers = encode(record((name, value), ("a", b"1"))).headers
    assert read_strictly(headers, "ce_").keys() == OWN - {"causationid"} | {"datacontenttype"}
    assert headers[0] == ("a", b"1")


def test_of_repeated_attributes_the_last_valid_one_counts() -> None:
    headers = [("ce_id", b"1"), ("ce_id", b"2"), ("ce_id", b"\xff"), ("ce_x", b"3"), ("ce_x", b"4")]
    event = read_strictly(encode(record(*headers)).headers, "ce_")
    assert (event["causationid"], event["x"]) == ("2", "4")


@pytest.mark.parametrize(
    ("key", "given", "subject"),
    [
        (b"boot.png", b"shoes/1", "shoes/1"),
        (b"boot.png", b"\n", "boot.png"),
        ("stiefel ä".encode(), None, "stiefel ä"),
        (b"k" * MAX_SUBJECT_BYTES, None, "k" * MAX_SUBJECT_BYTES),
        (b"k" * (MAX_SUBJECT_BYTES + 1), None, None),
        (b"\x00\x00\x00\x07", None, None),
        (b"\xff", None, None),
        (b"", None, None),
        (None, None, None),
    ],
)
def test_the_subject_is_that_of_the_record_else_its_key(
    key: bytes | None, given: bytes | None, subject: str | None
) -> None:
    headers = encode(record(("ce_subject", given), key=key)).headers
    assert read_strictly(headers, "ce_").get("subject") == subject


@pytest.mark.parametrize(
    ("time", "written"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (TIME + 1, "2026-11-28T21:32:13.379Z"),
        (-1, None),
        (1 << 62, None),
    ],
)
def test_a_time_that_no_calendar_has_is_left_out(time: int, written: str | None) -> None:
    assert read_strictly(encode(record(time=time)).headers, "ce_").get("time") == written


NAMES = st.one_of(
    st.sampled_from(
        [
            *("ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time", "ce_subject", "ce_x"),
            *("ce_data", "ce_datacontenttype", "ce_causationid", "CE_ID", "Ce_X", "ce_", "ce-id"),
            *("content-type", "Content-Type", "connector.reason", "__connect.errors.topic", "a"),
        ]
    ),
    st.text(max_size=4).map("ce_".__add__),
    st.text(max_size=4),
)
VALUES = st.one_of(
    st.none(),
    st.binary(max_size=6),
    st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace")),
    st.sampled_from([b"fmnist.prediction", b"/fmnist/group", b"image/png", b"1.0"]),
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=8).map(tuple)
KEYS = st.one_of(st.none(), st.binary(max_size=6))


@given(headers=HEADERS, key=KEYS, time=st.integers(-(1 << 63), (1 << 63) - 1))
@example(headers=(("ce_\u0130d", b"1"), ("CE_ID", b"2")), key=None, time=0)
def test_whatever_comes_in_a_result_is_a_valid_event_of_ours(
    headers: Headers, key: bytes | None, time: int
) -> None:
    message = encode(record(*headers, key=key, time=time))
    event = read_strictly(message.headers, "ce_")
    assert event["type"] == "fmnist.prediction"
    assert event["source"] == "/fmnist/group"
    assert event["id"] == "images/3/1042"
    assert event["datacontenttype"] == "application/json"
    others = [
        header
        for header in strip_earlier(headers)
        if not header[0].lower().startswith("ce_") and header[0].lower() != "content-type"
    ]
    assert list(message.headers[: len(others)]) == others


@given(headers=HEADERS, key=KEYS, value=st.one_of(st.none(), st.binary(max_size=3)))
def test_a_dead_letter_is_the_same_in_both_formats_and_a_replay_brings_back_the_event(
    headers: Headers, key: bytes | None, value: bytes | None
) -> None:
    settled = Settled(record(*headers, key=key, value=value), DEAD)
    message = KAFKA.encode(settled)
    assert message == codec.encode(settled)
    assert message
    dead = Record("images.dead/0/1", message.value, message.key, message.headers, 0, None, None)
    back = restore_record(dead, "again")
    assert (back.value, back.key) == (value, key)
    own = tuple(header for header in strip_earlier(headers) if header[0] != REPLAY)
    assert back.headers == (*own, (REPLAY, b"again"))


def test_what_is_skipped_leaves_no_event() -> None:
    assert KAFKA.encode(Settled(record(), Skipped())) is None


# The type of the image


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ([("content-type", b"image/png"), ("ce_datacontenttype", b"image/gif")], "image/png"),
        ([("ce_datacontenttype", b"image/gif"), ("Content-Type", b"image/png")], "image/png"),
        ([("content-type", b"?"), ("ce_datacontenttype", b"image/gif; q=1")], "image/gif"),
        ([("ce_datacontenttype", b"image/gif"), ("ce_datacontenttype", b"?")], "image/gif"),
        ([("ce_datacontenttype", b"multipart/mixed")], None),
        ([("ce-datacontenttype", b"image/gif")], None),
        ([], None),
    ],
)
def test_the_header_content_type_goes_before_the_attribute(
    headers: list[tuple[str, bytes | None]], kind: str | None
) -> None:
    assert decode(record(*headers)) == Image(b"png", kind)


@pytest.mark.parametrize(
    "kind",
    [
        b"application/cloudevents+json; charset=UTF-8",
        b"Application/CloudEvents+Avro",
        b"application/cloudevents",
        b"application/cloudevents-batch+json",
    ],
)
def test_an_event_in_structured_mode_is_refused_with_the_fix(kind: bytes) -> None:
    found = decode(record(("content-type", kind), value=b'{"specversion": "1.0"}'))
    assert found == Rejection("unsupported_type", STRUCTURED)


def test_what_needs_no_service_is_what_it_is_in_the_other_format() -> None:
    assert decode(record(value=None)) == codec.decode(record(value=None))
    assert KAFKA.decode(partial(codec.decode, tombstones="skip"), record(value=None)) == Skipped()


# The commands


def test_without_the_flag_nothing_knows_of_events() -> None:
    settings = RunKafka(input_topic="images", output_topic="predictions")
    decode, encode = daemon.choose_format(settings)
    assert isinstance(decode, partial)
    assert (decode.func, encode) == (codec.decode, codec.encode)


@pytest.mark.parametrize("group", ["fmnist", "a b/ä?", "..", "%2F"])
def test_the_source_names_the_group_and_is_a_reference(group: str) -> None:
    settings = RunKafka(
        input_topic="images", output_topic="predictions", group=group, format="cloudevents"
    )
    _, encode = daemon.choose_format(settings)
    message = encode(Settled(record(), BOOT))
    assert message
    source = read_strictly(message.headers, "ce_")["source"]
    assert source == f"/fmnist/{quote(group, safe='')}"
    assert re.fullmatch(r"/fmnist/([A-Za-z0-9._~-]|%[0-9A-F]{2})+", source)


def test_each_broker_has_the_prefix_of_its_binding() -> None:
    settings = RunPubSub(
        project="mine-1", subscription="images", output_topic="predictions", format="cloudevents"
    )
    decode, encode = daemon.choose_format(settings)
    assert decode(record(*PUBSUB_EXAMPLE)) == Image(b"png", "image/png")
    message = encode(Settled(record(*PUBSUB_EXAMPLE), BOOT))
    assert message
    event = read_strictly(message.headers, "ce-")
    assert (event["source"], event["causationid"]) == ("/fmnist/images", "1234-1234-1234")


def test_listen_shows_an_event_as_it_shows_a_plain_result() -> None:
    message = encode(record(("label", b"9")))
    one = Record("predictions/3/1", message.value, message.key, message.headers, TIME, None, None)
    shown = listen.to_dict(one)
    assert shown["result"]["label"] == "Ankle boot"
    assert shown["headers"]["ce_id"] == "images/3/1042"
    table = listen.LiveTable()
    table.add(one, TIME / 1000 + 1)
    assert table.summary() == "1 predictions, 0/s, latency 1.000 s, 100.00% of 1 right"
