"""Small requests that are dear to answer: each costs at most 3 s of CPU and 300 MB."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.conftest import missing
from tests.handler.bomb import BOUNDARY, MAX_BODY_BYTES, Bomb
from tests.handler.bombs import BOMBS, QUICK, ROWS, SELECTION, find_bomb
from tests.handler.costs import MAX_BATCH_CPU_S, MAX_CPU_S, Target
from tools.servers.torchserve import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_REQUEST_BYTES, MAX_FILE_BYTES = 6_553_500, 6_000_000


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """A child process with the handler's decoding."""
    with Target("unpack") as running:
        yield running


@pytest.fixture(scope="module")
def control() -> Iterator[Target]:
    """A child process that costs what it is told to."""
    with Target("control") as running:
        yield running


def spend(control: Target, seconds: float, megabytes: int, *, apart: bool) -> Any:  # noqa: ANN401 - a cost
    row = {"seconds": seconds, "megabytes": megabytes, "apart": apart}
    return control.measure_requests([(row, {})], stop_cpu_s=1.0)


@pytest.mark.parametrize("bomb", SELECTION, ids=lambda bomb: bomb.key)
def test_a_request_costs_at_most_three_seconds_and_300_megabytes(
    target: Target, bomb: Bomb
) -> None:
    assert target.measure(bomb).find_excess() == []


@pytest.mark.parametrize("bomb", SELECTION, ids=lambda bomb: bomb.key)
def test_a_bomb_is_small_enough_to_be_sent(bomb: Bomb) -> None:
    assert len(bomb.body()) < min(MAX_REQUEST_BYTES, MAX_BODY_BYTES + 1_000)
    assert not bomb.is_file or max(map(len, bomb.parts().values())) < MAX_FILE_BYTES


@pytest.mark.parametrize("apart", [False, True], ids=["here", "in a child"])
def test_the_measurement_sees_time_and_memory(control: Target, apart: bool) -> None:  # noqa: FBT001
    cost = spend(control, 0.3, 200, apart=apart)
    assert 0.25 < cost.cpu_s < 0.9
    assert 180 < cost.memory_mb < 300
    assert cost.find_excess(max_cpu_s=0.2) != []


def test_what_does_not_end_is_stopped(control: Target) -> None:
    cost = spend(control, 60, 1, apart=False)
    assert cost.answer.startswith("stopped")
    assert cost.find_excess() != []


def test_what_raises_is_seen(control: Target) -> None:
    cost = control.measure_requests([({}, {})])
    assert cost.answer.startswith("raised KeyError")
    assert cost.find_excess() != []


def test_each_bomb_has_a_name_of_its_own() -> None:
    assert len({bomb.key for bomb in BOMBS}) == len(BOMBS)
    assert len({bomb.name for bomb in BOMBS}) == len(BOMBS)
    assert {bomb.key for bomb in SELECTION} == set(QUICK.split())


def test_each_row_of_the_report_has_a_bomb() -> None:
    assert {bomb.row for bomb in ROWS} == {"H1", "H2", "H3", "C1"}


def test_several_files_are_the_parts_of_one_body() -> None:
    bomb = find_bomb("bmp-rle8-wide-x4")
    assert bomb.body().count(f"--{BOUNDARY}\r\n".encode()) == 4
    assert len(bomb.parts()) == 4
    assert bomb.headers()["Content-Type"].startswith("multipart/form-data")


@pytest.mark.parametrize(
    ("key", "mode", "size"),
    [
        ("png-interlaced", "RGB", (5000, 5000)),
        ("png-rgba-12", "RGBA", (3464, 3464)),
        ("jpeg-scans-64", "L", (5000, 5000)),
        ("jpeg-restarts", "L", (5000, 5000)),
        ("gif-big", "P", (5000, 5000)),
        ("bmp-big", "P", (5000, 5000)),
        ("webp-12", "RGBA", (3464, 3464)),
        ("webp-groups-16k", "RGBA", (512, 512)),
        ("tiff-12-strips", "L", (3464, 3464)),
        ("tiff-12-scans", "L", (3464, 3464)),
    ],
)
def test_a_bomb_is_a_picture_to_a_reader_without_bounds(
    key: str, mode: str, size: tuple[int, int]
) -> None:
    with Image.open(io.BytesIO(find_bomb(key).make())) as image:
        image.load()
        assert (image.mode, image.size) == (mode, size)


BATCHES = (
    "png-rgba-12 webp-12 jpeg-scans-64 gif-holes bmp-rle8-small tiff-rgba-16-12 png-no-plte "
    "jpeg-scans-2500 jpeg-soi png-tables"
)


@pytest.mark.system
@pytest.mark.parametrize("key", BATCHES.split())
def test_a_full_batch_of_dear_requests_does_not_meet_the_response_timeout(
    handler: Target, key: str
) -> None:
    cost = handler.measure(find_bomb(key), times=32)
    assert cost.find_excess(MAX_BATCH_CPU_S) == []


@pytest.fixture(scope="module")
def handler() -> Iterator[Target]:
    """A child process with the whole handler and the shipped archive."""
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    with Target("handle") as running:
        yield running


@pytest.mark.system
@pytest.mark.parametrize("key", ["png-no-plte", "jpeg-scans-2500", "webp-four", "json-lists"])
def test_the_whole_handler_costs_no_more(handler: Target, key: str) -> None:
    assert handler.measure(find_bomb(key)).find_excess(MAX_CPU_S) == []
