"""The Open Inference Protocol: its own examples, its tensors, and what is none of it."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import fmnist_v2 as v2
import fmnist_wire as wire
import numpy as np
import pytest
from fmnist_gate import Refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.handler.torchserve import encode
from tests.handler.unpacking import COLOURS, GREY, JSON, PIXELS, PNG, RGB, SETTINGS, code

if TYPE_CHECKING:
    from fmnist_images import Model, Settings

ROW = np.array([0.2, 0.7, 0.1], np.float32)
OTHER = np.array([0.0, 0.0, 1.0], np.float32)
B64 = base64.b64encode(PNG).decode()
MANY = 10**30


def files(*data: object, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON is anything
    """A request of BYTES."""
    return document("BYTES", [len(data)], list(data), **more)


def document(datatype: object, shape: object, data: object, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    tensor = {"name": "images", "datatype": datatype, "shape": shape, "data": data}
    return {"inputs": [tensor], **more}


def elements(*data: bytes) -> bytes:
    """Binary BYTES."""
    return b"".join(struct.pack("<I", len(one)) + one for one in data)


def binary(
    datatype: str, shape: list[int], behind: bytes, size: object = None, **more: object
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Row and headers of a request whose tensor follows the JSON."""
    tensor = {
        "name": "images",
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": len(behind) if size is None else size},
    }
    return framed(json.dumps({"inputs": [tensor], **more}).encode(), behind)


def framed(head: bytes, behind: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"body": bytearray(head + behind)}, {"inference-header-content-length": str(len(head))}


def ask(
    body: object, model: Model = GREY, settings: Settings = SETTINGS
) -> wire.Question | Refused:
    """What becomes of JSON, or of a row and headers."""
    if isinstance(body, tuple):
        row, headers = body
        return wire.unpack(row, headers, model, settings)
    return wire.unpack({"body": json.dumps(body).encode()}, JSON, model, settings)


def images(body: object, model: Model = GREY) -> list[Any]:
    question = ask(body, model)
    assert isinstance(question, wire.Question), question
    assert question.query is not None
    return list(question.items)


def answered(
    body: object, rows: list[np.ndarray[Any, Any]], model: Model = GREY
) -> tuple[int, dict[str, Any]]:
    status, answer = wire.answer(ask(body, model), rows, model, SETTINGS)
    assert json.loads(wire.dump(answer)) == answer
    return status, answer


def outputs(answer: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


# The examples of the specification


EXAMPLE = """
    {
      "id" : "42",
      "inputs" : [
        {
          "name" : "input0",
          "shape" : [ 2, 2 ],
          "datatype" : "UINT32",
          "data" : [ 1, 2, 3, 4 ]
        },
        {
          "name" : "input1",
          "shape" : [ 3 ],
          "datatype" : "BOOL",
          "data" : [ true ]
        }
      ],
      "outputs" : [
        {
          "name" : "output0"
        }
      ]
    }
"""
"""The request in "Inference Request Examples" of inference_rest.md, for a model of two inputs."""

BINARY_EXAMPLE = """{
  "model_name" : "mymodel",
  "inputs" : [
    {
      "name" : "input0",
      "shape" : [ 2, 2 ],
      "datatype" : "UINT32",
      "parameters" : {
        "binary_data_size" : 16
      }
    },
    {
      "name" : "input1",
      "shape" : [ 3 ],
      "datatype" : "BOOL",
      "parameters" : {
        "binary_data_size" : 3
      }
    }
  ],
  "outputs" : [
    {
      "name" : "output0",
      "parameters" : {
        "binary_data" : true
      }
    }
  ]
}
"""
"""The request in "Examples" of Triton's extension_binary_data.md; 19 bytes follow it."""


def test_the_examples_of_the_specification_are_another_models_and_refused_in_its_words() -> None:
    for row, headers in [
        ({"body": EXAMPLE.encode()}, JSON),
        framed(BINARY_EXAMPLE.encode(), bytes(19)),
    ]:
        status, body = wire.answer(wire.unpack(row, headers, GREY, SETTINGS), [], GREY, SETTINGS)
        assert status is HTTPStatus.BAD_REQUEST
        assert list(body) == ["error"]
        assert body["error"].startswith("bad_request: ")


def test_the_examples_of_the_specification_are_answered_when_asked_of_this_model() -> None:
    asked = (
        EXAMPLE.replace("[ 2, 2 ]", "[ 1, 2, 2 ]")
        .replace("UINT32", "UINT8")
        .replace("output0", "score")
    )
    start, end = asked.index(",\n        {"), asked.index('],\n      "outputs"')
    asked = asked[:start] + asked[end:]
    question = wire.unpack({"body": asked.encode()}, JSON, GREY, SETTINGS)
    status, body = wire.answer(question, [ROW], GREY, SETTINGS)
    assert status is HTTPStatus.OK
    assert body == {
        "model_name": "tiny",
        "model_version": "2.1",
        "id": "42",
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [1], "data": [0.7]}],
    }


def test_data_in_their_natural_form_and_flat_are_the_same() -> None:
    """The specification's [[1, 2], [4, 5]] and [1, 2, 4, 5]."""
    natural = images(document("UINT8", [1, 2, 2], [[[1, 2], [4, 5]]]))
    flat = images(document("UINT8", [1, 2, 2], [1, 2, 4, 5]))
    assert np.array_equal(natural[0], flat[0])


def test_binary_data_are_little_endian_in_the_order_of_the_outputs() -> None:
    asked = [{"name": name} for name in ("class", "label", "score", "error")]
    body = files(B64, "?", outputs=asked, parameters={"binary_data_output": True})
    status, answer = wire.answer(ask(body), [ROW], GREY, SETTINGS)
    assert status is HTTPStatus.OK
    content, length = wire.encode(answer)
    assert length is not None
    head, behind = json.loads(content[:length]), content[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert all("data" not in output for output in head["outputs"])
    assert sum(sizes) == len(behind)
    error = b"bad_request: The text is not Base64: encode the bytes of the image file, "
    error += b"with nothing before or behind."
    assert behind == (
        struct.pack("<2q", 1, -1)
        + elements(b"bag", b"")
        + struct.pack("<2f", 0.7, 0.0)
        + elements(b"", error)
    )


def test_an_output_may_be_binary_alone_or_json_alone() -> None:
    asked = [
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "score"},
    ]
    body = files(B64, outputs=asked, parameters={"binary_data_output": True})
    _, answer = wire.answer(ask(body), [ROW], GREY, SETTINGS)
    assert outputs(answer) == {"label": ["bag"], "score": struct.pack("<f", 0.7)}
    head, behind = v2.detach(answer)
    assert head["outputs"][0]["data"] == ["bag"]
    assert behind == struct.pack("<f", 0.7)


# What a request may hold


@pytest.mark.parametrize(("shape", "data"), [([1], [B64]), ([1, 1], [B64]), ([1, 1], [[B64]])])
def test_files_are_base64_in_json(shape: list[int], data: list[Any]) -> None:
    assert np.array_equal(images(document("BYTES", shape, data))[0], PIXELS[None])


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_files_are_bytes_behind_the_json(shape: list[int]) -> None:
    first, second = images(binary("BYTES", shape, elements(PNG, PNG)))
    assert np.array_equal(first, PIXELS[None])
    assert np.array_equal(second, PIXELS[None])


@pytest.mark.parametrize("shape", [[2, 28, 28], [2, 1, 28, 28], [2, 28, 28, 1]])
def test_pixels_of_the_models_form_reach_it_bit_for_bit(shape: list[int]) -> None:
    pixels = np.stack([PIXELS, 255 - PIXELS])
    wanted = pixels[:, None]
    assert np.array_equal(images(binary("UINT8", shape, pixels.tobytes())), wanted)
    assert np.array_equal(images(document("UINT8", shape, pixels.reshape(shape).tolist())), wanted)
    assert np.array_equal(images(document("UINT8", shape, pixels.ravel().tolist())), wanted)


@pytest.mark.parametrize("last", [True, False])
def test_pixels_in_colour_may_have_their_channels_first_or_last(last: bool) -> None:  # noqa: FBT001
    first = COLOURS.transpose(2, 0, 1)
    pixels = COLOURS if last else first
    shape = [1, *pixels.shape]
    assert np.array_equal(images(binary("UINT8", shape, pixels.tobytes()), RGB), first[None])


def test_pixels_of_another_size_are_resized() -> None:
    (item,) = images(document("UINT8", [1, 2, 2], [1, 2, 3, 4]))
    assert item.shape == GREY.shape


def test_one_image_may_come_without_json() -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    for body in (PNG, PIXELS.tobytes()):
        assert np.array_equal(images(({"body": body}, headers))[0], PIXELS[None])
    status, answer = answered(({"body": b"?"}, headers), [])
    assert (status, list(answer)) == (400, ["error"])
    assert answer["error"].startswith("not_an_image: The bytes")


def test_json_alone_may_have_the_header_too() -> None:
    assert np.array_equal(images(framed(json.dumps(files(B64)).encode(), b""))[0], PIXELS[None])


def test_json_that_torchserve_has_decoded_is_read_all_the_same() -> None:
    question = wire.unpack({"body": files(B64)}, {v2.HEADER: "7"}, GREY, SETTINGS)
    assert isinstance(question, wire.Question)
    assert np.array_equal(question.items[0], PIXELS[None])  # type: ignore[arg-type] # or a Refused: unequal


def test_what_is_unknown_among_the_parameters_is_not_minded() -> None:
    assert len(images(files(B64, parameters={"priority": 3}, outputs=[], id=None))) == 1


# The answer


def test_an_answer_has_the_likeliest_class_of_each_image() -> None:
    status, answer = answered(files(B64, B64, id="7"), [ROW, OTHER])
    assert status == 200
    assert answer == {
        "model_name": "tiny",
        "model_version": "2.1",
        "id": "7",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["bag", "boot"]},
            {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.7, 1.0]},
            {"name": "class", "datatype": "INT64", "shape": [2], "data": [1, 2]},
        ],
    }


@pytest.mark.parametrize(("top", "width"), [(1, 1), (2, 2), (3, 3), (MANY, 3)])
def test_an_answer_has_as_many_classes_as_are_asked_for_and_known(top: int, width: int) -> None:
    _, answer = answered(files(B64, parameters={"top": top}), [ROW])
    assert [output["shape"] for output in answer["outputs"]] == [[1, width]] * 3
    assert outputs(answer)["label"] == ["bag", "coat", "boot"][:width]
    assert outputs(answer)["score"] == [0.7, 0.2, 0.1][:width]


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    row = np.array([0.25, 0.375, 0.375], np.float32)
    _, answer = answered(files(B64, parameters={"top": 3}), [row])
    assert outputs(answer)["class"] == [1, 2, 0]


ALL = [{"name": name} for name in v2.DATATYPES]


def test_who_asks_for_errors_has_one_for_each_image_and_the_others_are_answered() -> None:
    status, answer = answered(
        files(B64, "?", B64, 7, outputs=ALL, parameters={"top": 2}), [ROW, OTHER]
    )
    assert status == 200
    assert outputs(answer)["label"] == ["bag", "coat", "", "", "boot", "coat", "", ""]
    assert outputs(answer)["class"] == [1, 0, -1, -1, 2, 0, -1, -1]
    assert outputs(answer)["score"] == [0.7, 0.2, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    errors = outputs(answer)["error"]
    assert [error.split(":")[0] for error in errors] == ["", "bad_request", "", "bad_request"]
    assert answer["outputs"][3]["shape"] == [4]


def test_who_asks_for_errors_has_them_when_every_image_is_bad() -> None:
    status, answer = answered(files("?", outputs=[{"name": "error"}, {"name": "class"}]), [])
    assert status == 200
    assert outputs(answer)["class"] == [-1]
    assert [output["name"] for output in answer["outputs"]] == ["error", "class"]


def test_to_others_a_bad_image_fails_the_request_which_says_where() -> None:
    status, answer = answered(files(B64, base64.b64encode(b"GIF8").decode(), "?"), [ROW])
    assert status == 400
    assert answer == {
        "error": "not_an_image: Image 1, counted from 0: The bytes are none of PNG, JPEG, GIF, "
        'BMP, WEBP, TIFF. Ask for the output "error" to have the others answered.'
    }


def test_a_lone_bad_image_has_its_own_status() -> None:
    bomb = base64.b64encode(encode(Image.new("1", (10_000, 10_000)))).decode()
    status, answer = answered(files(bomb), [])
    assert (status, answer["error"].split()[:2]) == (413, ["too_large:", "The"])


def test_a_failure_of_ours_says_what_torchserve_says() -> None:
    for body in (files(B64), files(B64, outputs=ALL)):
        status, answer = wire.answer(ask(body), [None], GREY, SETTINGS)
        assert status is HTTPStatus.INTERNAL_SERVER_ERROR
        assert answer["type"] == "InternalServerException"
        assert answer["error"].startswith("internal: ")


def test_who_is_sent_back_is_told_so_in_the_protocols_words() -> None:
    photo = base64.b64encode(encode(Image.new("L", (2_000, 1_000)))).decode()
    question = wire.unpack_batch(
        [({"body": files(photo)}, JSON)], GREY, replace(SETTINGS, batch_ms=1), lambda: 0.0
    )[0]
    status, answer = wire.answer(question, [], GREY, SETTINGS)
    assert status is HTTPStatus.SERVICE_UNAVAILABLE
    assert answer["error"].startswith("busy: ")
    assert answer["type"] == "ServiceUnavailableException"


def test_a_description_holds_the_metadata_of_the_protocol() -> None:
    told = v2.describe_model(RGB)
    assert told["versions"] == ["2.1"]
    assert {"name": "images", "datatype": "UINT8", "shape": [-1, 3, 64, 64]} in told["inputs"]
    assert [output["name"] for output in told["outputs"]] == list(v2.DATATYPES)


# What is refused


NAN = float("nan")
ZEROS = [0] * 784

BAD: dict[str, tuple[object, str]] = {
    "no inputs": ({"inputs": []}, "bad_request"),
    "two inputs": ({"inputs": [{}, {}]}, "bad_request"),
    "inputs that are none": ({"inputs": 7}, "bad_request"),
    "an input that is none": ({"inputs": [7]}, "bad_request"),
    "no datatype": ({"inputs": [{"shape": [1], "data": [B64]}]}, "unsupported_type"),
    "a datatype that is none": (document([], [1], [B64]), "unsupported_type"),
    "another datatype": (document("FP32", [1, 28, 28], ZEROS), "unsupported_type"),
    "no shape": (document("BYTES", None, [B64]), "wrong_shape"),
    "an empty shape": (document("BYTES", [], [B64]), "wrong_shape"),
    "five axes": (document("UINT8", [1, 1, 1, 28, 28], ZEROS), "wrong_shape"),
    "no image": (document("BYTES", [0], []), "wrong_shape"),
    "a negative dimension": (document("BYTES", [-1], [B64]), "wrong_shape"),
    "a dimension that is true": (document("BYTES", [True], [B64]), "wrong_shape"),
    "a dimension that is 1.0": (document("BYTES", [1.0], [B64]), "wrong_shape"),
    "a dimension of 31 digits": (document("BYTES", [MANY], [B64]), "wrong_shape"),
    "a dimension of 2^64": (document("UINT8", [2**64, 1, 1], [0]), "wrong_shape"),
    "2^63 images": (document("BYTES", [2**63], [B64]), "too_large"),
    "2^190 pixels": (document("UINT8", [1, 2**63, 2**63, 2**63], [0]), "wrong_shape"),
    "1,025 images": (files(*[B64] * 1_025), "too_large"),
    "fewer than the shape": (document("BYTES", [2], [B64]), "wrong_shape"),
    "more than the shape": (document("BYTES", [1], [B64, B64]), "wrong_shape"),
    "BYTES of two columns": (document("BYTES", [1, 2], [B64, B64]), "wrong_shape"),
    "BYTES, nested unevenly": (document("BYTES", [2, 1], [[B64], [B64, B64]]), "wrong_shape"),
    "BYTES, nested half": (document("BYTES", [2, 1], [[B64], B64]), "wrong_shape"),
    "BYTES, nested too deep": (document("BYTES", [1, 1], [[[B64]]]), "bad_request"),
    "data that are none": (document("BYTES", [1], B64), "bad_request"),
    "no data": (document("BYTES", [1], None), "bad_request"),
    "pixels without a count": (document("UINT8", [28, 28], ZEROS), "wrong_shape"),
    "pixels of two channels": (document("UINT8", [1, 2, 28, 14], ZEROS), "wrong_shape"),
    "too few pixels": (document("UINT8", [1, 28, 28], ZEROS[1:]), "wrong_shape"),
    "a ragged row": (document("UINT8", [1, 2, 2], [[[1, 2], [3]]]), "wrong_shape"),
    "ragged rows of the right sum": (
        document("UINT8", [1, 2, 2], [[[1, 2, 3], [4]]]),
        "wrong_shape",
    ),
    "a pixel 256": (document("UINT8", [1, 28, 28], [256, *ZEROS[1:]]), "not_an_image"),
    "a pixel -1": (document("UINT8", [1, 28, 28], [-1, *ZEROS[1:]]), "not_an_image"),
    "a pixel 7.0": (document("UINT8", [1, 28, 28], [7.0, *ZEROS[1:]]), "not_an_image"),
    "a pixel true": (document("UINT8", [1, 28, 28], [True, *ZEROS[1:]]), "not_an_image"),
    "a pixel NaN": (document("UINT8", [1, 28, 28], [NAN, *ZEROS[1:]]), "not_an_image"),
    "a pixel 10^400": (document("UINT8", [1, 28, 28], [10**400, *ZEROS[1:]]), "not_an_image"),
    "a pixel of text": (document("UINT8", [1, 28, 28], ["0", *ZEROS[1:]]), "not_an_image"),
    "a pixel that is a list": (document("UINT8", [1, 28, 28], [0, [], *ZEROS[2:]]), "not_an_image"),
    "an id that is a number": (files(B64, id=7), "bad_request"),
    "a long id": (files(B64, id="x" * 1_025), "bad_request"),
    "parameters that are none": (files(B64, parameters=[]), "bad_request"),
    "top 0": (files(B64, parameters={"top": 0}), "bad_request"),
    "top 1.5": (files(B64, parameters={"top": 1.5}), "bad_request"),
    "top true": (files(B64, parameters={"top": True}), "bad_request"),
    "a flag 1": (files(B64, parameters={"binary_data_output": 1}), "bad_request"),
    "an unknown output": (files(B64, outputs=[{"name": "x" * 9_999}]), "bad_request"),
    "an output without a name": (files(B64, outputs=[{}]), "bad_request"),
    "an output that is none": (files(B64, outputs=[7]), "bad_request"),
    "an output twice": (files(B64, outputs=[{"name": "label"}] * 2), "bad_request"),
    "five outputs": (files(B64, outputs=[*ALL, {"name": "label"}]), "bad_request"),
    "outputs that are none": (files(B64, outputs={}), "bad_request"),
    "an output's parameters that are none": (
        files(B64, outputs=[{"name": "label", "parameters": 7}]),
        "bad_request",
    ),
    "an input's parameters that are none": (
        {"inputs": [{"datatype": "BYTES", "shape": [1], "data": [B64], "parameters": 7}]},
        "bad_request",
    ),
    "a size without bytes": (
        {
            "inputs": [
                {"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}},
            ]
        },
        "bad_request",
    ),
    "bytes and no size": (framed(json.dumps(files(B64)).encode(), b"x"), "bad_request"),
    "a size that is too small": (binary("BYTES", [1], elements(PNG), 5), "bad_request"),
    "a size that is too large": (binary("BYTES", [1], elements(PNG), MANY), "bad_request"),
    "a size that is true": (binary("UINT8", [1, 1, 1], b"x", True), "bad_request"),
    "a size that is 1.0": (binary("UINT8", [1, 1, 1], b"x", 1.0), "bad_request"),
    "a size that is text": (binary("BYTES", [1], elements(PNG), "300"), "bad_request"),
    "no element": (binary("BYTES", [1], b"\1\0\0"), "bad_request"),
    "an element cut short": (binary("BYTES", [1], elements(PNG)[:-1]), "bad_request"),
    "an element of 4 GB": (binary("BYTES", [1], b"\xff" * 9), "bad_request"),
    "an element too few": (binary("BYTES", [2], elements(PNG)), "bad_request"),
    "an element too many": (binary("BYTES", [1], elements(PNG, PNG)), "bad_request"),
    "binary pixels too few": (binary("UINT8", [1, 28, 28], bytes(783)), "wrong_shape"),
    "binary pixels too many": (binary("UINT8", [1, 28, 28], bytes(785)), "wrong_shape"),
    "a list before the bytes": (framed(b"[]", b"x"), "bad_request"),
    "no JSON before the bytes": (framed(b"{", b"x"), "bad_request"),
    "a head that is too long": (
        framed(b" " * v2.MAX_HEAD_BYTES + b"{}", b"x"),
        "too_large",
    ),
    "a head longer than the body": (
        ({"body": b"{}"}, {v2.HEADER: "3"}),
        "bad_request",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_the_protocol_is_refused_in_its_words(what: str) -> None:
    body, word = BAD[what]
    question = ask(body)
    status, answer = wire.answer(question, [], GREY, SETTINGS)
    assert status == wire.STATUS[word]  # type: ignore[index] # a code
    assert list(answer) == ["error"]
    assert answer["error"].startswith(f"{word}: ")
    assert len(answer["error"]) < 400
    assert wire.count_refused(question) == 1


@pytest.mark.parametrize(
    ("behind", "count", "sentence"),
    [
        (b"\1\0\0", 1, "The binary data end before 1 elements"),
        (elements(PNG), 2, "The binary data end before 2 elements"),
        (elements(PNG)[:-1], 1, "An element of the binary data is longer than the data."),
        (b"\xff" * 9, 1, "An element of the binary data is longer than the data."),
        (elements(PNG, PNG), 1, "The binary data go on behind 1 elements."),
    ],
)
def test_binary_elements_that_do_not_add_up_are_told_how(
    behind: bytes, count: int, sentence: str
) -> None:
    assert str(ask(binary("BYTES", [count], behind))).startswith(sentence)


@pytest.mark.parametrize("length", ["", "-1", "1.0", "1e3", "x", "1" * 11, "1 1", "\u0661"])
def test_a_header_that_is_no_number_is_refused(length: str) -> None:
    row = {"body": json.dumps(files(B64)).encode()}
    assert code(wire.unpack(row, {v2.HEADER: length}, GREY, SETTINGS)) == "bad_request"


def test_two_headers_that_disagree_are_refused() -> None:
    row, headers = binary("BYTES", [1], elements(PNG))
    assert isinstance(wire.unpack(row, headers, GREY, SETTINGS), wire.Question)
    headers |= {v2.HEADER: "0"}
    assert code(wire.unpack(row, headers, GREY, SETTINGS)) == "bad_request"


def test_three_axes_are_no_image_in_colour() -> None:
    question = ask(binary("UINT8", [3, 64, 64], bytes(3 * 64 * 64)), RGB)
    assert code(question) == "wrong_shape"
    assert "[n, H, W]" not in str(question)


def test_more_classes_than_an_answer_can_name_are_refused() -> None:
    many = replace(GREY, labels=("x",) * 1_000)
    assert code(ask(files(*[B64] * 21, parameters={"top": MANY}), many)) == "too_large"
    assert isinstance(ask(files(*[B64] * 20, parameters={"top": MANY}), many), wire.Question)


def test_images_that_cost_too_much_together_are_refused_undecoded() -> None:
    strict = replace(SETTINGS, max_request_pixels=2 * 28 * 28)
    for body in (files(B64, B64, B64), binary("BYTES", [3], elements(PNG, PNG, PNG))):
        question = ask(body, settings=strict)
        assert code(question) == "too_large"
        assert isinstance(question, v2.Refusal)
        assert isinstance(ask(body), wire.Question)


def test_binary_files_cost_before_they_are_decoded() -> None:
    """Their outline is read at once, so a dear request does not come before cheap ones."""
    photo = encode(Image.new("L", (2_000, 1_000)))
    row, headers = binary("BYTES", [1], elements(photo))
    request = wire.inspect_request(row, headers, GREY, SETTINGS)
    (item,) = request.items
    assert request.cost == wire.cost_of(item) > 0


@given(head=st.binary(max_size=60), behind=st.binary(max_size=40), length=st.integers(0, 120))
def test_whatever_follows_the_header_has_one_answer(
    head: bytes, behind: bytes, length: int
) -> None:
    question = wire.unpack({"body": head + behind}, {v2.HEADER: str(length)}, GREY, SETTINGS)
    assert isinstance(question, Refused) or question.items


# Pixels without a word about them

RAW = {"body": {"content-type": "application/octet-stream"}}


def test_exactly_the_models_bytes_are_its_pixels() -> None:
    for model, pixels in ((GREY, PIXELS[None]), (RGB, COLOURS.transpose(2, 0, 1))):
        question = wire.unpack({"body": pixels.tobytes()}, RAW, model, SETTINGS)
        assert isinstance(question, wire.Question)
        assert not question.several
        assert np.array_equal(question.items[0], pixels)  # type: ignore[arg-type] # or a Refused: unequal


@pytest.mark.parametrize(
    "magic", [b"BM", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\xff\xd8\xff"]
)
def test_what_begins_as_a_file_is_a_file_and_never_pixels(magic: bytes) -> None:
    body = magic + bytes(784 - len(magic))
    refused = wire.unpack({"body": body}, RAW, GREY, SETTINGS)
    assert isinstance(refused, Refused)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (bytes(783), "application/octet-stream"),
        (bytes(785), "application/octet-stream"),
        (bytes(784), ""),
        (bytes(784), "image/png"),
        ("0" * 784, "application/octet-stream"),
    ],
)
def test_other_bytes_are_no_pixels(data: object, kind: str) -> None:
    headers = {"body": {"content-type": kind}}
    assert code(wire.unpack({"body": data}, headers, GREY, SETTINGS)) == "not_an_image"


def test_a_part_is_never_pixels() -> None:
    headers = {"content-type": "multipart/form-data", "a": RAW["body"]}
    question = wire.unpack({"a": bytes(784)}, headers, GREY, SETTINGS)
    assert isinstance(question, wire.Question)
    assert code(question.items[0]) == "not_an_image"
