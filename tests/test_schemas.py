"""The schemas describe what really comes out of the connectors, and what an archive holds."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
import yaml
from fmnist_images import Settings

from connectors.brokers.kafka import messages as kafka
from connectors.brokers.kafka.consumer import Position
from connectors.brokers.kafka.settings import RunKafka
from connectors.brokers.pubsub import messages as pubsub
from connectors.brokers.pubsub.settings import RunPubSub
from connectors.codec import encode
from connectors.inference.torchserve import TorchServe
from connectors.records import Prediction, Reason, Record, Rejection, Settled
from tests.schemas import as_object
from tools.schemas import find_faults, load_schema

if TYPE_CHECKING:
    from connectors.records import Headers

RESULT = load_schema("result")
DEAD = load_schema("dead-letter-headers")
CLASSIFIED = {"id", "class", "label", "score", "top", "model", "time"}
CONFIG = load_schema("model-config")
SHIPPED = Path(__file__).resolve().parent.parent / "handler" / "model-config.yaml"
HEADERS: Headers = (("content-type", b"image/png"), ("a", b"1"))
REASONS: tuple[Reason, ...] = get_args(Reason)
TOP = [{"class": 9, "label": "Ankle boot", "score": 0.998961}]
REPLY = {
    "predictions": [{**TOP[0], "top": TOP}],
    "model": {"name": "fmnist", "version": "1.0"},
}


def record(name: str = "images/3/1042", headers: Headers = HEADERS) -> Record:
    position = Position("images", 3, 1042, -1)
    return Record(name, b"an image", b"key", headers, 1_795_901_533_378, None, position)


def predicted() -> Prediction:
    (outcome,) = TorchServe(float).interpret(200, {}, json.dumps(REPLY).encode(), 1)  # type: ignore[misc]
    assert isinstance(outcome, Prediction)
    return outcome


def kafka_builder(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> kafka.MessageBuilder:  # noqa: ANN401
    monkeypatch.setattr(kafka, "partition_counts", lambda _, topics: dict.fromkeys(topics, 3))
    made = RunKafka(input_topic="images", output_topic="predictions", **settings)
    return kafka.MessageBuilder(made, encode)


def pubsub_builder() -> pubsub.MessageBuilder:
    made = RunPubSub(project="mine", subscription="images", output_topic="predictions")
    return pubsub.MessageBuilder(made, encode)


@pytest.mark.parametrize("name", ["images/3/1042", "images/8134567890123456"])
def test_a_result_has_the_form_of_its_schema(name: str) -> None:
    message = encode(Settled(record(name), predicted()))
    assert message
    result = json.loads(message.value or b"")
    assert find_faults(result, RESULT) == []
    assert result.keys() == CLASSIFIED == set(RESULT["properties"]) - {"outputs"}


def test_the_outputs_of_a_foreign_server_have_the_form_of_the_same_schema() -> None:
    outputs = [{"name": "embedding", "datatype": "FP32", "shape": [2], "data": [0.5, -1.0]}]
    model = {"name": "resnet", "version": ""}
    message = encode(Settled(record(), Prediction({"outputs": outputs, "model": model})))
    assert message
    result = json.loads(message.value or b"")
    assert find_faults(result, RESULT) == []
    assert result["outputs"] == outputs
    assert result.keys() == {"id", "outputs", "model", "time"}
    del result["outputs"]
    assert find_faults(result, RESULT)


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_the_headers_of_a_dead_letter_in_kafka_have_the_form_of_their_schema(
    reason: Reason, delivery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = kafka_builder(monkeypatch, delivery=delivery)
    rejection = Rejection(reason, "it is no image at äll", status=200, attempts=3)
    letters = list(builder.fallbacks(Settled(record(), rejection)))
    assert len(letters) == 3  # whole, without its value, without key and headers of its own
    for letter in letters:
        headers = as_object(letter.headers)
        assert find_faults(headers, DEAD) == []
        assert {n for n in headers if n.startswith(("connector.", "__"))} <= set(DEAD["properties"])


@pytest.mark.parametrize("reason", REASONS)
def test_the_attributes_of_a_dead_letter_in_pubsub_have_the_form_of_their_schema(
    reason: Reason,
) -> None:
    rejection = Rejection(reason, "it is no image at äll")
    headers = (*HEADERS, ("googclient_x", b"1"))
    settled = Settled(record("images/8134567890123456", headers), rejection)
    letters = list(pubsub_builder().fallbacks(settled))
    assert len(letters) == 5
    for letter in letters:
        attributes = dict(letter.attributes)
        assert find_faults(attributes, DEAD) == []
        ours = {name for name in attributes if name.startswith(("connector.", "__"))}
        assert ours <= set(DEAD["properties"])


def test_what_is_null_in_a_dead_letter_is_named_as_the_schema_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = Record("images/3/1", None, None, (("a", None),), 0, None, record().position)
    settled = Settled(nothing, Rejection("tombstone", "the record has no value"))
    letter = next(kafka_builder(monkeypatch).fallbacks(settled))
    headers = as_object(letter.headers)
    assert headers["connector.nulls"] == "headers[0],value"
    assert find_faults(headers, DEAD) == []


def test_a_result_in_kafka_says_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    result = next(kafka_builder(monkeypatch).fallbacks(Settled(record(), predicted())))
    headers = as_object(result.headers)
    assert find_faults(headers["connector.source"], DEAD["properties"]["connector.source"]) == []


def test_the_schema_lists_the_reasons() -> None:
    assert tuple(DEAD["properties"]["connector.reason"]["enum"]) == REASONS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "images"),
        ("class", -1),
        ("class", True),
        ("score", 1.5),
        ("label", None),
        ("top", []),
        ("top", [{"class": 1}]),
        ("model", {"name": "fmnist"}),
        ("time", "now"),
    ],
)
def test_a_wrong_result_is_noticed(field: str, value: object) -> None:
    message = encode(Settled(record(), predicted()))
    assert message
    result = json.loads(message.value or b"")
    assert find_faults({**result, field: value}, RESULT)
    del result[field]
    assert find_faults(result, RESULT)


def test_wrong_headers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rejection = Rejection("failed", "500", status=500, attempts=3)
    letter = next(kafka_builder(monkeypatch).fallbacks(Settled(record(), rejection)))
    headers = as_object(letter.headers)
    for wrong in ({"connector.reason": "bad"}, {"connector.attempts": "-1"}):
        assert find_faults({**headers, **wrong}, DEAD)
    assert find_faults({n: v for n, v in headers.items() if "partition" not in n}, DEAD)


def test_a_keyword_that_the_validator_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="multipleOf"):
        find_faults(1, {"multipleOf": 2})


def test_a_key_that_a_closed_object_does_not_have_is_a_fault_and_in_an_open_one_it_is_none() -> (
    None
):
    closed = {"properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    assert find_faults({"a": 1}, closed) == []
    assert find_faults({"a": 1, "b": 2}, closed) == ["$.b: there is no such key"]
    assert find_faults({"a": 1, "b": 2}, {"properties": closed["properties"]}) == []


def test_the_configuration_of_the_archive_has_the_form_of_its_schema() -> None:
    config = yaml.safe_load(SHIPPED.read_text())
    assert find_faults(config, CONFIG) == []
    assert config.keys() == set(CONFIG["properties"]) == set(CONFIG["required"])
    handler = CONFIG["properties"]["handler"]
    names = {field.name for field in fields(Settings)}
    assert names == set(handler["properties"]) == set(handler["required"])


@pytest.mark.parametrize(
    "change",
    [{"maxBatchDelay": 0}, {"batchSize": "32"}, {"minWorker": 1}, {"handler": {"threads": 1}}],
)
def test_a_wrong_configuration_is_noticed(change: dict[str, Any]) -> None:
    assert find_faults(yaml.safe_load(SHIPPED.read_text()) | change, CONFIG)
