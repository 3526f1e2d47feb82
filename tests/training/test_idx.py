"""idx files as they are found: packed or not, by any of their names, damaged, of other types."""

from __future__ import annotations

import gzip
import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from training.data import relabel
from training.errors import DataError
from training.idx import load_idx, read_idx
from training.sources import load_any_images, load_training_images, load_unseen_images

from .conftest import stripes, write_idx

if TYPE_CHECKING:
    from pathlib import Path

    from training.data import ImageSet

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def put(folder: Path, images: ImageSet, *, first: int = 0, prefix: str = "train") -> None:
    write_idx(folder / f"{prefix}-images-idx3-ubyte", images.images[:, 0])
    write_idx(folder / f"{prefix}-labels-idx1-ubyte", images.labels + first)


def read(folder: Path) -> ImageSet:
    return load_training_images(f"idx:{folder}", folder)


def head(kind: int, *lengths: int) -> bytes:
    return bytes([0, 0, kind, len(lengths)]) + struct.pack(f">{len(lengths)}I", *lengths)


@pytest.mark.parametrize(
    "name", [f"{IMAGES}/{IMAGES}", f"{IMAGES}/mnist-{IMAGES}", f"{IMAGES}.gz/{IMAGES}.gz"]
)
def test_a_file_may_lie_in_a_folder_of_its_own_name(tmp_path: Path, name: str) -> None:
    put(tmp_path, stripes(9))
    content = (tmp_path / IMAGES).read_bytes()
    (tmp_path / IMAGES).unlink()
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(content)

    assert torch.equal(read(tmp_path).images, stripes(9).images)


@pytest.mark.parametrize(
    "name",
    ["train-images.idx3-ubyte", "MNIST-train-images-idx3-ubyte", "Train-Images-idx3-ubyte.gz"],
)
def test_a_file_is_known_by_each_of_its_usual_names(tmp_path: Path, name: str) -> None:
    put(tmp_path, stripes(9))
    (tmp_path / IMAGES).rename(tmp_path / name)

    assert torch.equal(read(tmp_path).images, stripes(9).images)


@pytest.mark.parametrize(
    "copy",
    [f"{IMAGES}.gz", "train-images.idx3-ubyte", f"{IMAGES}/{IMAGES}", "train-images.idx3.gz"],
)
def test_a_copy_beside_a_file_does_no_harm(tmp_path: Path, copy: str) -> None:
    put(tmp_path, stripes(9))
    content = (tmp_path / IMAGES).read_bytes()
    if "/" in copy:
        (tmp_path / IMAGES).rename(tmp_path / "train-images.idx3-ubyte")
    (tmp_path / copy).parent.mkdir(exist_ok=True)
    (tmp_path / copy).write_bytes(gzip.compress(content) if copy.endswith("gz") else content)
    if copy == "train-images.idx3.gz":
        with pytest.raises(DataError, match="are both images: leave one of them in the folder"):
            read(tmp_path)
    else:
        assert torch.equal(read(tmp_path).images, stripes(9).images)


@pytest.mark.parametrize(("name", "pack"), [("a.gz", 0), ("a", 1), ("a.gz", 1)])
def test_whether_a_file_is_packed_is_told_by_its_content(
    tmp_path: Path, name: str, pack: int
) -> None:
    content = head(8, 3) + b"abc"
    (tmp_path / name).write_bytes(gzip.compress(content) if pack else content)

    assert read_idx(tmp_path / name).tolist() == [97, 98, 99]


@pytest.mark.parametrize("test_labels", [[1, 2], [2, 2], [3, 1]])
@pytest.mark.parametrize("names", ["", "a\nb\nc\n"])
def test_labels_that_begin_at_1_are_taken_as_they_are_numbered(
    tmp_path: Path, test_labels: list[int], names: str
) -> None:
    put(tmp_path, stripes(9), first=1)
    put(tmp_path, stripes(2), prefix="test")
    write_idx(tmp_path / "test-labels-idx1-ubyte", torch.tensor(test_labels))
    if names:
        (tmp_path / "classes.txt").write_text(names)

    learned = read(tmp_path)
    unseen = load_unseen_images(f"idx:{tmp_path}", tmp_path)

    assert learned.labels.tolist() == stripes(9).labels.tolist()
    assert learned.names == (("a", "b", "c") if names else ("1", "2", "3"))
    assert relabel(unseen, learned.names).labels.tolist() == [at - 1 for at in test_labels]


def test_a_class_that_is_named_and_has_no_image_is_told(tmp_path: Path) -> None:
    put(tmp_path, stripes(9), first=1)
    (tmp_path / "classes.txt").write_text("none\na\nb\nc\n")

    with pytest.raises(DataError, match="class 'none' has 0 images"):
        read(tmp_path)


@pytest.mark.parametrize("columns", [2, 3, 10])
def test_labels_with_a_column_for_each_class_are_refused(tmp_path: Path, columns: int) -> None:
    put(tmp_path, stripes(9))
    table = np.eye(columns, dtype="u1")[np.arange(9) % columns]
    (tmp_path / LABELS).write_bytes(head(8, *table.shape) + table.tobytes())

    with pytest.raises(DataError, match=rf"holds labels 9x{columns}: give one number for each"):
        read(tmp_path)


@pytest.mark.parametrize("begin", [b"PK\x03\x04", b"\xfd7zXZ\x00", b"BZh91"])
def test_a_file_that_is_packed_otherwise_is_to_be_unpacked(tmp_path: Path, begin: bytes) -> None:
    put(tmp_path, stripes(9))
    (tmp_path / LABELS).write_bytes(begin + bytes(60))

    with pytest.raises(DataError, match="is not an idx file: unpack it"):
        read(tmp_path)


@pytest.mark.parametrize(("kind", "form"), [(9, "i1"), (0x0B, ">i2"), (0x0C, ">i4")])
@pytest.mark.parametrize("columns", [0, 1, 8])
def test_labels_may_be_whole_numbers_of_any_type_in_the_first_column(
    tmp_path: Path, kind: int, form: str, columns: int
) -> None:
    put(tmp_path, stripes(9))
    labels = stripes(9).labels.numpy().astype(form)
    table = np.stack([labels, *[labels + 70] * (columns - 1)], 1) if columns else labels
    (tmp_path / LABELS).unlink()
    (tmp_path / "train-labels-idx2-int").write_bytes(
        head(kind, *table.shape) + table.astype(form).tobytes()
    )

    assert read(tmp_path).labels.tolist() == stripes(9).labels.tolist()


@pytest.mark.parametrize("length", range(16))
@pytest.mark.parametrize("pack", [0, 1])
def test_a_file_that_is_cut_inside_its_header_is_told_so(
    tmp_path: Path, length: int, pack: int
) -> None:
    content = head(8, 2, 3, 4)[:length]
    (tmp_path / "idx").write_bytes(gzip.compress(content) if pack else content)

    with pytest.raises(DataError, match="is cut inside its header: fetch it again"):
        read_idx(tmp_path / "idx")


@pytest.mark.parametrize("length", [3, 10, 18, 25])
def test_a_packed_file_that_is_cut_is_told_so(tmp_path: Path, length: int) -> None:
    whole = gzip.compress(head(8, 200) + bytes(range(200)))
    (tmp_path / "idx").write_bytes(whole[:length])

    with pytest.raises(DataError, match="is damaged, or is not an idx file"):
        read_idx(tmp_path / "idx")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (head(0x0D, 2) + bytes(8), "not an idx file of bytes or whole numbers .type 13, 1 dim"),
        (head(8), "type 8, 0 dimensions"),
        (head(8, *[1] * 9) + b"\1", "type 8, 9 dimensions"),
        (b"\x89PNG\r\n\x1a\n", "is not an idx file: fetch it again"),
        (b"<html>Not found</html>", "is not an idx file: fetch it again"),
        (head(8, 2**31, 2), r"announces 4,294,967,296 bytes .*at most 2,147,483,648"),
    ],
)
@pytest.mark.parametrize("pack", [0, 1])
def test_a_file_that_cannot_be_read_is_told_why(
    tmp_path: Path, content: bytes, sentence: str, pack: int
) -> None:
    (tmp_path / "idx").write_bytes(gzip.compress(content) if pack else content)

    with pytest.raises(DataError, match=sentence):
        read_idx(tmp_path / "idx")


@pytest.mark.parametrize("announced", [(3,), (10, 100), (2**31 - 1,)])
def test_a_packed_file_takes_no_more_memory_than_it_announces(
    tmp_path: Path, announced: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    megabytes = 3
    content = head(8, *announced) + bytes(megabytes * 2**20)
    (tmp_path / "idx").write_bytes(gzip.compress(content))
    taken = []
    given = gzip.GzipFile.read

    def count(file: gzip.GzipFile, size: int | None = -1) -> bytes:
        block = given(file, size)
        taken.append(len(block))
        return block

    monkeypatch.setattr(gzip.GzipFile, "read", count)

    with pytest.raises(DataError, match="it is damaged, fetch it again"):
        read_idx(tmp_path / "idx")
    assert max(taken) <= 2**20
    expected = min(int(np.prod(announced)) + 1, megabytes * 2**20)
    assert sum(taken) == 4 + 4 * len(announced) + expected


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [IMAGES, LABELS, "classes.txt"])
def test_a_pipe_is_told_and_never_waited_for(tmp_path: Path, name: str) -> None:
    put(tmp_path, stripes(9))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)

    with pytest.raises(DataError, match=f"{name} cannot be read: it is a pipe"):
        read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffKäfer\nb\nc\n".encode(),
        "\ufeffKäfer\r\nb\r\nc".encode(),
        "Käfer\rb\rc\r".encode(),
        "Ka\u0308fer\n\nb\n c \n".encode(),
        "Käfer\nb\nc\n".encode("utf-16"),
    ],
)
def test_names_are_read_without_the_mark_and_the_line_ends_of_any_editor(
    tmp_path: Path, content: bytes
) -> None:
    put(tmp_path, stripes(9))
    (tmp_path / "classes.txt").write_bytes(content)

    assert read(tmp_path).names == ("Käfer", "b", "c")


@pytest.mark.parametrize("coding", ["latin-1", "cp437", "mac-roman"])
def test_names_in_another_coding_are_refused_with_the_fix(tmp_path: Path, coding: str) -> None:
    put(tmp_path, stripes(9))
    (tmp_path / "classes.txt").write_bytes("Käfer\nb\nc\n".encode(coding))

    with pytest.raises(DataError, match=r"classes.txt is not UTF-8 \(byte 1\): save it as UTF-8"):
        read(tmp_path)


@pytest.mark.parametrize("above", ["raw", "MNIST/raw", "."])
def test_the_folder_of_the_files_may_be_named_from_the_home_and_one_level_too_high(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "digits" / above, stripes(9))
    given = "~/digits/MNIST" if "/" in above else "~/digits"

    assert len(load_any_images(f"idx:{given}", tmp_path)) == 9


def test_the_file_itself_is_no_folder(tmp_path: Path) -> None:
    put(tmp_path, stripes(9))

    with pytest.raises(DataError, match="is a file: name the folder that holds the idx files"):
        load_idx(tmp_path / IMAGES, "train")
