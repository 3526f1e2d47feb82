"""Commands of the training package: what each verb of the command line does."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from .card import compute_spread, format_percent, render_card
from .choices import DEFAULT_NETWORK, FASHION_MNIST
from .configure import choose_device
from .data import ImageSet, relabel, split
from .errors import DataError, RunError
from .evaluation import Validation, evaluate, measure_robustness, measure_validation
from .export import describe, export
from .fashion_mnist import data_folder, download, verify
from .files import atomic_write
from .memory import tune_malloc
from .output import print_result, say, warn
from .recipe import Recipe
from .reports import (
    draw_confusion,
    draw_curves,
    draw_mistakes,
    draw_reliability,
    render_evaluation,
)
from .runs import Run, format_now
from .sources import ImageSpec, load_any_images, load_training_images, load_unseen_images
from .study import (
    MIN_RELATIVE_SPEED,
    choose_best,
    measure_frontier,
    render_results,
    run_ablation,
    train_networks,
)
from .train_command import train

if TYPE_CHECKING:
    import argparse

    from .classifier import ImageClassifier

STUDY_BUDGET = 30.0
"""Seconds of each training of `ablate` and `frontier`."""


def run_command(options: argparse.Namespace) -> int:
    """Run the command that the options name, and return its exit code; raises TrainingError."""
    if options.threads:
        torch.set_num_threads(options.threads)
    # Numbers next to zero are computed many times slower than zero, and mean nothing here.
    torch.set_flush_denormal(True)
    tune_malloc()
    return COMMANDS[options.verb](options)


def get_data(options: argparse.Namespace) -> int:
    """Have the data set, verified."""
    folder = data_folder(options.data_dir)
    (verify if options.no_download else download)(folder)
    result = {"data": str(folder), "verified": True}
    print_result(options, result, f"{folder}: Fashion-MNIST is whole")
    return 0


def evaluate_run(options: argparse.Namespace) -> int:
    """Score a run on its test images, or on others; the run keeps a record of every time."""
    run = Run(options.run).resolve()
    classifier = run.classifier(choose_device(options))
    if options.tta:
        classifier, _ = _add_tta(run, classifier, options)
    test = _load_images_for(run, classifier, options)
    found = evaluate(classifier, test)
    result = {
        "run": run.name,
        "tta": options.tta,
        "source": options.data or run.config().source,
        "time": format_now(),
        **asdict(found),
        "robustness": measure_robustness(classifier, test) if options.corruptions else {},
    }
    run.note_evaluation(result)
    name = run.name + (" with mirror images" if options.tta else "")
    print_result(options, result, f"{name}: {render_evaluation(found, result['robustness'])}")
    return 0


def export_run(options: argparse.Namespace) -> int:
    """Write the files of the archive, proved on images without looking at their labels."""
    run = Run(options.run).resolve()
    classifier, accuracy = run.classifier(), run.summary()["accuracy"]
    if options.tta:
        classifier, accuracy = _add_tta(run, classifier, options)
    folder = data_folder(options.data_dir)
    proof = load_any_images(run.config().source, folder, _make_spec(classifier))
    description = describe(
        classifier,
        accuracy,
        name=options.name,
        version=options.version,
        file_format=options.format,
        validation=_measure_validation(run, classifier, options),
    )
    export(classifier, description, options.output, proof.images)
    print_result(
        options,
        description.to_dict() | {"output": str(options.output)},
        f"{options.output}: {description.name} {description.version} of {run.name}"
        f", the same labels as before the export on {len(proof):,} images",
    )
    return 0


def write_report(options: argparse.Namespace) -> int:
    """Write the card of a run and its pictures, from what the run knows and validation images."""
    runs = [Run(name).resolve() for name in options.runs]
    summaries = {run.name: run.summary() for run in runs}
    run = runs[0]
    classifier, validation = _load_validation(run, options)
    found = evaluate(classifier, validation)
    _draw_pictures(run, classifier, validation, found.confusion)
    page = render_card(
        run.config_json(), run.summary(), asdict(found), run.evaluations(), summaries
    )
    path = run.folder / "MODEL_CARD.md"
    with atomic_write(path) as partial:
        partial.write_text(page, "utf-8")
    mean, deviation = compute_spread([summary["accuracy"] for summary in summaries.values()])
    print_result(
        options,
        {"card": str(path), "runs": list(summaries), "mean": mean, "deviation": deviation},
        f"{path}: {format_percent(mean)} of the validation images"
        + (
            f" on average, deviation {format_percent(deviation)}, {len(runs)} runs"
            if runs[1:]
            else ""
        ),
    )
    return 0


def ablate(options: argparse.Namespace) -> int:
    """Print what each ingredient of the recipe is worth."""
    training, validation = _split_fashion_mnist(options)
    network, budget = options.network or DEFAULT_NETWORK, options.budget or STUDY_BUDGET
    found = []
    for each in run_ablation(
        training, validation, Recipe(), network=network, budget=budget, seeds=options.seeds
    ):
        say(f"{each.name}: {format_percent(each.mean)}")
        found.append(each)
    ingredients = [asdict(each) for each in found]
    print_result(options, {"ingredients": ingredients}, render_results(found))
    return 0


def compare_networks(options: argparse.Namespace) -> int:
    """Print size, accuracy and speed of every network."""
    torch.set_num_threads(options.threads or 2)
    training, validation = _split_fashion_mnist(options)
    trained = []
    for each in train_networks(
        training, validation, Recipe(), budget=options.budget or STUDY_BUDGET
    ):
        say(f"{each.name}: {format_percent(each.accuracy)}")
        trained.append(each)
    found = measure_frontier(trained)
    best = choose_best(found).name
    print_result(
        options,
        {"networks": [asdict(each) for each in found], "best": best},
        f"{render_results(found)}\n\n"
        f"the best at {MIN_RELATIVE_SPEED} times the baseline's speed or more: {best}",
    )
    return 0


COMMANDS = {
    "data": get_data,
    "train": train,
    "evaluate": evaluate_run,
    "export": export_run,
    "report": write_report,
    "ablate": ablate,
    "frontier": compare_networks,
}
"""By the verb that `options.VERBS` explains."""


def _split_fashion_mnist(options: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    return split(load_training_images(FASHION_MNIST, data_folder(options.data_dir)))


def _load_validation(run: Run, options: argparse.Namespace) -> tuple[ImageClassifier, ImageSet]:
    """Return the validation images of a run, and the classifier to evaluate on them."""
    evaluated, _, validation = _load_parts(run, options)
    return evaluated, validation


def _load_parts(
    run: Run, options: argparse.Namespace
) -> tuple[ImageClassifier, ImageSet, ImageSet]:
    """Return the classifier to evaluate, the images that it learned, and those for validation.

    A final training has learned both parts: there, it is the classifier of the run before.
    """
    config = run.config()
    folder = data_folder(options.data_dir)
    whole = load_training_images(config.source, folder, ImageSpec(config.size))
    evaluated = Run(config.final_of) if config.final_of else run
    return evaluated.classifier(), *split(whole)


def _measure_validation(
    run: Run, classifier: ImageClassifier, options: argparse.Namespace
) -> Validation | None:
    """Return how a run answers on its validation images; None, and a warning, if that is lost."""
    try:
        evaluated, learned, validation = _load_parts(run, options)
    except (DataError, RunError) as error:
        warn(f"model.json says nothing of the validation images: {error}")
        return None
    if learned.digest() != evaluated.data:
        warn(
            "model.json says nothing of the validation images: the run learned from other images "
            f"than {run.config().source} holds now"
        )
        return None
    if options.tta:
        evaluated = evaluated.with_tta()
    evaluated.model.temperature.copy_(classifier.model.temperature)
    return measure_validation(evaluated, validation)


def _draw_pictures(
    run: Run, classifier: ImageClassifier, validation: ImageSet, confusion: list[list[int]]
) -> None:
    probabilities = classifier.predict(validation.images)
    draw_curves(run.epochs(), run.folder / "curves.png")
    draw_confusion(confusion, classifier.names, run.folder / "confusion.png")
    draw_reliability(probabilities, validation.labels, run.folder / "reliability.png")
    draw_mistakes(validation, probabilities, classifier.names, run.folder / "mistakes.png")


def _add_tta(
    run: Run, classifier: ImageClassifier, options: argparse.Namespace
) -> tuple[ImageClassifier, float]:
    """Return the run's classifier with mirror images, calibrated, and its validation accuracy."""
    if not run.config().recipe.flip:
        raise RunError(
            f"{run.folder} learned with --no-flip, mirror images are of other classes there: "
            "leave out --tta"
        )
    evaluated, validation = _load_validation(run, options)
    before, both = evaluated.with_tta(), classifier.with_tta()
    both.model.temperature.fill_(before.calibrate(validation))
    return both, before.evaluate(validation)


def _make_spec(classifier: ImageClassifier) -> ImageSpec:
    return ImageSpec(classifier.size, classifier.channels, classifier.background)


def _load_images_for(
    run: Run, classifier: ImageClassifier, options: argparse.Namespace
) -> ImageSet:
    """Return the images to score a run on: its own unseen ones, or those of --data."""
    folder, spec = data_folder(options.data_dir), _make_spec(classifier)
    if options.data:
        found = load_any_images(options.data, folder, spec)
    else:
        found = load_unseen_images(run.config().source, folder, spec)
    return relabel(found, classifier.names)
