"""The architectures: anything that takes float32 [N, C, H, W] and returns logits [N, classes].

All but the tutorial's end in a global pooling: they take images of any size from 8 x 8 on, and no
layer waits for its first batch to learn its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .errors import DataError

Network = Callable[[int, int], nn.Module]
"""(channels, classes) -> a module with fresh weights."""


class Block(nn.Sequential):
    """[N, inputs, H, W] -> [N, outputs, H // 2, W // 2]; pools early, where it saves the most."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(*_halved(inputs, outputs), *_normed(_convolution(outputs, outputs)))


class Stage(nn.Module):
    """[N, inputs, H, W] -> [N, outputs, H // 2, W // 2]; two convolutions only add to a third.

    The shortcut is that of ResNet (arXiv 1512.03385); it goes around what follows the pooling.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_halved(inputs, outputs))
        self.rest = nn.Sequential(
            *_normed(_convolution(outputs, outputs)),
            _convolution(outputs, outputs),
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
        stem = _normed(_convolution(channels, first // 2))
        stages = Stage(first // 2, first), Stage(first, second), Stage(second, third)
        return Pooled(nn.Sequential(*stem, *stages), third, classes)

    return build


def stride(first: int, second: int, third: int) -> Network:
    """Return a first layer that halves the resolution, then convolutions of these widths.

    They are at 14, 7 and 3 of 28 pixels.
    """

    def build(channels: int, classes: int) -> nn.Module:
        return nn.Sequential(
            *_normed(nn.Conv2d(channels, first, 4, stride=2, padding=1, bias=False)),
            *_normed(_convolution(first, second)),
            nn.MaxPool2d(2),
            *_normed(_convolution(second, second)),
            nn.MaxPool2d(2),
            *_normed(_convolution(second, third)),
            *_normed(_convolution(third, third)),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(third, classes),
        )

    return build


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _halved(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution, norm, cut = _normed(_convolution(inputs, outputs))
    return convolution, nn.MaxPool2d(2), norm, cut


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return convolution, norm, nn.ReLU(inplace=True)


def run_dry(network: nn.Module, blank: Tensor) -> Tensor:
    """Return the logits of blank images; eval keeps the blank out of the running statistics.

    Raises DataError if the network cannot take images of that size.
    """
    height, width = blank.shape[2:]
    with torch.no_grad():
        try:
            logits: Tensor = network.eval()(blank)
        except RuntimeError as error:
            raise DataError(
                f"the network cannot take images of {height}x{width}: make them larger, or "
                f"choose another network ({error})"
            ) from error
    return logits


def tutorial(channels: int, classes: int) -> nn.Module:
    """Return what most tutorials build for these data, to be compared with."""
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


class Mirrored(nn.Module):
    """The mean of a network's logits for an image and for its mirror image, at twice the cost.

    For images whose mirror image is of the same class.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, classes] of normalised images [N, C, H, W]."""
        logits: Tensor = self.network(images) + self.network(images.flip(3))
        return logits / 2


TUTORIAL = "tutorial"

NETWORKS: Mapping[str, Network] = {
    "P(16,48,96)": pyramid(16, 48, 96),
    "P(24,64,128)": pyramid(24, 64, 128),
    "P(32,96,192)": pyramid(32, 96, 192),
    "R(24,64,128)": residual(24, 64, 128),
    "R(48,96,192)": residual(48, 96, 192),
    "S2(32,64,128)": stride(32, 64, 128),
    TUTORIAL: tutorial,
}
"""By the name that a checkpoint keeps."""

LADDER = ("R(48,96,192)", "R(24,64,128)", "P(24,64,128)", "P(16,48,96)")
"""The costliest first; costlier ones pay off with longer budgets (docs/decisions/017)."""


def named(name: str) -> Network:
    """Return the network of this name; raises DataError if there is none."""
    if name not in NETWORKS:
        raise DataError(f"there is no network {name!r}: take one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


DEFAULT = "P(16,48,96)"
"""As quick to serve as the tutorial's, and far better: `python -m training frontier`."""
