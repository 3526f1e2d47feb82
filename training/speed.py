"""Speed: that of this machine in training, of a network when served, and what suits a budget."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from .choices import PRECISIONS
from .networks import BY_COST, find_network, run_dry
from .recipe import CPU, Clock, forward

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = tuple[int, int, int]
"""Of an image: channels, height, width."""

BENCHMARK_NETWORK = "stride-32-64-128"
"""What the speed of a machine is measured with."""

BATCH = 256
OPERATIONS = 6
"""Operations of a training step for each multiplication of a forward pass: two, once forward and
twice backward."""

MIN_PASSES = 20
"""Passes over its images that a budget must hold: with fewer, a larger network loses what its size
gains, and it costs more to serve."""


def count_macs(network: nn.Module, shape: Shape) -> int:
    """Return the multiplications of one image [C, H, W] in convolutions and linear layers."""
    with FlopCounterMode(display=False) as counter:
        run_dry(network, torch.zeros(1, *shape))
    # The counter takes a multiplication and its addition for two operations. Its first use imports
    # what the optimiser of every training imports, too: seconds that a training spends anyway.
    return int(counter.get_total_flops()) // 2


def list_fast_precisions(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that may be the fastest, and are worth a second each.

    Without AVX-512 one step in bfloat16 can take many seconds (pytorch issue 183815).
    """
    slow = device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return ("float32",) if slow else PRECISIONS


def measure_speed(
    precision: str,
    device: torch.device = CPU,
    *,
    seconds: float = 1.0,
    clock: Clock = time.perf_counter,
) -> float:
    """Return the GF/s at which this machine trains BENCHMARK_NETWORK.

    It is measured for so many seconds, after one step that is not counted.
    """
    shape = (1, 28, 28)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = find_network(BENCHMARK_NETWORK)(1, 10).to(memory_format=torch.channels_last)
        images = torch.randn(BATCH, *shape).to(device)
        labels = torch.randint(10, (BATCH,)).to(device)
    per_image = OPERATIONS * count_macs(network, shape)
    network.to(device).train()
    _train_step(network, images, labels, precision)
    start, steps = clock(), 0
    while clock() - start < seconds or not steps:
        _train_step(network, images, labels, precision)
        steps += 1
    return steps * BATCH * per_image / (clock() - start) / 1e9


def _train_step(network: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    network.zero_grad()
    loss = functional.cross_entropy(forward(network, images, precision), labels)
    torch.autograd.backward(loss)
    loss.item()  # a GPU is done only when somebody asks it for a number


def estimate_passes(budget: float, images: int, shape: Shape, gflops: float, network: str) -> float:
    """Return how often, roughly, a network sees all images in so many seconds."""
    operations = OPERATIONS * count_macs(find_network(network)(shape[0], 10), shape) * images
    return budget * gflops * 1e9 / operations


def choose_network(budget: float, images: int, shape: Shape, gflops: float) -> str:
    """Return the costliest network that has passes enough in the budget, or the cheapest."""
    fitting = (
        name
        for name in BY_COST
        if estimate_passes(budget, images, shape, gflops, name) >= MIN_PASSES
    )
    return next(fitting, BY_COST[-1])


def measure_throughput(
    module: Callable[[Tensor], Tensor], images: Tensor, seconds: float = 1.0
) -> float:
    """Return how many images/s the module answers in batches like this one, on torch's threads.

    It is measured for so many seconds.
    """
    with torch.inference_mode():
        for _ in range(4):  # TorchScript compiles on the first runs of a shape
            module(images)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds or not done:
            module(images)
            done += len(images)
    return done / (time.perf_counter() - start)
