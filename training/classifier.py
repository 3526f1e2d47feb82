"""ImageClassifier: a network with what it must know of its data; train, predict, save, load."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .calibration import explain_no_fit, fit_temperature
from .checkpoint import read_checkpoint
from .choices import DEFAULT_NETWORK, modernise_network
from .data import ImageSet, load_into_memory
from .errors import DataError, RunError, TrainingWarning
from .files import atomic_write
from .networks import FlipTTA, Network, find_network, run_dry
from .output import list_names
from .recipe import Clock, Epoch, Fit, Recipe, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import Dataset

Size = tuple[int, int]
"""Height and width in pixels."""

BATCH = 500
"""Images that are predicted at once: large enough for speed, small enough for any memory."""

FORMAT = 2
"""Of the checkpoint; raised when an older program could not read it."""


@dataclass(frozen=True, slots=True)
class History:
    """How a training went; `accuracy` is of the final weights, on the validation images."""

    epochs: tuple[Epoch, ...]

    @property
    def accuracy(self) -> float:
        """Return the share of the validation images that the final weights classify rightly."""
        accuracy = self.epochs[-1].validation_accuracy
        if accuracy is None:
            raise RunError("no image was held out: evaluate on others")
        return accuracy


class Normalised(nn.Module):
    """A network behind its normalisation: uint8 [N, C, H, W] -> logits float32 [N, classes].

    Mean and deviation are per channel, on the scale of the pixels, 0 to 255. The logits are divided
    by the temperature, which is 1 until somebody calibrates.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        self.mean = nn.Buffer(torch.full((1, channels, 1, 1), 127.5))
        self.deviation = nn.Buffer(torch.full((1, channels, 1, 1), 127.5))
        self.temperature = nn.Buffer(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, classes] of pixels [N, C, H, W]."""
        logits: Tensor = self.network((images.float() - self.mean) / self.deviation)
        return logits / self.temperature

    def measure(self, images: Tensor) -> None:
        """Take mean and deviation from these images, which should be the training part only."""
        histogram = torch.stack(
            [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
        ).double()
        values, total = torch.arange(256, dtype=torch.float64), histogram.sum(1)
        mean = (histogram * values).sum(1) / total
        variance = (histogram * (values - mean[:, None]) ** 2).sum(1) / total
        self.mean.copy_(mean.view(1, -1, 1, 1))
        # Below one grey value there is no contrast to speak of; a uniform channel has none.
        self.deviation.copy_(variance.sqrt().clamp(min=1.0).view(1, -1, 1, 1))


class ImageClassifier:
    """Learns from images with labels which class an image belongs to.

    `channels` and `classes` are fixed; `size` is (height, width) or one number for both, and None
    takes it from the first image of the training set. `network` is a name from
    `choices.NETWORKS`, or a function (channels, classes) -> module of your own, which may hold
    lazy layers. Equal seeds give equal fresh weights, and equal batches. It computes on `device`;
    images come and answers go on the CPU.

    Raises DataError if the network cannot take images of that size.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        size: int | Size | None = None,
        network: str | Network = DEFAULT_NETWORK,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.channels, self.classes, self.seed = channels, classes, seed
        self.network = modernise_network(network) if isinstance(network, str) else network
        self.device = torch.device(device)
        self.names = tuple(str(label) for label in range(classes))
        self.background = 0
        self.data = ""
        self._fit: Fit | None = None
        self._unfinished: dict[str, Any] | None = None
        self._built: tuple[Normalised, Size] | None = None
        if size is not None:
            self._build((size, size) if isinstance(size, int) else size)

    @property
    def model(self) -> Normalised:
        """The network behind its normalisation."""
        return self._require()[0]

    @property
    def size(self) -> Size:
        """Height and width of the images in pixels."""
        return self._require()[1]

    @property
    def underway(self) -> bool:
        """Whether a training has begun, here or before it was saved, and not come to its end."""
        return self._fit is not None or self._unfinished is not None

    @property
    def epochs(self) -> int:
        """Return how many epochs of the training that is underway are done."""
        if self._fit:
            return self._fit.state.epoch - 1
        return int(self._unfinished["place"]["epoch"]) - 1 if self._unfinished else 0

    def train(
        self,
        train_set: Dataset[Any],
        validation_set: Dataset[Any] | None,
        budget: float = 180.0,
        *,
        recipe: Recipe | None = None,
        clock: Clock = time.monotonic,
    ) -> History:
        """Learn for `budget` seconds, or until the recipe's passes are done.

        The data sets are as `data.load_into_memory` takes them, None for no validation; every call
        starts the schedule anew, from the weights that are there. Raises DataError if they do not
        fit the classifier, RunError if the loss is no number any more.
        """
        events = self.steps(train_set, validation_set, budget, recipe=recipe, clock=clock)
        return History(tuple(event for event in events if isinstance(event, Epoch)))

    def steps(
        self,
        train_set: Dataset[Any],
        validation_set: Dataset[Any] | None,
        budget: float = 180.0,
        *,
        recipe: Recipe | None = None,
        clock: Clock = time.monotonic,
        resume: bool = False,
    ) -> Iterator[Step | Epoch]:
        """Do what `train` does, telling every step and every epoch; drop it to stop early.

        What is saved after any of these events can be loaded and taken up again with `resume`,
        the same data, budget and recipe: on as many threads the weights are the same bits.
        """
        training = self._load(train_set, build=True)
        validation = None if validation_set is None else self._load(validation_set)
        fit = Fit(self.model, training, recipe or Recipe(), budget=budget, seed=self.seed)
        if resume:
            fit.load_state_dict(self._take_unfinished(training))
        else:
            self._describe(training)
            self.model.temperature.fill_(1.0)
        return self._run(fit, validation, clock)

    def evaluate(self, data: Dataset[Any]) -> float:
        """Return the share of the images, 0 to 1, whose most probable class is their label."""
        images = self._load(data)
        found = self.predict(images.images).argmax(1)
        return (found == images.labels).double().mean().item()

    def predict(self, images: Tensor) -> Tensor:
        """Return the probabilities, float32 [N, classes], of images uint8 [N, C, H, W]."""
        return self.logits(images).softmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """Return what the softmax makes probabilities of, float32 [N, classes]."""
        expected = (self.channels, *self.size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise DataError(
                f"images must be uint8 [N, {', '.join(map(str, expected))}], but these are "
                f"{images.dtype} {list(images.shape)}"
            )
        self.model.eval()
        with torch.inference_mode():
            parts = [self.model(part.to(self.device)).cpu() for part in torch.split(images, BATCH)]
        return torch.cat(parts)

    def calibrate(self, validation_set: Dataset[Any]) -> float:
        """Make the probabilities as sure as they should be; return the temperature found.

        The images should be such as were not learned. No label changes. The temperature is 1, and
        a TrainingWarning says why, where there is nothing to fit one to: with fewer than
        `calibration.MIN_IMAGES` images, or without a mistake among them.
        """
        images = self._load(validation_set)
        raw = self.logits(images.images) * self.model.temperature.item()
        found = fit_temperature(raw, images.labels)
        reason = explain_no_fit(found, len(images))
        if reason:
            found = 1.0
            message = f"{reason}: the temperature is 1, give more validation images"
            warnings.warn(message, TrainingWarning, stacklevel=2)
        self.model.temperature.fill_(found)
        return found

    def with_tta(self) -> Self:
        """Return one with the same weights that averages over each image and its mirror image.

        Test-time augmentation: it is more often right, and half as fast; its probabilities are to
        be calibrated anew. To load what it saves, give `load` the function (channels, classes) ->
        `networks.FlipTTA`.
        """
        both = copy.deepcopy(self)
        make = find_network(self.network) if isinstance(self.network, str) else self.network
        both.network = lambda channels, classes: FlipTTA(make(channels, classes))
        both.model.network = FlipTTA(both.model.network)
        return both

    def save(self, path: Path | str) -> None:
        """Write everything that `load` needs to `path`, whole or not at all."""
        content = {
            "format": FORMAT,
            "channels": self.channels,
            "classes": self.classes,
            "size": list(self.size),
            "network": self.network if isinstance(self.network, str) else None,
            "seed": self.seed,
            "names": list(self.names),
            "background": self.background,
            "data": self.data,
            "weights": self.model.state_dict(),
            "underway": self._fit.state_dict() if self._fit else self._unfinished,
        }
        with atomic_write(Path(path)) as partial:
            torch.save(content, partial)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        network: Network | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Read what `save` wrote; `network` is needed only if it was a function of your own.

        Nothing in the file is executed. Raises RunError if it is not such a file, or not whole.
        """
        content = read_checkpoint(Path(path), FORMAT)
        chosen = network or content["network"]
        if chosen is None:
            raise RunError(f"{path} holds a network of your own: load(path, network=…) needs it")
        classifier = cls(
            content["channels"],
            content["classes"],
            size=tuple(content["size"]),
            network=chosen,
            seed=content["seed"],
            device=device,
        )
        try:
            classifier.model.load_state_dict(content["weights"])
        except RuntimeError as error:
            raise RunError(
                f"{path} holds weights of another network than {chosen}: name that one, or train "
                "again"
            ) from error
        classifier.names = tuple(content["names"])
        classifier.background, classifier.data = content["background"], content["data"]
        classifier._unfinished = content["underway"]
        return classifier

    def _require(self) -> tuple[Normalised, Size]:
        if self._built is None:
            raise RunError("the classifier has no size yet: give it `size`, or train it")
        return self._built

    def _build(self, size: Size) -> None:
        make = find_network(self.network) if isinstance(self.network, str) else self.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Normalised(make(self.channels, self.classes), self.channels)
            _materialise(
                model, torch.zeros(1, self.channels, *size, dtype=torch.uint8), self.classes
            )
        self._built = model.to(memory_format=torch.channels_last).to(self.device), size

    def _load(self, data: Dataset[Any], *, build: bool = False) -> ImageSet:
        """Return the data in memory; with `build`, a classifier without a size takes theirs."""
        images = load_into_memory(data, channels=self.channels, classes=self.classes)
        height, width = images.images.shape[2:]
        if build and self._built is None:
            self._build((height, width))
        if (height, width) != self.size:
            raise DataError(
                f"the images are {height}x{width}, but the classifier takes "
                f"{self.size[0]}x{self.size[1]}: resize them"
            )
        return images

    def _run(self, fit: Fit, validation: ImageSet | None, clock: Clock) -> Iterator[Step | Epoch]:
        self._fit, self._unfinished = fit, None
        yield from fit.events(lambda: self.evaluate(validation) if validation else None, clock)
        self._fit = None

    def _take_unfinished(self, training: ImageSet) -> dict[str, Any]:
        if self._unfinished is None:
            raise RunError(
                "there is nothing to resume: the training came to its end, or never began"
            )
        if training.digest() != self.data:
            raise DataError("these are not the images that the training began with: start anew")
        return self._unfinished

    def _describe(self, training: ImageSet) -> None:
        self.model.measure(training.images)
        self.names = self._choose_names(training)
        self.background, self.data = training.background(), training.digest()

    def _choose_names(self, training: ImageSet) -> tuple[str, ...]:
        """Return a name for each class, and warn of classes that no image shows."""
        named = len(training.names)
        names = training.names[: self.classes] + self.names[named:]
        counts = torch.bincount(training.labels, minlength=self.classes)
        empty = [names[label] for label in (counts == 0).nonzero().flatten().tolist()]
        if empty:
            warnings.warn(
                f"no image is of class {list_names(empty)}: the classifier has {self.classes} "
                f"classes, the images show {self.classes - len(empty)}",
                TrainingWarning,
                stacklevel=4,
            )
        return names


def _materialise(model: nn.Module, zeros: Tensor, classes: int) -> None:
    """Let lazy layers learn their shapes."""
    logits = run_dry(model, zeros)
    if tuple(logits.shape) != (1, classes):
        raise DataError(
            f"the network must return logits [N, {classes}], not {['N', *logits.shape[1:]]}"
        )
    parts = [*model.parameters(), *model.buffers()]
    assert not any(is_lazy(part) for part in parts), "a lazy layer was not run"  # noqa: S101
