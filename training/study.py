"""What an ingredient is worth, and which network is the best for its speed: two tables.

All accuracies are of the validation images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, ClassVar

import torch

from .card import percent, table
from .classifier import ImageClassifier
from .export import freeze, loaded
from .networks import NETWORKS, TUTORIAL
from .recipe import Recipe
from .speed import macs, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .data import ImageSet

BATCHES = (64, 1)
"""Of the served module: what the connectors send, and a lone request."""

FAST = 0.9
"""Times the speed of the tutorial's network: what the archive may cost for its accuracy."""

VARIANTS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "the recipe": lambda recipe: recipe,
    "without flip": lambda recipe: replace(recipe, flip=False),
    "without shift": lambda recipe: replace(recipe, shift=0),
    "shift by 2": lambda recipe: replace(recipe, shift=2),
    "smoothed labels, by a tenth": lambda recipe: replace(recipe, smoothing=0.1),
    "without weight decay": lambda recipe: replace(recipe, weight_decay=0.0),
    "a short warm-up": lambda recipe: replace(recipe, warm_up=0.05),
    "blanked parts": lambda recipe: replace(recipe, erase=0.5),
    "in bfloat16": lambda recipe: replace(recipe, precision="bfloat16"),
}
"""One change each."""

PLAIN = Recipe(
    batch=64, peak=0.001, warm_up=None, weight_decay=0.0, smoothing=0.0, shift=0, flip=False
)
"""As tutorials train: Adam with the rate of its authors, batches of 64, the images as they are."""


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
class Entry:
    """A network that was trained for the frontier; its accuracy is a share from 0 to 1."""

    name: str
    classifier: ImageClassifier
    accuracy: float


@dataclass(frozen=True, slots=True)
class Point:
    """A network: multiplications of one image, images/s of the exported module by batch size.

    `relative`: its images/s in batches of 64, in those of the tutorial's network. Both are medians
    over rounds in which the networks take turns, so that a slow moment of the machine meets all.
    """

    name: str
    parameters: int
    macs: int
    accuracy: float
    per_second: Mapping[int, float]
    relative: float

    HEAD: ClassVar = (
        *("network", "parameters", "MACs", "accuracy"),
        *("images/s in batches of 64", "images/s one by one", "times the tutorial's, by 64"),
    )

    @property
    def row(self) -> tuple[str, ...]:
        """For people."""
        size = f"{self.parameters:,}", f"{self.macs / 1e6:.1f} M"
        speed = (f"{self.per_second[batch]:,.0f}" for batch in BATCHES)
        return self.name, *size, percent(self.accuracy), *speed, f"{self.relative:.2f}"


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


def entries(
    training: ImageSet, validation: ImageSet, recipe: Recipe, *, budget: float
) -> Iterator[Entry]:
    """Train every network for `budget` seconds.

    The tutorial's is trained as tutorials do.
    """
    plain = replace(PLAIN, epochs=recipe.epochs, balance=recipe.balance)
    for name in NETWORKS:
        chosen = plain if name == TUTORIAL else recipe
        yield Entry(name, *_trained(training, validation, chosen, name, budget, seed=0))


def frontier(entered: Sequence[Entry], *, rounds: int = 9, seconds: float = 0.3) -> list[Point]:
    """Serve the entries, the tutorial's network among them, in turns; so long in each round."""
    modules = {entry.name: loaded(freeze(entry.classifier)) for entry in entered}
    classifier = entered[0].classifier
    shape = (classifier.channels, *classifier.size)
    images = {batch: torch.zeros(batch, *shape, dtype=torch.uint8) for batch in BATCHES}
    told = [
        {
            (name, batch): served(module, images[batch], seconds)
            for batch in BATCHES
            for name, module in modules.items()
        }
        for _ in range(rounds)
    ]
    return [
        Point(
            name=entry.name,
            parameters=sum(weights.numel() for weights in entry.classifier.model.parameters()),
            macs=macs(entry.classifier.model.network, shape),
            accuracy=entry.accuracy,
            per_second={
                batch: median(speeds[entry.name, batch] for speeds in told) for batch in BATCHES
            },
            relative=median(
                speeds[entry.name, BATCHES[0]] / speeds[TUTORIAL, BATCHES[0]] for speeds in told
            ),
        )
        for entry in entered
    ]


def best(points: Sequence[Point]) -> Point:
    """Return the most accurate network that is served about as fast as the tutorial's."""
    return max((each for each in points if each.relative >= FAST), key=lambda each: each.accuracy)


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
