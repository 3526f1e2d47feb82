"""What all tests share."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import settings

from tests.chaos.network import hold_lock, may_make_networks, remove_leftovers, require_programs
from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator

settings.register_profile("without deadline", settings(deadline=None))  # no timing is a test
settings.load_profile("without deadline")


def missing(reason: str) -> NoReturn:
    """Skip the test for `reason`, or fail it in CI, where nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def network_namespaces() -> Iterator[None]:
    """The right to make network namespaces; what a test left of them is removed after it.

    A missing program fails in CI. A kernel that refuses the right, as that of most containers
    does, is no fault of the checkout: there the test is skipped in CI too.
    """
    try:
        require_programs()
    except StackError as error:
        missing(str(error))
    if not may_make_networks():
        pytest.skip("the kernel lets this user make no network namespaces")
    yield
    with suppress(StackError), hold_lock(0.0):  # whoever else has it has removed them
        remove_leftovers()
