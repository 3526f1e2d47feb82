"""Requests of one image or of several, unpacked for the two models of these tests."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fmnist_wire as wire
import numpy as np
import yaml
from fmnist_gate import Refused
from PIL import Image

from tests.handler.torchserve import CONFIG, encode

if TYPE_CHECKING:
    from fmnist_images import Model, Pixels, Settings

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
    data: object, kind: str = "", model: Model = GREY, settings: Settings = SETTINGS
) -> Pixels | Refused:
    """What becomes of an image body."""
    question = wire.unpack({"body": data}, {"body": {"content-type": kind}}, model, settings)
    return question if isinstance(question, Refused) else question.items[0]


def good(data: object, kind: str = "", model: Model = GREY) -> Pixels:
    item = one(data, kind, model)
    assert not isinstance(item, Refused), item
    assert item.shape == model.shape
    assert item.dtype == np.uint8
    return item


def code(item: object) -> str:
    assert isinstance(item, Refused), item
    return item.code


def several(
    row: dict[str, Any],
    headers: dict[str, Any],
    model: Model = GREY,
    settings: Settings = SETTINGS,
) -> tuple[Pixels | Refused, ...]:
    question = wire.unpack(row, headers, model, settings)
    assert isinstance(question, wire.Question), question
    assert question.several
    return question.items


def instance(item: object, model: Model = GREY) -> Pixels | Refused:
    raw = json.dumps({"instances": [item]}).encode()
    return several({"body": raw}, JSON, model)[0]


def drawn(item: object, model: Model = GREY) -> Pixels:
    pixels = instance(item, model)
    assert not isinstance(pixels, Refused), pixels
    return pixels
