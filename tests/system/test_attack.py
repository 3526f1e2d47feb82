"""Honest clients beside an attacker, for three seconds; `make attack` takes longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.attack.siege import Siege
from tests.handler.bombs import find_bomb

if TYPE_CHECKING:
    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system


def test_a_request_that_costs_much_costs_the_others_nothing(server: TorchServe) -> None:
    siege = Siege(server, seconds=3.0)
    row = siege.run_row(find_bomb("jpeg-scans-2500"))
    assert row.find_broken() == []
    assert row.honest["200"] > 100
    assert set(row.attacks) == {"413"}
