"""The architectures: anything that takes float32 [N, C, H, W] and returns logits [N, classes].

All but the tutorial's end in a global pooling: they take images of any size from 8 x 8 on, and no
layer waits for its first batch to learn its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from .errors import DataError

Network = Callable[[int, int], nn.Module]
"""(channels, classes) -> a module with fresh weights."""


class Block(nn.Sequential):
    """[N, inputs, H, W] -> [N, outputs, H // 2, W // 2]; pools early, where it saves the most."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Pyramid(nn.Module):
    """Three blocks, each at half the resolution of the one before, and a linear layer.

    After the network of cifar10-airbench (arXiv 2404.00498), without its whitening layer.
    """

    def __init__(self, channels: int, classes: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = widths
        self.blocks = nn.Sequential(
            Block(channels, first), Block(first, second), Block(second, third)
        )
        self.head = nn.Linear(third, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, classes] of normalised images [N, C, H, W]."""
        features: Tensor = self.blocks(images).amax(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits


def pyramid(*widths: int) -> Network:
    """Return the pyramid of these three widths."""
    first, second, third = widths
    return lambda channels, classes: Pyramid(channels, classes, (first, second, third))


class Stride(nn.Sequential):
    """A first layer that halves the resolution, then convolutions at 14, 7 and 3 of 28 pixels."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, int, int]) -> None:
        first, second, third = widths
        super().__init__(
            *_normed(nn.Conv2d(channels, first, 4, stride=2, padding=1, bias=False)),
            *_normed(nn.Conv2d(first, second, 3, padding=1, bias=False)),
            nn.MaxPool2d(2),
            *_normed(nn.Conv2d(second, second, 3, padding=1, bias=False)),
            nn.MaxPool2d(2),
            *_normed(nn.Conv2d(second, third, 3, padding=1, bias=False)),
            *_normed(nn.Conv2d(third, third, 3, padding=1, bias=False)),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(third, classes),
        )


def stride(*widths: int) -> Network:
    """Return the network with a stride of these three widths."""
    first, second, third = widths
    return lambda channels, classes: Stride(channels, classes, (first, second, third))


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return convolution, norm, nn.ReLU(inplace=True)


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
    "S2(32,64,128)": stride(32, 64, 128),
    TUTORIAL: tutorial,
}
"""By the name that a checkpoint keeps."""

WIDTHS = ("P(32,96,192)", "P(24,64,128)", "P(16,48,96)")
"""The widest first; wider ones pay off with longer budgets."""


def named(name: str) -> Network:
    """Return the network of this name; raises DataError if there is none."""
    if name not in NETWORKS:
        raise DataError(f"there is no network {name!r}: take one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


DEFAULT = "P(16,48,96)"
"""As quick to serve as the tutorial's, and far better: `python -m training frontier`."""
