"""Studies: what each ingredient of the recipe is worth, and each network for its speed.

All accuracies are of the validation images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, ClassVar

import torch

from .card import format_percent, render_table
from .choices import BASELINE, NETWORKS
from .classifier import ImageClassifier
from .export import freeze, load_module
from .recipe import Recipe
from .speed import count_macs, measure_throughput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .data import ImageSet

BATCHES = (64, 1)
"""Of the served module: what the connectors send, and a lone request."""

MIN_RELATIVE_SPEED = 0.9
"""Times the speed of the baseline: what the archive may cost for its accuracy."""

VARIANTS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "the recipe": lambda recipe: recipe,
    "without flip": lambda recipe: replace(recipe, flip=False),
    "without translation": lambda recipe: replace(recipe, translation=0),
    "translation by 2": lambda recipe: replace(recipe, translation=2),
    "label smoothing of 0.1": lambda recipe: replace(recipe, label_smoothing=0.1),
    "without weight decay": lambda recipe: replace(recipe, weight_decay=0.0),
    "a short warm-up": lambda recipe: replace(recipe, warm_up=0.05),
    "cutout": lambda recipe: replace(recipe, cutout=0.5),
    "in bfloat16": lambda recipe: replace(recipe, precision="bfloat16"),
}
"""One change each."""

BASELINE_RECIPE = Recipe(
    batch=64,
    max_lr=0.001,
    warm_up=None,
    weight_decay=0.0,
    label_smoothing=0.0,
    translation=0,
    flip=False,
)
"""How the baseline is trained, as tutorials do: Adam with the rate of its authors, batches of 64,
the images as they are."""


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
        return (
            self.name,
            format_percent(self.mean),
            deviation,
            ", ".join(map(format_percent, self.accuracies)),
        )


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A network that was trained for the frontier; its accuracy is a share from 0 to 1."""

    name: str
    classifier: ImageClassifier
    accuracy: float


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """A network: multiplications of one image, images/s of the exported module by batch size.

    `relative`: its images/s in batches of 64, in those of the baseline. Both are medians
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
        *("images/s in batches of 64", "images/s one by one", "times the baseline's, by 64"),
    )

    @property
    def row(self) -> tuple[str, ...]:
        """For people."""
        size = f"{self.parameters:,}", f"{self.macs / 1e6:.1f} M"
        speed = (f"{self.per_second[batch]:,.0f}" for batch in BATCHES)
        return self.name, *size, format_percent(self.accuracy), *speed, f"{self.relative:.2f}"


def render_results(found: Sequence[Ingredient] | Sequence[NetworkResult]) -> str:
    """Return a table of Markdown."""
    return render_table(found[0].HEAD, (each.row for each in found))


def run_ablation(
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
            _train(training, validation, change(recipe), network, budget, seed)[1]
            for seed in range(seeds)
        )
        spread = stdev(found) if seeds > 1 else math.nan
        yield Ingredient(name, found, mean(found), spread)


def train_networks(
    training: ImageSet, validation: ImageSet, recipe: Recipe, *, budget: float
) -> Iterator[TrainedNetwork]:
    """Train every network for `budget` seconds, the baseline by BASELINE_RECIPE."""
    plain = replace(BASELINE_RECIPE, epochs=recipe.epochs, balance=recipe.balance)
    for name in NETWORKS:
        chosen = plain if name == BASELINE else recipe
        yield TrainedNetwork(name, *_train(training, validation, chosen, name, budget, seed=0))


def measure_frontier(
    trained: Sequence[TrainedNetwork], *, rounds: int = 9, seconds: float = 0.3
) -> list[NetworkResult]:
    """Measure the networks, the baseline among them, in turns.

    Each is served for so many seconds in every round.
    """
    modules = {entry.name: load_module(freeze(entry.classifier)) for entry in trained}
    classifier = trained[0].classifier
    shape = (classifier.channels, *classifier.size)
    images = {batch: torch.zeros(batch, *shape, dtype=torch.uint8) for batch in BATCHES}
    speeds_by_round = [
        {
            (name, batch): measure_throughput(module, images[batch], seconds)
            for batch in BATCHES
            for name, module in modules.items()
        }
        for _ in range(rounds)
    ]
    return [
        NetworkResult(
            name=entry.name,
            parameters=sum(weights.numel() for weights in entry.classifier.model.parameters()),
            macs=count_macs(entry.classifier.model.network, shape),
            accuracy=entry.accuracy,
            per_second={
                batch: median(speeds[entry.name, batch] for speeds in speeds_by_round)
                for batch in BATCHES
            },
            relative=median(
                speeds[entry.name, BATCHES[0]] / speeds[BASELINE, BATCHES[0]]
                for speeds in speeds_by_round
            ),
        )
        for entry in trained
    ]


def choose_best(results: Sequence[NetworkResult]) -> NetworkResult:
    """Return the most accurate network that is served about as fast as the baseline."""
    return max(
        (each for each in results if each.relative >= MIN_RELATIVE_SPEED),
        key=lambda each: each.accuracy,
    )


def _train(
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
