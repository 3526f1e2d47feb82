"""Groups of several relays and sweeps, by their figures; what runs in them is tested elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import pytest
from PIL import Image

from connectors.verbs import Pace
from tests.bench.kafka import encode_enlarged, pad_png
from tests.bench.measured import Measured
from tests.bench.relays import Event, Scaling, find_gap, find_silences, list_moments
from tests.bench.sweep import CURVES, Sweep, choose_curves, compare_default, measure
from tools.servers.process import StackError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.kafka import Contestant, KafkaBenchmark


def measured(rate: float) -> Measured:
    return Measured(records_s=rate, cpu_us={"relay": 150.0, "kafka": 30.0}, rss_mb={}, cores=1.5)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.0, 9.0, 4.0), (3.0, 9.0, 4.0), (0.0, 7.0, 1.0), (8.0, 9.0, 1.0), (20.0, 23.0, 3.0)],
)
def test_a_gap_belongs_to_the_span_in_which_it_ends(
    start: float, end: float, expected: float
) -> None:
    assert find_gap([7.0, 1.0, 2.0, 3.0], start, end) == expected


def test_the_silence_of_an_event_is_that_of_the_partition_that_waited_longest() -> None:
    quick = [float(second) for second in range(31)]
    slow = [*quick[:12], *quick[16:]]
    events = [Event("nothing happens", 0.5), Event("one dies", 10.5), Event("later", 20.5)]
    assert find_silences({0: quick, 1: slow}, events) == {
        "nothing happens": 1.0,
        "one dies": 5.0,
        "later": 1.0,
    }


def test_moments_are_kept_by_partition_in_seconds() -> None:
    found = [SimpleNamespace(partition=one % 2, timestamp=1000 * one) for one in range(4)]
    assert list_moments(found) == {0: [0.0, 2.0], 1: [1.0, 3.0]}


def test_relays_are_compared_with_one_alone(tmp_path: Path) -> None:
    runs = {1: measured(1000.0), 2: measured(1500.0)}
    scaling = Scaling(runs=runs, silences={"one dies": 10.25})
    _, one, two, *_, dies = scaling.render().splitlines()
    assert one.split()[:3] == ["1", "1,000", "1.00"]
    assert two.split()[:3] == ["2", "1,500", "1.50"]
    assert dies.split() == ["one", "dies", "10.2"]
    assert scaling.to_dict()["silence_s"] == {"one dies": 10.25}
    assert scaling.to_dict()["relays"]["2"]["records_s"] == 1500.0
    scaling.draw(tmp_path / "relays.svg")
    assert (tmp_path / "relays.svg").stat().st_size > 0


class FakeMaker:
    """Notes what was asked for; the rate of a run is that of its flags."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def __call__(
        self, records: int, *, partitions: int, size: int, payload: int, network: str
    ) -> KafkaBenchmark:
        self.made = (records, partitions, size, payload, network)
        return cast("KafkaBenchmark", self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, contestant: Contestant, relays: int) -> Measured:
        self.asked.append((*self.made, tuple(contestant.flags), relays))
        return measured(100.0 * len(self.asked))


def test_a_sweep_changes_one_setting_after_one_run_that_does_not_count(tmp_path: Path) -> None:
    make, lines = FakeMaker(), list[str]()
    found = measure(make, 800, "partitions,image size,kB,resnet", lines.append)
    assert make.asked[0] == (800, 4, 28, 0, "shipped", (), 1)
    assert make.asked[1:6] == [(800, one, 28, 0, "shipped", (), 1) for one in (1, 2, 4, 8, 16)]
    assert make.asked[10] == (100, 4, 512, 0, "shipped", (), 1)
    assert make.asked[14] == (32, 4, 28, 500_000, "shipped", (), 1)
    assert make.asked[-1] == (24, 4, 224, 0, "resnet18", (), 1)
    assert len(lines) == len(make.asked) - 1
    assert [value for value, _ in found.curves["partitions"]] == [1, 2, 4, 8, 16]
    assert found.to_dict()["image size"][0]["value"] == 28
    assert found.list_targets() == []
    found.draw(tmp_path / "sweep.svg")
    assert (tmp_path / "sweep.svg").stat().st_size > 0


@pytest.mark.parametrize(("best", "met"), [(111.0, True), (112.0, False)])
def test_a_default_is_held_against_the_best(best: float, *, met: bool) -> None:
    default = Pace.model_fields["pack"].default
    curve = [(1, measured(50.0)), (default, measured(100.0)), (1024, measured(best))]
    assert compare_default("pack", curve, default).met is met
    assert ("yes" if met else "NO") in Sweep({"pack": curve}).render()


def test_an_unknown_curve_is_named() -> None:
    assert choose_curves(None) == CURVES
    with pytest.raises(StackError, match="no curve 'colour'"):
        choose_curves("pack,colour")


def test_an_enlarged_image_repeats_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode_enlarged(np.array([[1, 2], [3, 4]], np.uint8), 4))
    with Image.open(path) as found:
        rows: Any = np.asarray(found).tolist()
    assert rows == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


@pytest.mark.parametrize("size", [0, 80, 100, 5000, 500_000])
def test_a_padded_png_is_as_large_as_wanted_and_the_same_image(size: int, tmp_path: Path) -> None:
    plain = encode_enlarged(np.arange(16, dtype=np.uint8).reshape(4, 4), 4)
    padded = pad_png(plain, size)
    assert len(padded) == (size if size >= len(plain) + 12 else len(plain))
    (tmp_path / "image.png").write_bytes(padded)
    with Image.open(tmp_path / "image.png") as found:
        rows: Any = np.asarray(found)
    assert rows.tobytes() == bytes(range(16))
