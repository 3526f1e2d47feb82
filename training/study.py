"""What an ingredient is worth, and which network is the best for its speed: two tables.

All accuracies are of the validation images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, ClassVar

from .card import percent, table
from .classifier import ImageClassifier
from .networks import NETWORKS
from .speed import macs, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .data import ImageSet
    from .recipe import Recipe

BATCHES = (64, 1)
"""Of the served module: what the connectors send, and a lone request."""

VARIANTS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "the recipe": lambda recipe: recipe,
    "without flip": lambda recipe: replace(recipe, flip=False),
    "without shift": lambda recipe: replace(recipe, shift=0),
    "shift by 2": lambda recipe: replace(recipe, shift=2),
    "without label smoothing": lambda recipe: replace(recipe, smoothing=0.0),
    "without weight decay": lambda recipe: replace(recipe, weight_decay=0.0),
    "half the peak rate": lambda recipe: replace(recipe, peak=recipe.peak / 2),
    "a short warm-up": lambda recipe: replace(recipe, warm_up=recipe.warm_up / 4),
}
"""One change each."""


@dataclass(frozen=True, slots=True)
class Ingredient:
    """Accuracies as shares from 0 to 1, over the seeds; `deviation` is NaN for one seed."""

    name: str
    accuracies: tuple[float, ...]
    mean: float
    deviation: float

    HEAD: ClassVar = ("what", "mean accuracy", "standard deviation, points", "of seeds")

    @property
    def row(self) -> tuple[str, ...]:
        """For people."""
        deviation = f"{100 * self.deviation:.2f}"
        return self.name, percent(self.mean), deviation, ", ".join(map(percent, self.accuracies))


@dataclass(frozen=True, slots=True)
class Point:
    """A network: multiplications of one image, images/s of the exported module by batch size."""

    name: str
    parameters: int
    macs: int
    accuracy: float
    per_second: Mapping[int, float]

    HEAD: ClassVar = (
        *("network", "parameters", "MACs", "accuracy"),
        *("images/s in batches of 64", "images/s one by one"),
    )

    @property
    def row(self) -> tuple[str, ...]:
        """For people."""
        size = f"{self.parameters:,}", f"{self.macs / 1e6:.1f} M"
        speed = (f"{self.per_second[batch]:,.0f}" for batch in BATCHES)
        return self.name, *size, percent(self.accuracy), *speed


def table_of(found: Sequence[Ingredient] | Sequence[Point]) -> str:
    """Return a table of Markdown."""
    return table(found[0].HEAD, (each.row for each in found))


def ablation(
    training: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    *,
    network: str,
    budget: float,
    seeds: int,
) -> Iterator[Ingredient]:
    """Train every variant with every seed, for `budget` seconds each."""
    for name, change in VARIANTS.items():
        found = tuple(
            _trained(training, validation, change(recipe), network, budget, seed)[1]
            for seed in range(seeds)
        )
        spread = stdev(found) if seeds > 1 else math.nan
        yield Ingredient(name, found, mean(found), spread)


def frontier(
    training: ImageSet, validation: ImageSet, recipe: Recipe, *, budget: float, seconds: float = 1.0
) -> Iterator[Point]:
    """Train every network for `budget` seconds, and serve it for `seconds` in each batch size.

    The tutorial's is trained as tutorials do: Adam, no augmentation, no smoothing.
    """
    plain = replace(recipe, flip=False, shift=0, smoothing=0.0, weight_decay=0.0)
    for name in NETWORKS:
        chosen = plain if name == "tutorial" else recipe
        classifier, accuracy = _trained(training, validation, chosen, name, budget, seed=0)
        shape = (classifier.channels, *classifier.size)
        yield Point(
            name=name,
            parameters=sum(weights.numel() for weights in classifier.model.parameters()),
            macs=macs(classifier.model.network, shape),
            accuracy=accuracy,
            per_second={batch: served(classifier, batch, seconds) for batch in BATCHES},
        )


def _trained(
    training: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    network: str,
    budget: float,
    seed: int,
) -> tuple[ImageClassifier, float]:
    channels, height, width = training.images.shape[1:]
    classifier = ImageClassifier(
        channels, len(training.names), size=(height, width), network=network, seed=seed
    )
    for _ in classifier.steps(training, None, budget, recipe=recipe):
        pass
    return classifier, classifier.evaluate(validation)
