"""The standard protocols: the specifications' own examples, and what each reply is evidence of."""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from math import exp
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.inference.answers import Classes, Model, classify
from connectors.inference.v1 import KServeV1
from connectors.inference.v2 import HEADER, OpenInference, Tensors, parse_reply
from connectors.records import Busy, Failed, Image, Prediction, Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from connectors.inference.dialect import Dialect
    from connectors.records import Answer

MODEL = Model("mymodel", "3")
LABELS = Classes(("cat", "dog", "cow", "hen"))
LOGITS = LABELS._replace(scale="logits")
IMAGES = [Image(b"\x89PNG\0", "image/png"), Image(b""), Image(b"\xff\xd8" * 300)]
NAN = float("nan")


def v1(**given: Any) -> KServeV1:  # noqa: ANN401 - any argument
    return KServeV1(float, MODEL, **given)


def v2(classes: Classes | None = None, **given: Any) -> OpenInference:  # noqa: ANN401
    return OpenInference(float, MODEL, Tensors("image", **given), classes)


DIALECTS: dict[str, Dialect] = {
    "v1": v1(),
    "v1 labels": v1(classes=LABELS),
    "v2": v2(),
    "v2 labels": v2(LABELS),
    "v2 json": v2(binary=False, shape="nx1"),
}
at_any_speed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
of_each_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS.keys())


def tensor(
    data: Sequence[Any], *shape: int, datatype: str = "FP32", name: str = "out"
) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": list(data)}


def reply(*outputs: object, **more: object) -> bytes:
    return json.dumps({"model_name": "mymodel", "outputs": outputs, **more}).encode()


def binary(*outputs: tuple[dict[str, Any], bytes]) -> tuple[dict[str, str], bytes]:
    """A reply by the binary extension: tensors without data, and their bytes."""
    tensors = []
    for one, data in outputs:
        cut = {key: value for key, value in one.items() if key != "data"}
        tensors.append({**cut, "parameters": {"binary_data_size": len(data)}})
    head = reply(*tensors)
    return {HEADER: str(len(head))}, head + b"".join(data for _, data in outputs)


def outputs_of(answer: Answer) -> list[Any]:
    assert isinstance(answer, list), answer
    bodies = [one.body for one in answer if isinstance(one, Prediction)]
    assert len(bodies) == len(answer)
    return [body["outputs"] for body in bodies]


# Examples of the specifications


def test_v1_is_asked_as_the_specification_encodes_binary_values() -> None:
    """TensorFlow Serving, RESTful API, "Encoding binary values"."""
    call = v1().encode([Image(b"image bytes"), Image(b"awesome image bytes")])
    example = b'{"instances":[{"b64":"aW1hZ2UgYnl0ZXM="},{"b64":"YXdlc29tZSBpbWFnZSBieXRlcw=="}]}'
    assert call == ("", {"Content-Type": "application/json"}, example)


def test_v1_names_an_input_as_the_specification_does() -> None:
    call = v1(tensor_input="image").encode([Image(b"image bytes")])
    assert json.loads(call.body) == {"instances": [{"image": {"b64": "aW1hZ2UgYnl0ZXM="}}]}


def test_v1_reads_the_answer_of_the_specification() -> None:
    """The model half_plus_three of the same page."""
    body = b'{\n    "predictions": [3.5, 4.0, 5.5]\n}\n'
    assert outputs_of(v1().interpret(200, {}, body, 3)) == [3.5, 4.0, 5.5]


def test_v1_takes_the_error_of_the_specification_for_a_server_that_does_not_serve() -> None:
    body = b'{ "error": "Servable not found for request: Latest(half)" }\n'
    answer = v1().interpret(404, {"Content-Type": "application/json"}, body, 2)
    assert answer == Busy(f"404: {body.decode().strip()}", None)


V2_ANSWER = b"""    {
      "id" : "42"
      "outputs" : [
        {
          "name" : "output0",
          "shape" : [ 3, 2 ],
          "datatype"  : "FP32",
          "data" : [ 1.0, 1.1, 2.0, 2.1, 3.0, 3.1 ]
        }
      ]
    }
"""
"""Open Inference Protocol, HTTP/REST, "Inference Request Examples"; it lacks a comma."""


def test_v2_reads_the_answer_of_the_specification() -> None:
    printed = v2().interpret(200, {}, V2_ANSWER, 3)
    assert isinstance(printed, Failed)
    answer = v2().interpret(200, {}, V2_ANSWER.replace(b'"42"', b'"42",'), 3)
    assert [one["data"] for (one,) in outputs_of(answer)] == [[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]]
    assert isinstance(answer, list)
    assert answer[0] == Prediction(
        {
            "outputs": [{"name": "output0", "datatype": "FP32", "shape": [2], "data": [1.0, 1.1]}],
            "model": {"name": "mymodel", "version": "3"},  # the answer names none
        }
    )


def test_v2_reads_the_binary_answer_of_the_extension() -> None:
    """Triton, "Binary Tensor Data Extension", "Examples": 24 bytes for output0."""
    head = b"""{
  "outputs" : [
    {
      "name" : "output0",
      "shape" : [ 3, 2 ],
      "datatype"  : "FP32",
      "parameters" : {
        "binary_data_size" : 24
      }
    }
  ]
}
"""
    data = struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    answer = v2().interpret(200, {HEADER: str(len(head))}, head + data, 3)
    assert [one["data"] for (one,) in outputs_of(answer)] == [[1, 2], [3, 4], [5, 6]]


def test_v2_is_asked_by_the_binary_extension() -> None:
    call = v2(output="scores").encode(IMAGES)
    size = int(call.headers[HEADER])
    assert call.headers["Content-Type"] == "application/octet-stream"
    assert json.loads(call.body[:size]) == {
        "inputs": [
            {
                "name": "image",
                "shape": [3],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": 4 + 5 + 4 + 0 + 4 + 600},
            }
        ],
        "outputs": [{"name": "scores"}],
        "parameters": {"binary_data_output": True},
    }
    assert call.body[size : size + 17] == b"\5\0\0\0\x89PNG\0\0\0\0\0\x58\2\0\0"
    assert call.body[size + 17 :] == IMAGES[2].data


def test_v2_is_asked_in_json_with_base64() -> None:
    call = v2(binary=False, shape="nx1").encode(IMAGES)
    assert call.headers == {"Content-Type": "application/json"}
    (asked,) = json.loads(call.body)["inputs"]
    assert [b64decode(one) for one in asked.pop("data")] == [image.data for image in IMAGES]
    assert asked == {
        "name": "image",
        "shape": [3, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
    }


@of_each_dialect
@at_any_speed
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_the_same_images_give_the_same_bytes(dialect: Dialect, values: list[bytes]) -> None:
    images = [Image(value) for value in values]
    assert dialect.encode(images) == dialect.encode([Image(value, "a/b") for value in values])


# Evidence

BUSY = (201, 204, 301, 302, 401, 403, 404, 405, 408, 410, 418, 429, 501, 502, 503, 504, 507, 999)
FAILED = (400, 409, 413, 415, 422, 500)


@of_each_dialect
@pytest.mark.parametrize("status", BUSY)
def test_who_does_not_serve_is_busy_for_as_long_as_it_says(dialect: Dialect, status: int) -> None:
    answer = dialect.interpret(status, {"Retry-After": "7"}, b"no\nsuch model", 2)
    assert answer == Busy(f"{status}: no such model", 7.0)


@of_each_dialect
@pytest.mark.parametrize("status", FAILED)
def test_who_judges_the_request_has_failed_on_it(dialect: Dialect, status: int) -> None:
    answer = dialect.interpret(status, {"Retry-After": "7"}, b'{"error": "bad"}', 2)
    detail = f'{status}: {{"error": "bad"}}'
    if status == 413:
        assert answer == Failed(detail, final=True, status=413, reason="too_large")
    else:
        assert answer == Failed(detail, status=status)


GOOD = tensor([1, 2, 3, 4], 2, 2)
UNSPLIT = {
    "nothing": b"",
    "no JSON": b"<html>",
    "no object": b"[1, 2]",
    "no list": b'{"predictions": 3, "outputs": {"a": [1, 2]}}',
    "none": b'{"predictions": [], "outputs": []}',
    "one for two": b'{"predictions": [1], "outputs": [%s]}' % json.dumps(tensor([1], 1)).encode(),
    "NaN": b'{"predictions": [NaN, 1], "outputs": [%s]}' % json.dumps(tensor([NAN, 1], 2)).encode(),
    "no float": b'{"predictions": [1%s, 1], "outputs": [%s]}'
    % (b"0" * 400, json.dumps(tensor([10**400, 1], 2)).encode()),
    "too deep": b'{"predictions": %s1%s}' % (b"[" * 99, b"]" * 99),
}


@of_each_dialect
@pytest.mark.parametrize("body", UNSPLIT.values(), ids=UNSPLIT.keys())
def test_an_answer_that_cannot_be_cut_is_a_failure(dialect: Dialect, body: bytes) -> None:
    answer = dialect.interpret(200, {}, body, 2)
    assert isinstance(answer, Failed)
    assert (answer.final, answer.status) == (False, 200)
    assert answer.detail.isprintable()


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (GOOD | {"shape": [2, 3]}, "4 elements for shape"),
        (GOOD | {"shape": [4]}, "for 2 images"),
        (GOOD | {"shape": []}, "4 elements for shape"),
        (tensor([1]), "has shape [] for 2 images"),
        (GOOD | {"shape": [2, -2]}, "no name, shape and datatype"),
        (GOOD | {"shape": [2, True]}, "no name, shape and datatype"),
        (GOOD | {"shape": [2] + [1] * 40}, "no name, shape and datatype"),
        (GOOD | {"name": 1}, "no name, shape and datatype"),
        (GOOD | {"data": [1, None, 2, 3]}, "neither a finite number"),
        (GOOD | {"data": [1, {}, 2, 3]}, "neither a finite number"),
        (GOOD | {"data": None}, "has no data"),
        (GOOD | {"data": None, "parameters": {"binary_data_size": 1}}, "has no data"),
        ("text", "no name, shape and datatype"),
    ],
)
def test_an_output_that_cannot_be_cut_is_named(output: object, why: str) -> None:
    answer = v2().interpret(200, {}, reply(GOOD, output), 2)
    assert isinstance(answer, Failed)
    assert why in answer.detail


@pytest.mark.parametrize(
    ("datatype", "data", "why"),
    [
        ("FP32", struct.pack("<2f", 1, NAN), "not finite"),
        ("BF16", b"\x80\x3f\x80\x7f", "not finite"),
        ("FP32", b"\0" * 7, "7 bytes for 2 elements of FP32"),
        ("FP33", b"\0" * 8, "FP33 is not known"),
        ("BYTES", b"\1\0\0\0a\2\0\0\0b", "cut short"),
        ("BYTES", b"\1\0\0\0a\2\0", "has no length"),
        ("BYTES", b"\1\0\0\0a", "1 elements for shape"),
    ],
)
def test_binary_data_that_does_not_fit_is_a_failure(datatype: str, data: bytes, why: str) -> None:
    headers, body = binary((tensor([], 2, datatype=datatype), data))
    answer = v2().interpret(200, headers, body, 2)
    assert isinstance(answer, Failed)
    assert why in answer.detail


@pytest.mark.parametrize("length", ["", "-1", "1e3", "²", "9" * 30, "1000000"])
def test_a_length_of_the_json_that_is_none_is_a_failure(length: str) -> None:
    answer = v2().interpret(200, {HEADER: length}, reply(GOOD), 2)
    assert isinstance(answer, Failed)
    assert HEADER in answer.detail


# Never raises


class AnyHeaders(dict[str, str]):
    """Headers of a reply: the same value for every name."""

    def __init__(self, value: str) -> None:
        super().__init__()
        self._value = value

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401, ARG002
        return self._value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "error"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@of_each_dialect
@at_any_speed
@given(st.integers(100, 999), st.text(max_size=4), st.binary(max_size=200), st.integers(1, 9))
def test_any_bytes_as_a_reply_never_raise(
    dialect: Dialect, status: int, header: str, body: bytes, count: int
) -> None:
    answer = dialect.interpret(status, AnyHeaders(header), body, count)
    assert isinstance(answer, Busy | Failed)


@of_each_dialect
@at_any_speed
@given(st.lists(JSON, max_size=4), st.integers(1, 4))
def test_any_json_as_a_reply_never_raises(
    dialect: Dialect, items: list[object], count: int
) -> None:
    body = json.dumps({"predictions": items, "outputs": items}).encode()
    answer = dialect.interpret(200, {}, body, count)
    assert isinstance(answer, Failed) or len(answer) == count  # type: ignore[arg-type]


@at_any_speed
@given(
    st.sampled_from(["FP32", "FP16", "INT64", "BYTES", "BOOL", "BF16", "X"]),
    st.lists(st.integers(0, 1 << 70), max_size=3),
    st.binary(max_size=40),
)
def test_any_binary_output_never_raises(datatype: str, shape: list[int], data: bytes) -> None:
    headers, body = binary((tensor([], *shape, datatype=datatype), data))
    answer = v2().interpret(200, headers, body, 1)
    assert isinstance(answer, Failed) or len(answer) == 1  # type: ignore[arg-type]


# Cutting


@pytest.mark.parametrize(
    ("datatype", "form", "values"),
    [
        ("FP32", "f", [0.5, -1.5, 3.0, 0.0]),
        ("FP64", "d", [0.1, -1.5, 3.0, 0.0]),
        ("FP16", "e", [0.5, -1.5, 3.0, 0.0]),
        ("INT64", "q", [1, -(1 << 60), 3, 0]),
        ("UINT8", "B", [1, 255, 3, 0]),
        ("BOOL", "?", [True, False, True, True]),
    ],
)
def test_binary_outputs_are_cut_along_the_first_axis(
    datatype: str, form: str, values: list[Any]
) -> None:
    headers, body = binary(
        (tensor([], 2, 2, datatype=datatype), struct.pack(f"<4{form}", *values)),
        (tensor([], 2, datatype="BYTES", name="text"), b"\2\0\0\0ok\2\0\0\0\xff\xfe"),
    )
    first, second = outputs_of(v2().interpret(200, headers, body, 2))
    assert first == [
        {"name": "out", "datatype": datatype, "shape": [2], "data": values[:2]},
        {"name": "text", "datatype": "BYTES", "shape": [], "data": ["ok"]},
    ]
    assert second[0]["data"] == values[2:]
    assert second[1]["data"] == [{"b64": b64encode(b"\xff\xfe").decode()}]


def test_bfloat16_is_the_upper_half_of_a_float() -> None:
    headers, body = binary((tensor([], 1, 2, datatype="BF16"), b"\x80\x3f\x40\xc0"))
    ((one,),) = outputs_of(v2().interpret(200, headers, body, 1))
    assert one["data"] == [1.0, -3.0]


def test_nested_data_is_laid_out_row_by_row() -> None:
    body = reply(tensor([[[1], [2]], [[3], [4]]], 2, 2, 1), tensor(["a", "b"], 2, datatype="BYTES"))
    first, second = outputs_of(v2().interpret(200, {}, body, 2))
    assert [one["data"] for one in first] == [[1, 2], ["a"]]
    assert [one["data"] for one in second] == [[3, 4], ["b"]]
    assert [one["shape"] for one in second] == [[2, 1], []]


@at_any_speed
@given(st.integers(1, 5), st.lists(st.integers(0, 3), max_size=3), st.data())
def test_what_was_cut_is_what_came(count: int, rest: list[int], data: st.DataObject) -> None:
    size = 1
    for one in rest:
        size *= one
    values = data.draw(st.lists(st.integers(), min_size=count * size, max_size=count * size))
    cut = outputs_of(
        v2().interpret(200, {}, reply(tensor(values, count, *rest, datatype="INT64")), count)
    )
    assert [value for (one,) in cut for value in one["data"]] == values


def test_one_output_can_be_asked_for() -> None:
    body = reply(tensor([1], 1, name="a"), tensor([2], 1, name="b"))
    ((one,),) = outputs_of(v2(output="b").interpret(200, {}, body, 1))
    assert one["name"] == "b"
    missing = v2(output="c").interpret(200, {}, body, 1)
    assert isinstance(missing, Failed)
    assert "no output c" in missing.detail


def test_the_model_that_answers_is_named() -> None:
    body = reply(tensor([1], 1), model_name="resnet", model_version="7")
    (one,) = v2().interpret(200, {}, body, 1)  # type: ignore[misc]
    assert isinstance(one, Prediction)
    assert one.body["model"] == {"name": "resnet", "version": "7"}


def test_the_header_of_the_length_says_where_the_json_ends() -> None:
    body = reply(GOOD)
    found, (output,) = parse_reply(body + b"trailing", str(len(body)), 2)
    assert found["model_name"] == "mymodel"
    assert output.data == [1, 2, 3, 4]


# Labels


def best(answer: Answer) -> list[Mapping[str, Any]]:
    assert isinstance(answer, list), answer
    return [one.body for one in answer if isinstance(one, Prediction)]


SCORES = [0.1, 0.6, 0.05, 0.25]


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (v1(classes=LABELS), json.dumps({"predictions": [SCORES]}).encode()),
        (
            v1(classes=LABELS),
            json.dumps({"predictions": [{"scores": SCORES, "features": [1, 2]}]}).encode(),
        ),
        (
            v1(classes=LABELS, tensor_output="b"),
            json.dumps({"predictions": [{"a": [1, 1, 1, 1], "b": SCORES}]}).encode(),
        ),
        (v2(LABELS), reply(tensor(SCORES, 1, 4))),
        (v2(LABELS), reply(tensor(SCORES, 1, 4, 1), tensor([3], 1, name="argmax"))),
        (
            v2(LABELS, output="b"),
            reply(tensor([1, 1, 1, 1], 1, 4, name="a"), tensor(SCORES, 1, 4, name="b")),
        ),
    ],
)
def test_labels_make_a_result_of_scores(dialect: Dialect, body: bytes) -> None:
    ((found),) = best(dialect.interpret(200, {}, body, 1))
    assert found == {
        "class": 1,
        "label": "dog",
        "score": 0.6,
        "top": [
            {"class": 1, "label": "dog", "score": 0.6},
            {"class": 3, "label": "hen", "score": 0.25},
            {"class": 0, "label": "cat", "score": 0.1},
        ],
        "model": {"name": "mymodel", "version": "3"},
    }


def test_logits_become_probabilities() -> None:
    found = classify([1.0, 3.0, -1e308, 1], LOGITS)
    assert not isinstance(found, str)
    assert found["class"] == 1
    assert found["score"] == pytest.approx(exp(3) / (exp(3) + 2 * exp(1)))
    assert [one["class"] for one in found["top"]] == [1, 0, 3]


def test_rounded_probabilities_are_taken_for_what_they_are() -> None:
    found = classify([1.0004, -0.0002, 0, 0], LABELS)
    assert not isinstance(found, str)
    assert (found["score"], found["top"][1]["score"]) == (1.0, 0.0)


WRONG_SCORES = {
    "logits": ([1, 3, -2, 0], "--scores logits"),
    "too few": ([0.5, 0.5], "one for each label"),
    "texts": (["a", "b", "c", "d"], "one for each label"),
    "truths": ([True, False, False, False], "one for each label"),
    "endless": ([10**400, 0, 0, 0], "finite"),
}


@pytest.mark.parametrize(("scores", "why"), WRONG_SCORES.values(), ids=WRONG_SCORES.keys())
def test_scores_that_are_none_are_no_result(scores: list[Any], why: str) -> None:
    for answer in (
        v1(classes=LABELS).interpret(200, {}, json.dumps({"predictions": [scores]}).encode(), 1),
        v2(LABELS).interpret(200, {}, reply(tensor(scores, 1, len(scores))), 1),
    ):
        assert isinstance(answer, Failed)
        assert why in answer.detail


def test_of_two_outputs_that_fit_one_must_be_named() -> None:
    body = reply(tensor(SCORES, 1, 4, name="a"), tensor(SCORES, 1, 4, name="b"))
    answer = v2(LABELS).interpret(200, {}, body, 1)
    assert isinstance(answer, Failed)
    assert "--tensor-output" in answer.detail


# Our own form


def test_v1_takes_items_of_our_own_handler_as_they_are() -> None:
    boot = {"class": 9, "label": "Ankle boot", "score": 0.97}
    bad = {"error": {"code": "not_an_image", "message": "no"}}
    odd = {"error": {"code": "odd", "message": "no"}}
    items = [{**boot, "top": [boot]}, bad, odd, {"class": 9}]
    answer = v1().interpret(200, {}, json.dumps({"predictions": items}).encode(), 4)
    assert answer == [
        Prediction({**boot, "top": [boot], "model": MODEL.to_dict()}),
        Rejection("not_an_image", "no", status=200),
        Rejection("rejected", "odd: no", status=200),
        Prediction({"outputs": {"class": 9}, "model": MODEL.to_dict()}),
    ]


def test_v1_takes_a_failure_of_our_own_handler_for_one() -> None:
    items = [1, {"error": {"code": "internal", "message": "no"}}]
    answer = v1().interpret(200, {}, json.dumps({"predictions": items}).encode(), 2)
    assert answer == Failed("the handler failed on an image", status=200)
