"""Corruptions, as cameras, senders and printers make them; each uint8 [N, C, H, W] in and out.

After Hendrycks and Dietterich, Benchmarking Neural Network Robustness, ICLR 2019, at strengths that
leave a garment of 28 x 28 pixels recognisable to a person. A size in pixels is of 28 and grows with
the images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, pi, sin

import torch
from torch import Tensor
from torch.nn import functional

Corruption = Callable[[Tensor, float, torch.Generator], Tensor]
"""(images float32 [N, C, H, W], background, randomness) -> images, which may leave 0 to 255."""


def corrupt(name: str, images: Tensor, background: int, seed: int = 0) -> Tensor:
    """Return the images under one of CORRUPTIONS; equal seeds give equal images."""
    generator = torch.Generator().manual_seed(seed)
    found = CORRUPTIONS[name](images.float(), float(background), generator)
    return found.round().clamp(0, 255).to(torch.uint8)


def noise(images: Tensor, _: float, generator: torch.Generator) -> Tensor:
    """Add normal noise with a deviation of a tenth of the range."""
    return images + 25.5 * torch.randn(images.shape, generator=generator)


def specks(images: Tensor, _: float, generator: torch.Generator) -> Tensor:
    """Make one place in twenty black or white, in all channels."""
    dice = torch.rand(images[:, :1].shape, generator=generator)
    return torch.where(dice < 0.025, 0.0, torch.where(dice > 0.975, 255.0, images))  # noqa: PLR2004


def blur(images: Tensor, _: float, __: torch.Generator) -> Tensor:
    """Smooth by a normal curve with a deviation of one pixel."""
    deviation = images.shape[-1] / 28
    reach = round(3 * deviation)
    weights = torch.exp(-((torch.arange(-reach, reach + 1) / deviation) ** 2) / 2)
    channels = images.shape[1]
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    return functional.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def low_contrast(images: Tensor, _: float, __: torch.Generator) -> Tensor:
    """Leave a third of the distance to the mean of each image."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) / 3


def brightness(images: Tensor, _: float, __: torch.Generator) -> Tensor:
    """Add a fifth of the range."""
    return images + 51


def rotation(images: Tensor, background: float, generator: torch.Generator) -> Tensor:
    """Turn by 15 degrees, to the left or to the right."""
    side = 2 * torch.randint(2, (len(images),), generator=generator) - 1
    angle = pi / 12
    turn = torch.tensor([[cos(angle), 0.0, 0.0], [0.0, cos(angle), 0.0]])
    skew = torch.tensor([[0.0, -sin(angle), 0.0], [sin(angle), 0.0, 0.0]])
    return _resample(images, turn + side[:, None, None] * skew, background)


def smaller(images: Tensor, background: float, _: torch.Generator) -> Tensor:
    """Shrink to two thirds, on the background."""
    scale = torch.tensor([[1.5, 0.0, 0.0], [0.0, 1.5, 0.0]])
    return _resample(images, scale.expand(len(images), 2, 3), background)


def occlusion(images: Tensor, background: float, generator: torch.Generator) -> Tensor:
    """Cover a square of a third of the height and width with the background."""
    covered = torch.ones(len(images), 1, *images.shape[2:], dtype=torch.bool)
    for axis, length in ((2, images.shape[2]), (3, images.shape[3])):
        start = torch.randint(length - length // 3 + 1, (len(images), 1), generator=generator)
        pixels = torch.arange(length)
        inside = (pixels >= start) & (pixels < start + length // 3)
        covered &= inside.view(len(images), 1, *((-1, 1) if axis == 2 else (1, -1)))  # noqa: PLR2004 - rows
    return torch.where(covered, background, images)


def _resample(images: Tensor, matrices: Tensor, background: float) -> Tensor:
    """Read each image through a matrix [N, 2, 3], in units of half an image from its middle."""
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    return background + functional.grid_sample(images - background, grid, align_corners=False)


CORRUPTIONS: Mapping[str, Corruption] = {
    function.__name__.replace("_", " "): function
    for function in (
        *(noise, specks, blur, low_contrast),
        *(brightness, rotation, smaller, occlusion),
    )
}
"""By name."""
