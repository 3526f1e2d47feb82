"""The wire between two rooms that share no code: what one packs, the other unpacks, and back."""

from __future__ import annotations

import json
from email.parser import BytesParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image as Pillow

from connectors import codec
from connectors.images import CANARY, pad_canary
from connectors.inference import torchserve
from connectors.inference.answers import Model
from connectors.inference.v1 import KServeV1
from connectors.inference.v2 import OpenInference, Tensors
from connectors.records import Failed, Image, Prediction, Record, Rejection, Settled
from tests.handler.torchserve import (
    Answer,
    Request,
    Served,
    body,
    encode,
    instances,
    multipart,
    write_archive,
)

if TYPE_CHECKING:
    from connectors.records import Answer as Understood


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(write_archive(tmp_path_factory.mktemp("contract")))


def as_java_reads_it(images: list[Image]) -> Request:
    """The parts of the multipart body, by a parser that is neither side's."""
    kind, body = torchserve.encode_multipart(images)
    message = BytesParser().parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    parts = []
    for part in message.walk():
        if not part.is_multipart():
            name = part.get_param("name", header="content-disposition")
            parts.append((str(name), part.get_content_type(), part.get_payload(decode=True)))
    return multipart(*parts)


def understood(answer: Answer, count: int) -> Understood:
    return torchserve.interpret_reply(answer.status, json.dumps(answer.body).encode(), count)


def picture(seed: int) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 200, (28, 28), np.uint8)
    return Image(encode(Pillow.fromarray(pixels)), "image/png")


def test_a_pack_becomes_one_outcome_for_each_image_in_order(served: Served) -> None:
    images = [picture(seed) for seed in range(130)]
    outcomes = understood(served.one(as_java_reads_it(images)), 130)
    assert isinstance(outcomes, list)
    alone = [understood(served.one(as_java_reads_it([image])), 1) for image in images[::13]]
    for found, (single,) in zip(outcomes[::13], alone, strict=True):  # type: ignore[misc]
        assert isinstance(found, Prediction)
        assert isinstance(single, Prediction)
        assert found.body["class"] == single.body["class"]


def test_the_handler_is_spoken_to_in_v1_as_well(served: Served) -> None:
    dialect = KServeV1(float, Model("fmnist"))
    images = [picture(1), Image(b"no image"), picture(2)]
    answer = served.one(instances(*json.loads(dialect.encode(images).body)["instances"]))
    outcomes = dialect.interpret(answer.status, {}, json.dumps(answer.body).encode(), 3)
    assert outcomes == understood(served.one(as_java_reads_it(images)), 3)
    _, refused, _ = outcomes  # type: ignore[misc]
    assert isinstance(refused, Rejection)


def ask_by_v2(served: Served, images: list[Image], output: str) -> Understood:
    """What the archive says of images by v2, as the connectors understand it."""
    dialect = OpenInference(float, Model("fmnist"), Tensors("images", output))
    call = dialect.encode(images)
    headers = dict(call.headers)
    request = body(call.body, headers.pop("Content-Type"), **headers)
    return dialect.interpret(*served.reply(request), len(images))


def test_the_handler_is_spoken_to_in_v2_as_well(served: Served) -> None:
    images = [picture(1), picture(2), picture(3)]
    own = understood(served.one(as_java_reads_it(images)), 3)
    answer = ask_by_v2(served, images, "class")
    for found, expected in zip(answer, own, strict=True):  # type: ignore[arg-type]
        assert isinstance(found, Prediction)
        assert isinstance(expected, Prediction)
        output = {"name": "class", "datatype": "INT64", "shape": []}
        assert found.body["outputs"] == [{**output, "data": [expected.body["class"]]}]
        assert found.body["model"] == expected.body["model"]


@pytest.mark.parametrize("bad", [b"no image", b"{}", b""])
def test_in_v2_the_handler_says_no_more_than_that_the_request_failed(
    served: Served, bad: bytes
) -> None:
    answer = ask_by_v2(served, [picture(1), Image(bad)], "class")
    assert isinstance(answer, Failed)
    assert not answer.final


def test_the_type_that_a_record_names_is_evidence_that_v2_does_not_carry(served: Served) -> None:
    images = [picture(1), Image(b"{}", "application/json")]
    _, refused = understood(served.one(as_java_reads_it(images)), 2)  # type: ignore[misc]
    assert isinstance(refused, Rejection)
    assert refused.reason == "unsupported_type"
    _, same = ask_by_v2(served, images, "error")  # type: ignore[misc]
    assert isinstance(same, Prediction)
    (text,) = same.body["outputs"][0]["data"]
    assert text.startswith("not_an_image: ")


def test_each_word_of_the_handler_is_a_reason_of_ours(served: Served) -> None:
    huge = Image(encode(Pillow.new("1", (10_000, 10_000))))
    bad = [Image(b"no image", "image/png"), huge, Image(b"{}", "application/json"), Image(b"")]
    images = [picture(1), *bad, picture(2)]
    outcomes = understood(served.one(as_java_reads_it(images)), len(images))
    assert isinstance(outcomes, list)
    first, *rejected, last = outcomes
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    words = [found.reason for found in rejected if isinstance(found, Rejection)]
    assert words == ["not_an_image", "too_large", "unsupported_type", "bad_request"]


def test_a_pack_that_unfolds_too_far_is_cut_and_its_images_alone_are_served(
    served: Served,
) -> None:
    photo = Image(encode(Pillow.new("1", (6_000, 4_000))))
    together = understood(served.one(as_java_reads_it([photo] * 5)), 5)
    assert isinstance(together, Failed)
    assert together.final
    (alone,) = understood(served.one(as_java_reads_it([photo])), 1)  # type: ignore[misc]
    assert isinstance(alone, Prediction)


def test_the_built_in_witness_is_an_image_to_the_handler(served: Served) -> None:
    (outcome,) = understood(served.one(as_java_reads_it([CANARY])), 1)  # type: ignore[misc]
    assert isinstance(outcome, Prediction)


def test_the_largest_image_that_is_sent_is_a_blank_one_to_the_handler(served: Served) -> None:
    image = pad_canary(codec.MAX_IMAGE_BYTES)
    (outcome,) = understood(served.one(as_java_reads_it([image])), 1)  # type: ignore[misc]
    assert isinstance(outcome, Prediction)


def test_a_model_that_fails_is_no_rejection(served: Served) -> None:
    pixels = np.full((28, 28), 255, np.uint8)  # the network of the tests raises on these
    broken = Image(encode(Pillow.fromarray(pixels)))
    answer = understood(served.one(as_java_reads_it([picture(1), broken])), 2)
    assert isinstance(answer, Failed)
    assert not answer.final


def test_a_result_has_the_promised_fields(served: Served) -> None:
    (outcome,) = understood(served.one(as_java_reads_it([picture(1)])), 1)  # type: ignore[misc]
    record = Record("images/3/1042", b"", b"key", (("a", b"b"),), 1_700_000_000_000, 3, None)
    message = codec.encode(Settled(record, outcome))
    assert message is not None
    assert message.value is not None
    result = json.loads(message.value)
    assert list(result) == ["id", "class", "label", "score", "top", "model", "time"]
    assert result["id"] == "images/3/1042"
    assert result["time"] == 1_700_000_000_000
    assert result["model"] == {"name": "tiny", "version": "2.1"}
    assert [set(each) for each in result["top"]] == [{"class", "label", "score"}] * 3
