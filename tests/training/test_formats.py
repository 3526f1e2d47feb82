"""Every file of the corpus as an image of a folder to learn from."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests import formats
from training.errors import DataError
from training.sources import ImageSpec, load_training_images

if TYPE_CHECKING:
    from pathlib import Path

    from tests.encoders import Grid

LINES = formats.read_manifest()
PICTURES = [line for line in LINES if "picture" in line]
REFUSALS = [line for line in LINES if "refused" in line]
CHANNELS = {"grey": 1, "rgb": 3}


def name(line: dict[str, Any]) -> str:
    return str(line["file"])


def learn(line: dict[str, Any], folder: Path, model: str) -> Grid:
    """Return the first image of two classes that hold nothing but this file, [H, W, C]."""
    for label in ("a", "b"):
        (folder / label).mkdir()
        for copy in ("1-", "2-"):
            shutil.copy(formats.FOLDER / name(line), folder / label / (copy + name(line)))
    spec = ImageSpec(size=(28, 28), channels=CHANNELS[model], background=0)
    images = load_training_images(f"folder:{folder}", folder, spec).images
    grid: Grid = images[0].numpy().transpose(1, 2, 0)
    return grid


@pytest.mark.parametrize("line", PICTURES, ids=name)
def test_each_good_file_is_learned_as_the_picture_that_was_drawn(
    line: dict[str, Any], tmp_path: Path
) -> None:
    found = learn(line, tmp_path, line["model"]).astype(int)
    wanted = formats.PICTURES[line["picture"]].reshape(28, 28, -1)
    assert np.abs(found - wanted).max() <= line.get("tolerance", 0), found[..., 0]


@pytest.mark.parametrize("line", REFUSALS, ids=name)
def test_each_bad_file_is_named_in_one_sentence(line: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        learn(line, tmp_path, "grey")
    assert name(line) in str(refused.value)
    assert "object at 0x" not in str(refused.value)
