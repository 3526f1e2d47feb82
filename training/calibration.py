"""Calibration: whether probabilities can be believed, and the temperature that mends them.

A network's logits divided by a temperature give the same classes with more or less confidence; the
temperature that suits images it has not learned makes the confidence honest (Guo et al., On
Calibration of Modern Neural Networks, ICML 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

BINS = 15

HOTTEST = 20.0
"""Temperatures lie between this and its inverse; a set without a mistake would ask for zero."""

MIN_IMAGES = 20
"""That a temperature is fitted to; fewer say more of themselves than of the classifier."""

HALVINGS = 60
"""Of the interval: more than a float64 can tell apart."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Of probabilities: all three are better when smaller.

    `ece`: expected calibration error, the mean distance between confidence and accuracy.
    `nll`: negative log-likelihood of the labels, in nats.
    `brier`: squared distance between the probabilities and the label, 0 to 2.
    """

    ece: float
    nll: float
    brier: float


def measure_quality(probabilities: Tensor, labels: Tensor) -> Quality:
    """Return how far probabilities [N, classes] can be believed; labels are int64 [N]."""
    exact = probabilities.double()
    true = exact.gather(1, labels[:, None])
    target = torch.zeros_like(exact).scatter_(1, labels[:, None], 1.0)
    confidence, accuracy, sizes = measure_reliability(exact, labels)
    distance = (confidence - accuracy).abs() * sizes
    return Quality(
        ece=(distance.sum() / sizes.sum()).item(),
        nll=-true.clamp(min=torch.finfo(torch.float32).tiny).log().mean().item(),
        brier=(exact - target).square().sum(1).mean().item(),
    )


def measure_reliability(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean confidence, accuracy and size of bins of equally many images, by confidence."""
    confidence, found = probabilities.max(1)
    order = confidence.argsort(stable=True)
    bins = [indices for indices in order.tensor_split(BINS) if len(indices)]
    right = (found == labels).double()
    return (
        torch.stack([confidence[indices].double().mean() for indices in bins]),
        torch.stack([right[indices].mean() for indices in bins]),
        torch.tensor([float(len(indices)) for indices in bins], dtype=torch.float64),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the number to divide logits [N, classes] by, at which their likelihood is highest.

    The negative log-likelihood is convex in 1 / temperature, so its slope is halved to zero.
    """
    exact = logits.double()
    seen = exact.gather(1, labels[:, None]).mean()
    low, high = 1 / HOTTEST, HOTTEST
    for _ in range(HALVINGS):
        middle = sqrt(low * high)
        expected = ((middle * exact).softmax(1) * exact).sum(1).mean()
        low, high = (low, middle) if expected > seen else (middle, high)
    return 1 / sqrt(low * high)


def explain_no_fit(found: float, images: int) -> str:
    """Return why the temperature found on so many images means nothing; "" if it means something.

    It lies at its bound where no image is wrong, so that no confidence would be too high, and
    where hardly one is right.
    """
    if images < MIN_IMAGES:
        return f"{images} images are too few to calibrate, it takes {MIN_IMAGES}"
    if not 1.001 / HOTTEST < found < HOTTEST / 1.001:  # the fit ends beside the bound, not on it
        which = "is wrong" if found < 1 else "tells the classes apart"
        what = "no image" if found < 1 else "hardly an image"
        return f"{what} of {images} {which}, so there is nothing to calibrate with"
    return ""
