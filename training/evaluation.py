"""A classifier held against images with labels: how often it is right, and how honest it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .calibration import Quality, quality
from .corruptions import CORRUPTIONS, corrupted
from .reports import confusion, wilson

if TYPE_CHECKING:
    from .classifier import ImageClassifier
    from .data import ImageSet


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


def judge(classifier: ImageClassifier, images: ImageSet) -> Evaluation:
    """Evaluate a classifier on images of its own size, labels and channels."""
    logits, labels = classifier.logits(images.images), images.labels
    temperature = classifier.model.temperature.item()
    matrix = confusion(labels, logits.argmax(1), classifier.classes)
    right = int(matrix.diag().sum())
    return Evaluation(
        images=len(images),
        accuracy=right / len(images),
        interval=wilson(right, len(images)),
        temperature=temperature,
        uncalibrated=quality((logits * temperature).softmax(1), labels),
        calibrated=quality(logits.softmax(1), labels),
        confusion=matrix.tolist(),
    )


def robustness(classifier: ImageClassifier, images: ImageSet) -> dict[str, float]:
    """Return the accuracy under each corruption, and of the negatives."""
    changed = {
        name: corrupted(name, images.images, classifier.background) for name in CORRUPTIONS
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
