"""The images that the model was made for reach it as they are: all 70,000 of them."""

from __future__ import annotations

import fmnist_images
import fmnist_wire as wire
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import missing
from tests.handler.torchserve import CONFIG, encode
from tools.exported import RAW

SETTINGS = wire.read_settings({"handler": yaml.safe_load(CONFIG.read_text())["handler"]})
MODEL = wire.read_model(
    {
        "name": "fmnist",
        "version": "1.0",
        "input": {"channels": 1, "height": 28, "width": 28, "background": 0},
        "classes": 1,
    },
    {"0": "any"},
)


def every_image(part: str) -> fmnist_images.Pixels:
    """Return uint8 [N, 28, 28]."""
    path = RAW / f"{part}-images-idx3-ubyte"
    if not path.exists():
        missing(f"{path} is not there: run `make setup`")
    return np.fromfile(path, np.uint8, offset=16).reshape(-1, 28, 28)


@pytest.mark.parametrize(("part", "number"), [("train", 60_000), ("t10k", 10_000)])
def test_not_one_image_of_the_data_set_is_touched(part: str, number: int) -> None:
    images = every_image(part)
    assert len(images) == number
    for image in images:
        body = encode(Image.fromarray(image), compress_level=0)
        question = wire.unpack({"body": body}, {}, MODEL, SETTINGS)
        assert isinstance(question, wire.Question)
        assert np.array_equal(question.items[0], image[None])  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_not_one_of_them_would_become_a_negative_even_if_it_were_converted(part: str) -> None:
    for image in every_image(part):
        shown = Image.fromarray(image)
        assert fmnist_images.match_background(shown, MODEL) is shown
