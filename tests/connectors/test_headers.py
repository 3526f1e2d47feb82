"""Headers in our name: one rule, whichever broker and whichever way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors import codec
from connectors.brokers.kafka.consumer import Position
from connectors.brokers.kafka.published_offsets import source_of
from connectors.brokers.pubsub.messages import MessageBuilder
from connectors.brokers.pubsub.settings import RunPubSub
from connectors.commands.dlq import restore_record
from connectors.headers import REPLAY, is_ours
from connectors.records import Prediction, Record, Rejection, Settled
from tests.connectors.test_deadletters import record
from tests.test_schemas import kafka_builder

if TYPE_CHECKING:
    from connectors.records import Outcome

FORGED: list[tuple[str, bytes | None]] = [
    ("connector.nulls", b"value"),
    ("connector.nulls", b"headers[0],value"),
    ("connector.value-bytes", b"1"),
    ("connector.source", b"images/0/999999 fmnist"),
    ("connector.id", b"\x1b[2J"),
    ("connector.", None),
    ("connector.anything-new", b""),
    ("__connect.errors.topic", b"elsewhere"),
    ("__connect.errors.exception.stacktrace", b"x"),
]
BODY = {"class": 1, "label": "a", "score": 1.0, "top": [], "model": {}}
OUTCOMES: list[Outcome] = [Prediction(BODY), Rejection("failed", "why")]
OWN = (("a", b"1"), ("connector", b"2"), ("Connector.nulls", b"3"), ("__connect", None))


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_header_in_our_name_that_a_record_brings_goes_nowhere(
    forged: tuple[str, bytes | None], outcome: Outcome
) -> None:
    message = codec.encode(Settled(record(OWN[0], forged, *OWN[1:]), outcome))
    assert message
    assert forged not in message.headers
    assert message.headers[: len(OWN)] == OWN


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_name_of_a_replay_stays_on_what_became_of_its_record(outcome: Outcome) -> None:
    message = codec.encode(Settled(record((REPLAY, b"one")), outcome))
    assert message
    assert dict(message.headers)[REPLAY] == b"one"


HEADER = st.tuples(
    st.one_of(
        st.sampled_from([name for name, _ in FORGED]),
        st.text(max_size=5).map("connector.".__add__),
        st.text(max_size=5).map("__connect.errors.".__add__),
        st.text(max_size=5),
    ),
    st.one_of(st.sampled_from([b"value", b"headers[0]", b"headers[0],value"]), st.binary()),
)


@given(headers=st.lists(HEADER, max_size=6).map(tuple))
def test_an_image_comes_back_from_a_replay_as_it_was_whatever_headers_it_had(
    headers: tuple[tuple[str, bytes], ...],
) -> None:
    message = codec.encode(Settled(record(*headers, value=b"image"), Rejection("failed", "why")))
    assert message
    dead = Record("images.dead/0/1", message.value, message.key, message.headers, 0, None, None)
    back = restore_record(dead, "again")
    assert back.value == b"image"
    own = tuple(header for header in headers if not is_ours(header[0]))
    assert back.headers == (*own, (REPLAY, b"again"))


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("offset", [b"0", b"999999", b"9223372036854775807"])
def test_a_forged_source_is_published_by_no_kafka_daemon(
    delivery: str, outcome: Outcome, offset: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = kafka_builder(monkeypatch, delivery=delivery)
    forged = ("connector.source", b"images/0/" + offset + b" fmnist")
    settled = Settled(_positioned(forged), outcome)
    for published in builder.fallbacks(settled):
        source = source_of(published.headers)
        assert source is None or source.offset == 1042
        assert (source is None) == (delivery == "at-least-once")


def _positioned(*headers: tuple[str, bytes | None]) -> Record:
    position = Position("images", 3, 1042, -1)
    return Record("images/3/1042", b"image", b"key", headers, 0, "images/3", position)


@pytest.mark.parametrize("forged", FORGED)
def test_an_attribute_in_our_name_is_published_by_no_pubsub_daemon(
    forged: tuple[str, bytes | None],
) -> None:
    settings = RunPubSub(project="p-1", subscription="images", output_topic="predictions")
    builder = MessageBuilder(settings, codec.encode)
    for outcome in OUTCOMES:
        for published in builder.fallbacks(Settled(record(forged), outcome)):
            value = (forged[1] or b"").decode()
            assert published.attributes.get(forged[0]) != value
