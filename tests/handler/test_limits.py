"""The limits that people are told are those that hold."""

from __future__ import annotations

import fmnist_gate as gate

from tests.handler.torchserve import ROOT
from tests.handler.unpacking import SETTINGS, TABLE

PAGE = " ".join((ROOT / "docs" / "messages.md").read_text().split())


def test_the_page_of_messages_states_the_limits_of_the_handler() -> None:
    for limit in (
        f"at most {SETTINGS.max_bytes:,} bytes",
        f"an image {SETTINGS.max_pixels // 10**6} million pixels",
        f"{SETTINGS.max_heavy_pixels // 10**6} million as WebP or TIFF or with transparency",
        f"{gate.MAX_RLE_PIXELS // 10**6} million as a run-length BMP",
        f"no side above {gate.MAX_SIDE:,}",
        f"at most {SETTINGS.max_images:,} images",
        f"{SETTINGS.max_request_ms / 1000} s to decode together",
    ):
        assert limit in PAGE


def test_a_batch_and_the_last_request_of_it_end_before_the_worker_is_killed() -> None:
    config = (ROOT / "handler" / "model-config.yaml").read_text()
    assert "\nresponseTimeout: 8\n" in config
    assert TABLE["batch_ms"] + TABLE["max_request_ms"] < 8_000
    assert TABLE["max_request_ms"] >= gate.MAX_DECODING_S * 1000
