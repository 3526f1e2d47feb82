"""How fast this machine is, and which network suits a budget on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .networks import LADDER, named
from .recipe import PRECISIONS, multiplying

if TYPE_CHECKING:
    from collections.abc import Callable

    from .recipe import Clock

YARDSTICK = "S2(32,64,128)"
"""What a machine's speed is told by."""

BATCH = 256
PASSES = 6
"""Operations of a training step for each multiplication of a forward pass: two, once forward and
twice backward."""


def macs(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the multiplications of one image [C, H, W] in convolutions and linear layers."""
    counted = []

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:  # noqa: ANN401 - torch's hook
        weight = layer.get_parameter("weight")
        counted.append(weight[0].numel() * out[0].numel())

    layers = [each for each in network.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return sum(counted)


def speed(
    precision: str = PRECISIONS[0], seconds: float = 1.0, clock: Clock = time.perf_counter
) -> float:
    """Return the GF/s at which this machine trains the yardstick, measured for so long."""
    shape = (1, 28, 28)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = named(YARDSTICK)(1, 10).to(memory_format=torch.channels_last)
        images, labels = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    per_image = PASSES * macs(network, shape)
    network.train()
    _learn(network, images, labels, precision)
    start, steps = clock(), 0
    while clock() - start < seconds or not steps:
        _learn(network, images, labels, precision)
        steps += 1
    return steps * BATCH * per_image / (clock() - start) / 1e9


def _learn(network: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    network.zero_grad()
    with multiplying(precision):
        logits = network(images).float()
    torch.autograd.backward(functional.cross_entropy(logits, labels))


def epochs_for(budget: float) -> float:
    """Return how many epochs so many seconds must hold: 12 in three minutes, 29 in an hour.

    With fewer passes a larger network loses what its size gains, and it costs more to serve.
    """
    return float(12 * (budget / 180) ** 0.3)


def suited(budget: float, images: int, shape: tuple[int, int, int], gflops: float) -> str:
    """Return the costliest network that has epochs enough in the budget, or the cheapest."""
    for name in LADDER:
        operations = PASSES * macs(named(name)(shape[0], 10), shape) * images * epochs_for(budget)
        if operations / (gflops * 1e9) <= budget:
            return name
    return LADDER[-1]


def served(module: Callable[[Tensor], Tensor], images: Tensor, seconds: float = 1.0) -> float:
    """Return how many images/s the module answers in batches like this one, on torch's threads."""
    with torch.inference_mode():
        for _ in range(4):  # TorchScript compiles on the first runs of a shape
            module(images)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds or not done:
            module(images)
            done += len(images)
    return done / (time.perf_counter() - start)
