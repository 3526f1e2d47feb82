"""Every form of a body and every kind of image, without a model."""

from __future__ import annotations

import base64
import io
import json
import struct
import warnings
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import fmnist_wire as wire
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.handler.torchserve import CONFIG, encode

CARD: dict[str, Any] = {
    "name": "tiny",
    "version": "2.1",
    "input": {"channels": 1, "height": 28, "width": 28, "background": 0},
    "classes": 3,
}
NAMES = {"0": "coat", "1": "bag", "2": "boot"}
TABLE = yaml.safe_load(CONFIG.read_text())["handler"]

GREY = wire.read_model(CARD, NAMES)
RGB = replace(GREY, mode="RGB", size=(64, 64), background=(10, 20, 30))
SETTINGS = wire.read_settings({"handler": TABLE})

MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
JSON = {"body": {"content-type": "application/json"}}

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (28, 28), np.uint8)
COLOURS = rng.integers(0, 256, (64, 64, 3), np.uint8)
PNG = encode(Image.fromarray(PIXELS))


def one(
    data: object, kind: str = "", model: wire.Model = GREY, settings: wire.Settings = SETTINGS
) -> wire.Pixels | wire.Refused:
    """What becomes of an image body."""
    question = wire.unpack({"body": data}, {"body": {"content-type": kind}}, model, settings)
    return question if isinstance(question, wire.Refused) else question.items[0]


def good(data: object, kind: str = "", model: wire.Model = GREY) -> wire.Pixels:
    item = one(data, kind, model)
    assert not isinstance(item, wire.Refused), item
    assert item.shape == model.shape
    assert item.dtype == np.uint8
    return item


def code(item: object) -> str:
    assert isinstance(item, wire.Refused), item
    return item.code


def several(
    row: dict[str, Any],
    headers: dict[str, Any],
    model: wire.Model = GREY,
    settings: wire.Settings = SETTINGS,
) -> tuple[wire.Pixels | wire.Refused, ...]:
    question = wire.unpack(row, headers, model, settings)
    assert isinstance(question, wire.Question), question
    assert question.several
    return question.items


def instance(item: object, model: wire.Model = GREY) -> wire.Pixels | wire.Refused:
    raw = json.dumps({"instances": [item]}).encode()
    return several({"body": raw}, JSON, model)[0]


def drawn(item: object, model: wire.Model = GREY) -> wire.Pixels:
    pixels = instance(item, model)
    assert not isinstance(pixels, wire.Refused), pixels
    return pixels


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
    [{}, {**TABLE, "more": 1}, {**TABLE, "chunk": 0}, {**TABLE, "chunk": "9"}],
    ids=["none", "unknown key", "zero", "text"],
)
def test_settings_that_are_wrong_are_named(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model-config.yaml: .*chunk"):
        wire.read_settings({"handler": table})


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
    assert [isinstance(item, wire.Refused) and item.code for item in items] == [
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


def test_lists_of_pixels_pass_bit_for_bit() -> None:
    assert np.array_equal(drawn(PIXELS.tolist()), PIXELS[None])
    assert np.array_equal(drawn(PIXELS[None].tolist()), PIXELS[None])
    assert np.array_equal(drawn(PIXELS[..., None].tolist()), PIXELS[None])
    wanted = COLOURS.transpose(2, 0, 1)
    assert np.array_equal(drawn(COLOURS.tolist(), RGB), wanted)
    assert np.array_equal(drawn(wanted.tolist(), RGB), wanted)


def test_a_number_with_a_zero_behind_the_point_is_an_integer() -> None:
    assert np.array_equal(drawn(PIXELS.astype(float).tolist()), PIXELS[None])


def test_lists_of_another_size_and_depth_are_converted() -> None:
    assert drawn([[0, 255], [255, 0]]).shape == (1, 28, 28)
    assert drawn(np.full((5, 5, 4), 255).tolist(), RGB).shape == (3, 64, 64)


@pytest.mark.parametrize(
    "pixel", [True, None, "7", 256, -1, 0.5, 10**400, float("nan"), float("inf"), 1e300, {}]
)
def test_a_pixel_that_is_no_byte_is_refused(pixel: object) -> None:
    assert code(instance([[0, pixel], [0, 0]])) == "not_an_image"


@pytest.mark.parametrize(
    "nested",
    [
        [],
        [[]],
        [1, 2],
        [[1], [2, 3]],
        [[1, 2], [3, [4]]],
        [[[[1]]]],
        [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        np.zeros((4, 9, 3), int).tolist(),
    ],
    ids=str,
)
def test_lists_of_no_clear_shape_are_refused(nested: object) -> None:
    assert code(instance(nested)) == "wrong_shape"


def test_in_doubt_lists_have_the_models_own_shape() -> None:
    narrow = replace(RGB, size=(3, 64))
    pixels = rng.integers(0, 256, (3, 64, 3), np.uint8)
    assert np.array_equal(drawn(pixels.tolist(), narrow), pixels)


def test_a_cube_fits_both_ways_and_is_refused() -> None:
    cube = replace(RGB, size=(3, 3))
    assert code(instance(np.zeros((3, 3, 3), int).tolist(), cube)) == "wrong_shape"


# Images


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_an_image_of_the_models_own_size_and_mode_passes_bit_for_bit(kind: str) -> None:
    data = encode(Image.fromarray(PIXELS), kind)
    assert np.array_equal(good(data), PIXELS[None])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG"])
def test_a_colour_image_of_the_models_own_size_passes_bit_for_bit(kind: str) -> None:
    data = encode(Image.fromarray(COLOURS), kind)
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(good(data, model=RGB), decoded.transpose(2, 0, 1))


def test_what_decodes_is_served_under_any_name() -> None:
    for kind in ("image/png", "IMAGE/JPEG; q=1", "application/octet-stream", "text/plain", "x"):
        assert np.array_equal(good(PNG, kind), PIXELS[None])


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("", "not_an_image"),
        ("image/png", "not_an_image"),
        ("application/octet-stream", "not_an_image"),
        ("text/plain", "unsupported_type"),
        ("application/pdf", "unsupported_type"),
    ],
)
def test_bytes_that_nobody_can_read_are_refused_by_their_name(kind: str, word: str) -> None:
    assert code(one(b"I am a boot, trust me", kind)) == word


def test_rare_formats_are_not_even_tried() -> None:
    for kind in ("PPM", "TGA", "PCX", "ICO", "SGI"):
        assert code(one(encode(Image.new("RGB", (32, 32)), kind))) == "not_an_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    data = encode(Image.fromarray(COLOURS), kind)
    assert code(one(data[: len(data) * 2 // 3])) == "not_an_image"


def test_a_file_of_too_many_bytes_is_refused_unread() -> None:
    strict = replace(SETTINGS, max_bytes=len(PNG) - 1)
    assert code(one(PNG, settings=strict)) == "too_large"


@pytest.mark.parametrize("side", [10_000, 20_000], ids=["our limit", "Pillow's limit"])
def test_a_hundred_megapixels_are_refused_undecoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(Image.new("1", (side, side)))
    monkeypatch.delattr(Image.Image, "load")
    assert code(one(data)) == "too_large"


def test_images_that_unfold_too_far_together_are_refused_undecoded() -> None:
    strict = replace(SETTINGS, max_request_pixels=2 * 28 * 28)
    row = {str(index): PNG for index in range(3)}
    assert code(wire.unpack(row, MULTIPART, GREY, strict)) == "too_large"
    assert len(several({"0": PNG, "1": b"?", "2": PNG}, MULTIPART, settings=strict)) == 3


def test_an_image_without_pixels_is_refused() -> None:
    gif = b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b";"
    assert code(one(gif)) == "not_an_image"
    with pytest.raises(wire.Refused, match="no pixels"):
        wire.check_size(Image.new("L", (0, 5)), SETTINGS)


def test_a_lack_of_memory_is_not_the_senders_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", starve)
    with pytest.raises(MemoryError):
        one(PNG)


def test_an_image_keeps_its_aspect_on_the_models_background() -> None:
    pixels = good(encode(Image.new("RGB", (200, 100), (200, 0, 0))), model=RGB)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, -1, -1].tolist() == [10, 20, 30]
    assert pixels[:, 32, 0].tolist() == [200, 0, 0]
    assert pixels[:, 16, 32].tolist() == [200, 0, 0]
    assert pixels[:, 15, 32].tolist() == [10, 20, 30]


def test_a_thin_image_keeps_a_pixel() -> None:
    pixels = good(encode(Image.new("L", (5000, 1), 255)))
    assert np.count_nonzero(pixels) == 28


def test_holes_show_the_models_background() -> None:
    holes = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    holes.putpixel((1, 2), (7, 8, 9, 255))
    pixels = good(encode(holes), model=RGB)
    assert pixels[:, 2, 1].tolist() == [7, 8, 9]
    assert pixels[:, 5, 5].tolist() == [10, 20, 30]


def test_half_a_hole_is_half_a_background() -> None:
    assert good(encode(Image.new("LA", (28, 28), (255, 128))))[0, 3, 3] == 128


def test_a_palette_with_a_hole_shows_its_colours_and_the_background() -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([1, 1, 1, 50, 60, 70])
    image.putpixel((0, 0), 0)
    pixels = good(encode(image, transparency=0), model=RGB)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert pixels[:, 9, 9].tolist() == [50, 60, 70]


def test_a_grey_that_stands_for_a_hole_shows_the_background() -> None:
    model = replace(GREY, background=(99,))
    assert good(encode(Image.new("L", (28, 28), 5), transparency=5), model=model)[0, 3, 3] == 99


def garment(ground: int, cloth: int, side: int = 280) -> Image.Image:
    """A square in the middle of its ground."""
    image = Image.new("L", (side, side), ground)
    image.paste(cloth, (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
    return image


BLACK = replace(GREY, background=(0,))
PAPER = replace(GREY, background=(250,))


@pytest.mark.parametrize(
    ("model", "ground", "cloth", "shown"),
    [
        (BLACK, 255, 30, (0, 225)),  # a photo on white
        (BLACK, 235, 30, (0, 222)),  # grey paper is no veil
        (BLACK, 0, 200, (0, 200)),  # as in the data set
        (BLACK, 90, 10, (90, 10)),  # a dark ground is no white one
        (BLACK, 255, 255, (255, 255)),  # nothing is shown
        (PAPER, 0, 200, (250, 54)),
        (PAPER, 20, 255, (250, 0)),
        (PAPER, 255, 30, (255, 30)),
        (replace(GREY, background=(100,)), 255, 30, (255, 30)),  # the model knows no ground
    ],
)
def test_a_larger_image_on_the_opposite_ground_becomes_its_negative(
    model: wire.Model, ground: int, cloth: int, shown: tuple[int, int]
) -> None:
    pixels = good(encode(garment(ground, cloth)), model=model)
    assert (pixels[0, 1, 1], pixels[0, 14, 14]) == shown


def test_a_colour_image_of_the_right_size_becomes_a_negative_too() -> None:
    photo = garment(255, 30, 28).convert("RGB")
    assert good(encode(photo))[0, 14, 14] == 225


def test_beside_a_negative_the_models_own_background_stands() -> None:
    pixels = good(encode(garment(255, 30).crop((0, 0, 140, 280))))
    assert (pixels[0, :, 0] == 0).all()


def test_colours_are_never_turned_into_their_negatives() -> None:
    model = replace(RGB, background=(0, 0, 0))
    pixels = good(encode(garment(255, 30).convert("RGB")), model=model)
    assert pixels[:, 1, 1].tolist() == [255, 255, 255]


def test_what_has_the_models_own_size_and_mode_is_never_a_negative() -> None:
    image = garment(255, 30, 28)
    assert np.array_equal(good(encode(image))[0], np.asarray(image))


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    deep = Image.fromarray(np.full((28, 28), 257 * 100, np.uint16))
    assert good(encode(deep))[0, 3, 3] == 100
    assert good(encode(deep, "TIFF"))[0, 3, 3] == 100
    integers = Image.fromarray(np.full((28, 28), 257 * 100, np.int32))
    assert good(encode(integers, "TIFF"))[0, 3, 3] == 100


@pytest.mark.parametrize(
    ("mode", "kind", "colour"),
    [
        ("1", "PNG", 1),
        ("CMYK", "JPEG", (0, 0, 0, 0)),
        ("CMYK", "TIFF", (0, 0, 0, 0)),
        ("RGB", "WEBP", (255, 255, 255)),
        ("YCbCr", "TIFF", (255, 128, 128)),
        ("F", "TIFF", 255.0),
        ("P", "GIF", 255),
    ],
)
def test_white_is_white_in_every_mode(mode: str, kind: str, colour: Any) -> None:  # noqa: ANN401
    image = Image.new(mode, (28, 28), colour)
    if mode == "P":
        image.putpalette([255] * 768)
    data = encode(image, kind)
    for model in (GREY, RGB):
        middle = good(data, model=model)[:, 14, 14]
        assert (middle >= 254).all()


def test_a_colour_space_that_pillow_cannot_convert_is_refused() -> None:
    data = encode(Image.new("LAB", (28, 28)), "TIFF")
    assert code(one(data)) == "unsupported_type"


def test_a_photo_is_turned_upright_by_its_exif() -> None:
    photo = Image.new("L", (28, 28), 0)
    photo.paste(255, (0, 0, 28, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = good(encode(photo, exif=exif))
    assert (pixels[0, :, -4:] == 255).all()
    assert (pixels[0, :, :-4] == 0).all()


def test_a_damaged_exif_says_nothing_about_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for damage in (b"", b"Exif\x00\x00", b"MM\x00\x2a\xff\xff\xff\xff", exif.tobytes()[:-9]):
        assert np.array_equal(good(encode(Image.fromarray(PIXELS), exif=damage)), PIXELS[None])


def test_of_a_film_the_first_picture_is_taken() -> None:
    shades = [Image.new("L", (28, 28), shade) for shade in (40, 200)]
    data = encode(shades[0], "GIF", save_all=True, append_images=shades[1:])
    assert (good(data) == 40).all()


def test_a_large_photo_is_decoded_at_the_size_that_is_needed() -> None:
    photo = encode(Image.new("RGB", (4000, 3000), (90, 90, 90)), "JPEG")
    assert good(photo)[0, 14, 14] in range(88, 93)


# Whatever comes


HEADS = [PNG[:29], PNG, encode(Image.fromarray(COLOURS), "JPEG"), b"GIF89a", b"BM", b"II*\x00"]
HEADS += [encode(Image.fromarray(COLOURS), kind)[:400] for kind in ("WEBP", "TIFF", "GIF", "BMP")]


@given(
    head=st.sampled_from(HEADS),
    cut=st.integers(0, 400),
    tail=st.binary(max_size=200),
    kind=st.sampled_from(["", "image/png", "application/json", "text/plain"]),
)
def test_bytes_of_any_kind_are_an_image_or_refused(
    head: bytes, cut: int, tail: bytes, kind: str
) -> None:
    with warnings.catch_warnings(record=True) as said:
        item = one(head[:cut] + tail, kind)
    assert isinstance(item, wire.Refused) or item.shape == GREY.shape
    assert said == []


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


def test_a_message_never_repeats_more_than_a_line_of_a_parser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def complain(*_: object, **__: object) -> None:
        raise KeyError("x" * 5000)

    monkeypatch.setattr(Image, "open", complain)
    refused = one(PNG)
    assert isinstance(refused, wire.Refused)
    assert len(str(refused)) <= 200


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
    refused = wire.Refused("not_an_image", "No.")
    question = wire.Question((refused, PIXELS[None], refused, PIXELS[None]), several=True)
    other = np.array([0.0, 0.0, 1.0], np.float32)
    status, body = wire.answer(question, [ROW, other], GREY, SETTINGS)
    assert status is HTTPStatus.OK
    wanted = {"error": {"code": "not_an_image", "message": "No."}}
    assert body["predictions"][0] == body["predictions"][2] == wanted
    assert [body["predictions"][place]["label"] for place in (1, 3)] == ["bag", "boot"]
    assert body["model"] == {"name": "tiny", "version": "2.1"}


@pytest.mark.parametrize("word", wire.STATUS)
def test_a_refused_request_is_answered_with_a_status_of_its_own(word: wire.Code) -> None:
    refused = wire.Refused(word, "No.")
    status, body = wire.answer(refused, [], GREY, SETTINGS)
    assert 400 <= status < 500
    assert body == {"error": {"code": word, "message": "No."}}
    assert (wire.good_images(refused), wire.count_refused(refused)) == ([], 1)


def test_a_model_that_fails_is_our_fault_and_nobody_is_refused() -> None:
    question = wire.Question((PIXELS[None], wire.Refused("too_large", "No.")), several=True)
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
    assert set(told["limits"]) == {"max_bytes", "max_images", "max_pixels", "max_request_pixels"}
