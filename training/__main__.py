"""The commands: `python -m training --help`."""

from __future__ import annotations

import json
import math
import platform
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch

from .card import card, percent, spread
from .classifier import History, ImageClassifier
from .data import ImageSet, data_folder, hash_of, held_out, obtain, relabel, split, verify
from .errors import RunError, TrainingError
from .evaluation import judge, robustness
from .export import describe, export
from .files import written_whole
from .interruption import Interruption
from .memory import keep_freed
from .networks import DEFAULT
from .options import PLANNED, parser
from .progress import Progress
from .recipe import Epoch, Recipe, erasing
from .reports import draw_confusion, draw_curves, draw_mistakes, draw_reliability, sentences
from .runs import LATEST, Plan, Run
from .sources import FASHION_MNIST, Form, any_images, training_images, unseen_images
from .speed import YARDSTICK, passes, speed, suited, worthwhile
from .study import FAST, ablation, best, entries, frontier, table_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

OK, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes; argparse adds 2 for wrong usage, 130 is that of a shell after Ctrl-C."""

MIN_ACCURACY = 0.92
"""Of Fashion-MNIST's validation images; three minutes on two cores reach more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    # Numbers next to zero are computed many times slower than zero, and mean nothing here.
    torch.set_flush_denormal(True)
    keep_freed()
    try:
        return COMMANDS[options.verb](options)
    except TrainingError as error:
        _say(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        _say("interrupted: nothing was kept")
        return INTERRUPTED


def get_data(options: argparse.Namespace) -> int:
    """Have the data set, verified."""
    folder = data_folder(options.data_dir)
    (verify if options.no_download else obtain)(folder)
    _report(options, {"data": str(folder), "verified": True}, f"{folder}: Fashion-MNIST is whole")
    return OK


def train(options: argparse.Namespace) -> int:
    """Train and keep a run, or go on with one; it becomes the latest if it is good enough."""
    run = Run(options.resume).itself() if options.resume else Run(options.run or _name(options))
    decided = options.resume or options.final
    plan = _taken_over(options) if decided else _planned(options)
    whole = training_images(plan.source, data_folder(options.data_dir), Form(plan.size))
    training, validation = (whole, None) if plan.final_of else split(whole)
    if not decided:
        plan = _suited(plan, training, options)
    if options.resume:
        classifier = run.classifier(_device(options))
        if not classifier.underway:
            raise RunError(f"{run.folder} came to its end: there is nothing to resume")
    else:
        classifier = _fresh(training, plan, _device(options))
        run.begin(plan, _around(whole, classifier))
    with Interruption() as interruption:
        history = _learn(run, plan, classifier, training, validation, interruption)
    if interruption.signal:
        _say(f"interrupted: `python -m training train --resume {run.name}` goes on from here")
        return interruption.exit_code
    return _conclude(run, plan, classifier, history, validation, options)


def evaluate(options: argparse.Namespace) -> int:
    """Score a run on its test images, or on others; the run keeps a record of every time."""
    run = Run(options.run).itself()
    classifier = run.classifier(_device(options))
    if options.mirrored:
        classifier, _ = _both_sides(run, classifier, options)
    test = _images_for(run, classifier, options)
    found = judge(classifier, test)
    result = {
        "run": run.name,
        "mirrored": options.mirrored,
        "source": options.data or run.plan().source,
        "time": _now(),
        **asdict(found),
        "robustness": robustness(classifier, test) if options.corruptions else {},
    }
    run.note_evaluation(result)
    name = run.name + (" with mirror images" if options.mirrored else "")
    _report(options, result, f"{name}: {sentences(found, result['robustness'])}")
    return OK


def write_archive(options: argparse.Namespace) -> int:
    """Write the files of the archive, proved on images without looking at their labels."""
    run = Run(options.run).itself()
    classifier, accuracy = run.classifier(), run.summary()["accuracy"]
    if options.mirrored:
        classifier, accuracy = _both_sides(run, classifier, options)
    proof = any_images(run.plan().source, data_folder(options.data_dir), _form(classifier))
    description = describe(classifier, accuracy, name=options.name, version=options.version)
    export(classifier, description, options.output, proof.images)
    _report(
        options,
        asdict(description) | {"output": str(options.output)},
        f"{options.output}: {description.name} {description.version} of {run.name}"
        f", the same labels as before the export on {len(proof):,} images",
    )
    return OK


def report(options: argparse.Namespace) -> int:
    """Write the card of a run and its pictures, from what the run knows and validation images."""
    runs = [Run(name).itself() for name in options.runs]
    summaries = {run.name: run.summary() for run in runs}
    run = runs[0]
    classifier, held = _held(run, options)
    found = judge(classifier, held)
    probabilities = classifier.predict(held.images)
    draw_curves(run.epochs(), run.folder / "curves.png")
    draw_confusion(found.confusion, classifier.names, run.folder / "confusion.png")
    draw_reliability(probabilities, held.labels, run.folder / "reliability.png")
    draw_mistakes(held, probabilities, classifier.names, run.folder / "mistakes.png")
    page = card(run.config(), run.summary(), asdict(found), run.evaluations(), summaries)
    path = run.folder / "MODEL_CARD.md"
    with written_whole(path) as partial:
        partial.write_text(page, "utf-8")
    middle, deviation = spread([summary["accuracy"] for summary in summaries.values()])
    _report(
        options,
        {"card": str(path), "runs": list(summaries), "mean": middle, "deviation": deviation},
        f"{path}: {percent(middle)} of the validation images"
        + (f" on average, deviation {percent(deviation)}, {len(runs)} runs" if runs[1:] else ""),
    )
    return OK


def ablate(options: argparse.Namespace) -> int:
    """Print what each ingredient of the recipe is worth."""
    training, validation = split(training_images(FASHION_MNIST, data_folder(options.data_dir)))
    network, budget = options.network or DEFAULT, options.budget or 30.0
    found = []
    for each in ablation(
        training, validation, Recipe(), network=network, budget=budget, seeds=options.seeds
    ):
        _say(f"{each.name}: {percent(each.mean)}")
        found.append(each)
    _report(options, {"ingredients": [asdict(each) for each in found]}, table_of(found))
    return OK


def compare(options: argparse.Namespace) -> int:
    """Print size, accuracy and speed of every network."""
    torch.set_num_threads(options.threads or 2)
    training, validation = split(training_images(FASHION_MNIST, data_folder(options.data_dir)))
    entered = []
    for entry in entries(training, validation, Recipe(), budget=options.budget or 30.0):
        _say(f"{entry.name}: {percent(entry.accuracy)}")
        entered.append(entry)
    found = frontier(entered)
    chosen = best(found).name
    _report(
        options,
        {"networks": [asdict(each) for each in found], "best": chosen},
        f"{table_of(found)}\n\nthe best at {FAST} times the tutorial's speed or more: {chosen}",
    )
    return OK


COMMANDS = {
    "data": get_data,
    "train": train,
    "evaluate": evaluate,
    "export": write_archive,
    "report": report,
    "ablate": ablate,
    "frontier": compare,
}


def _planned(options: argparse.Namespace) -> Plan:
    """Return the plan that the flags describe; what suits the machine is still to be chosen."""
    asked = {
        "balance": options.balance,
        "flip": options.flip,
        "epochs": options.epochs,
        "precision": options.precision,
    }
    source = options.data or FASHION_MNIST
    least = MIN_ACCURACY if source == FASHION_MNIST else 0.0
    return Plan(
        source=source,
        size=options.size,
        network=options.network or "",
        seed=options.seed or 0,
        budget=None if options.epochs else options.budget or 180.0,
        min_accuracy=least if options.min_accuracy is None else options.min_accuracy / 100,
        recipe=replace(
            Recipe(), **{key: value for key, value in asked.items() if value is not None}
        ),
    )


def _taken_over(options: argparse.Namespace) -> Plan:
    """Return the plan of a run that goes on, or is done again on all images; as many threads."""
    flag, before = ("resume", options.resume) if options.resume else ("final", options.final)
    allowed = {"run"} if options.final else set()
    surplus = [name for name in PLANNED if getattr(options, name) is not None]
    if set(surplus) - allowed:
        raise RunError(
            f"--{flag} does as runs/{before} did: leave out --{surplus[-1].replace('_', '-')}"
        )
    run = Run(before).itself()
    plan = run.plan()
    if not options.threads:
        torch.set_num_threads(run.config()["machine"]["threads"])
    if options.resume:
        return plan
    if plan.final_of or not run.summary()["good"]:
        raise RunError(f"{run.folder} is a final run itself, or not good: name another --final")
    return replace(plan, final_of=run.name)


def _speeds(options: argparse.Namespace) -> dict[str, float]:
    """Return the GF/s of this machine in each precision that may be the fastest."""
    device = _device(options)
    precisions = (options.precision,) if options.precision else worthwhile(device)
    return {precision: speed(precision, device) for precision in precisions}


def _suited(plan: Plan, training: ImageSet, options: argparse.Namespace) -> Plan:
    """Return the plan with precision, network and blanking for this machine, and say why."""
    length = plan.recipe.epochs
    if plan.budget is None:
        recipe = replace(plan.recipe, erase=erasing(length))
        return replace(plan, network=plan.network or DEFAULT, recipe=recipe)
    speeds = _speeds(options)
    precision = max(speeds, key=speeds.__getitem__)
    channels, height, width = training.images.shape[1:]
    given = plan.budget, len(training), (channels, height, width), speeds[precision]
    network = plan.network or suited(*given)
    blanked = erasing(min(length, passes(*given, network)))
    recipe = replace(plan.recipe, precision=precision, erase=blanked)
    told = " and ".join(f"at {found:.0f} GF/s in {name}" for name, found in speeds.items())
    _say(f"this machine trains {YARDSTICK} {told}: {network} in {precision} for this budget")
    return replace(plan, network=network, recipe=recipe)


def _held(run: Run, options: argparse.Namespace) -> tuple[ImageClassifier, ImageSet]:
    """Return the validation images of a run, and the classifier that they judge.

    A final training has learned them: there, it is that of the run before.
    """
    plan = run.plan()
    whole = training_images(plan.source, data_folder(options.data_dir), Form(plan.size))
    judged = Run(plan.final_of) if plan.final_of else run
    return judged.classifier(), split(whole)[1]


def _both_sides(
    run: Run, classifier: ImageClassifier, options: argparse.Namespace
) -> tuple[ImageClassifier, float]:
    """Return the run's classifier with mirror images, calibrated, and its validation accuracy."""
    if not run.plan().recipe.flip:
        raise RunError(
            f"{run.folder} learned with --no-flip, mirror images are of other classes there: "
            "leave out --mirrored"
        )
    judged, held = _held(run, options)
    seen, both = judged.mirrored(), classifier.mirrored()
    both.model.temperature.fill_(seen.calibrate(held))
    return both, seen.evaluate(held)


def _fresh(training: ImageSet, plan: Plan, device: torch.device) -> ImageClassifier:
    channels, height, width = training.images.shape[1:]
    return ImageClassifier(
        channels,
        len(training.names),
        size=(height, width),
        network=plan.network,
        seed=plan.seed,
        device=device,
    )


def _device(options: argparse.Namespace) -> torch.device:
    """Return the device asked for; `auto` is a GPU where there is one."""
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise RunError("there is no GPU that torch can use: leave out --device cuda")
    return torch.device("cuda" if there and options.device != "cpu" else "cpu")


def _form(classifier: ImageClassifier) -> Form:
    return Form(classifier.size, classifier.channels, classifier.background)


def _images_for(run: Run, classifier: ImageClassifier, options: argparse.Namespace) -> ImageSet:
    """Return the images to score a run on: its own unseen ones, or those of --data."""
    folder, form = data_folder(options.data_dir), _form(classifier)
    if options.data:
        found = any_images(options.data, folder, form)
    else:
        found = unseen_images(run.plan().source, folder, form)
    return relabel(found, classifier.names)


def _learn(
    run: Run,
    plan: Plan,
    classifier: ImageClassifier,
    training: ImageSet,
    validation: ImageSet | None,
    interruption: Interruption,
) -> History:
    """Train until the plan is done or somebody interrupts; keep what was learned, every epoch."""
    resume = classifier.underway
    if resume:
        run.rewind(classifier.epochs)
    events = classifier.steps(
        training, validation, plan.budget or math.inf, recipe=plan.recipe, resume=resume
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


def _conclude(
    run: Run,
    plan: Plan,
    classifier: ImageClassifier,
    history: History,
    validation: ImageSet | None,
    options: argparse.Namespace,
) -> int:
    """Write the result; the run becomes the latest at the very end, and only if it is good."""
    judged = _judged(run, plan, classifier, validation)
    checkpoint = run.keep(classifier)
    draw_curves(history.epochs, run.folder / "curves.png")
    summary = judged | _told(run, plan, classifier, history, judged["accuracy"])
    run.finish(summary)
    reached = f"{100 * judged['accuracy']:.2f} % of the {judged['accuracy_of']} images"
    if not summary["good"]:
        raise RunError(
            f"{run.name} reached {reached}, less than --min-accuracy {100 * plan.min_accuracy:g}: "
            f"give it a longer --budget; it is kept in {checkpoint.parent}, runs/{LATEST} is as it "
            "was"
        )
    run.publish()
    _report(
        options,
        summary,
        f"{run.name}: {reached} after {summary['seconds']:.0f} s; runs/{LATEST} leads to it",
    )
    return OK


def _judged(
    run: Run, plan: Plan, classifier: ImageClassifier, validation: ImageSet | None
) -> dict[str, Any]:
    """Calibrate, and return how good the classifier is; a final one is as the run before it."""
    if validation is None:
        assert plan.final_of is not None, "all other runs hold images out"  # noqa: S101
        before = Run(plan.final_of).summary()
        classifier.model.temperature.fill_(before["temperature"])
        taken = ("accuracy", "temperature", "uncalibrated", "calibrated")
        return {key: before[key] for key in taken} | {
            "accuracy_of": f"validation (by {plan.final_of})"
        }
    classifier.calibrate(validation)
    found = judge(classifier, validation)
    draw_confusion(found.confusion, classifier.names, run.folder / "confusion.png")
    return {
        "accuracy": found.accuracy,
        "accuracy_of": "validation",
        "temperature": found.temperature,
        "uncalibrated": asdict(found.uncalibrated),
        "calibrated": asdict(found.calibrated),
    }


def _told(
    run: Run, plan: Plan, classifier: ImageClassifier, history: History, accuracy: float
) -> dict[str, Any]:
    """Return the part of summary.json that says what happened."""
    last = history.epochs[-1]
    return {
        "run": run.name,
        "good": accuracy >= plan.min_accuracy,
        "min_accuracy": plan.min_accuracy,
        "epochs": last.number,
        "steps": last.steps,
        "seconds": last.seconds,
        "images_per_second": last.images_per_second,
        "parameters": sum(weights.numel() for weights in classifier.model.parameters()),
        "data": classifier.data,
        "finished": _now(),
    }


def _around(whole: ImageSet, classifier: ImageClassifier) -> dict[str, Any]:
    """Return what the plan does not say: classes, the split, the machine."""
    return {
        "classes": list(whole.names),
        "channels": classifier.channels,
        "held_out": hash_of(held_out(whole.labels)),
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _name(options: argparse.Namespace) -> str:
    if options.final:
        return f"{Run(options.final).itself().name}-final"
    return f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-seed{options.seed or 0}"


def _report(options: argparse.Namespace, result: dict[str, Any], sentence: str) -> None:
    print(json.dumps(result, indent=2) if options.json else sentence)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
