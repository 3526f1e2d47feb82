"""How fast this machine is, and which network suits a budget on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .networks import LADDER, named, run_dry
from .recipe import CPU, PRECISIONS, Clock, forward

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = tuple[int, int, int]
"""Of an image: channels, height, width."""

YARDSTICK = "S2(32,64,128)"
"""What a machine's speed is told by."""

BATCH = 256
OPERATIONS = 6
"""Operations of a training step for each multiplication of a forward pass: two, once forward and
twice backward."""

ENOUGH = 20
"""Passes over its images that a budget must hold: with fewer, a larger network loses what its size
gains, and it costs more to serve."""


def macs(network: nn.Module, shape: Shape) -> int:
    """Return the multiplications of one image [C, H, W] in convolutions and linear layers."""
    counted = []

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:  # noqa: ANN401 - torch's hook
        weight = layer.get_parameter("weight")
        counted.append(weight[0].numel() * out[0].numel())

    layers = [each for each in network.modules() if isinstance(each, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    run_dry(network, torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return sum(counted)


def worthwhile(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that may be the fastest, and are worth a second each.

    Without AVX-512 one step in bfloat16 can take many seconds (pytorch issue 183815).
    """
    slow = device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return ("float32",) if slow else PRECISIONS


def speed(
    precision: str,
    device: torch.device = CPU,
    *,
    seconds: float = 1.0,
    clock: Clock = time.perf_counter,
) -> float:
    """Return the GF/s at which this machine trains the yardstick, measured for so long."""
    shape = (1, 28, 28)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = named(YARDSTICK)(1, 10).to(memory_format=torch.channels_last)
        images = torch.randn(BATCH, *shape).to(device)
        labels = torch.randint(10, (BATCH,)).to(device)
    per_image = OPERATIONS * macs(network, shape)
    network.to(device).train()
    _learn(network, images, labels, precision)
    start, steps = clock(), 0
    while clock() - start < seconds or not steps:
        _learn(network, images, labels, precision)
        steps += 1
    return steps * BATCH * per_image / (clock() - start) / 1e9


def _learn(network: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    network.zero_grad()
    loss = functional.cross_entropy(forward(network, images, precision), labels)
    torch.autograd.backward(loss)
    loss.item()  # a GPU is done only when somebody asks it for a number


def passes(budget: float, images: int, shape: Shape, gflops: float, network: str) -> float:
    """Return how often, roughly, a network sees all images in so many seconds."""
    operations = OPERATIONS * macs(named(network)(shape[0], 10), shape) * images
    return budget * gflops * 1e9 / operations


def suited(budget: float, images: int, shape: Shape, gflops: float) -> str:
    """Return the costliest network that has passes enough in the budget, or the cheapest."""
    fitting = (name for name in LADDER if passes(budget, images, shape, gflops, name) >= ENOUGH)
    return next(fitting, LADDER[-1])


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
