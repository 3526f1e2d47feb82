from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import fmnist_gate
import fmnist_images
import numpy as np
import pytest
import torch
from PIL import Image

from training.data import ImageSet, relabel
from training.errors import DataError
from training.sources import ImageSpec, load_any_images, load_training_images, load_unseen_images

from .conftest import stripes, write_idx

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(3)


def picture(height: int, width: int, *channels: int) -> Image.Image:
    """Make noise on a background of 20."""
    pixels = np.full((height, width, *channels), 20, np.uint8)
    edge = min(height, width) // 4
    inside = pixels[edge:-edge, edge:-edge]
    inside[:] = RNG.integers(0, 256, inside.shape, np.uint8)
    return Image.fromarray(pixels)


def folder(path: Path, **classes: list[Image.Image]) -> str:
    for name, images in classes.items():
        (path / name).mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(path / name / f"{number}.png")
    return f"folder:{path}"


def test_a_folder_gives_each_class_the_name_of_its_sub_folder(tmp_path: Path) -> None:
    roses, tulips = ([picture(12, 16, 3) for _ in range(number)] for number in (2, 3))
    source = folder(tmp_path, tulip=tulips, rose=roses)
    (tmp_path / ".DS_Store").write_bytes(b"not ours")
    (tmp_path / "rose" / ".hidden").write_bytes(b"not ours")

    images = load_training_images(source, tmp_path)

    assert images.names == ("rose", "tulip")
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    expected = np.stack([np.asarray(image) for image in roses + tulips]).transpose(0, 3, 1, 2)
    assert np.array_equal(images.images.numpy(), expected)


def test_a_folder_of_grey_images_is_grey_and_one_in_colour_makes_all_rgb(tmp_path: Path) -> None:
    grey = [picture(9, 9) for _ in range(2)]
    only_grey = load_training_images(folder(tmp_path / "a", x=grey, y=grey), tmp_path)
    mixed = load_training_images(folder(tmp_path / "b", x=grey, y=[picture(9, 9, 3)] * 2), tmp_path)

    assert (only_grey.images.shape[1], mixed.images.shape[1]) == (1, 3)


def test_images_of_many_sizes_need_one_named(tmp_path: Path) -> None:
    source = folder(tmp_path, x=[picture(9, 9)] * 2, y=[picture(9, 9), picture(9, 12)])

    with pytest.raises(DataError, match=r"y/1.png is 9x12 but .*x/0.png is 9x9: .* with --size"):
        load_training_images(source, tmp_path)
    assert load_training_images(source, tmp_path, ImageSpec((8, 10))).images.shape == (4, 1, 8, 10)


def holes() -> Image.Image:
    image = picture(30, 20, 3)
    image.putalpha(Image.new("L", image.size, 255))
    image.putpixel((9, 9), (1, 2, 3, 0))
    return image


def sideways() -> Image.Image:
    image = picture(40, 25, 3)
    image.getexif()[0x0112] = 6
    return image


def deep() -> Image.Image:
    return Image.fromarray(RNG.integers(0, 65536, (24, 24), np.uint16))


@pytest.mark.parametrize(
    ("suffix", "image"),
    [
        ("png", picture(64, 48)),
        ("png", picture(40, 90, 3)),
        ("jpg", picture(700, 500, 3)),
        ("jpg", sideways()),
        ("png", holes()),
        ("png", deep()),
        ("gif", picture(30, 30, 3).convert("P")),
        ("png", picture(16, 24, 3)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_learned_from_a_file_are_the_pixels_that_the_handler_makes_of_it(
    tmp_path: Path, suffix: str, image: Image.Image, channels: int
) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for number in range(2):
            exif = image.getexif() if suffix == "jpg" else Image.Exif()
            image.save(tmp_path / name / f"{number}.{suffix}", exif=exif)
    spec = ImageSpec((16, 24), channels, background=100)

    learned = load_training_images(f"folder:{tmp_path}", tmp_path, spec)

    mode = {1: "L", 3: "RGB"}[channels]
    model = fmnist_images.Model("m", "1", mode, (24, 16), (100,) * channels, ("x", "y"))
    content = (tmp_path / "x" / f"0.{suffix}").read_bytes()
    file = fmnist_gate.inspect(content, fmnist_gate.Limits(10**6, 10**6, 10**6))
    served = fmnist_images.to_pixels(file, model)
    assert np.array_equal(learned.images[0].numpy(), served)


def test_what_surrounds_a_resized_image_is_the_ground_of_all(tmp_path: Path) -> None:
    high, wide = Image.new("L", (10, 30), 20), Image.new("L", (30, 10), 20)
    source = folder(tmp_path, x=[high] * 2, y=[wide] * 2)

    images = load_training_images(source, tmp_path, ImageSpec((12, 12)))

    assert (images.images[:, 0, 0, 0] == 20).all()
    assert images.background() == 20


def test_a_folder_may_hold_test_images_of_its_own(tmp_path: Path) -> None:
    folder(tmp_path / "train", x=[picture(9, 9)] * 3, y=[picture(9, 9)] * 3)
    folder(tmp_path / "test", y=[picture(9, 9)])
    source = f"folder:{tmp_path}"

    test = relabel(load_unseen_images(source, tmp_path), ("x", "y"))

    assert len(load_training_images(source, tmp_path)) == 6
    assert test.labels.tolist() == [1]
    assert len(load_any_images(source, tmp_path)) == 1


def test_without_test_images_they_must_be_named(tmp_path: Path) -> None:
    source = folder(tmp_path, x=[picture(9, 9)] * 2, y=[picture(9, 9)] * 2)

    with pytest.raises(DataError, match="has no test images of its own: name some with --data"):
        load_unseen_images(source, tmp_path)
    assert len(load_any_images(source, tmp_path)) == 4


def idx(folder: Path, images: ImageSet, prefix: str = "train") -> str:
    pixels = images.images[:, 0] if images.images.shape[1] == 1 else images.images
    write_idx(folder / f"{prefix}-images-idx3-ubyte", pixels)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte", images.labels)
    return f"idx:{folder}"


@pytest.mark.parametrize("channels", [1, 3])
def test_idx_files_are_read_with_the_names_beside_them(tmp_path: Path, channels: int) -> None:
    expected = stripes(9, channels=channels)
    source = idx(tmp_path, expected)
    (tmp_path / "classes.txt").write_text("one\ntwo\n three \n\n")

    images = load_training_images(source, tmp_path)

    assert torch.equal(images.images, expected.images)
    assert torch.equal(images.labels, expected.labels)
    assert images.names == ("one", "two", "three")


def test_idx_files_may_be_packed_and_have_test_images_of_their_own(tmp_path: Path) -> None:
    idx(tmp_path, stripes(9), "emnist-letters-train")
    source = idx(tmp_path, stripes(6), "emnist-letters-test")
    for file in list(tmp_path.iterdir()):
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()

    assert load_training_images(source, tmp_path).names == ("0", "1", "2")
    assert torch.equal(load_unseen_images(source, tmp_path).images, stripes(6).images)


def module(path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str) -> None:
    (path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(path)


def test_a_data_set_of_a_module_is_taken_as_it_is_or_called_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(
        tmp_path,
        monkeypatch,
        "own_flowers",
        "import torch\n"
        "from torch.utils.data import Dataset, TensorDataset\n"
        "ready = TensorDataset(torch.zeros(4, 3, 8, 9, dtype=torch.uint8), torch.arange(4) % 2)\n"
        "def make():\n    return ready\n"
        "class Kind(Dataset):\n"
        "    classes = ['rose', 'tulip']\n"
        "    def __len__(self):\n        return 4\n"
        "    def __getitem__(self, at):\n        return ready[at]\n",
    )

    ready, made, kind = (
        load_training_images(f"own_flowers:{name}", tmp_path) for name in ("ready", "make", "Kind")
    )

    assert ready.images.shape == made.images.shape == kind.images.shape == (4, 3, 8, 9)
    assert (ready.names, kind.names) == (("0", "1"), ("rose", "tulip"))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("flowers", "'flowers' names no data: write fashion-mnist, folder:PATH"),
        ("folder:", "'folder:' names no data"),
        ("folder:nowhere", "nowhere is no folder: give one that holds a sub-folder for each class"),
        ("idx:nowhere", r"nowhere lacks \*train-images-idx\* or \*train-labels-idx\*: add them"),
        ("no_such_module:x", "no_such_module:x cannot be imported .*: stand in the folder"),
        ("json:no_such_name", "json:no_such_name cannot be imported"),
        ("json:__name__", "sample 0 is not a pair"),
        ("math:pi", "the data set must be map-style"),
    ],
)
def test_a_source_that_is_none_is_named_with_the_fix(
    tmp_path: Path, source: str, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        load_training_images(source, tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="holds no images: give it a sub-folder"):
        load_training_images(f"folder:{tmp_path}", tmp_path)


@pytest.mark.parametrize("content", [b"no image", b""])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    source = folder(tmp_path, x=[picture(9, 9)] * 2, y=[picture(9, 9)] * 2)
    (tmp_path / "y" / "notes.txt").write_bytes(content)

    with pytest.raises(DataError, match=r"y/notes.txt is no image: move it elsewhere"):
        load_training_images(source, tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    source = folder(tmp_path, x=[picture(40, 40)] * 2, y=[picture(40, 40)] * 2)
    whole = (tmp_path / "y" / "1.png").read_bytes()
    (tmp_path / "y" / "1.png").write_bytes(whole[:300])

    with pytest.raises(
        DataError, match=r"y/1.png is damaged .*: fetch it again, or move it elsewhere"
    ):
        load_training_images(source, tmp_path)


@pytest.mark.parametrize(
    ("labels", "names", "sentence"),
    [
        ([0, 0, 0, 0], (), "one class only"),
        ([0, 0, 0, 2], (), "class '1' has 0 images: give it at least 2"),
        ([0, 0, 0, 1], ("x", "y"), "class 'y' has 1 images: give it at least 2"),
        ([0, 0, 1, 2], ("x", "y"), "labels go from 0 to 2, but with 2 classes .* from 0 to 1"),
        ([-1, 0, 0, 1], (), "labels go from -1 to 1"),
    ],
)
def test_labels_that_nobody_can_learn_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: list[int],
    names: tuple[str, ...],
    sentence: str,
) -> None:
    given: Any = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor(labels), names)
    monkeypatch.setattr("json.given", given, raising=False)

    with pytest.raises(DataError, match=sentence):
        load_training_images("json:given", tmp_path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("highest", [9, 2**31 - 1, 2**62])
def test_labels_that_number_no_classes_are_refused_without_a_name_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, highest: int
) -> None:
    labels = torch.tensor([0, 0, highest, highest])
    given: Any = ImageSet(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels)
    monkeypatch.setattr("json.given", given, raising=False)

    with pytest.raises(DataError, match=f"go up to {highest:,} for 4 images: number the classes"):
        load_training_images("json:given", tmp_path)


def test_channels_that_the_handler_does_not_serve_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("json.given", stripes(6, channels=4), raising=False)

    with pytest.raises(DataError, match="4 channels: make them grey"):
        load_training_images("json:given", tmp_path)


def test_test_images_get_the_labels_that_their_classes_had_in_training() -> None:
    images = ImageSet(stripes(3).images, torch.tensor([0, 1, 1]), ("tulip", "rose"))

    assert relabel(images, ("rose", "sunflower", "tulip")).labels.tolist() == [2, 0, 0]
    with pytest.raises(DataError, match="no class 'rose': the classifier knows tulip, lily"):
        relabel(images, ("tulip", "lily"))
    assert relabel(stripes(3), stripes(3).names).labels.tolist() == [0, 1, 2]
