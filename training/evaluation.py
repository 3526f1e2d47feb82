"""Evaluation of a classifier on images with labels: accuracy, calibration, robustness."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import torch

from .calibration import BINS, Quality, measure_quality
from .corruptions import CORRUPTIONS, corrupt

if TYPE_CHECKING:
    from torch import Tensor

    from .classifier import ImageClassifier
    from .data import ImageSet


NORMAL_95 = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""

NEAR_TIE = 0.1
"""Two probabilities that are less than this apart are nearly tied."""

DECIMALS = 6
"""Of figures in model.json: other threads sum in another order, and the file stays the same."""


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


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far the served probabilities can be believed, as `Quality` says.

    `ece` is of `ece_bins` bins of equally many images; the logits were divided by `temperature`.
    """

    temperature: float
    ece: float
    ece_bins: int
    nll: float
    brier: float


@dataclass(frozen=True, slots=True)
class Validation:
    """Answers on images that were not learned: the baseline that later answers are held against.

    `class_mix` is the share of the images that each class was the answer for, in the order of the
    labels; `mean_confidence` the mean of the probability of the answer; `near_ties` the share of
    the images whose two likeliest classes are less than `near_tie_margin` apart. All from 0 to 1.
    """

    images: int
    calibration: Calibration
    class_mix: tuple[float, ...]
    mean_confidence: float
    near_ties: float
    near_tie_margin: float = NEAR_TIE


def measure_validation(classifier: ImageClassifier, images: ImageSet) -> Validation:
    """Return what model.json says of images with labels that the classifier did not learn."""
    probabilities = classifier.predict(images.images)
    quality = measure_quality(probabilities, images.labels)
    best = probabilities.double().topk(2, dim=1).values
    counts = torch.bincount(probabilities.argmax(1), minlength=classifier.classes)
    return Validation(
        images=len(images),
        calibration=Calibration(
            temperature=round(classifier.model.temperature.item(), DECIMALS),
            ece=round(quality.ece, DECIMALS),
            ece_bins=BINS,
            nll=round(quality.nll, DECIMALS),
            brier=round(quality.brier, DECIMALS),
        ),
        class_mix=tuple(round(count / len(images), DECIMALS) for count in counts.tolist()),
        mean_confidence=round(best[:, 0].mean().item(), DECIMALS),
        near_ties=round((best[:, 0] - best[:, 1] < NEAR_TIE).double().mean().item(), DECIMALS),
    )


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
