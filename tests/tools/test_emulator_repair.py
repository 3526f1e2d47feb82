"""The emulator is repaired only where it is the one that is known."""

from __future__ import annotations

import pytest

from tools.servers.emulator_repair import patch_backlog
from tools.servers.process import StackError

FORGETS = b"\x2d\xb9\x00\x5e\x01\x00"
BACK = b"\xa7\xff\xd2"


def test_a_backlog_that_forgets_whose_a_key_was_remembers_it() -> None:
    assert (
        patch_backlog(b"before" + FORGETS + BACK + b"after")
        == b"before" + bytes(6) + BACK + b"after"
    )


@pytest.mark.parametrize("code", [b"", FORGETS, 2 * (FORGETS + BACK)])
def test_a_backlog_that_is_not_known_is_left_alone(code: bytes) -> None:
    with pytest.raises(StackError, match="not the one that is known"):
        patch_backlog(code)
