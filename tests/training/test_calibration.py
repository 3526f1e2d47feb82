from __future__ import annotations

import pytest
import torch

from training.calibration import (
    MIN_IMAGES,
    Quality,
    explain_no_fit,
    fit_temperature,
    measure_quality,
    measure_reliability,
)


def believed(number: int, heat: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Make labels that come as often as the softmax of the logits says, then heat the logits."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(number, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()
    return logits * heat, labels


@pytest.mark.parametrize("heat", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_too_much_and_too_little_confidence(heat: float) -> None:
    logits, labels = believed(20_000, heat)

    found = fit_temperature(logits, labels)

    assert found == pytest.approx(heat, rel=0.05)
    assert measure_quality((logits / found).softmax(1), labels).ece < 0.015


def test_no_other_temperature_is_better() -> None:
    logits, labels = believed(500, 3.0)
    best = fit_temperature(logits, labels)

    at = [
        measure_quality((logits / (best * by)).softmax(1), labels).nll for by in (0.98, 1.0, 1.02)
    ]

    assert at[1] < min(at[0], at[2])


def test_a_set_without_a_mistake_has_a_temperature_too() -> None:
    logits = 3 * torch.eye(4)

    assert fit_temperature(logits, torch.arange(4)) == pytest.approx(1 / 20)


@pytest.mark.parametrize("number", [1, 6, MIN_IMAGES - 1])
def test_a_handful_of_images_calibrates_nothing(number: int) -> None:
    found = explain_no_fit(1.5, number)
    assert found == f"{number} images are too few to calibrate, it takes {MIN_IMAGES}"
    assert not explain_no_fit(1.5, MIN_IMAGES)


@pytest.mark.parametrize("sharpness", [0.1, 3.0, 30.0])
@pytest.mark.parametrize(("moved", "sentence"), [(0, "no image of 40 is wrong"), (1, "hardly an")])
def test_where_all_are_right_or_none_there_is_nothing_to_fit(
    sharpness: float, moved: int, sentence: str
) -> None:
    labels = torch.arange(40) % 4
    found = fit_temperature(sharpness * torch.eye(4)[labels], (labels + moved) % 4)

    assert explain_no_fit(found, 40).startswith(sentence)


def test_the_three_measures_of_a_sure_prophet() -> None:
    labels = torch.tensor([0, 1, 1, 1])

    right = measure_quality(torch.eye(2)[labels], labels)
    wrong = measure_quality(torch.eye(2)[1 - labels], labels)

    assert right == Quality(0.0, 0.0, 0.0)
    assert (wrong.ece, wrong.brier) == (1.0, 2.0)
    assert 80 < wrong.nll < 90


def test_the_three_measures_by_hand() -> None:
    probabilities = torch.tensor([[0.8, 0.2], [0.6, 0.4]], dtype=torch.float64)

    found = measure_quality(probabilities, torch.tensor([0, 1]))

    assert found.ece == pytest.approx((0.2 + 0.6) / 2)
    assert found.nll == pytest.approx((0.22314 + 0.91629) / 2, abs=1e-5)
    assert found.brier == pytest.approx((0.08 + 0.72) / 2)


def test_bins_hold_equally_many_images_and_rise_in_confidence() -> None:
    logits, labels = believed(1_000, 1.0)

    confidence, accuracy, sizes = measure_reliability(logits.softmax(1), labels)

    assert sizes.sum() == 1_000
    assert set(sizes.tolist()) == {66.0, 67.0}
    assert torch.equal(confidence, confidence.sort().values)
    assert accuracy[-1] > accuracy[0]
