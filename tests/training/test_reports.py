"""What the pictures of a report say, read from the figures before they are files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from training import reports
from training.data import ImageSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(reports, "_save", lambda figure, _: figures.append(figure))
    return figures


def luminance(colour: Any) -> float:  # noqa: ANN401 - of matplotlib
    """WCAG 2.2, relative luminance."""
    channels = [
        one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in colour[:3]
    ]
    return sum(map(float.__mul__, (0.2126, 0.7152, 0.0722), map(float, channels)))


@pytest.mark.parametrize("seed", range(4))
def test_every_number_of_a_confusion_can_be_read_on_its_cell(
    drawn: list[Figure], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 40, (6, 6), generator=generator) + 900 * torch.eye(6).long()
    reports.draw_confusion(counts.tolist(), list("abcdef"), Path("confusion.png"))
    (axes,) = drawn[0].axes
    (image,) = axes.images
    mistakes = image.get_array()
    assert mistakes is not None
    assert len(axes.texts) == 36
    for text in axes.texts:
        column, row = map(round, text.get_position())
        cell = luminance(image.to_rgba(mistakes)[row, column])
        ink = {"white": 1.0, "black": 0.0}[str(text.get_color())]
        contrast = (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05)
        assert contrast >= 4.5, (text.get_text(), contrast)


@pytest.mark.parametrize("count", [1, 7, 1234])
def test_the_mistakes_of_a_model_that_makes_none_are_a_picture_that_says_so(
    drawn: list[Figure], count: int
) -> None:
    labels = torch.arange(count) % 3
    images = ImageSet(torch.zeros(count, 1, 28, 28, dtype=torch.uint8), labels)
    probabilities = torch.nn.functional.one_hot(labels, 3).float()
    reports.draw_mistakes(images, probabilities, ["a", "b", "c"], Path("mistakes.png"))
    assert [text.get_text() for text in drawn[0].texts] == [f"no mistake in {count:,} images"]


@pytest.mark.parametrize("wrong", [1, 5, 30])
def test_a_model_that_makes_mistakes_is_not_said_to_make_none(
    drawn: list[Figure], wrong: int
) -> None:
    labels = torch.zeros(40, dtype=torch.int64)
    images = ImageSet(torch.zeros(40, 1, 28, 28, dtype=torch.uint8), labels)
    found = (torch.arange(40) < wrong).long()
    probabilities = torch.nn.functional.one_hot(found, 3).float()
    reports.draw_mistakes(images, probabilities, ["a", "b", "c"], Path("mistakes.png"))
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert len(titles) == min(wrong, reports.ROWS * reports.COLUMNS)
    assert not drawn[0].texts
