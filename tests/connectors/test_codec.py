from __future__ import annotations

import json
from email import message_from_bytes
from io import BytesIO
from typing import Any

import PIL.Image
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connectors import codec
from connectors.images import CANARY, encode_png
from connectors.inference import torchserve
from connectors.inference.dialect import MAX_RETRY_AFTER, parse_retry_after
from connectors.records import (
    Busy,
    Failed,
    Headers,
    Image,
    Message,
    Prediction,
    Record,
    Rejection,
    Settled,
    Skipped,
)

MODEL = {"name": "fmnist", "version": "1.0"}
BOOT = {"class": 9, "label": "Ankle boot", "score": 0.97}
ITEM = {**BOOT, "top": [BOOT]}
NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def record(value: bytes | None = b"png", headers: Headers = (), key: bytes | None = b"k") -> Record:
    return Record("images/3/1042", value, key, headers, 1_700_000_000_000, None, None)


def reply(*items: Any, **more: Any) -> bytes:  # noqa: ANN401 - whatever a server may say
    return json.dumps({"predictions": items, "model": MODEL, **more}).encode()


def error(kind: str, message: str = "why") -> bytes:
    return json.dumps({"code": 1, "type": kind, "message": message}).encode()


# record -> image


def test_a_value_is_an_image() -> None:
    assert codec.decode(record(b"png")) == Image(b"png")


def test_a_null_value_is_a_tombstone() -> None:
    assert codec.decode(record(None)) == Rejection("tombstone", "the record has no value")


def test_a_tombstone_can_be_skipped() -> None:
    assert codec.decode(record(None), tombstones="skip") == Skipped()


def test_an_empty_value_is_never_skipped() -> None:
    outcome = codec.decode(record(b""), tombstones="skip")
    assert outcome == Rejection("empty", "the value has no bytes")


def test_the_limit_is_the_largest_image() -> None:
    assert codec.decode(record(b"1234"), limit=4) == Image(b"1234")
    too_large = Rejection("too_large", "the value has 5 bytes, more than 4")
    assert codec.decode(record(b"12345"), limit=4) == too_large


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (b"image/png", "image/png"),
        (b" IMAGE/JPEG ; q=1", "image/jpeg"),
        (b"image/svg+xml", "image/svg+xml"),
        (b"image/png\r\nX-Evil: 1", None),
        (b"image/png\n", "image/png"),
        (b"image", None),
        ("bild/größe".encode(), None),
        (b"a" * 500 + b"/b", None),
        (b"", None),
        (None, None),
    ],
)
def test_only_a_plausible_media_type_goes_along(header: bytes | None, kind: str | None) -> None:
    image = codec.decode(record(headers=(("x", b"y"), ("Content-Type", header))))
    assert image == Image(b"png", kind)


COMPOSITE = st.sampled_from(["multipart", "message", "charset", "charset-x", "boundary", "x", "*"])


@given(
    kind=COMPOSITE,
    subtype=st.from_regex(r"[a-z0-9][a-z0-9.+*-]{0,20}", fullmatch=True),
    upper=st.booleans(),
)
@example(kind="multipart", subtype="mixed", upper=False)
@example(kind="multipart", subtype="form-data", upper=True)
@example(kind="multipart", subtype="related", upper=False)
@example(kind="message", subtype="rfc822", upper=False)
@example(kind="charset", subtype="utf-8", upper=False)
def test_a_type_of_several_things_does_not_go_along(
    kind: str, subtype: str, *, upper: bool
) -> None:
    name = f"{kind}/{subtype}"
    for header in (name, f"{name}; boundary=x", f" {name} ;charset=utf-8"):
        value = (header.upper() if upper else header).encode()
        found = codec.decode(record(headers=(("content-type", value),)))
        assert found == Image(b"png", None)
    headers = (("content-type", b"image/png"), ("content-type", name.encode()))
    assert codec.decode(record(headers=headers)) == Image(b"png", "image/png")


def test_the_last_plausible_type_counts() -> None:
    headers = (
        ("content-type", b"image/png"),
        ("content-type", b"image/gif"),
        ("content-type", b"?"),
    )
    assert codec.decode(record(headers=headers)) == Image(b"png", "image/gif")


# images -> body


TYPES = st.sampled_from([None, "image/png", "image/jpeg"])
IMAGES = st.lists(st.builds(Image, st.binary(min_size=1), TYPES), min_size=1, max_size=9)


def parsed(kind: str, content: bytes) -> list[tuple[str, Image]]:
    """As the standard library's parser for MIME reads it."""
    message = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content)
    parts = [part for part in message.walk() if not part.is_multipart()]
    return [(p.get_param("name", header="content-disposition"), image(p)) for p in parts]  # type: ignore[misc] # a str, since the header is plain


def image(part: Any) -> Image:  # noqa: ANN401 - email's two families of messages
    return Image(part.get_payload(decode=True), part.get_content_type())


@given(IMAGES)
def test_a_body_is_read_back_as_it_was_packed(images: list[Image]) -> None:
    kind, content = torchserve.encode_multipart(images)
    read = parsed(kind, content)
    assert [name for name, _ in read] == [f"{n:05}" for n in range(len(images))]
    assert [i.content_type for _, i in read] == [
        i.content_type or "application/octet-stream" for i in images
    ]
    assert [i.data for _, i in read] == [i.data for i in images]


@given(IMAGES)
def test_the_same_images_make_the_same_body(images: list[Image]) -> None:
    assert torchserve.encode_multipart(images) == torchserve.encode_multipart(list(images))


@given(IMAGES)
def test_the_boundary_is_not_in_the_data(images: list[Image]) -> None:
    kind, content = torchserve.encode_multipart(images)
    boundary = kind.partition("boundary=")[2].encode()
    assert content.count(boundary) == len(images) + 1


def test_a_body_can_be_sent_as_an_image() -> None:
    inner = torchserve.encode_multipart([Image(b"png")])[1]
    kind, content = torchserve.encode_multipart([Image(inner), Image(inner)])
    assert [image.data for _, image in parsed(kind, content)] == [inner, inner]


def test_each_part_has_a_file_name_as_torchserve_drops_the_type_of_a_field() -> None:
    assert (
        b'name="00001"; filename="00001"'
        in torchserve.encode_multipart([Image(b"a"), Image(b"b")])[1]
    )


# (status, body) -> answer


def test_an_answer_is_one_outcome_per_image_in_order() -> None:
    bad = {"error": {"code": "not_an_image", "message": "no"}}
    assert torchserve.interpret_reply(200, reply(ITEM, bad), 2) == [
        Prediction({**ITEM, "model": MODEL}),
        Rejection("not_an_image", "no", status=200),
    ]


def test_an_unknown_word_of_the_handler_is_kept_in_the_detail() -> None:
    bad = {"error": {"code": "haunted", "message": "boo"}}
    rejected = Rejection("rejected", "haunted: boo", status=200)
    assert torchserve.interpret_reply(200, reply(bad), 1) == [rejected]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_image_on_which_the_handler_fails_is_not_rejected_but_looked_for(place: int) -> None:
    items: list[Any] = [ITEM, ITEM, ITEM]
    items[place] = {"error": {"code": "internal", "message": "The handler failed on this."}}
    answer = torchserve.interpret_reply(200, reply(*items), 3)
    assert answer == Failed("the handler failed on an image", status=200)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"OK",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        reply(),
        reply(ITEM, ITEM),
        reply(ITEM, "boot"),
        reply("boot"),
        reply(BOOT),
        reply({**ITEM, "top": "boot"}),
        reply({**ITEM, "top": [{}]}),
        reply({**ITEM, "top": ["boot"]}),
        reply({**ITEM, "score": float("nan")}),
        reply({**ITEM, "score": 10**400}).replace(b"0" * 400, b"0.0e999"),
        reply({**ITEM, "score": 10**400}),  # which Python reads as an integer, and no float holds
        reply({"error": "no"}),
        reply(ITEM, model=None),
        reply(ITEM, model={"name": "fmnist"}),
        reply(ITEM, predictions={"0": ITEM}),
    ],
)
def test_a_200_that_is_not_ours_is_never_evidence(content: bytes) -> None:
    assert isinstance(torchserve.interpret_reply(200, content, 1), Busy)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (503, error("ServiceUnavailableException", "Model has no worker to serve")),
        (429, b""),
        (502, b"<html>Bad Gateway</html>"),
        (504, b""),
        (503, b""),
        (500, b"oops"),
        (500, error("NullPointerException")),
        (400, error("InvalidKeyException")),
        (404, error("ModelNotFoundException")),
        (404, error("InternalServerException")),
        (403, error("ForbiddenException")),
        (405, error("MethodNotAllowedException")),
        (301, b""),
        (400, b'{"error": {"code": "bad_request", "message": "no parts"}}'),
    ],
)
def test_nobody_is_served_and_no_record_is_at_fault(status: int, content: bytes) -> None:
    answer = torchserve.interpret_reply(status, content, 3, after=1.5)
    assert isinstance(answer, Busy)
    assert answer.after == 1.5
    assert str(status) in answer.detail


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (503, "Prediction failed"),
        (503, "number of batch response mismatched"),
        (500, "Worker died."),
        (507, "Out of memory"),
    ],
)
def test_a_failure_names_its_status_and_what_was_said(status: int, message: str) -> None:
    answer = torchserve.interpret_reply(status, error("InternalServerException", message), 3)
    assert isinstance(answer, Failed)
    assert not answer.final
    assert answer.status == status
    assert message in answer.detail


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "413: too large"),
        (b"<html>too large</html>", "413: too large: <html>too large</html>"),
        (b'{"error": {"code": "too_large"}}', '413: too large: {"error": {"code": "too_large"}}'),
    ],
)
def test_a_request_that_is_too_large_never_succeeds(content: bytes, detail: str) -> None:
    assert torchserve.interpret_reply(413, content, 3) == Failed(
        detail, final=True, status=413, reason="too_large"
    )


def test_a_warning_quotes_the_first_200_bytes_on_one_line() -> None:
    answer = torchserve.interpret_reply(200, b"<html>\r\n" + b"x" * 1000, 1)
    assert answer == Busy("not our handler's answer: <html> " + "x" * 192)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("9" * 400, MAX_RETRY_AFTER),
        ("Thu, 01 Jan 2026 00:00:09 GMT", 9.0),
        ("Thu, 01 Jan 2026 00:00:09 -0000", 9.0),
        ("Thu, 01 Jan 2015 00:00:00 GMT", 0.0),
        ("Fri, 01 Jan 2027 00:00:00 GMT", MAX_RETRY_AFTER),
        ("soon", None),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
        ("Thu, 01 Jan 0000 00:00:00 GMT", 0.0),
        ("-3", None),
        ("²", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


@given(st.text(alphabet="0123456789 :,+-GMTJanFriThu"))
def test_retry_after_survives_any_text(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@given(st.integers(100, 599), st.binary(max_size=300))
def test_an_arbitrary_body_is_never_an_outcome(status: int, content: bytes) -> None:
    assert isinstance(torchserve.interpret_reply(status, content, 1), Busy | Failed)


# outcome -> message


def test_a_result_is_the_contract_byte_for_byte() -> None:
    headers: Headers = (("trace", b"1"), ("trace", None))
    settled = Settled(record(headers=headers), Prediction({**ITEM, "extra": 1, "model": MODEL}))
    assert codec.encode(settled) == Message(
        b'{"id":"images/3/1042","class":9,"label":"Ankle boot","score":0.97,'
        b'"top":[{"class":9,"label":"Ankle boot","score":0.97}],'
        b'"model":{"name":"fmnist","version":"1.0"},"time":1700000000000}',
        b"k",
        headers,
        dead=False,
    )


def test_a_dead_letter_keeps_value_key_and_headers() -> None:
    headers: Headers = (("a", b"\x00\xff"), ("a", None))
    rejection = Rejection("failed", "no", status=500, attempts=3)
    assert codec.encode(Settled(record(b"\xff", headers), rejection)) == Message(
        b"\xff",
        b"k",
        (
            *headers,
            ("connector.reason", b"failed"),
            ("connector.detail", b"no"),
            ("connector.attempts", b"3"),
            ("connector.status", b"500"),
        ),
        dead=True,
    )


def test_a_second_trip_replaces_our_headers() -> None:
    first = codec.encode(Settled(record(), Rejection("failed", "once", status=500, attempts=3)))
    assert first is not None
    again = codec.encode(Settled(record(headers=first.headers), Rejection("empty", "twice")))
    assert again is not None
    assert again.headers == (
        ("connector.reason", b"empty"),
        ("connector.detail", b"twice"),
        ("connector.attempts", b"0"),
    )


@given(st.text(max_size=3000))
@example("x" + "é" * 1000)
def test_a_detail_is_at_most_a_kibibyte_of_whole_characters(text: str) -> None:
    message = codec.encode(Settled(record(), Rejection("failed", text)))
    assert message is not None
    detail = dict(message.headers)["connector.detail"]
    assert detail is not None
    assert len(detail) <= 1024
    assert text.startswith(detail.decode("utf-8"))


def test_a_dead_tombstone_stays_null() -> None:
    message = codec.encode(Settled(record(None, key=None), Rejection("tombstone", "")))
    assert message is not None
    assert (message.value, message.key) == (None, None)


def test_what_is_skipped_leaves_no_message() -> None:
    assert codec.encode(Settled(record(None), Skipped())) is None


def test_the_witness_is_a_blank_image_that_anybody_can_read() -> None:
    with PIL.Image.open(BytesIO(CANARY.data)) as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
        assert image.getextrema() == (0, 0)


@given(st.integers(1, 30), st.integers(1, 30), st.data())
def test_a_png_is_read_back_as_it_was_written(width: int, height: int, data: st.DataObject) -> None:
    pixels = data.draw(st.binary(min_size=width * height, max_size=width * height))
    with PIL.Image.open(BytesIO(encode_png(width, height, pixels))) as image:
        assert image.size == (width, height)
        assert image.tobytes() == pixels
