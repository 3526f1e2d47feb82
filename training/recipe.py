"""The recipe of a training: batches, augmentation, schedule, steps.

Every random number has a purpose, such as "the order of epoch 3", and is drawn from the seed and
that purpose alone. So a training that was interrupted goes on with the bits of one that was not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .choices import PRECISIONS
from .errors import DataError, RunError

if TYPE_CHECKING:
    from .data import ImageSet

CPU = torch.device("cpu")

Clock = Callable[[], float]
"""Seconds, from any start, never backwards."""

CUTOUT_BY_PASSES = ((55, 0.75), (35, 0.5))
"""`Recipe.cutout` from so many passes on."""

FEWEST_BATCHES, SMALLEST_BATCH = 8, 16
"""An epoch has so many batches, if that leaves each so many images: one step teaches little."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is chosen once, on the validation images; rates are for batches of 256."""

    batch: int = 256
    max_lr: float = 0.01
    """The highest learning rate of AdamW."""
    warm_up: float | None = 0.2
    """The share of the training in which the learning rate rises; None: it stays where it is."""
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    """0 to 1. No temperature mends what it does to the confidence (docs/decisions/014)."""
    translation: int = 1
    """Pixels by which an image is moved at most, up, down and sideways."""
    flip: bool = True
    """Whether the mirror image of a class is of the same class."""
    cutout: float = 0.0
    """The longest sides of the rectangle that is cut out of an image, as a share of the image's:
    0.5 cuts out a sixteenth of it on average. `choose_cutout` says when it pays off."""
    balance: bool = False
    """Whether all classes count the same in the loss, however many images each has."""
    precision: str = "float32"
    """In what layers multiply, and hand on what they computed, while they learn; weights, loss and
    optimiser are float32 (Micikevicius et al., Mixed Precision Training, arXiv 1710.03740)."""
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
    while the weights changed, `validation_accuracy` is of the weights at the end of the epoch, and
    None where no image was held out.
    `seconds` counts from the start of the training.
    """

    number: int
    steps: int
    seconds: float
    loss: float
    accuracy: float
    validation_accuracy: float | None
    images_per_second: float


def choose_cutout(passes: float) -> float:
    """Return the `Recipe.cutout` for so many passes: in many, images are learned by heart.

    DeVries and Taylor, Cutout, arXiv 1708.04552; in a short training it only takes away.
    """
    return next((share for least, share in CUTOUT_BY_PASSES if passes >= least), 0.0)


def one_cycle(progress: float, warm_up: float | None) -> float:
    """Return the share of the highest learning rate: a line up to 1 at `warm_up`, a line down to 0.

    Without a warm-up it is 1 throughout.

    Linear to zero at the end of the budget: Li et al., Budgeted Training, ICLR 2020.
    """
    if warm_up is None:
        return 1.0
    return max(0.0, min(progress / warm_up, (1 - progress) / (1 - warm_up)))


def rng_for(seed: int, *purpose: object) -> torch.Generator:
    """Return the random numbers for one purpose in the training with this seed.

    A purpose never changes its words: checkpoints of older trees go on with the same numbers.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def forward(network: nn.Module, images: Tensor, precision: str) -> Tensor:
    """Return the logits, float32; convolutions and linear layers multiply in this precision.

    Raises DataError if it is none of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise DataError(f"there is no precision {precision!r}: take one of {', '.join(PRECISIONS)}")
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits: Tensor = network(images)
    return logits.float()


class Augmentation:
    """Flip, translation and cutout of whole batches of uint8 images.

    Each image is flipped in every second epoch, not at random, so that both sides are seen equally
    often even in a short training (arXiv 2404.00498, "alternating flip"). What moves in at the edge
    and what fills a cutout is the background. The rectangle of a cutout has sides of any length up
    to the recipe's share, nothing among them, and lies anywhere inside: cutout (arXiv 1708.04552)
    with the sides of random erasing (1708.04896). The images lie on `device`, the random numbers
    are those of the CPU everywhere.
    """

    def __init__(
        self, data: ImageSet, recipe: Recipe, seed: int, device: torch.device = CPU
    ) -> None:
        self._translation, self._flip, self._cutout = recipe.translation, recipe.flip, recipe.cutout
        self._seed, self._background = seed, data.background()
        self._size = data.images.shape[-2:]
        self._padded = functional.pad(
            data.images, (recipe.translation,) * 4, value=float(self._background)
        ).to(device)
        self._starts_flipped = torch.randint(2, (len(data),), generator=rng_for(seed, "side"))

    def __call__(self, indices: Tensor, epoch: int, step: int) -> Tensor:
        """Return the images [N, C, H, W] at `indices` as they are seen in this epoch and step."""
        generator = rng_for(self._seed, "shift", step)
        rows, columns = (
            self._choose_window(len(indices), length, generator) for length in self._size
        )
        if self._flip:
            flipped = (self._starts_flipped[indices] + epoch) % 2 == 1
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        axes = indices[:, None, None], rows[:, :, None], columns[:, None, :]
        image, row, column = (axis.to(self._padded.device) for axis in axes)
        translated = self._padded[image, :, row, column].permute(0, 3, 1, 2)
        return self._cut_out(translated, step) if self._cutout else translated

    def _choose_window(self, images: int, length: int, generator: torch.Generator) -> Tensor:
        """Return the indices [N, length] to read along one axis of the padded images."""
        start = torch.randint(2 * self._translation + 1, (images, 1), generator=generator)
        return start + torch.arange(length)

    def _cut_out(self, images: Tensor, step: int) -> Tensor:
        """Return the images [N, C, H, W] with a rectangle of background in each."""
        generator = rng_for(self._seed, "erase", step)
        rows, columns = (self._choose_span(len(images), length, generator) for length in self._size)
        rectangle = rows[:, None, :, None] & columns[:, None, None, :]
        return images.masked_fill(rectangle.to(images.device), self._background)

    def _choose_span(self, images: int, length: int, generator: torch.Generator) -> Tensor:
        """Return which pixels [N, length] of one axis the rectangles cover, as booleans."""
        share, where = torch.rand(2, images, 1, generator=generator)
        span = (share * (int(self._cutout * length) + 1)).int()
        start = (where * (length - span + 1)).int()
        pixels = torch.arange(length)
        covered: Tensor = (start <= pixels) & (pixels < start + span)
        return covered


def count_batches(images: int, batch: int) -> int:
    """Return into how many batches so many images are cut; small sets learn in smaller ones."""
    return max(-(-images // batch), min(FEWEST_BATCHES, images // SMALLEST_BATCH))


@dataclass(slots=True)
class TrainingState:
    """Where a training stands, between two steps; `seconds` are those spent on it so far.

    The last four are of the present epoch: batches and images learned, sums over these images.
    """

    epoch: int = 1
    steps: int = 0
    seconds: float = 0.0
    batches: int = 0
    images: int = 0
    loss: float = 0.0
    right: float = 0.0

    def add(self, step: Step) -> None:
        """Count a step."""
        self.steps, self.batches = step.number, self.batches + 1
        self.images += step.images
        self.loss += step.loss * step.images
        self.right += step.accuracy * step.images


class Fit:
    """One training of a model, which it changes in place.

    It can stop after any event, and go on from its state.

    The learning rate follows the larger of two shares, that of the steps and that of the time, so
    it always reaches zero at the end, however fast the machine is and whatever else it does.
    With an endless budget only the steps count, and equal seeds give equal bits.
    """

    def __init__(
        self, model: nn.Module, training: ImageSet, recipe: Recipe, *, budget: float, seed: int
    ) -> None:
        self.state = TrainingState()
        self._model, self._size, self._recipe = model, len(training), recipe
        self._budget, self._seed = budget, seed
        self._train_step = TrainStep(model, training, recipe, seed)
        self._batches = count_batches(self._size, recipe.batch)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs beside the weights of the model.

        Its keys are a part of the format of a checkpoint.
        """
        return {"place": asdict(self.state), "optimiser": self._train_step.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another training stopped; the model must have the weights of that moment."""
        self.state = TrainingState(**state["place"])
        self._train_step.optimiser.load_state_dict(state["optimiser"])

    def events(self, validate: Callable[[], float | None], clock: Clock) -> Iterator[Step | Epoch]:
        """Train until the budget or the passes are spent, telling every step and every epoch."""
        start = clock() - self.state.seconds
        while True:
            before, begun = self.state.images, clock()
            yield from self._steps(start, clock)
            if not self.state.images:
                return
            speed = (self.state.images - before) / max(clock() - begun, 1e-9)
            accuracy = validate()
            self.state.seconds = clock() - start
            epoch = _summarise_epoch(self.state, accuracy, speed)
            self.state = TrainingState(epoch.number + 1, epoch.steps, epoch.seconds)
            yield epoch

    def _steps(self, start: float, clock: Clock) -> Iterator[Step]:
        """Learn what is left of this epoch, as far as the budget goes."""
        self._model.train()
        state = self.state
        order = torch.randperm(self._size, generator=rng_for(self._seed, "order", state.epoch))
        # Parts of equal size: a last batch of one image has no variance to normalise by.
        for indices in order.tensor_split(self._batches)[state.batches :]:
            state.seconds = clock() - start
            progress = max(
                state.steps / (self._batches * self._recipe.epochs), state.seconds / self._budget
            )
            if state.steps and progress >= 1:
                return
            step = self._train_step(state.steps + 1, progress, indices, state.epoch)
            state.add(step)
            yield step


class TrainStep:
    """Model, optimiser and augmentation: one call is one step."""

    def __init__(self, model: nn.Module, data: ImageSet, recipe: Recipe, seed: int) -> None:
        self._model, self._recipe = model, recipe
        self._device = next(model.parameters()).device
        self._augment = Augmentation(data, recipe, seed, self._device)
        self._labels = data.labels
        self._weights = _weigh_images(data.labels) if recipe.balance else torch.ones(len(data))
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=0.0, weight_decay=recipe.weight_decay
        )

    def __call__(self, number: int, progress: float, indices: Tensor, epoch: int) -> Step:
        """Learn the images at `indices` with the learning rate that `progress` asks for.

        Raises RunError, before it changes a weight, when the loss is no number.
        """
        rate = self._recipe.max_lr * one_cycle(progress, self._recipe.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        labels = self._labels[indices].to(self._device)
        weights = self._weights[indices].to(self._device)
        images = self._augment(indices, epoch, number)
        logits = forward(self._model, images, self._recipe.precision)
        losses = functional.cross_entropy(
            logits, labels, label_smoothing=self._recipe.label_smoothing, reduction="none"
        )
        loss = (losses * weights).sum() / weights.sum()
        if not math.isfinite(loss.item()):
            raise RunError(
                f"the loss became {loss.item()} in step {number}, at a learning rate of "
                f"{rate:.2g}: choose a smaller Recipe.max_lr"
            )
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        self.optimiser.step()
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        return Step(number, progress, rate, len(indices), loss.item(), accuracy)


def _weigh_images(labels: Tensor) -> Tensor:
    """Return the weight of each image, float32 [N]: those of every class have the same sum."""
    return (1 / torch.bincount(labels).clamp(min=1).float())[labels]


def _summarise_epoch(
    state: TrainingState, validation_accuracy: float | None, speed: float
) -> Epoch:
    return Epoch(
        number=state.epoch,
        steps=state.steps,
        seconds=state.seconds,
        loss=state.loss / state.images,
        accuracy=state.right / state.images,
        validation_accuracy=validation_accuracy,
        images_per_second=speed,
    )
