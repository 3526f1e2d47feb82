"""Sentences and pictures of a run and of its evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from .calibration import measure_reliability
from .files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from .data import ImageSet
    from .evaluation import Evaluation
    from .recipe import Epoch

ROWS, COLUMNS = 4, 6
"""Of the grid of mistakes."""

EQUAL_CONTRAST = 0.179
"""The relative luminance that has the same contrast with black as with white."""


def render_evaluation(found: Evaluation, robustness: Mapping[str, float]) -> str:
    """Return an evaluation for people."""
    low, high = found.interval
    before, after = found.uncalibrated, found.calibrated
    accuracy = (
        f"{100 * found.accuracy:.2f} % of {found.images:,} images "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %, Wilson)"
    )
    trust = (
        f"calibrated by a temperature of {found.temperature:.3f}: "
        f"ECE {100 * before.ece:.2f} -> {100 * after.ece:.2f} %, "
        f"NLL {before.nll:.4f} -> {after.nll:.4f}, "
        f"Brier score {before.brier:.4f} -> {after.brier:.4f}"
    )
    under = [f"{100 * share:6.2f} %  {name}" for name, share in robustness.items()]
    return "\n".join([accuracy, trust, *under])


def draw_curves(epochs: Sequence[Epoch], path: Path) -> None:
    """Draw loss and accuracy over the seconds of the training."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    seconds = [epoch.seconds for epoch in epochs]
    left.plot(seconds, [epoch.loss for epoch in epochs], marker="o")
    left.set(title="loss, augmented training images", xlabel="seconds")
    right.plot(seconds, [100 * e.accuracy for e in epochs], marker="o", label="augmented training")
    validated = [(e.seconds, 100 * e.validation_accuracy) for e in epochs if e.validation_accuracy]
    right.plot(*zip(*validated, strict=True), marker="o", label="validation") if validated else None
    right.set(title="accuracy, %", xlabel="seconds")
    right.legend()
    _save(figure, path)


def draw_confusion(counts: list[list[int]], names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix; the colours leave out the diagonal, which would drown the rest."""
    matrix = torch.tensor(counts)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    mistakes = (matrix - matrix.diag().diag()).numpy()
    drawn = axes.imshow(mistakes, cmap="Reds")
    cells = drawn.to_rgba(mistakes)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="label")
    for row, line in enumerate(counts):
        for column, number in enumerate(line):
            ink = "white" if _is_dark(*cells[row, column, :3]) else "black"
            axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=ink)
    _save(figure, path)


def _is_dark(red: float, green: float, blue: float) -> bool:
    """Say whether white is read better than black on a colour (WCAG 2.2, relative luminance)."""
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return bool(luminance < EQUAL_CONTRAST)


def draw_reliability(probabilities: Tensor, labels: Tensor, path: Path) -> None:
    """Draw the accuracy over the confidence, in bins of equally many images."""
    confidence, accuracy, _ = measure_reliability(probabilities, labels)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="as sure as right")
    axes.plot(confidence.numpy(), accuracy.numpy(), marker="o", label="validation images")
    axes.set(xlabel="confidence", ylabel="accuracy", title="reliability, calibrated")
    axes.legend()
    _save(figure, path)


def draw_mistakes(
    images: ImageSet, probabilities: Tensor, names: Sequence[str], path: Path
) -> None:
    """Draw those of the images that were taken for another class with the highest confidence."""
    confidence, found = probabilities.max(1)
    wrong = (found != images.labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][: ROWS * COLUMNS]
    figure = Figure(figsize=(2 * COLUMNS, 2.4 * ROWS), layout="constrained")
    grid = figure.subplots(ROWS, COLUMNS).flatten()
    for axes in grid:
        axes.set_axis_off()
    if not len(worst):
        figure.text(0.5, 0.5, f"no mistake in {len(found):,} images", ha="center", fontsize=20)
    for axes, at in zip(grid, worst.tolist(), strict=False):
        pixels = images.images[at].permute(1, 2, 0).squeeze(2)
        axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=255)
        label, taken = names[int(images.labels[at])], names[int(found[at])]
        axes.set_title(f"{label}\ntaken for {taken}, {100 * confidence[at]:.0f} %", fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
