from __future__ import annotations

import pytest
import torch

from training.corruptions import CORRUPTIONS, corrupt

from .conftest import stripes


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_changes_the_images_and_nothing_about_their_form(name: str, channels: int) -> None:
    images = stripes(20, channels=channels, size=28).images
    before = images.clone()

    found = corrupt(name, images, 0)

    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert all((found[at] != images[at]).any() for at in range(20))
    assert torch.equal(found, corrupt(name, images, 0))


def test_there_are_eight() -> None:
    assert len(CORRUPTIONS) == 8


def dot(height: int, width: int) -> torch.Tensor:
    images = torch.full((200, 1, height, width), 40, dtype=torch.uint8)
    images[:, :, height // 4 : -(height // 4), width // 4 : -(width // 4)] = 200
    return images


@pytest.mark.parametrize("name", ["rotation", "smaller", "occlusion"])
def test_what_moves_in_is_the_background(name: str) -> None:
    found = corrupt(name, dot(28, 20), 40)

    assert (found[:, :, [0, -1]][..., [0, -1]] == 40).all()
    assert found.float().mean() < dot(28, 20).float().mean() + 1


def test_a_third_of_height_and_width_is_covered_anywhere() -> None:
    found = corrupt("occlusion", torch.full((500, 3, 30, 12), 9, dtype=torch.uint8), 250)

    covered = found == 250
    assert set(covered.flatten(2).sum(2).flatten().tolist()) == {10 * 4}
    assert covered.any(0).all()


def test_brighter_and_paler_by_the_stated_amount() -> None:
    found = corrupt("brightness", dot(28, 28), 40)
    pale = corrupt("low contrast", dot(28, 28), 40)

    assert set(found.flatten().tolist()) == {91, 251}
    assert int(pale.amax() - pale.amin()) in {53, 54}
