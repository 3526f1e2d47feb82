"""Train, evaluate and export a classifier of Fashion-MNIST: `python -m training --help`."""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .classifier import History, ImageClassifier
from .data import FASHION_MNIST, ImageSet, data_folder, fashion_mnist, obtain, split, verify
from .errors import RunError, TrainingError
from .export import describe, export
from .progress import Progress
from .recipe import Epoch, Recipe
from .reports import confusion, draw_confusion, draw_curves, wilson
from .runs import LATEST, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

OK, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes; argparse adds 2 for wrong usage, 130 is that of a shell after Ctrl-C."""

EXAMPLES = """\
examples:
  python -m training data                         verify the data set; download it if it is missing
  python -m training train                        three minutes; runs/latest is then the new run
  python -m training train --budget 15m --seed 1 --run patient
  python -m training evaluate                     accuracy of runs/latest on the 10,000 test images
  python -m training export                       write what goes into the archive to build/archive

exit codes: 0 done; 1 it failed, and one sentence says why; 2 wrong usage; 130 interrupted
"""

SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    # Numbers next to zero are computed many times slower than zero, and mean nothing here.
    torch.set_flush_denormal(True)
    try:
        code: int = options.command(options)
    except TrainingError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        _say("interrupted: nothing was kept")
        return INTERRUPTED
    return code


def get_data(options: argparse.Namespace) -> int:
    """Have the data set, verified."""
    folder = data_folder(options.data_dir)
    (verify if options.no_download else obtain)(folder)
    _report(options, {"data": str(folder), "verified": True}, f"{folder}: Fashion-MNIST is whole")
    return OK


def train(options: argparse.Namespace) -> int:
    """Train and keep a run; it becomes the latest if it is good enough."""
    training, validation = split(fashion_mnist(data_folder(options.data_dir), train=True))
    height, width = training.images.shape[2:]
    classifier = ImageClassifier(1, len(FASHION_MNIST), size=(height, width), seed=options.seed)
    recipe = Recipe()
    run = Run(options.run or _name(options.seed))
    run.begin(_config(options, classifier, recipe))
    try:
        history = _learn(classifier, training, validation, run, options.budget, recipe)
    except KeyboardInterrupt:
        _say(
            f"interrupted: what was learned is kept in {run.keep(classifier)}, "
            f"runs/{LATEST} is as it was"
        )
        return INTERRUPTED
    return _conclude(run, classifier, history, validation, options)


def evaluate(options: argparse.Namespace) -> int:
    """Score a run on the test images."""
    run = Run(options.run or LATEST)
    test = fashion_mnist(data_folder(options.data_dir), train=False)
    accuracy = run.classifier().evaluate(test)
    low, high = wilson(round(accuracy * len(test)), len(test))
    result = {
        "run": run.folder.resolve().name,
        "accuracy": accuracy,
        "interval": [low, high],
        "images": len(test),
    }
    _report(
        options,
        result,
        f"{result['run']}: {100 * accuracy:.2f} % of {len(test):,} test images "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %, Wilson)",
    )
    return OK


def write_archive(options: argparse.Namespace) -> int:
    """Write the files of the archive, proved on the test images without looking at their labels."""
    run = Run(options.run or LATEST)
    test = fashion_mnist(data_folder(options.data_dir), train=False)
    classifier = run.classifier()
    description = describe(classifier, run.summary()["accuracy"])
    export(classifier, description, options.output, test.images)
    _report(
        options,
        asdict(description) | {"output": str(options.output)},
        f"{options.output}: {description.name} {description.version} of {run.folder.resolve().name}"
        f", the same labels as before the export on {len(test):,} images",
    )
    return OK


def _learn(
    classifier: ImageClassifier,
    training: ImageSet,
    validation: ImageSet,
    run: Run,
    budget: float,
    recipe: Recipe,
) -> History:
    epochs = []
    with Progress(sys.stderr) as progress:
        for event in classifier.steps(training, validation, budget, recipe=recipe):
            progress.show(event)
            if isinstance(event, Epoch):
                run.record(event)
                epochs.append(event)
    return History(tuple(epochs))


def _conclude(
    run: Run,
    classifier: ImageClassifier,
    history: History,
    validation: ImageSet,
    options: argparse.Namespace,
) -> int:
    """Write the result; the run becomes the latest at the very end, and only if it is good."""
    checkpoint = run.keep(classifier)
    found = classifier.predict(validation.images).argmax(1)
    matrix = confusion(validation.labels, found, classifier.classes)
    draw_confusion(matrix, classifier.names, run.folder / "confusion.png")
    draw_curves(history.epochs, run.folder / "curves.png")
    summary = _summary(run, classifier, history, options)
    run.finish(summary)
    if not summary["good"]:
        raise RunError(
            f"{run.name} reached {100 * history.accuracy:.2f} % of the validation images, less "
            f"than --min-accuracy {options.min_accuracy:g}: give it a longer --budget; it is kept "
            f"in {checkpoint.parent}, runs/{LATEST} is as it was"
        )
    run.publish()
    _report(
        options,
        summary,
        f"{run.name}: {100 * history.accuracy:.2f} % of {len(validation):,} validation images "
        f"after {history.epochs[-1].seconds:.0f} s; runs/{LATEST} leads to it",
    )
    return OK


def _summary(
    run: Run, classifier: ImageClassifier, history: History, options: argparse.Namespace
) -> dict[str, Any]:
    last = history.epochs[-1]
    return {
        "run": run.name,
        "good": history.accuracy >= options.min_accuracy / 100,
        "accuracy": history.accuracy,
        "accuracy_of": "validation",
        "min_accuracy": options.min_accuracy / 100,
        "epochs": last.number,
        "steps": last.steps,
        "seconds": last.seconds,
        "images_per_second": last.images_per_second,
        "parameters": sum(weights.numel() for weights in classifier.model.parameters()),
        "data": classifier.data,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _config(
    options: argparse.Namespace, classifier: ImageClassifier, recipe: Recipe
) -> dict[str, Any]:
    return {
        "network": classifier.network,
        "budget": options.budget,
        "seed": options.seed,
        "min_accuracy": options.min_accuracy / 100,
        "recipe": asdict(recipe),
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
    }


def _name(seed: int) -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-seed{seed}"


def _report(options: argparse.Namespace, result: dict[str, Any], sentence: str) -> None:
    print(json.dumps(result, indent=2) if options.json else sentence)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _failed(sentence: str) -> int:
    _say(f"error: {sentence}")
    return FAILED


def duration(text: str) -> float:
    """Return the seconds of `180`, `90s`, `3m` or `1h`."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if parts is None or not float(parts[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 180, 90s, 3m or 1h")
    return float(parts[1]) * SECONDS[parts[2]]


def percentage(text: str) -> float:
    """Return a number from 0 to 100."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:  # noqa: PLR2004 - per cent
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage: write 92.0 for 92 %")
    return number


def threads(text: str) -> int:
    """Return a number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads: write 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__.split(":")[0] + ".",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_data(verbs.add_parser("data", parents=[_common()], help="verify or fetch the data set"))
    _add_train(verbs.add_parser("train", parents=[_common()], help="train and keep a run"))
    _add_evaluate(
        verbs.add_parser("evaluate", parents=[_common()], help="score a run on the test images")
    )
    _add_export(
        verbs.add_parser("export", parents=[_common()], help="write the files of the archive")
    )
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        type=Path,
        metavar="D",
        help="folder that holds FashionMNIST/raw (default: $DATA_DIR, else data)",
    )
    common.add_argument(
        "--threads", type=threads, metavar="N", help="threads for torch (default: one a core)"
    )
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    return common


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=get_data)
    parser.add_argument(
        "--no-download", action="store_true", help="fail if a file is missing, fetch nothing"
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=train)
    parser.add_argument(
        "--budget",
        type=duration,
        default=180.0,
        metavar="TIME",
        help="how long to train: 180, 90s, 3m, 1h (default: 3m)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights and batches (default: 0)"
    )
    parser.add_argument("--run", metavar="NAME", help="its name (default: time and seed)")
    parser.add_argument(
        "--min-accuracy",
        type=percentage,
        default=92.0,
        metavar="PERCENT",
        help="of the 5,000 validation images; a run below it fails (default: 92.0)",
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=evaluate)
    parser.add_argument("--run", metavar="NAME", help=f"which run (default: {LATEST})")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=write_archive)
    parser.add_argument("--run", metavar="NAME", help=f"which run (default: {LATEST})")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/archive"),
        metavar="DIR",
        help="where to write (default: build/archive)",
    )


if __name__ == "__main__":
    sys.exit(main())
