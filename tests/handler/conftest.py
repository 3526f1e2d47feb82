"""Fixtures of the handler's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.handler.torchserve import Served, write_archive

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey, 28 x 28, ten classes."""
    return write_archive(tmp_path_factory.mktemp("grey"))


@pytest.fixture(scope="session")
def grey(archive: Path) -> Served:
    """The handler of `archive`."""
    return Served(archive)


@pytest.fixture(scope="session")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """RGB, 64 x 64, five classes."""
    folder = tmp_path_factory.mktemp("colour")
    return Served(write_archive(folder, channels=3, side=64, classes=5), measured=False)
