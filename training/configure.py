"""The RunConfig of a training, from the flags, an earlier run and the speed of the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .choices import DEFAULT_NETWORK, FASHION_MNIST
from .errors import RunError
from .options import RUN_CHOICES
from .output import say
from .recipe import Recipe, choose_cutout
from .runs import Run, RunConfig
from .speed import (
    BENCHMARK_NETWORK,
    choose_network,
    estimate_passes,
    list_fast_precisions,
    measure_speed,
)

if TYPE_CHECKING:
    import argparse

    from .data import ImageSet

MIN_ACCURACY = 0.92
"""Of Fashion-MNIST's validation images; three minutes on two cores reach more."""

DEFAULT_BUDGET = 180.0
"""Seconds."""


def choose_device(options: argparse.Namespace) -> torch.device:
    """Return the device asked for; `auto` is a GPU where there is one."""
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise RunError("there is no GPU that torch can use: leave out --device cuda")
    return torch.device("cuda" if there and options.device != "cpu" else "cpu")


def make_config(options: argparse.Namespace) -> RunConfig:
    """Return the choices that the flags make; `suit_machine` makes those that are left."""
    asked = {
        "balance": options.balance,
        "flip": options.flip,
        "epochs": options.epochs,
        "precision": options.precision,
    }
    source = options.data or FASHION_MNIST
    least = MIN_ACCURACY if source == FASHION_MNIST else 0.0
    return RunConfig(
        source=source,
        size=options.size,
        network=options.network or "",
        seed=options.seed or 0,
        budget=None if options.epochs else options.budget or DEFAULT_BUDGET,
        min_accuracy=least if options.min_accuracy is None else options.min_accuracy / 100,
        recipe=replace(
            Recipe(), **{key: value for key, value in asked.items() if value is not None}
        ),
    )


def reuse_config_to_resume(options: argparse.Namespace) -> RunConfig:
    """Return the choices of the run that goes on; raises RunError if a flag makes others."""
    return _reuse_config("resume", options.resume, options, allowed=set())


def reuse_config_for_final(options: argparse.Namespace) -> RunConfig:
    """Return the choices of the run that is done again on all images.

    Raises RunError if a flag makes others, or that run is not good or final itself.
    """
    config = _reuse_config("final", options.final, options, allowed={"run"})
    run = Run(options.final).resolve()
    if config.final_of or not run.summary()["good"]:
        raise RunError(f"{run.folder} is a final run itself, or not good: name another --final")
    return replace(config, final_of=run.name)


def suit_machine(config: RunConfig, training: ImageSet, options: argparse.Namespace) -> RunConfig:
    """Return the choices with precision, network and cutout for this machine, and say why."""
    epochs = config.recipe.epochs
    if config.budget is None:
        recipe = replace(config.recipe, cutout=choose_cutout(epochs))
        return replace(config, network=config.network or DEFAULT_NETWORK, recipe=recipe)
    speeds = _measure_speeds(options)
    precision = max(speeds, key=speeds.__getitem__)
    channels, height, width = training.images.shape[1:]
    given = config.budget, len(training), (channels, height, width), speeds[precision]
    network = config.network or choose_network(*given)
    cutout = choose_cutout(min(epochs, estimate_passes(*given, network)))
    recipe = replace(config.recipe, precision=precision, cutout=cutout)
    found = " and ".join(f"at {gflops:.0f} GF/s in {name}" for name, gflops in speeds.items())
    say(
        f"this machine trains {BENCHMARK_NETWORK} {found}: {network} in {precision} for this budget"
    )
    return replace(config, network=network, recipe=recipe)


def _reuse_config(
    flag: str, name: str, options: argparse.Namespace, *, allowed: set[str]
) -> RunConfig:
    """Return the choices of a run, on as many threads as it had."""
    surplus = [choice for choice in RUN_CHOICES if getattr(options, choice) is not None]
    if set(surplus) - allowed:
        raise RunError(
            f"--{flag} does as runs/{name} did: leave out --{surplus[-1].replace('_', '-')}"
        )
    run = Run(name).resolve()
    config = run.config()
    if not options.threads:
        torch.set_num_threads(run.config_json()["machine"]["threads"])
    return config


def _measure_speeds(options: argparse.Namespace) -> dict[str, float]:
    """Return the GF/s of this machine in each precision that may be the fastest."""
    device = choose_device(options)
    precisions = (options.precision,) if options.precision else list_fast_precisions(device)
    return {precision: measure_speed(precision, device) for precision in precisions}
