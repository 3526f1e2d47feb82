"""Every form of a request, good and bad: its status and its body, as TorchServe sends them."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.handler.torchserve import Request, Served, body, encode, instances, pack

if TYPE_CHECKING:
    from collections.abc import Callable

PIXELS = np.random.default_rng(3).integers(0, 200, (28, 28), np.uint8)
PNG = encode(Image.fromarray(PIXELS))
BOMB = encode(Image.new("1", (10_000, 10_000)))
CUT = PNG[:200]
OCTETS = "application/octet-stream"
HEADER = "Inference-Header-Content-Length"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def infer(datatype: str, shape: list[int], data: object, **more: object) -> Request:
    """JSON of the Open Inference Protocol."""
    tensor = {"name": "images", "datatype": datatype, "shape": shape, "data": data}
    return body(json.dumps({"inputs": [tensor], **more}).encode(), "application/json")


def infer_binary(datatype: str, shape: list[int], behind: bytes, **more: object) -> Request:
    """The same with the data behind the JSON."""
    parameters = {"binary_data_size": len(behind)}
    tensor = {"name": "images", "datatype": datatype, "shape": shape, "parameters": parameters}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return body(head + behind, OCTETS, **{HEADER: str(len(head))})


def infer_files(*files: bytes, **more: object) -> Request:
    return infer("BYTES", [len(files)], [b64(data) for data in files], **more)


def infer_binary_files(*files: bytes, **more: object) -> Request:
    behind = b"".join(struct.pack("<I", len(data)) + data for data in files)
    return infer_binary("BYTES", [len(files)], behind, **more)


def grpc(*files: bytes) -> Request:
    """Inputs of a gRPC prediction: no headers at all."""
    return Request([(f"{place}", "", data) for place, data in enumerate(files)])


def check_one(answer: dict[str, Any], wanted: dict[str, Any]) -> None:
    """One object for one image."""
    assert list(answer) == ["class", "label", "score", "top", "model"]
    assert answer == wanted


def check_list(answer: dict[str, Any], wanted: dict[str, Any]) -> None:
    """A list of predictions, and who made them."""
    assert list(answer) == ["predictions", "model"]
    assert answer["model"] == wanted["model"]
    (prediction,) = answer["predictions"]
    assert prediction == {key: value for key, value in wanted.items() if key != "model"}


def check_v2(answer: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Tensors."""
    assert list(answer) == ["model_name", "model_version", "outputs"]
    assert {"name": answer["model_name"], "version": answer["model_version"]} == wanted["model"]
    assert answer["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": [wanted["label"]]},
        {"name": "score", "datatype": "FP32", "shape": [1], "data": [wanted["score"]]},
        {"name": "class", "datatype": "INT64", "shape": [1], "data": [wanted["class"]]},
    ]


class Form(NamedTuple):
    """A form with one good image, and how its answer looks; then what is bad about it.

    For each bad one: status, code, and where the error is: of the whole answer ("object", or as
    "text" of the Open Inference Protocol), or in the "place" of the image.
    """

    good: list[Request]
    check: Callable[[dict[str, Any], dict[str, Any]], None]
    bad: dict[str, tuple[Request, int, str, str]]


LISTS: list[Any] = PIXELS.tolist()
RAGGED = [[1, 2], [3]]

FORMS = {
    "a file as the body": Form(
        [body(PNG), body(PNG, "image/png"), body(PNG, OCTETS)],
        check_one,
        {
            "empty": (body(b""), 400, "bad_request", "object"),
            "cut": (body(CUT), 400, "not_an_image", "object"),
            "cut, named octets": (body(CUT, OCTETS), 400, "not_an_image", "object"),
            "a bomb": (body(BOMB), 413, "too_large", "object"),
            "of a text's type": (body(b"letter", "text/plain"), 415, "unsupported_type", "object"),
            "a web form": (
                body(PNG, "application/x-www-form-urlencoded"),
                400,
                "bad_request",
                "object",
            ),
        },
    ),
    "the model's pixels as the body": Form(
        [body(PIXELS.tobytes(), OCTETS)],
        check_one,
        {
            "one too few": (body(bytes(783), OCTETS), 400, "not_an_image", "object"),
            "one too many": (body(bytes(785), OCTETS), 400, "not_an_image", "object"),
            "of no type": (body(bytes(784)), 400, "not_an_image", "object"),
            "begun like a BMP": (
                body(b"BM" + bytes(782), OCTETS),
                415,
                "unsupported_type",
                "object",
            ),
        },
    ),
    "parts": Form(
        [pack(PNG)],
        check_list,
        {
            "none": (pack(), 400, "bad_request", "object"),
            "too many": (pack(*[b""] * 1_025), 413, "too_large", "object"),
            "empty": (pack(b""), 200, "bad_request", "place"),
            "cut": (pack(CUT), 200, "not_an_image", "place"),
            "a bomb": (pack(BOMB), 200, "too_large", "place"),
            "pixels": (pack(bytes(784)), 200, "not_an_image", "place"),
        },
    ),
    "inputs of gRPC": Form(
        [grpc(PNG)],
        check_list,
        {"cut": (grpc(CUT), 200, "not_an_image", "place")},
    ),
    "instances": Form(
        [
            instances({"b64": b64(PNG)}),
            instances(LISTS),
            instances([LISTS]),
            body(json.dumps({"instances": [LISTS]}).encode()),
        ],
        check_list,
        {
            "none": (instances(), 400, "bad_request", "object"),
            "too many": (instances(*[0] * 1_025), 413, "too_large", "object"),
            "no JSON": (body(b"{", "application/json"), 400, "bad_request", "object"),
            "too deep": (body(b"[" * 9_999, "application/json"), 400, "bad_request", "object"),
            "another key": (
                body(b'{"rows": []}', "application/json"),
                400,
                "bad_request",
                "object",
            ),
            "no Base64": (instances({"b64": "!"}), 200, "bad_request", "place"),
            "neither": (instances(7), 200, "bad_request", "place"),
            "cut": (instances({"b64": b64(CUT)}), 200, "not_an_image", "place"),
            "a bomb": (instances({"b64": b64(BOMB)}), 200, "too_large", "place"),
            "ragged": (instances(RAGGED), 200, "wrong_shape", "place"),
            "a pixel 256": (instances([[256]]), 200, "not_an_image", "place"),
            "a pixel true": (instances([[True]]), 200, "not_an_image", "place"),
        },
    ),
    "BYTES": Form(
        [infer_files(PNG), infer("BYTES", [1, 1], [[b64(PNG)]])],
        check_v2,
        {
            "none": (infer("BYTES", [0], []), 400, "wrong_shape", "text"),
            "too many": (infer_files(*[b""] * 1_025), 413, "too_large", "text"),
            "no Base64": (infer("BYTES", [1], ["!"]), 400, "bad_request", "text"),
            "no text": (infer("BYTES", [1], [7]), 400, "bad_request", "text"),
            "cut": (infer_files(CUT), 400, "not_an_image", "text"),
            "a bomb": (infer_files(BOMB), 413, "too_large", "text"),
            "cut, beside a good one": (infer_files(PNG, CUT), 400, "not_an_image", "text"),
            "another count": (infer("BYTES", [2], [b64(PNG)]), 400, "wrong_shape", "text"),
            "another datatype": (infer("FP32", [1], [1.0]), 415, "unsupported_type", "text"),
            "another output": (
                infer_files(PNG, outputs=[{"name": "x"}]),
                400,
                "bad_request",
                "text",
            ),
            "cut, errors asked for": (
                infer_files(CUT, outputs=[{"name": "error"}]),
                200,
                "not_an_image",
                "output",
            ),
        },
    ),
    "BYTES behind the JSON": Form(
        [infer_binary_files(PNG), body(PNG, OCTETS, **{HEADER: "0"})],
        check_v2,
        {
            "empty": (infer_binary_files(b""), 400, "bad_request", "text"),
            "cut": (infer_binary_files(CUT), 400, "not_an_image", "text"),
            "cut, alone": (body(CUT, OCTETS, **{HEADER: "0"}), 400, "not_an_image", "text"),
            "a bomb": (infer_binary_files(BOMB), 413, "too_large", "text"),
            "a length too long": (
                infer_binary("BYTES", [1], b"\xff" * 8),
                400,
                "bad_request",
                "text",
            ),
            "cut, errors asked for": (
                infer_binary_files(CUT, outputs=[{"name": "error"}]),
                200,
                "not_an_image",
                "output",
            ),
            "a header that is no number": (
                body(PNG, OCTETS, **{HEADER: "x"}),
                400,
                "bad_request",
                "object",
            ),
        },
    ),
    "UINT8": Form(
        [
            infer("UINT8", [1, 28, 28], [LISTS]),
            infer("UINT8", [1, 28, 28], PIXELS.ravel().tolist()),
            infer("UINT8", [1, 1, 28, 28], [[LISTS]]),
            infer("UINT8", [1, 28, 28, 1], PIXELS[None, ..., None].tolist()),
        ],
        check_v2,
        {
            "ragged": (infer("UINT8", [1, 2, 2], [RAGGED]), 400, "wrong_shape", "text"),
            "no count": (infer("UINT8", [28, 28], LISTS), 400, "wrong_shape", "text"),
            "a pixel 256": (infer("UINT8", [1, 1, 1], [256]), 400, "not_an_image", "text"),
            "a pixel 1.0": (infer("UINT8", [1, 1, 1], [1.0]), 400, "not_an_image", "text"),
        },
    ),
    "UINT8 behind the JSON": Form(
        [
            infer_binary("UINT8", [1, 28, 28], PIXELS.tobytes()),
            infer_binary("UINT8", [1, 1, 28, 28], PIXELS.tobytes()),
            infer_binary("UINT8", [1, 28, 28, 1], PIXELS.tobytes()),
            body(PIXELS.tobytes(), OCTETS, **{HEADER: "0"}),
        ],
        check_v2,
        {
            "one too few": (
                infer_binary("UINT8", [1, 28, 28], bytes(783)),
                400,
                "wrong_shape",
                "text",
            ),
            "too large a shape": (
                infer_binary("UINT8", [1, 2**40, 2**40], bytes(784)),
                400,
                "wrong_shape",
                "text",
            ),
        },
    ),
}
GOOD = [(form, place) for form, (good, _, _) in FORMS.items() for place in range(len(good))]
BAD = [(form, what) for form, (_, _, bad) in FORMS.items() for what in bad]


@pytest.mark.parametrize(("form", "place"), GOOD)
def test_a_good_image_is_answered_in_the_form_of_the_question(
    grey: Served, form: str, place: int
) -> None:
    wanted = grey.one(body(PNG)).body
    answer = grey.one(FORMS[form].good[place])
    assert (answer.status, answer.content_type) == (200, "application/json")
    FORMS[form].check(answer.body, wanted)


def find_error(answer: dict[str, Any], where: str) -> str:
    """Return the code of an error; a sentence follows it."""
    if where in {"text", "output"}:
        text = answer["error"] if where == "text" else answer["outputs"][0]["data"][0]
        word, _, sentence = text.partition(": ")
    else:
        error = answer["error"] if where == "object" else answer["predictions"][0]["error"]
        word, sentence = error["code"], error["message"]
    assert sentence.endswith(".")
    return str(word)


@pytest.mark.parametrize(("form", "what"), BAD)
def test_a_bad_one_has_its_status_and_its_error_in_the_form_of_the_question(
    grey: Served, form: str, what: str
) -> None:
    request, status, code, where = FORMS[form].bad[what]
    answer = grey.one(request)
    assert (answer.status, answer.content_type) == (status, "application/json")
    assert find_error(answer.body, where) == code
    if where != "place":
        assert len(answer.body) == (3 if where == "output" else 1)


TWO_TENSORS = b"""{
  // List of 2 tensors each of [1, 2] shape
  "instances": [ [[1, 2]], [[3, 4]] ]
}
"""
FOO_BAR_BAZ = b"""{
  // List of 3 scalar tensors.
  "instances": [ "foo", "bar", "baz" ]
}
"""
NAMED = b"""{
 "instances": [
   {
     "tag": "foo",
     "signal": [1, 2, 3, 4, 5],
     "sensor": [[1, 2], [3, 4]]
   },
   {
     "tag": "bar",
     "signal": [3, 4, 1, 2, 5]],
     "sensor": [[4, 5], [6, 8]]
   }
 ]
}
"""
COLUMNS = b"""{
 "inputs": {
   "tag": ["foo", "bar"],
   "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
   "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]
 }
}
"""
HALF_PLUS_THREE = b'{"instances": [1.0,2.0,5.0]}'
CLASSIFY = b"""{
  "signature_name": "classify_objects",
  "examples": [
    {
      "image": { "b64": "aW1hZ2UgYnl0ZXM=" },
      "caption": "seaside"
    },
    {
      "image": { "b64": "YXdlc29tZSBpbWFnZSBieXRlcw==" },
      "caption": "mountains"
    }
  ]
}
"""
NOT_FINITE = b"""{
  "example": [
    {
      "sensor_readings": [ 1.0, -3.14, Nan, Infinity ]
    }
  ]
}
"""
"""The requests of TensorFlow Serving's RESTful API, in its words, comments and slips included."""


def strip_comments(text: bytes) -> bytes:
    """Return JSON of the page without its lines of comment, which no JSON has."""
    return b"".join(line for line in text.splitlines(True) if not line.lstrip().startswith(b"//"))


@pytest.mark.parametrize(
    ("example", "status", "found"),
    [
        (strip_comments(TWO_TENSORS), 200, ["label", "label"]),
        (strip_comments(FOO_BAR_BAZ), 200, ["bad_request"] * 3),
        (strip_comments(NAMED.replace(b"]],", b"],")), 200, ["bad_request"] * 2),
        (HALF_PLUS_THREE, 200, ["bad_request"] * 3),
        (TWO_TENSORS, 400, "bad_request"),
        (NAMED, 400, "bad_request"),
        (COLUMNS, 400, "bad_request"),
        (CLASSIFY, 400, "bad_request"),
        (NOT_FINITE, 400, "bad_request"),
    ],
    ids=[
        *("images of two pixels", "words", "named tensors", "numbers", "a comment"),
        *("one bracket too many", "columns", "of classify", "not finite"),
    ],
)
def test_the_examples_of_v1_are_answered_in_its_words(
    grey: Served, example: bytes, status: int, found: object
) -> None:
    answer = grey.one(body(example, "application/json"))
    assert (answer.status, answer.content_type) == (status, "application/json")
    if status == 200:
        kinds = [one.get("error", {"code": "label"})["code"] for one in answer.body["predictions"]]
        assert kinds == found
    else:
        where = "text" if example == COLUMNS else "object"
        assert (list(answer.body), find_error(answer.body, where)) == (["error"], found)


def test_all_forms_may_come_in_one_batch(grey: Served) -> None:
    good = [(form, request) for form, (requests, _, _) in FORMS.items() for request in requests]
    bad = [case for _, _, cases in FORMS.values() for case in cases.values()]
    wanted = grey.one(body(PNG)).body
    mixed = [request for _, request in good] + [request for request, _, _, _ in bad]
    answers = grey.ask(*mixed)
    for (form, _), answer in zip(good, answers, strict=False):
        FORMS[form].check(answer.body, wanted)
    for (_, status, code, where), answer in zip(bad, answers[len(good) :], strict=True):
        assert answer.status == status
        assert find_error(answer.body, where) == code


def test_binary_outputs_follow_the_json_and_a_header_says_where(grey: Served) -> None:
    wanted = grey.one(body(PNG)).body
    request = infer_binary_files(PNG, parameters={"binary_data_output": True}, id="é")
    (content,) = ask_raw(grey, request)
    status, _ = grey.context.get_response_status(0)
    length = int(grey.context.request_processor[0].get_response_header(HEADER))
    assert (status, grey.context.get_response_content_type(0)) == (200, OCTETS)
    head, behind = json.loads(content[:length]), content[length:]
    assert head["id"] == "é"
    label = wanted["label"].encode()
    assert behind[4 : 4 + len(label)] == label
    score, index = struct.unpack("<fq", behind[4 + len(label) :])
    assert score == pytest.approx(wanted["score"])
    assert index == wanted["class"]


def ask_raw(served: Served, request: Request) -> list[bytes]:
    """Return the bytes of an answer, which `ask` takes for JSON."""
    found: list[bytes] = []
    answer = Served.answer

    def keep(self: Served, index: int, data: bytes) -> Any:  # noqa: ANN401 - nobody reads it
        found.append(data)
        return answer(self, index, b"{}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Served, "answer", keep)
        served.ask(request)
    return found
