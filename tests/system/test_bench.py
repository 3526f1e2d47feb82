"""A race so short that its figures mean nothing: both contestants reach the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.bench.contest import contest
from tools.bench.pubsub import PubSubCourse

if TYPE_CHECKING:
    from pathlib import Path

    from tools.stack import TorchServe

pytestmark = pytest.mark.system


@pytest.mark.usefixtures("emulator")
def test_both_relay_all_images_of_a_race(server: TorchServe, tmp_path: Path) -> None:
    with PubSubCourse(server.url, tmp_path) as course:
        found = contest(course, rounds=1, records=100, wanted=0.0, say=lambda _: None)
    assert found.passed
    assert all(rate > 0 for rate in (found.ratio, *found.ceilings.values()))
