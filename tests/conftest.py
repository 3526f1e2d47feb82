"""What all tests share."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest
from hypothesis import settings

settings.register_profile("without deadline", settings(deadline=None))  # no timing is a test
settings.load_profile("without deadline")


def missing(reason: str) -> NoReturn:
    """Skip the test for `reason`, or fail it in CI, where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
