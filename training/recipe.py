"""How weights are found: batches, augmentation, schedule, steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from .data import ImageSet

Clock = Callable[[], float]
"""Seconds, from any start, never backwards."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is chosen once, on the validation images; rates are for batches of 256."""

    batch: int = 256
    peak: float = 0.01
    """The highest learning rate of AdamW."""
    warm_up: float = 0.2
    """The share of the training in which the learning rate rises."""
    weight_decay: float = 0.01
    smoothing: float = 0.1
    shift: int = 1
    """Pixels by which an image is moved at most, up, down and sideways."""
    flip: bool = True
    """Whether the mirror image of a class is of the same class."""
    epochs: int = 500
    """A small data set is finished after so many passes, even if budget is left."""


@dataclass(frozen=True, slots=True)
class Step:
    """One batch was learned; `progress` goes from 0 to 1, `rate` is the learning rate used."""

    number: int
    progress: float
    rate: float
    images: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass was made over the images, the last one perhaps in part.

    Accuracies are shares from 0 to 1; `accuracy` and `loss` are of the augmented training images
    while the weights changed, `validation_accuracy` is of the weights at the end of the epoch.
    `seconds` counts from the start of the training.
    """

    number: int
    steps: int
    seconds: float
    loss: float
    accuracy: float
    validation_accuracy: float
    images_per_second: float


def one_cycle(progress: float, warm_up: float) -> float:
    """Return the share of the peak learning rate: a line up to 1 at `warm_up`, a line down to 0.

    Linear to zero at the end of the budget: Li et al., Budgeted Training, ICLR 2020.
    """
    return max(0.0, min(progress / warm_up, (1 - progress) / (1 - warm_up)))


class Augmentation:
    """Mirrors and shifts whole batches of uint8 images; what moves in has the background's value.

    Each image is mirrored in every second epoch, not by chance, so that both sides are seen
    equally often even in a short training (arXiv 2404.00498, "alternating flip").
    """

    def __init__(self, data: ImageSet, recipe: Recipe, generator: torch.Generator) -> None:
        self._shift, self._flip, self._generator = recipe.shift, recipe.flip, generator
        self._size = data.images.shape[-2:]
        self._padded = functional.pad(
            data.images, (recipe.shift,) * 4, value=float(data.background())
        )
        self._side = torch.randint(2, (len(data),), generator=generator)

    def __call__(self, indices: Tensor, epoch: int) -> Tensor:
        """Return the images [N, C, H, W] at `indices` as they are seen in this epoch."""
        rows, columns = (self._window(len(indices), length) for length in self._size)
        if self._flip:
            mirrored = (self._side[indices] + epoch) % 2 == 1
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        shifted = self._padded[indices[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return shifted.permute(0, 3, 1, 2)

    def _window(self, images: int, length: int) -> Tensor:
        """Return the places [N, length] to read along one axis of the padded images."""
        start = torch.randint(2 * self._shift + 1, (images, 1), generator=self._generator)
        return start + torch.arange(length)


def fit(
    model: nn.Module,
    training: ImageSet,
    validate: Callable[[], float],
    recipe: Recipe,
    *,
    budget: float,
    seed: int,
    clock: Clock,
) -> Iterator[Step | Epoch]:
    """Train `model` in place for `budget` seconds, telling every step and every epoch.

    The learning rate follows the larger of two shares, that of the steps and that of the time, so
    it always reaches zero at the end, however fast the machine is and whatever else it does.
    """
    generator = torch.Generator().manual_seed(seed)
    learn = Learner(model, training, recipe, generator)
    batches = -(-len(training) // recipe.batch)
    start, number = clock(), 0
    for epoch in count(1):
        model.train()
        begun, steps = clock(), []
        # Parts of equal size: a last batch of one image has no variance to normalise by.
        for indices in torch.randperm(len(training), generator=generator).tensor_split(batches):
            progress = max(number / (batches * recipe.epochs), (clock() - start) / budget)
            if number and progress >= 1:
                break
            number += 1
            steps.append(learn(number, progress, indices, epoch))
            yield steps[-1]
        if not steps:
            return
        speed = sum(step.images for step in steps) / max(clock() - begun, 1e-9)
        yield _epoch(epoch, steps, speed, validate(), clock() - start)


class Learner:
    """Model, optimiser and augmentation: one call is one step."""

    def __init__(
        self, model: nn.Module, data: ImageSet, recipe: Recipe, generator: torch.Generator
    ) -> None:
        self._model, self._labels, self._recipe = model, data.labels, recipe
        self._augmented = Augmentation(data, recipe, generator)
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=0.0, weight_decay=recipe.weight_decay
        )

    def __call__(self, number: int, progress: float, indices: Tensor, epoch: int) -> Step:
        """Learn the images at `indices` with the learning rate that `progress` asks for."""
        rate = self._recipe.peak * one_cycle(progress, self._recipe.warm_up)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        labels = self._labels[indices]
        logits = self._model(self._augmented(indices, epoch))
        loss = functional.cross_entropy(logits, labels, label_smoothing=self._recipe.smoothing)
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        self._optimiser.step()
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        return Step(number, progress, rate, len(indices), loss.item(), accuracy)


def _epoch(
    number: int, steps: list[Step], speed: float, validation_accuracy: float, seconds: float
) -> Epoch:
    images = sum(step.images for step in steps)
    return Epoch(
        number=number,
        steps=steps[-1].number,
        seconds=seconds,
        loss=sum(step.loss * step.images for step in steps) / images,
        accuracy=sum(step.accuracy * step.images for step in steps) / images,
        validation_accuracy=validation_accuracy,
        images_per_second=speed,
    )
