from __future__ import annotations

import gzip
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from training.data import (
    ImageSet,
    choose_held_out,
    hash_indices,
    load_into_memory,
    split,
)
from training.errors import DataError
from training.idx import read_idx

from .conftest import stripes, write_idx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Samples(Dataset[Any]):
    """Any list of (image, label) as a map-style data set."""

    def __init__(self, *samples: Any) -> None:  # noqa: ANN401 - wrong ones on purpose
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - wrong ones on purpose
        return self._samples[index]


GREY = torch.arange(20, dtype=torch.uint8).reshape(4, 5)
COLOUR = torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GREY, GREY[None]),
        (GREY[None], GREY[None]),
        (GREY.numpy(), GREY[None]),
        (GREY.flip(1).numpy()[:, ::-1], GREY[None]),
        (np.frombuffer(GREY.numpy().tobytes(), np.uint8).reshape(4, 5), GREY[None]),
        (Image.fromarray(GREY.numpy()), GREY[None]),
        (GREY.float() / 255, GREY[None]),
        (GREY.double().numpy() / 255, GREY[None]),
        (COLOUR, COLOUR),
        (COLOUR.float() / 255, COLOUR),
        (Image.fromarray(COLOUR.permute(1, 2, 0).numpy()), COLOUR),
    ],
)
def test_every_usual_form_of_an_image_gives_the_same_pixels(
    image: object, expected: torch.Tensor
) -> None:
    loaded = load_into_memory(Samples((image, 1)), channels=len(expected), classes=2)

    assert loaded.images.dtype == torch.uint8
    assert torch.equal(loaded.images, expected[None])
    assert loaded.labels.tolist() == [1]


def test_every_grey_value_survives_the_way_through_floats() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(16, 16)

    loaded = load_into_memory(Samples((every.float() / 255, 0)), channels=1, classes=1)

    assert torch.equal(loaded.images[0, 0], every)


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1), torch.tensor([1])])
def test_every_whole_number_is_a_label(label: object) -> None:
    assert load_into_memory(Samples((GREY, label)), channels=1, classes=2).labels.tolist() == [1]


def test_a_tensor_data_set_works_as_it_is() -> None:
    images = stripes(6)

    loaded = load_into_memory(TensorDataset(images.images, images.labels), channels=1, classes=3)

    assert torch.equal(loaded.images, images.images)
    assert torch.equal(loaded.labels, images.labels)


def test_the_names_of_a_torchvision_data_set_are_kept() -> None:
    named = Samples((GREY, 0))
    named.classes = ["shoe"]  # type: ignore[attr-defined] # as torchvision's data sets have it

    assert load_into_memory(named, channels=1, classes=1).names == ("shoe",)


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([], "the data set is empty"),
        ([(GREY, 0), (GREY, 3)], "sample 1 has label 3, but with 3 classes labels go from 0 to 2"),
        ([(GREY, -1)], "sample 0 has label -1"),
        ([(GREY, 0.5)], "sample 0 is not a pair"),
        ([(GREY, "shoe")], "sample 0 is not a pair"),
        ([GREY], "sample 0 is not a pair"),
        ([(GREY, 0), (GREY[:3], 0)], "sample 1 is 1x3x5 but sample 0 is 1x4x5"),
        ([(COLOUR, 0)], "the images have 3 channels, but the classifier takes 1"),
        ([(COLOUR.permute(1, 2, 0).numpy(), 0)], "give arrays as .C, H, W."),
        ([(GREY[0], 0)], "sample 0: an image must be"),
        ([(GREY.int(), 0)], "sample 0: pixels must be uint8"),
        ([(GREY.float(), 0)], "sample 0: floats must be pixels / 255"),
        ([((GREY.float() - 7) / 255, 0)], "sample 0: floats must be pixels / 255"),
        ([(GREY / 255 * 0.99, 0)], "sample 0: floats must be pixels / 255"),
        ([(torch.full((4, 5), torch.nan), 0)], "sample 0: floats must be pixels / 255"),
        ([(Image.new("P", (5, 4)), 0)], "sample 0: a PIL image of mode P is ambiguous"),
        ([("shoe.png", 0)], "sample 0: str is no image"),
    ],
)
def test_unusable_data_is_refused_in_one_sentence(samples: list[Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_into_memory(Samples(*samples), channels=1, classes=3)


def test_a_stream_is_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([(GREY, 0)])

    with pytest.raises(DataError, match="must be map-style"):
        load_into_memory(Stream(), channels=1, classes=3)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), "images must be uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "images must"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\[2\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "labels must be int64"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "is empty"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(
    images: torch.Tensor, labels: torch.Tensor, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        ImageSet(images, labels)


def test_the_split_holds_out_a_twelfth_of_every_class_and_loses_none() -> None:
    whole = stripes(360)

    training, validation = split(whole)

    assert torch.bincount(training.labels).tolist() == [110, 110, 110]
    assert torch.bincount(validation.labels).tolist() == [10, 10, 10]
    both = torch.cat([training.images, validation.images]).flatten(1).tolist()
    assert sorted(both) == sorted(whole.images.flatten(1).tolist())


def test_the_split_is_always_the_same() -> None:
    whole = stripes(360)

    assert split(whole)[0].digest() == split(whole)[0].digest()
    assert split(whole)[0].digest() != split(whole, seed=1)[0].digest()


def test_the_digest_sees_every_pixel_and_every_label() -> None:
    images = stripes(6)
    pixel, label = images.images.clone(), images.labels.clone()
    pixel[5, 0, 11, 11] += 1
    label[5] = 0

    digests = {
        images.digest(),
        ImageSet(pixel, images.labels).digest(),
        ImageSet(images.images, label).digest(),
        ImageSet(images.images.permute(0, 1, 3, 2), images.labels).digest(),
    }

    assert len(digests) == 4


def test_the_background_is_what_the_borders_have_most() -> None:
    images = torch.full((2, 3, 9, 9), 7, dtype=torch.uint8)
    images[:, :, [0, -1], :] = 250
    images[:, :, :, [0, -1]] = 250

    assert ImageSet(images, torch.zeros(2, dtype=torch.int64)).background() == 250


def test_what_is_no_idx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "idx").write_bytes(b"\x1f\x8b\x08 this is gzip")

    with pytest.raises(DataError, match="is not an idx file"):
        read_idx(tmp_path / "idx")


def test_idx_keeps_shape_and_values(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "idx", values)

    assert torch.equal(read_idx(tmp_path / "idx"), values)


def test_without_a_ground_the_background_is_the_mean_of_the_borders() -> None:
    scenes = torch.randint(256, (50, 1, 20, 20), dtype=torch.uint8)
    scenes[:, :, 0, :5] = 255

    assert ImageSet(scenes, torch.zeros(50, dtype=torch.int64)).background() in range(110, 160)


def test_of_a_class_of_two_one_is_held_out() -> None:
    training, validation = split(stripes(6))

    assert sorted(training.labels.tolist()) == sorted(validation.labels.tolist()) == [0, 1, 2]


def test_the_hash_of_the_split_sees_every_place() -> None:
    labels = stripes(360).labels

    assert hash_indices(choose_held_out(labels)) == hash_indices(choose_held_out(labels))
    assert hash_indices(choose_held_out(labels)) != hash_indices(choose_held_out(labels, seed=1))
    assert (
        hash_indices(torch.tensor([1, 2]))
        == hashlib.sha256(b"\1" + bytes(7) + b"\2" + bytes(7)).hexdigest()
    )


@pytest.mark.parametrize("content", [b"\0\0\x08\1\0\0\0\2\7", b"\0\0\x08\1\0\0\0\2\7\7\7"])
def test_an_idx_file_that_is_cut_or_too_long_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "idx").write_bytes(content)

    with pytest.raises(DataError, match=r"bytes for \[2\]: it is damaged"):
        read_idx(tmp_path / "idx")


def test_a_packed_idx_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "idx.gz").write_bytes(gzip.compress(b"\0\0\x08\1\0\0\0\1\7")[:-9])

    with pytest.raises(DataError, match="is damaged"):
        read_idx(tmp_path / "idx.gz")
