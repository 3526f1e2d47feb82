"""Networks: modules that take float32 [N, C, H, W] and return logits [N, classes].

All but the baseline end in a global pooling: they take images of any size from 8 x 8 on, and no
layer waits for its first batch to learn its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .choices import NETWORKS, modernise_network
from .errors import DataError

Network = Callable[[int, int], nn.Module]
"""(channels, classes) -> a module with fresh weights."""


class Block(nn.Sequential):
    """[N, inputs, H, W] -> [N, outputs, H // 2, W // 2]; pools early, where it saves the most."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            *_make_halving_layer(inputs, outputs),
            *_make_normalised(_make_convolution(outputs, outputs)),
        )


class ResidualStage(nn.Module):
    """[N, inputs, H, W] -> [N, outputs, H // 2, W // 2]; two convolutions only add to a third.

    The shortcut is that of ResNet (arXiv 1512.03385); it goes around what follows the pooling.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_make_halving_layer(inputs, outputs))
        self.rest = nn.Sequential(
            *_make_normalised(_make_convolution(outputs, outputs)),
            _make_convolution(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features [N, outputs, H // 2, W // 2], none below 0."""
        features = self.first(images)
        return torch.relu(features + self.rest(features))


class Pooled(nn.Module):
    """Blocks that end with `width` channels, the largest value of each, and a linear layer."""

    def __init__(self, blocks: nn.Sequential, width: int, classes: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, classes] of normalised images [N, C, H, W]."""
        features: Tensor = self.blocks(images).amax(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits


def pyramid(first: int, second: int, third: int) -> Network:
    """Return three blocks of these widths, each at half the resolution of the one before.

    After the network of cifar10-airbench (arXiv 2404.00498), without its whitening layer.
    """

    def build(channels: int, classes: int) -> nn.Module:
        blocks = Block(channels, first), Block(first, second), Block(second, third)
        return Pooled(nn.Sequential(*blocks), third, classes)

    return build


def residual(first: int, second: int, third: int) -> Network:
    """Return a convolution at the full resolution and three stages of these widths.

    It costs more than the pyramid, and is better where there is time to train it
    (docs/decisions/017).
    """

    def build(channels: int, classes: int) -> nn.Module:
        stem = _make_normalised(_make_convolution(channels, first // 2))
        stages = (
            ResidualStage(first // 2, first),
            ResidualStage(first, second),
            ResidualStage(second, third),
        )
        return Pooled(nn.Sequential(*stem, *stages), third, classes)

    return build


def stride(first: int, second: int, third: int) -> Network:
    """Return a first layer that halves the resolution, then convolutions of these widths.

    They are at 14, 7 and 3 of 28 pixels.
    """

    def build(channels: int, classes: int) -> nn.Module:
        return nn.Sequential(
            *_make_normalised(nn.Conv2d(channels, first, 4, stride=2, padding=1, bias=False)),
            *_make_normalised(_make_convolution(first, second)),
            nn.MaxPool2d(2),
            *_make_normalised(_make_convolution(second, second)),
            nn.MaxPool2d(2),
            *_make_normalised(_make_convolution(second, third)),
            *_make_normalised(_make_convolution(third, third)),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(third, classes),
        )

    return build


def _make_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _make_halving_layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution, norm, cut = _make_normalised(_make_convolution(inputs, outputs))
    return convolution, nn.MaxPool2d(2), norm, cut


def _make_normalised(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return convolution, norm, nn.ReLU(inplace=True)


def run_dry(network: nn.Module, zeros: Tensor) -> Tensor:
    """Return the logits of images of zeros; eval keeps them out of the running statistics.

    Raises DataError if the network cannot take images of that size.
    """
    height, width = zeros.shape[2:]
    with torch.no_grad():
        try:
            logits: Tensor = network.eval()(zeros)
        except RuntimeError as error:
            raise DataError(
                f"the network cannot take images of {height}x{width}: make them larger, or "
                f"choose another network ({error})"
            ) from error
    return logits


def baseline(channels: int, classes: int) -> nn.Module:
    """Return two convolutions and two linear layers, as tutorials build them: the baseline."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


class FlipTTA(nn.Module):
    """Test-time augmentation: the mean of a network's logits for an image and its mirror image.

    It costs twice as much. For images whose mirror image is of the same class.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, classes] of normalised images [N, C, H, W]."""
        logits: Tensor = self.network(images) + self.network(images.flip(3))
        return logits / 2


FAMILIES: Mapping[str, Callable[..., Network]] = {
    "pyramid": pyramid,
    "residual": residual,
    "stride": stride,
    "baseline": lambda: baseline,
}
"""The first word of a network's name; the numbers behind it are the widths."""

BY_COST = (
    *("residual-48-96-192", "residual-24-64-128"),
    *("pyramid-24-64-128", "pyramid-16-48-96"),
)
"""The costliest first; costlier ones pay off with longer budgets (docs/decisions/017)."""


def find_network(name: str) -> Network:
    """Return the network of this name, or of this older name; raises DataError if there is none."""
    known = modernise_network(name)
    if known not in NETWORKS:
        raise DataError(f"there is no network {name!r}: take one of {', '.join(NETWORKS)}")
    family, *widths = known.split("-")
    return FAMILIES[family](*map(int, widths))
