from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from training import fashion_mnist
from training.errors import DataError
from training.fashion_mnist import data_folder, download, load_fashion_mnist

from .conftest import stripes

if TYPE_CHECKING:
    from collections.abc import Callable


def test_fashion_mnist_is_read_from_idx_files(small_data: Path) -> None:
    expected = stripes(60, classes=10)

    test = load_fashion_mnist(small_data, train=False)

    assert torch.equal(test.images, expected.images)
    assert torch.equal(test.labels, expected.labels)
    assert test.names[9] == "Ankle boot"


def test_a_corrupt_file_is_named_with_the_fix(small_data: Path) -> None:
    path = small_data / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match=f"{path} is corrupt: `rm {path}` and `make setup`"):
        load_fashion_mnist(small_data, train=False)
    with pytest.raises(DataError, match="is corrupt"):
        download(small_data)


def test_a_missing_file_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte is missing: `make setup`"):
        load_fashion_mnist(tmp_path, train=True)


def test_missing_files_are_downloaded(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    monkeypatch.setattr(fashion_mnist, "_fetch_files", small_data.rename)

    download(empty)

    assert len(load_fashion_mnist(empty, train=True)) == 240


def test_a_download_that_fails_says_what_else_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", unreachable)

    with pytest.raises(DataError, match=r"could not be downloaded .* set DATA_DIR"):
        download(tmp_path)


def test_the_folder_is_as_given_else_from_the_environment_else_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    assert str(data_folder()) == "data"
    monkeypatch.setenv("DATA_DIR", "elsewhere")
    assert str(data_folder()) == "elsewhere"
    assert data_folder(tmp_path) == tmp_path


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_told_and_never_waited_for(
    small_data: Path, make: Callable[[Path], None]
) -> None:
    path = small_data / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.unlink()
    make(path)

    with pytest.raises(DataError, match="train-images-idx3-ubyte cannot be read: it is a"):
        load_fashion_mnist(small_data, train=True)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")

    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        load_fashion_mnist(tmp_path / "data", train=True)
