"""The command line: verbs, flags, and what their values may be. Nothing here imports torch."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .choices import (
    DEFAULT_NETWORK,
    FASHION_MNIST,
    FORMATS,
    LATEST,
    NETWORKS,
    OLD_NETWORKS,
    PRECISIONS,
    TORCHSCRIPT,
    modernise_network,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = """\
examples:
  python -m training data                         verify the data set; download it if it is missing
  python -m training train                        three minutes; runs/latest is then the new run
  python -m training train --budget 15m --seed 1 --run patient
  python -m training train --data folder:flowers --size 64x64 --run flowers
  python -m training evaluate                     accuracy of runs/latest on its test images
  python -m training train --final patient        the same on all 60,000 images, for release
  python -m training report seed0 seed1 seed2     the card of seed0; mean and deviation of all
  python -m training export                       write what goes into the archive to build/archive
  python -m training export --format pt2          the same as a program of torch.export

data: fashion-mnist, folder:PATH (a sub-folder for each class), idx:PATH (a folder of idx files) or
MODULE:ATTRIBUTE (a map-style data set, or a callable that returns one). Only a run of fashion-mnist
becomes runs/latest, which `make archive` packs; name one of other data, as in export --run flowers

exit codes: 0 done; 1 it failed, and one sentence says why; 2 wrong usage; 130, 143 interrupted
by SIGINT, SIGTERM
"""

RUN_CHOICES = (
    *("run", "min_accuracy", "seed", "budget", "epochs", "network"),
    *("precision", "data", "size", "balance", "flip"),
)
"""What a run that goes on has decided already; None where nothing was asked."""

SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; it sets `verb` to the name of the command."""
    made = argparse.ArgumentParser(
        prog="python -m training",
        description="Train, evaluate and export an image classifier; of Fashion-MNIST unless told.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="verb")
    for name, (add_flags, what) in VERBS.items():
        add_flags(verbs.add_parser(name, parents=[_make_common_flags()], help=what))
    return made


def _make_common_flags() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir",
        type=folder,
        metavar="D",
        help="folder that holds FashionMNIST/raw (default: $DATA_DIR, else data)",
    )
    common.add_argument(
        "--threads", type=positive, metavar="N", help="threads for torch (default: one a core)"
    )
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    return common


def _add_data_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--no-download", action="store_true", help="fail if a file is missing, fetch nothing"
    )


def _add_train_flags(flags: argparse.ArgumentParser) -> None:
    before = flags.add_mutually_exclusive_group()
    before.add_argument(
        "--resume", metavar="RUN", help="go on with a run that was interrupted, as it began"
    )
    before.add_argument(
        "--final",
        metavar="RUN",
        help="do as this run did, on its validation images too; its accuracy and temperature stand",
    )
    flags.add_argument("--run", metavar="NAME", help="its name (default: time and seed)")
    flags.add_argument(
        "--min-accuracy",
        type=percentage,
        metavar="PERCENT",
        help="of the validation images; a run below it fails (default: 92.0; own data: 0)",
    )
    flags.add_argument(
        "--seed", type=int, metavar="N", help="of weights, batches, augmentation (default: 0)"
    )
    _add_length(flags)
    _add_own_data(flags)
    _add_device(flags)


def _add_length(flags: argparse.ArgumentParser) -> None:
    length = flags.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        type=duration,
        metavar="TIME",
        help="how long to train: 180, 90s, 3m, 1h (default: 3m)",
    )
    length.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="passes instead of time: equal seeds and threads then give equal bits",
    )
    flags.add_argument(
        "--network",
        type=network,
        choices=NETWORKS,
        help="default: what suits the budget on this machine",
    )
    flags.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of products (default: the faster one on this machine; with --epochs: float32)",
    )


def _add_own_data(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--data", metavar="SOURCE", help=f"see below (default: {FASHION_MNIST})")
    flags.add_argument(
        "--size", type=size, metavar="HxW", help="bring the images of a folder to this size"
    )
    flags.add_argument(
        "--balance",
        action="store_const",
        const=True,
        help="let a rare class count as much as a frequent one",
    )
    flags.add_argument(
        "--no-flip",
        dest="flip",
        action="store_const",
        const=False,
        help="a mirror image is of another class: digits, signs",
    )


def _add_evaluate_flags(flags: argparse.ArgumentParser) -> None:
    _add_run(flags)
    _add_tta(flags)
    flags.add_argument(
        "--data", metavar="SOURCE", help="other images (default: the test images of its own data)"
    )

    flags.add_argument(
        "--corruptions", action="store_true", help="also under noise, blur, rotation and others"
    )
    _add_device(flags)


def _add_device(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )


class _OldFlag(argparse.Action):
    """An older name of a switch: it works, and says once on stderr what to write now."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,  # noqa: ARG002 - argparse's
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, True)
        _warn_of_old_name(str(option_string), f"--{self.dest}")


def _warn_of_old_name(old: str, new: str) -> None:
    sys.stderr.write(f"warning: {old} is an older name: write {new}\n")


def _add_tta(flags: argparse.ArgumentParser) -> None:
    names = flags.add_mutually_exclusive_group()
    names.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: average over each image and its mirror image; more accurate, "
        "half as fast",
    )
    names.add_argument(
        "--mirrored", dest="tta", nargs=0, action=_OldFlag, help="the older name of --tta"
    )


def _add_export_flags(flags: argparse.ArgumentParser) -> None:
    _add_run(flags)
    _add_tta(flags)
    flags.add_argument(
        "--output",
        type=folder,
        default=Path("build/archive"),
        metavar="DIR",
        help="where to write (default: build/archive)",
    )
    flags.add_argument(
        "--format",
        choices=FORMATS,
        default=TORCHSCRIPT,
        help=f"of the module: TorchScript, or what torch.export saves (default: {TORCHSCRIPT})",
    )
    flags.add_argument("--name", default="fmnist", help="of the model (default: fmnist)")
    flags.add_argument("--version", default="1.0", help="of the model (default: 1.0)")


def _add_run(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--run", default=LATEST, metavar="NAME", help=f"default: {LATEST}")


def _add_report_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "runs",
        nargs="*",
        default=[LATEST],
        metavar="RUN",
        help=f"the first gets the card, all are compared (default: {LATEST})",
    )


def _add_ablate_flags(flags: argparse.ArgumentParser) -> None:
    _add_frontier_flags(flags)
    flags.add_argument("--seeds", type=positive, default=3, metavar="N", help="default: 3")
    flags.add_argument(
        "--network", type=network, choices=NETWORKS, help=f"default: {DEFAULT_NETWORK}"
    )


def _add_frontier_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument(
        "--budget", type=duration, metavar="TIME", help="of each training (default: 30s)"
    )


VERBS = {
    "data": (_add_data_flags, "verify or fetch the data set"),
    "train": (_add_train_flags, "train and keep a run"),
    "evaluate": (_add_evaluate_flags, "score a run on the test images"),
    "export": (_add_export_flags, "write the files of the archive"),
    "ablate": (_add_ablate_flags, "print what each ingredient of the recipe is worth"),
    "frontier": (_add_frontier_flags, "print size, accuracy and speed of every network"),
    "report": (_add_report_flags, "write the MODEL_CARD.md of a run, with pictures"),
}


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


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on: write 1 or more")
    return int(text)


def folder(text: str) -> Path:
    """Return a path; ~ is the home, which no shell writes out behind `=`."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} begins with a home that is not known") from None


def network(text: str) -> str:
    """Return the present name of a network, and say so on stderr if an older one was written."""
    if text in OLD_NETWORKS:
        _warn_of_old_name(f"--network {text}", modernise_network(text))
    return modernise_network(text)


def size(text: str) -> tuple[int, int]:
    """Return (height, width) of `64x48`, or of `64` for both."""
    parts = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    if parts is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 64x48, height first, or 64")
    return int(parts[1]), int(parts[2] or parts[1])
