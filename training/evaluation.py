"""Evaluation of a classifier on images with labels: accuracy, calibration, robustness."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import torch

from .calibration import Quality, measure_quality
from .corruptions import CORRUPTIONS, corrupt

if TYPE_CHECKING:
    from torch import Tensor

    from .classifier import ImageClassifier
    from .data import ImageSet


NORMAL_95 = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Shares go from 0 to 1; `interval` holds the accuracy with 95 % confidence (Wilson).

    `uncalibrated` is of the probabilities at a temperature of 1, `calibrated` of those served.
    `confusion`: how often each label, a row, was taken for each class.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    temperature: float
    uncalibrated: Quality
    calibrated: Quality
    confusion: list[list[int]]


def evaluate(classifier: ImageClassifier, images: ImageSet) -> Evaluation:
    """Evaluate a classifier on images of its own size, labels and channels."""
    logits, labels = classifier.logits(images.images), images.labels
    temperature = classifier.model.temperature.item()
    matrix = count_confusion(labels, logits.argmax(1), classifier.classes)
    right = int(matrix.diag().sum())
    return Evaluation(
        images=len(images),
        accuracy=right / len(images),
        interval=wilson(right, len(images)),
        temperature=temperature,
        uncalibrated=measure_quality((logits * temperature).softmax(1), labels),
        calibrated=measure_quality(logits.softmax(1), labels),
        confusion=matrix.tolist(),
    )


def measure_robustness(classifier: ImageClassifier, images: ImageSet) -> dict[str, float]:
    """Return the accuracy under each corruption, and of the negatives."""
    changed = {
        name: corrupt(name, images.images, classifier.background) for name in CORRUPTIONS
    } | {"negative": 255 - images.images}
    return {
        name: (classifier.predict(each).argmax(1) == images.labels).double().mean().item()
        for name, each in changed.items()
    }


def recall(matrix: list[list[int]]) -> list[float]:
    """Return of each class the share that was found; NaN for a class without images."""
    counts = torch.tensor(matrix, dtype=torch.float64)
    shares: list[float] = (counts.diag() / counts.sum(1)).tolist()
    return shares


def precision(matrix: list[list[int]]) -> list[float]:
    """Return of each class the share that was right where it was named; NaN if it never was."""
    counts = torch.tensor(matrix, dtype=torch.float64)
    shares: list[float] = (counts.diag() / counts.sum(0)).tolist()
    return shares


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of which `right` of `total` were seen (Wilson 1927)."""
    share, weight = right / total, NORMAL_95**2 / total
    centre = share + weight / 2
    reach = NORMAL_95 * sqrt(share * (1 - share) / total + weight / (4 * total))
    # Rounding must not lead out of 0..1.
    return max(0.0, (centre - reach) / (1 + weight)), min(1.0, (centre + reach) / (1 + weight))


def count_confusion(labels: Tensor, found: Tensor, classes: int) -> Tensor:
    """Return how often each label (row) was taken for each class (column), int64."""
    return torch.bincount(labels * classes + found, minlength=classes**2).view(classes, classes)
