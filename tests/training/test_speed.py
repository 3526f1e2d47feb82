from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import nn

from training import ImageClassifier
from training.choices import NETWORKS
from training.errors import DataError
from training.export import freeze, load_module
from training.networks import find_network
from training.speed import (
    choose_network,
    count_macs,
    estimate_passes,
    list_fast_precisions,
    measure_speed,
    measure_throughput,
)

from .conftest import answers_of

MNIST = (1, 28, 28)


def test_multiplications_are_counted_where_they_happen() -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5)
    )

    assert count_macs(network, (3, 4, 4)) == 3 * 9 * 8 * 16 + 8 * 16 * 5


def test_the_tutorials_network_is_the_usual_one() -> None:
    classifier = ImageClassifier(1, 10, size=28, network="baseline")

    shapes = [tuple(weights.shape) for weights in classifier.model.network.parameters()]
    assert [shape for shape in shapes if len(shape) > 1] == [
        (32, 1, 3, 3),
        (64, 32, 3, 3),
        (128, 3136),
        (10, 128),
    ]


def test_the_speed_is_operations_over_seconds() -> None:
    ticks = count()
    found = measure_speed("float32", seconds=4.0, clock=lambda: float(next(ticks)))

    # The clock is looked at once before, once for each step, and once more at the end.
    steps, seconds = 3, 5
    operations = 6 * count_macs(find_network("stride-32-64-128")(*MNIST[:1], 10), MNIST) * 256
    assert found == pytest.approx(steps * operations / seconds / 1e9)


def test_the_speed_of_a_precision_is_measured_in_it() -> None:
    with answers_of(nn.Conv2d) as made:
        assert measure_speed("bfloat16", seconds=0.0) > 0

    assert {kind for learned, kind in made if learned} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("capability", "device", "precisions"),
    [
        ("AVX512", "cpu", ("float32", "bfloat16")),
        ("AVX2", "cpu", ("float32",)),
        ("AVX2", "cuda", ("float32", "bfloat16")),
    ],
)
def test_bfloat16_is_not_even_measured_where_a_step_may_take_many_seconds(
    monkeypatch: pytest.MonkeyPatch, capability: str, device: str, precisions: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    assert list_fast_precisions(torch.device(device)) == precisions


def test_images_that_are_too_small_for_a_network_are_named() -> None:
    with pytest.raises(DataError, match="cannot take images of 4x4: make them larger"):
        choose_network(180.0, 100, (1, 4, 4), 80.0)


def test_passes_are_the_time_over_that_of_one() -> None:
    operations = 6 * count_macs(find_network("pyramid-16-48-96")(1, 10), MNIST) * 55_000

    found = estimate_passes(180.0, 55_000, MNIST, 160.0, "pyramid-16-48-96")

    assert found == pytest.approx(180.0 * 160e9 / operations)


@pytest.mark.parametrize("gflops", [160.0, 280.0])
def test_more_time_is_given_to_a_larger_network(gflops: float) -> None:
    budgets = (60.0, 180.0, 900.0, 3600.0)

    assert [choose_network(budget, 55_000, MNIST, gflops) for budget in budgets] == [
        "pyramid-16-48-96",
        "pyramid-16-48-96",
        "residual-24-64-128",
        "residual-48-96-192",
    ]


def test_a_slow_machine_and_large_images_get_a_small_network() -> None:
    assert choose_network(900.0, 55_000, MNIST, 80.0) == "pyramid-24-64-128"
    assert choose_network(3600.0, 55_000, MNIST, 80.0) == "residual-24-64-128"
    assert choose_network(3600.0, 55_000, MNIST, 10.0) == "pyramid-16-48-96"
    assert choose_network(3600.0, 55_000, (3, 112, 112), 80.0) == "pyramid-16-48-96"
    assert choose_network(3600.0, 1_000, (3, 112, 112), 80.0) == "residual-48-96-192"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_served(name: str) -> None:
    classifier = ImageClassifier(3, 4, size=(9, 13), network=name)

    images = torch.zeros(2, 3, 9, 13, dtype=torch.uint8)
    assert measure_throughput(load_module(freeze(classifier)), images, seconds=0.0) > 0
