"""Folders as people have them: read where their meaning is plain, else told how they must look."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from training.data import relabel
from training.errors import DataError
from training.folders import Part, find_files
from training.sources import ImageSpec, load_any_images, load_training_images, load_unseen_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.data import ImageSet

Form = Literal["NFC", "NFD"]

SIZE = ImageSpec((8, 8))


def put(root: Path, *names: str, value: int = 200) -> None:
    """Write a grey image under each name, in the format of its ending."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), value).save(root / name)


def fill(root: Path, *classes: str, number: int = 2) -> None:
    """Write some images for each class."""
    put(root, *(f"{name}/{at}.png" for name in classes for at in range(number)))


def read(root: Path) -> ImageSet:
    return load_training_images(f"folder:{root}", root, SIZE)


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Testing", "val", "Validation", "valid"])
def test_parts_are_known_by_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path / train, "cat", "dog", number=3)
    fill(tmp_path / test, "dog", number=1)

    learned, unseen = read(tmp_path), load_unseen_images(f"folder:{tmp_path}", tmp_path, SIZE)

    assert (learned.names, len(learned)) == (("cat", "dog"), 6)
    assert relabel(unseen, learned.names).labels.tolist() == [1]


def test_where_there_are_test_and_validation_images_those_of_test_are_unseen(
    tmp_path: Path,
) -> None:
    for part, number in (("train", 3), ("val", 2), ("test", 1)):
        fill(tmp_path / part, "cat", "dog", number=number)

    assert len(load_unseen_images(f"folder:{tmp_path}", tmp_path, SIZE)) == 2


@pytest.mark.parametrize("inner", ["kittens", "kittens/small", "a.png"])
def test_images_in_sub_folders_belong_to_the_class(tmp_path: Path, inner: str) -> None:
    fill(tmp_path, "cat", "dog", f"cat/{inner}")

    assert read(tmp_path).labels.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("above", ["flowers", "data/flowers", "images/all/flowers"])
@pytest.mark.parametrize("part", ["", "train"])
def test_a_folder_that_is_named_too_high_is_read_if_nothing_else_lies_there(
    tmp_path: Path, above: str, part: str
) -> None:
    fill(tmp_path / above / part, "rose", "tulip")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "README.txt").write_text("flowers")

    assert read(tmp_path).names == ("rose", "tulip")


@pytest.mark.parametrize("folders", [("a", "b"), ("set 1", "set 2", "set 3"), ("lab", "field")])
def test_folders_that_hold_the_same_classes_are_not_taken_for_classes(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    for name in folders:
        fill(tmp_path / name, "cat", "dog")

    with pytest.raises(DataError, match=r"one level too high, .* all hold cat, dog: name one of"):
        read(tmp_path)


@pytest.mark.parametrize("names", [("cat.png",), ("1.png", "2.png"), ("a.jpg", "b.gif")])
def test_images_without_classes_are_told_how_the_folder_must_look(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    put(tmp_path, *names)

    with pytest.raises(DataError, match="images lie in no sub-folder: give it a sub-folder of"):
        read(tmp_path)


@pytest.mark.parametrize("parts", [("test",), ("Testing", "val"), ("validation",)])
def test_parts_without_a_training_part_are_told_how_the_folder_must_look(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    for name in parts:
        fill(tmp_path / name, "cat", "dog")

    with pytest.raises(DataError, match="but no train: it must hold a sub-folder of images for"):
        read(tmp_path)


@pytest.mark.parametrize(("one", "other"), [("train", "Training"), ("TRAIN", "train")])
def test_two_folders_of_one_part_are_refused(tmp_path: Path, one: str, other: str) -> None:
    for name in (one, other):
        fill(tmp_path / name, "cat", "dog")

    with pytest.raises(DataError, match=r"holds both .*: leave one of them"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_part_may_be_the_name_of_a_class(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "bus", "car", name)

    assert read(tmp_path).names == ("bus", "car", name)


LITTER = ("Thumbs.db", "desktop.ini", "0.xml", "README", "README.md", "labels.csv", "0.txt")


@pytest.mark.parametrize("names", [LITTER, LITTER[:1], LITTER[2:4], LITTER[5:]])
def test_what_systems_and_annotators_leave_is_passed_over_with_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...]
) -> None:
    fill(tmp_path, "cat", "dog")
    for name in names:
        (tmp_path / "cat" / name).write_bytes(b"not an image")

    assert len(read(tmp_path)) == 4
    said = capsys.readouterr().err
    several = f"{len(names)} files that are no images are"
    what = several if len(names) > 1 else "1 file that is no image is"
    assert said.startswith(f"{what} passed over: ")
    assert all(name in said for name in names)


@pytest.mark.parametrize("ending", ["txt", "xml", "db", "", "heic", "jpg"])
def test_an_image_is_read_whatever_its_name(tmp_path: Path, ending: str) -> None:
    fill(tmp_path, "cat", "dog")
    (tmp_path / "dog" / "1.png").rename(tmp_path / "dog" / f"README.{ending}".rstrip("."))

    assert read(tmp_path).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("number", [2, 10, 23])
def test_all_files_that_are_no_images_are_named_at_once(tmp_path: Path, number: int) -> None:
    fill(tmp_path, "cat", "dog")
    for at in range(number):
        (tmp_path / "cat" / f"note {at:02}.txt").write_text("no image")

    with pytest.raises(DataError) as caught:
        read(tmp_path)

    said = str(caught.value)
    assert said.count("note ") == min(number, 10)
    assert f"and {number - 10} more" in said or number <= 10
    assert said.endswith("are no images: move them elsewhere")


PS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.png", PS),
        ("a.eps", PS),
        ("a.heic", b"\0\0\0\x18ftypheic"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("a.jpg", b"<html>Not found</html>"),
        ("a.pgm", b"P5 1 1 255 0"),
    ],
)
def test_what_may_be_an_image_of_another_format_is_to_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *_a, **_k: pytest.fail("Ghostscript"))
    fill(tmp_path, "cat", "dog")
    (tmp_path / "cat" / name).write_bytes(content)

    with pytest.raises(DataError, match=f"cat/{name} bears the name of .*: convert it, or fetch"):
        read(tmp_path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    # The name of a socket is short, that of a test's folder may not be.
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def make_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["0.png", "Thumbs.db", "x"])
@pytest.mark.parametrize("make", [make_pipe, make_socket, make_dangling_link, make_loop])
def test_what_is_no_regular_file_is_told_and_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], name: str
) -> None:
    fill(tmp_path, "cat", "dog")
    (tmp_path / "dog" / name).unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "dog" / name)

    with pytest.raises(DataError, match=f"dog/{name} cannot be read .*: mend that, or move it"):
        read(tmp_path)


@pytest.mark.parametrize("place", ["cat/0.png", "dog/1.png", "dog/Thumbs.db"])
def test_a_file_without_the_right_to_read_it_is_nothing_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    fill(tmp_path, "cat", "dog")
    (tmp_path / place).write_bytes(b"")
    given = os.open

    def deny(path: Path, *how: int) -> int:
        if path == tmp_path / place:
            raise PermissionError(13, "Permission denied", str(path))
        return given(path, *how)

    monkeypatch.setattr("training.files.os.open", deny)

    with pytest.raises(DataError, match=f"{place} cannot be read .Permission denied.: mend"):
        read(tmp_path)


def test_a_folder_without_the_right_to_read_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "cat", "dog")
    given = Path.iterdir

    def deny(path: Path) -> object:
        if path.name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return given(path)

    monkeypatch.setattr(Path, "iterdir", deny)

    with pytest.raises(DataError, match=r"dog cannot be read .Permission denied.: mend that"):
        read(tmp_path)


@pytest.mark.parametrize("length", [300, 41, 60])
def test_all_damaged_images_are_named_at_once_whatever_else_is_wrong(
    tmp_path: Path, length: int
) -> None:
    rng = np.random.default_rng(1)
    fill(tmp_path, "cat", "dog")
    for name in ("cat/0.png", "dog/1.png"):
        Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:length])

    with pytest.raises(
        DataError, match=r"cat/0.png .*, .*dog/1.png .* are damaged: fetch them again,"
    ):
        read(tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff", b"na\xefve"])
def test_a_class_whose_name_is_no_utf_8_is_told_before_an_image_is_read(
    tmp_path: Path, name: bytes
) -> None:
    fill(tmp_path, "cat")
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    (folder / "0.png").write_bytes(b"never read")

    with pytest.raises(DataError, match="the name of a class must be UTF-8, rename it") as caught:
        read(tmp_path)
    str(caught.value).encode()


@pytest.mark.parametrize("kind", ["folder", "idx"])
def test_a_source_whose_name_is_no_utf_8_is_told_before_an_image_is_read(
    tmp_path: Path, kind: str
) -> None:
    fill(tmp_path / "caf\udce9", "cat", "dog")

    with pytest.raises(DataError, match="is not UTF-8, and no run can note it: rename it"):
        load_training_images(f"{kind}:{tmp_path}/caf\udce9", tmp_path)


@pytest.mark.parametrize("name", ["café", "Å", "한국"])
@pytest.mark.parametrize(("one", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_class_is_the_same_however_its_accents_are_coded(
    tmp_path: Path, name: str, one: Form, other: Form
) -> None:
    fill(tmp_path / "train", normalize(one, name), "tea")
    fill(tmp_path / "test", normalize(other, name))
    fill(tmp_path / "both", normalize(one, name), normalize(other, name), "tea")

    learned = load_training_images(f"folder:{tmp_path}/train", tmp_path, SIZE)
    test = load_any_images(f"folder:{tmp_path}/test", tmp_path, SIZE)
    both = load_training_images(f"folder:{tmp_path}/both", tmp_path, SIZE)

    assert normalize("NFC", name) in learned.names
    old = tuple(normalize("NFD", each) for each in learned.names)
    label = learned.names.index(normalize("NFC", name))
    assert relabel(test, learned.names).labels.tolist() == [label, label]
    assert relabel(test, old).labels.tolist() == [label, label]
    assert both.names == learned.names
    assert sorted(both.labels.bincount().tolist()) == [2, 4]


@pytest.mark.parametrize("path", ["~/flowers", "~/flowers/../flowers", "~/flowers/"])
def test_a_folder_may_be_named_from_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "flowers", "rose", "tulip")

    assert load_training_images(f"folder:{path}", tmp_path, SIZE).names == ("rose", "tulip")


@pytest.mark.parametrize("target", [".", "..", "../dog", "/"])
def test_a_link_that_leads_back_up_or_to_another_class_is_not_followed(
    tmp_path: Path, target: str
) -> None:
    fill(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "again").symlink_to(target, target_is_directory=True)

    assert read(tmp_path).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        (
            [
                "seg_train/seg_train/cat",
                "seg_train/seg_train/dog",
                "seg_test/seg_test/cat",
                "seg_test/seg_test/dog",
            ],
            "is one level too high, seg_test, seg_train all hold cat, dog",
        ),
        (
            ["data/train/cat", "data/train/dog", "data/test/cat", "sample"],
            "data holds test, train, so it is no class of .*: name .*data itself",
        ),
        (
            ["a/Training/x", "a/Training/y", "b"],
            "a holds Training, so it is no class of",
        ),
    ],
)
def test_parts_are_never_learned_as_classes(
    tmp_path: Path, layout: list[str], sentence: str
) -> None:
    for name in layout:
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")

    with pytest.raises(DataError, match=sentence):
        find_files(tmp_path, "train")


def test_a_part_may_hold_its_classes_one_level_deeper(tmp_path: Path) -> None:
    for name in ("train/images/cat", "train/images/dog", "test/images/cat", "test/images/dog"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")

    parts: tuple[Part, ...] = ("train", "test")
    for part in parts:
        found = find_files(tmp_path, part)
        assert found is not None
        assert found.names == ("cat", "dog")
