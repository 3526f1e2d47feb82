"""Photographs made of images, through the handler's own decoding."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tests.photos import PAPER, decode_like_handler, photograph

if TYPE_CHECKING:
    from pathlib import Path


def archive(folder: Path) -> Path:
    card = {
        "name": "any",
        "version": "1",
        "classes": 1,
        "input": {"channels": 1, "height": 28, "width": 28, "background": 0},
    }
    with zipfile.ZipFile(folder / "any.mar", "w") as made:
        made.writestr("model.json", json.dumps(card))
        made.writestr("index_to_name.json", '{"0": "any"}')
    return folder / "any.mar"


def test_a_photograph_is_dark_on_paper_and_the_handler_sees_the_garment_again(
    tmp_path: Path,
) -> None:
    garment = np.zeros((28, 28), np.uint8)
    garment[4:24, 6:22] = 200
    body = photograph(garment, np.random.default_rng(2))

    with Image.open(io.BytesIO(body)) as photo:
        assert (photo.size, photo.mode) == ((336, 336), "RGB")
        corner, middle = (np.asarray(photo)[at, at].mean() for at in (1, 168))
    (seen,) = decode_like_handler([body], archive(tmp_path))

    assert abs(corner - PAPER) < 20
    assert middle < 80
    assert seen[1, 1] < 25
    assert abs(int(seen[14, 14]) - 200) < 25
