"""A benchmark so short that its figures mean nothing: both programs reach the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench.benchmark import compare
from tests.bench.pubsub import PubSubBenchmark

if TYPE_CHECKING:
    from pathlib import Path

    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system


@pytest.mark.usefixtures("emulator")
def test_both_relay_all_images_of_a_race(server: TorchServe, tmp_path: Path) -> None:
    with PubSubBenchmark(server.url, tmp_path) as benchmark:
        found = compare(benchmark, rounds=1, records=100, wanted=0.0, say=lambda _: None)
    assert found.passed
    assert all(rate > 0 for rate in (found.ratio, *found.ceilings.values()))
