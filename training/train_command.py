"""The command `train`: a new run, a run that goes on, a run on all images for release."""

from __future__ import annotations

import math
import platform
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from .choices import FASHION_MNIST, LATEST
from .classifier import History, ImageClassifier
from .configure import (
    choose_device,
    make_config,
    reuse_config_for_final,
    reuse_config_to_resume,
    suit_machine,
)
from .data import ImageSet, choose_held_out, hash_indices, split
from .errors import RunError
from .evaluation import evaluate
from .fashion_mnist import data_folder
from .interruption import Interruption
from .output import print_result, say
from .progress import Progress
from .recipe import Epoch
from .reports import draw_confusion, draw_curves
from .runs import Run, RunConfig, format_now
from .sources import ImageSpec, load_training_images

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True, slots=True)
class Training:
    """A run that is about to train; `validation` is None where it learns all images."""

    run: Run
    config: RunConfig
    classifier: ImageClassifier
    training: ImageSet
    validation: ImageSet | None


def train(options: argparse.Namespace) -> int:
    """Train and keep a run, which may become the latest; return the exit code."""
    if options.resume:
        training = prepare_resumed(options)
    elif options.final:
        training = prepare_final(options)
    else:
        training = prepare_new(options)
    with Interruption() as interruption:
        history = _learn(training, interruption)
    if interruption.signal:
        name = training.run.name
        say(f"interrupted: `python -m training train --resume {name}` goes on from here")
        return interruption.exit_code
    _conclude(training, history, options)
    return 0


def prepare_new(options: argparse.Namespace) -> Training:
    """Begin a run with the choices of the flags and of this machine."""
    now = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}"
    run = Run(options.run or f"{now}-seed{options.seed or 0}")
    config = make_config(options)
    whole = _load_images(config, options)
    training, validation = split(whole)
    config = suit_machine(config, training, options)
    classifier = _make_classifier(training, config, choose_device(options))
    run.begin(config, _describe_circumstances(whole, classifier))
    return Training(run, config, classifier, training, validation)


def prepare_final(options: argparse.Namespace) -> Training:
    """Begin a run that does as a good one did, and learns its validation images, too."""
    config = reuse_config_for_final(options)
    run = Run(options.run or f"{config.final_of}-final")
    whole = _load_images(config, options)
    classifier = _make_classifier(whole, config, choose_device(options))
    run.begin(config, _describe_circumstances(whole, classifier))
    return Training(run, config, classifier, whole, None)


def prepare_resumed(options: argparse.Namespace) -> Training:
    """Take a run up where it was interrupted; raises RunError if it came to its end."""
    run = Run(options.resume).resolve()
    config = reuse_config_to_resume(options)
    whole = _load_images(config, options)
    training, validation = (whole, None) if config.final_of else split(whole)
    classifier = run.classifier(choose_device(options))
    if not classifier.underway:
        raise RunError(f"{run.folder} came to its end: there is nothing to resume")
    return Training(run, config, classifier, training, validation)


def _load_images(config: RunConfig, options: argparse.Namespace) -> ImageSet:
    folder = data_folder(options.data_dir)
    return load_training_images(config.source, folder, ImageSpec(config.size))


def _make_classifier(
    training: ImageSet, config: RunConfig, device: torch.device
) -> ImageClassifier:
    channels, height, width = training.images.shape[1:]
    return ImageClassifier(
        channels,
        len(training.names),
        size=(height, width),
        network=config.network,
        seed=config.seed,
        device=device,
    )


def _describe_circumstances(whole: ImageSet, classifier: ImageClassifier) -> dict[str, Any]:
    """Return what the choices do not say: classes, the split, the machine."""
    return {
        "classes": list(whole.names),
        "channels": classifier.channels,
        "held_out": hash_indices(choose_held_out(whole.labels)),
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
    }


def _learn(training: Training, interruption: Interruption) -> History:
    """Train to the end or until somebody interrupts; keep what was learned, every epoch."""
    run, config, classifier = training.run, training.config, training.classifier
    resume = classifier.underway
    if resume:
        run.rewind(classifier.epochs)
    budget = config.budget or math.inf
    events = classifier.steps(
        training.training, training.validation, budget, recipe=config.recipe, resume=resume
    )
    with Progress(sys.stderr) as progress:
        for event in events:
            progress.show(event)
            if isinstance(event, Epoch):
                run.record(event)
            if isinstance(event, Epoch) or interruption.signal:
                run.keep(classifier)
            if interruption.signal:
                break
    return History(tuple(run.epochs()))


def _conclude(training: Training, history: History, options: argparse.Namespace) -> None:
    """Write the result; the run may become the latest at the very end, and only if it is good."""
    run, config = training.run, training.config
    quality = _measure_quality(training)
    checkpoint = run.keep(training.classifier)
    draw_curves(history.epochs, run.folder / "curves.png")
    summary = quality | _summarise(training, history, quality["accuracy"])
    run.finish(summary)
    reached = f"{100 * quality['accuracy']:.2f} % of the {quality['accuracy_of']} images"
    if not summary["good"]:
        raise RunError(
            f"{run.name} reached {reached}, less than --min-accuracy "
            f"{100 * config.min_accuracy:g}: give it a longer --budget; it is kept in "
            f"{checkpoint.parent}, runs/{LATEST} is as it was"
        )
    print_result(
        options,
        summary,
        f"{run.name}: {reached} after {summary['seconds']:.0f} s; {_publish(training)}",
    )


def _publish(training: Training) -> str:
    """Make the run the latest if it may become one; return what runs/latest leads to.

    `make archive` serves what runs/latest leads to as Fashion-MNIST, so no other data come there.
    """
    run, source = training.run, training.config.source
    if source != FASHION_MNIST:
        return f"name it (--run {run.name}): runs/{LATEST} is for {FASHION_MNIST} and is as it was"
    run.publish()
    return f"runs/{LATEST} leads to it"


def _measure_quality(training: Training) -> dict[str, Any]:
    """Calibrate, and return how good the classifier is; a final one is as the run before it."""
    classifier, validation = training.classifier, training.validation
    if validation is None:
        return _take_over_quality(training)
    classifier.calibrate(validation)
    found = evaluate(classifier, validation)
    draw_confusion(found.confusion, classifier.names, training.run.folder / "confusion.png")
    return {
        "accuracy": found.accuracy,
        "accuracy_of": "validation",
        "temperature": found.temperature,
        "uncalibrated": asdict(found.uncalibrated),
        "calibrated": asdict(found.calibrated),
    }


def _take_over_quality(training: Training) -> dict[str, Any]:
    """Set the temperature of the run before a final one, and return its quality."""
    before = training.config.final_of
    assert before is not None, "all other runs hold images out"  # noqa: S101
    summary = Run(before).summary()
    training.classifier.model.temperature.fill_(summary["temperature"])
    kept = ("accuracy", "temperature", "uncalibrated", "calibrated")
    return {key: summary[key] for key in kept} | {"accuracy_of": f"validation (by {before})"}


def _summarise(training: Training, history: History, accuracy: float) -> dict[str, Any]:
    """Return the part of summary.json that says what happened."""
    last, classifier = history.epochs[-1], training.classifier
    return {
        "run": training.run.name,
        "good": accuracy >= training.config.min_accuracy,
        "min_accuracy": training.config.min_accuracy,
        "epochs": last.number,
        "steps": last.steps,
        "seconds": last.seconds,
        "images_per_second": last.images_per_second,
        "parameters": sum(weights.numel() for weights in classifier.model.parameters()),
        "data": classifier.data,
        "finished": format_now(),
    }
