"""Every form of a body and every answer, without a model."""

from __future__ import annotations

import base64
import gc
import json
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import fmnist_wire as wire
import numpy as np
import pytest
from fmnist_gate import Code, File, Refused, inspect
from fmnist_images import Model, Pixels, Settings, to_pixels
from fmnist_json import MAX_JSON_LISTS
from fmnist_sandbox import Decoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.handler.torchserve import encode
from tests.handler.unpacking import (
    CARD,
    GREY,
    JSON,
    MULTIPART,
    NAMES,
    PIXELS,
    PNG,
    SETTINGS,
    TABLE,
    code,
    drawn,
    instance,
    one,
    several,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# The model and the settings


def test_a_model_takes_its_labels_in_the_order_of_their_numbers() -> None:
    names = dict(reversed(NAMES.items()))
    model = wire.read_model(CARD, names)
    assert model.labels == ("coat", "bag", "boot")
    assert (model.mode, model.shape, model.tag) == (
        "L",
        (1, 28, 28),
        {"name": "tiny", "version": "2.1"},
    )


@pytest.mark.parametrize(("background", "colour"), [(9, (9, 9, 9)), ([1, 2, 3], (1, 2, 3))])
def test_a_background_is_one_number_or_one_a_channel(
    background: object, colour: tuple[int, ...]
) -> None:
    taken = {"channels": 3, "height": 4, "width": 5, "background": background}
    model = wire.read_model({**CARD, "input": taken}, NAMES)
    assert (model.background, model.size, model.shape) == (colour, (5, 4), (3, 4, 5))


@pytest.mark.parametrize(
    ("taken", "names", "complaint"),
    [
        ({"channels": 2}, NAMES, "2 channels"),
        ({"channels": 4}, NAMES, "4 channels"),
        ({"background": [1, 2]}, NAMES, "2 numbers for 1 channels"),
        ({}, {"0": "coat", "1": "bag"}, '"0" to "2"'),
        ({}, {"0": "coat", "1": "bag", "3": "boot"}, '"0" to "2"'),
    ],
)
def test_a_model_that_contradicts_itself_is_not_read(
    taken: dict[str, Any], names: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        wire.read_model({**CARD, "input": {**CARD["input"], **taken}}, names)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {**TABLE, "more": 1},
        {**TABLE, "chunk": 0},
        {**TABLE, "chunk": "9"},
        {**TABLE, "chunk": 1},
    ],
    ids=["none", "unknown key", "zero", "text", "more passes than images"],
)
def test_settings_that_are_wrong_are_named(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model-config.yaml: .*chunk"):
        wire.read_settings({"handler": table})


@pytest.mark.parametrize("precision", ["int8", "", 16, None, ["float32"]])
def test_a_precision_that_is_none_is_told_what_there_is(precision: object) -> None:
    with pytest.raises(ValueError, match="`precision` must be float32 or bfloat16"):
        wire.read_settings({"handler": {**TABLE, "precision": precision}})


# The three forms


def test_a_raw_body_is_one_image() -> None:
    question = wire.unpack({"body": bytearray(PNG)}, {"Host": "x"}, GREY, SETTINGS)
    assert isinstance(question, wire.Question)
    assert not question.several
    assert len(question.items) == 1


def test_parts_keep_the_order_in_which_they_came() -> None:
    parts = {name: encode(Image.new("L", (28, 28), shade)) for shade, name in enumerate("zbx")}
    items = several(parts, MULTIPART)
    assert [int(item[0, 0, 0]) for item in items if isinstance(item, np.ndarray)] == [0, 1, 2]


def test_inputs_of_grpc_are_ordered_by_their_names() -> None:
    inputs = {name: encode(Image.new("L", (28, 28), shade)) for shade, name in enumerate("zbx")}
    items = several(inputs, {})
    assert [int(item[0, 0, 0]) for item in items if isinstance(item, np.ndarray)] == [1, 2, 0]


def test_a_part_may_have_any_name_even_that_of_a_body_or_of_a_header() -> None:
    headers = {
        **MULTIPART,
        "body": {"content-type": "application/json"},
        "content-type": {"content-type": "image/png"},
        "accept": "*/*",
    }
    items = several({"body": PNG, "content-type": PNG, "accept": PNG}, headers)
    assert wire.good_images(wire.Question(items, several=True)) == list(items)


def test_a_bad_part_is_refused_in_its_place() -> None:
    items = several({"0": PNG, "1": b"?", "2": b"", "3": PNG}, MULTIPART)
    assert [isinstance(item, Refused) and item.code for item in items] == [
        False,
        "not_an_image",
        "bad_request",
        False,
    ]
    assert wire.count_refused(wire.Question(items, several=True)) == 2


def test_a_multipart_body_without_parts_is_a_bad_request() -> None:
    assert code(wire.unpack({}, MULTIPART, GREY, SETTINGS)) == "bad_request"


def test_a_request_of_too_many_images_is_refused_whole() -> None:
    row = {str(index): PNG for index in range(3)}
    strict = replace(SETTINGS, max_images=2)
    assert code(wire.unpack(row, MULTIPART, GREY, strict)) == "too_large"
    del row["0"]
    assert len(several(row, MULTIPART, settings=strict)) == 2


def test_a_web_form_is_refused_with_the_way_out() -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    refused = wire.unpack({"\x89PNG": b""}, headers, GREY, SETTINGS)
    assert code(refused) == "bad_request"
    assert "curl -T" in str(refused)


def test_json_may_come_raw_decoded_or_nameless() -> None:
    decoded = {"instances": [PIXELS.tolist()]}
    raw = json.dumps(decoded)
    bodies: list[tuple[object, str]] = [
        (raw.encode(), "application/json"),
        (raw.encode("utf-16"), "application/JSON; charset=utf-16"),
        (raw, "text/json"),
        (decoded, "application/json"),
        (bytearray(raw.encode()), ""),
        (raw.encode(), "application/vnd.kserve+json"),
    ]
    for body, kind in bodies:
        (item,) = several({"body": body}, {"body": {"content-type": kind}})
        assert np.array_equal(item, PIXELS[None])  # type: ignore[arg-type] # or a Refused: unequal


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"instances": [',
        b"[" * 100_000,
        b"1" * 5_000,
        b"\xff\xfe\xfa",
        b"[]",
        b"null",
        b"{}",
        b'{"instances": {}}',
        b'{"instances": []}',
        b'{"inputs": [1]}',
    ],
    ids=lambda body: repr(body[:20]),
)
def test_json_that_is_not_what_was_agreed_is_a_bad_request(body: bytes) -> None:
    assert code(wire.unpack({"body": body}, JSON, GREY, SETTINGS)) == "bad_request"


@pytest.mark.parametrize("many", ["[],", "[0],", "{},", "[[[]]],"])
def test_json_of_more_lists_than_an_image_has_is_refused_unparsed(many: str) -> None:
    inside = many * (MAX_JSON_LISTS // many.count("]") + 1 if "]" in many else 10**6)
    body = '{"instances": [' + inside.rstrip(",") + "]}"
    for form in (body, body.encode()):
        refused = wire.unpack({"body": form}, JSON, GREY, SETTINGS)
        assert (code(refused), "send image files" in str(refused)) == ("too_large", True)


def test_parsing_leaves_the_collection_of_garbage_as_it_was() -> None:
    for body in (b'{"instances": [[[1]]]}', b"{"):
        wire.unpack({"body": body}, JSON, GREY, SETTINGS)
        assert gc.isenabled()


def test_what_can_never_fit_is_too_large_and_not_busy() -> None:
    many = {str(index): PHOTO for index in range(1_000)}
    strict = replace(SETTINGS, max_request_pixels=10**12)
    assert code(wire.unpack(many, MULTIPART, GREY, strict)) == "too_large"
    encoded = {"b64": base64.b64encode(PHOTO).decode()}
    body = json.dumps({"instances": [encoded] * 500}).encode()
    assert code(wire.unpack({"body": body}, JSON, GREY, strict)) == "too_large"


@pytest.mark.parametrize("decoded", [5, 0.5, True, None, [], {}, [5], {"instances": 5}])
def test_json_that_torchserve_has_decoded_may_be_anything(decoded: object) -> None:
    assert code(wire.unpack({"body": decoded}, JSON, GREY, SETTINGS)) == "bad_request"


def test_text_that_torchserve_has_decoded_is_read_all_the_same() -> None:
    assert code(one("a letter", "text/plain")) == "unsupported_type"


def test_a_part_that_is_json_is_no_image_decoded_or_not() -> None:
    headers = {**MULTIPART, "a": {"content-type": "application/json"}}
    parts: list[object] = [{"instances": []}, b'{"instances": []}']
    for part in parts:
        assert code(several({"a": part}, headers)[0]) == "unsupported_type"


# Instances


def test_a_file_in_base64_is_the_file() -> None:
    encoded = {"b64": base64.b64encode(PNG).decode()}
    assert np.array_equal(drawn(encoded), PIXELS[None])


@pytest.mark.parametrize(
    "item", [{"b64": "!!"}, {"b64": "é"}, {"b64": 7}, {"b64": ""}, {}, None, 7, "text", True]
)
def test_an_instance_of_no_known_form_is_a_bad_request(item: object) -> None:
    assert code(instance(item)) == "bad_request"


def test_images_that_unfold_too_far_together_are_refused_undecoded() -> None:
    strict = replace(SETTINGS, max_request_pixels=2 * 28 * 28)
    row = {str(index): PNG for index in range(3)}
    assert code(wire.unpack(row, MULTIPART, GREY, strict)) == "too_large"
    assert len(several({"0": PNG, "1": b"?", "2": PNG}, MULTIPART, settings=strict)) == 3


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=3), children)
    ),
    max_leaves=30,
)


@given(items=st.lists(trees, min_size=1, max_size=4))
def test_json_of_any_kind_has_an_item_for_each_instance(items: list[object]) -> None:
    raw = json.dumps({"instances": items}).encode()
    assert len(several({"body": raw}, JSON)) == len(items)


# Answers

ROW = np.array([0.2, 0.7, 0.1], np.float32)
QUESTION = wire.Question((PIXELS[None],), several=False)


def test_one_image_is_answered_with_one_object() -> None:
    status, body = wire.answer(QUESTION, [ROW], GREY, SETTINGS)
    assert status is HTTPStatus.OK
    assert body == {
        "class": 1,
        "label": "bag",
        "score": 0.7,
        "top": [
            {"class": 1, "label": "bag", "score": 0.7},
            {"class": 0, "label": "coat", "score": 0.2},
            {"class": 2, "label": "boot", "score": 0.1},
        ],
        "model": {"name": "tiny", "version": "2.1"},
    }


def test_several_are_answered_in_order_with_errors_in_their_places() -> None:
    refused = Refused("not_an_image", "No.")
    question = wire.Question((refused, PIXELS[None], refused, PIXELS[None]), several=True)
    other = np.array([0.0, 0.0, 1.0], np.float32)
    status, body = wire.answer(question, [ROW, other], GREY, SETTINGS)
    assert status is HTTPStatus.OK
    wanted = {"error": {"code": "not_an_image", "message": "No."}}
    assert body["predictions"][0] == body["predictions"][2] == wanted
    assert [body["predictions"][place]["label"] for place in (1, 3)] == ["bag", "boot"]
    assert body["model"] == {"name": "tiny", "version": "2.1"}


@pytest.mark.parametrize("word", wire.STATUS)
def test_a_refused_request_is_answered_with_a_status_of_its_own(word: Code) -> None:
    refused = Refused(word, "No.")
    status, body = wire.answer(refused, [], GREY, SETTINGS)
    assert 400 <= status < 500
    assert body == {"error": {"code": word, "message": "No."}}
    assert (wire.good_images(refused), wire.count_refused(refused)) == ([], 1)


def test_a_model_that_fails_is_our_fault_and_nobody_is_refused() -> None:
    question = wire.Question((PIXELS[None], Refused("too_large", "No.")), several=True)
    status, body = wire.answer(question, [None], GREY, SETTINGS)
    assert status is HTTPStatus.INTERNAL_SERVER_ERROR
    assert "predictions" not in body
    assert (body["error"]["code"], body["type"]) == ("internal", "InternalServerException")


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    many = replace(GREY, labels=("x",) * 100)
    row = np.where(np.arange(100) % 2, 0.02, 0.0).astype(np.float32)
    assert [one["class"] for one in wire.predict_row(row, many, SETTINGS)["top"]] == [1, 3, 5]


def test_an_answer_names_as_many_as_it_is_told() -> None:
    assert len(wire.predict_row(ROW, GREY, replace(SETTINGS, top_k=1))["top"]) == 1


def test_what_is_not_json_is_never_sent() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        wire.dump({"score": float("nan")})
    assert wire.dump({"a": [1, "é"]}) == b'{"a":[1,"\\u00e9"]}'


def test_a_description_holds_the_limits_of_a_sender_and_no_other_setting() -> None:
    told = wire.describe(CARD, GREY, SETTINGS)
    assert told["model"] == CARD
    assert told["labels"] == ["coat", "bag", "boot"]
    assert set(told["limits"]) == {
        *("max_bytes", "max_images", "max_pixels", "max_heavy_pixels"),
        *("max_request_pixels", "max_request_ms"),
    }


# What a batch may cost

CLOCK = [0.0]
"""Seconds, as a test sets them."""


def batch(*bodies: bytes, settings: Settings = SETTINGS) -> list[str]:
    """What becomes of each body: a word for an error, "good" for pixels."""
    CLOCK[0] = 0.0
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = [({"body": body}, {}) for body in bodies]
    questions = wire.unpack_batch(rows, GREY, settings, lambda: CLOCK[0])
    return [
        item.code if isinstance(item, Refused) else "good"
        for question in questions
        for item in (question.items if isinstance(question, wire.Question) else (question,))
    ]


PHOTO = encode(Image.new("L", (2_000, 1_000)))
PHOTO_S = inspect(PHOTO, SETTINGS.limits).cost


def in_batch(seconds: float) -> Settings:
    return replace(SETTINGS, batch_ms=round(seconds * 1000))


@pytest.fixture
def honest_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each image take the seconds of its estimate."""

    def decode(file: File, model: Model) -> Pixels:
        CLOCK[0] += file.cost
        return to_pixels(file, model)

    monkeypatch.setattr(wire, "to_pixels", decode)


@pytest.mark.usefixtures("honest_clock")
def test_a_batch_decodes_the_cheapest_first_and_sends_the_rest_back() -> None:
    two = in_batch(2.5 * PHOTO_S)
    assert batch(PHOTO, PHOTO, PHOTO, PNG, settings=two) == ["good", "good", "busy", "good"]
    assert batch(PHOTO, PHOTO, PHOTO, PNG) == ["good"] * 4


def test_a_slow_machine_sends_back_what_it_has_no_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dawdle(file: File, model: Model) -> Pixels:
        CLOCK[0] += 1.0
        return to_pixels(file, model)

    monkeypatch.setattr(wire, "to_pixels", dawdle)
    assert batch(*[PNG] * 5, settings=in_batch(2.5)) == ["good"] * 3 + ["busy"] * 2


def count_good(pass_s: float, *requests: int) -> list[int | str]:
    """Send requests of so many images in one batch; return how many are good of each, or a code."""
    rows = [({str(place): PNG for place in range(count)}, MULTIPART) for count in requests]
    questions = wire.unpack_batch(rows, GREY, in_batch(1.0), lambda: 0.0, pass_s)
    return [
        question.code if isinstance(question, Refused) else len(wire.good_images(question))
        for question in questions
    ]


def test_the_pass_of_the_model_has_its_place_in_the_budget() -> None:
    assert count_good(0.12, 4, 4, 4) == [4, 4, "busy"]
    assert count_good(0.1, 4, 4, 3) == [4, "busy", 3]
    assert count_good(0.0, 4, 4, 4) == [4, 4, 4]


def test_images_that_the_model_can_never_pass_in_time_are_too_large_and_not_busy() -> None:
    assert count_good(0.1, 11, 9) == ["too_large", 9]


def test_who_is_sent_back_is_told_when_to_come_again() -> None:
    status, body = wire.answer(Refused("busy", "Later."), [], GREY, SETTINGS)
    assert status is HTTPStatus.SERVICE_UNAVAILABLE
    assert (body["error"]["code"], body["type"]) == ("busy", "ServiceUnavailableException")
    assert wire.count_refused(Refused("busy", "Later.")) == 0


def test_images_that_cost_too_much_together_are_refused_undecoded() -> None:
    strict = replace(SETTINGS, max_request_ms=round(2500 * PHOTO_S))
    row = {str(index): PHOTO for index in range(3)}
    refused = wire.unpack(row, MULTIPART, GREY, strict)
    assert (code(refused), "would take about" in str(refused)) == ("too_large", True)
    assert len(several({"0": PHOTO, "1": PHOTO}, MULTIPART, settings=strict)) == 2


def test_json_costs_before_it_is_parsed_and_its_images_after() -> None:
    body = json.dumps({"instances": [{"b64": base64.b64encode(PHOTO).decode()}] * 2}).encode()
    assert batch(body, settings=in_batch(2.1 * PHOTO_S)) == ["good", "good"]
    assert batch(body, settings=in_batch(1.9 * PHOTO_S)) == ["busy"]
    long = body + b" " * 1_000_000
    parsing = wire.JSON_BYTE_S * len(long)
    assert batch(long, PNG, settings=in_batch(parsing / 2)) == ["busy", "good"]


# What is decoded in a process of its own

TIFF = encode(Image.fromarray(PIXELS), "TIFF", compression="tiff_lzw")


def test_what_is_not_known_to_be_cheap_is_decoded_apart() -> None:
    assert np.array_equal(several({"0": TIFF, "1": PNG}, MULTIPART)[0], PIXELS[None])  # type: ignore[arg-type] # or a Refused: unequal


def apart(monkeypatch: pytest.MonkeyPatch, *results: Pixels | Refused) -> list[float]:
    """Give these results, which take two seconds each; return the seconds that were granted."""
    granted: list[float] = []
    rest = iter(results)

    def decode(_file: object, _model: object, limits: tuple[float, int], _wait: float) -> Decoded:
        granted.append(limits[0])
        return Decoded(next(rest), 2.0)

    monkeypatch.setattr(wire, "decode_apart", decode)
    return granted


def test_the_seconds_of_a_request_are_shared_by_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    granted = apart(monkeypatch, PIXELS[None], Refused("too_large", "No."))
    settings = replace(SETTINGS, max_request_ms=3_000)
    items = several({str(index): TIFF for index in range(3)}, MULTIPART, settings=settings)
    assert granted == [3.0, 1.0]
    assert not isinstance(items[0], Refused)
    assert [code(item) for item in items[1:]] == ["too_large", "too_large"]


def test_a_process_too_slow_to_tell_sends_the_whole_request_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart(monkeypatch, Refused("busy", "Later."), PIXELS[None])
    assert code(wire.unpack({"0": TIFF, "1": PNG}, MULTIPART, GREY, SETTINGS)) == "busy"


# What fails in the handler itself


def fail(*_: object) -> None:
    raise AssertionError("ours")


@pytest.mark.parametrize("where", ["inspect", "to_pixels"])
def test_a_failure_of_ours_is_logged_and_answered_in_its_own_place(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wire, where, fail)
    drawn_and_file = {"instances": [PIXELS.tolist(), {"b64": base64.b64encode(PNG).decode()}]}
    items = several({"body": drawn_and_file}, JSON)
    assert np.array_equal(items[0], PIXELS[None])  # type: ignore[arg-type] # or a Refused: unequal
    assert code(items[1]) == "internal"
    assert "AssertionError: ours" in caplog.text
    status, body = wire.answer(wire.Question((items[1],), several=False), [], GREY, SETTINGS)
    assert status is HTTPStatus.INTERNAL_SERVER_ERROR
    assert (body["error"]["code"], body["type"]) == ("internal", "InternalServerException")
    assert wire.count_refused(wire.Question(items, several=True)) == 0


# Forms that people send


@pytest.mark.parametrize(
    "write",
    [
        lambda text: "\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        lambda text: "\r\n\t " + text,
        lambda text: text.rstrip("="),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: text.replace("+", "-").replace("/", "_").rstrip("=") + "\n",
        lambda text: "\n    ".join(text[at : at + 60] for at in range(0, len(text), 60)),
        lambda text: text.replace("+", " "),
    ],
    ids=["lines", "blanks", "no padding", "URL-safe", "all of it", "indented", "a form's"],
)
def test_base64_of_any_habit_is_the_file(write: Callable[[str], str]) -> None:
    encoded = {"b64": write(base64.b64encode(PNG).decode())}
    assert np.array_equal(drawn(encoded), PIXELS[None])


@pytest.mark.parametrize("text", ["data:image/png;base64,AAAA", "AAAAA", "A=A=", "AA\x00A"])
def test_what_is_not_base64_is_refused_with_what_to_do(text: str) -> None:
    refused = instance({"b64": text})
    assert (code(refused), "encode the bytes" in str(refused)) == ("bad_request", True)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("before", ["", "\n", " \r\n\t", " " * 300])
def test_nameless_json_may_have_a_mark_and_blanks_first(before: str, encoding: str) -> None:
    raw = (before + json.dumps({"instances": [PIXELS.tolist()]})).encode(encoding)
    (item,) = several({"body": bytearray(raw)}, {})
    assert np.array_equal(item, PIXELS[None])  # type: ignore[arg-type] # or a Refused: unequal


def test_text_with_a_mark_is_json_too() -> None:
    body = "\ufeff" + json.dumps({"instances": [PIXELS.tolist()]})
    (item,) = several({"body": body}, JSON)
    assert np.array_equal(item, PIXELS[None])  # type: ignore[arg-type] # or a Refused: unequal
