"""The real services, one of each for all system tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing
from tools.stack import ARCHIVE, TorchServe

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[TorchServe]:
    """A TorchServe with our archive, on free ports."""
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    with TorchServe() as running:
        yield running
