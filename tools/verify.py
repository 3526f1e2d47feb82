"""Check of an archive where nothing lies but what it declares: `make verify`.

TorchServe's own ModelLoader loads it there, and its answers must be those of the checkpoint that it
was exported from, within `TOLERANCES`. Exit codes: 0, it is right, or the check was skipped for
the reason printed (in CI that is 1); 1, it is wrong; 69, the environment cannot be made, and
nothing was verified.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from tools.archive import (
    CONFIG,
    REQUIREMENTS,
    ROOT,
    ArchiveError,
    check_contents,
    pin_requirements,
)
from tools.servers.process import StackError
from tools.servers.torchserve import ARCHIVE, check_archive, checksum_file, read_checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SERVER = ("psutil", "pyyaml", "torchserve")
"""What a worker of TorchServe imports before it knows the archive, as the lock file pins it."""
NEEDED_BYTES = 8e9
"""Room for torch and its CUDA, where uv's cache cannot be linked; 5.6 GB today."""
UNAVAILABLE = 69
INSTALL_TIMEOUT_S = 1800
LOAD_TIMEOUT_S = 600


class VerifyError(Exception):
    """The archive is not right; the message is one sentence."""


class UnavailableError(Exception):
    """Nothing could be verified; the message is one sentence."""


class Answer(NamedTuple):
    """What an image shows, and its probability, 0 to 1."""

    label: str
    score: float


class Tolerance(NamedTuple):
    """How far each score may be off, and which share of the labels may be others, 0 to 1."""

    score: float
    labels: float


TOLERANCES = {"float32": Tolerance(1e-4, 0.0), "bfloat16": Tolerance(0.1, 0.005)}
"""By `precision` in model-config.yaml. That of float32 is the proof of an export; of bfloat16 twice
what scores moved by, and six times the labels that became others (docs/decisions/056)."""


class Comparison(NamedTuple):
    """Images, those with another label than the run gives, and by what a score is off at most."""

    images: int
    others: int
    off: float


class Reference(NamedTuple):
    """Image files, what the checkpoint says of each, and the hash of the data that it learned."""

    images: Sequence[bytes]
    answers: Sequence[Answer]
    data: str


if TYPE_CHECKING:
    Loader = Callable[[Path, Sequence[bytes]], Sequence[Answer]]
    """The folder of an unpacked archive, and image files; raises VerifyError."""


def read_reference(run: str, count: int) -> Reference:
    """Return the answers of a run's checkpoint to `count` of its images; raises TrainingError."""
    from PIL import Image  # noqa: PLC0415 - torch takes seconds, and --help does not need it

    from training.fashion_mnist import data_folder  # noqa: PLC0415
    from training.runs import Run  # noqa: PLC0415
    from training.sources import ImageSpec, load_any_images  # noqa: PLC0415

    found = Run(run).resolve()
    classifier = found.classifier()
    spec = ImageSpec(classifier.size, classifier.channels, classifier.background)
    images = load_any_images(found.config().source, data_folder(), spec).images
    chosen = images[:: max(1, len(images) // count)][:count]  # of every class, if they are sorted
    scores, classes = classifier.predict(chosen).max(1)
    files = []
    for pixels in chosen.permute(0, 2, 3, 1).numpy():
        Image.fromarray(pixels.squeeze()).save(file := io.BytesIO(), "PNG")
        files.append(file.getvalue())
    labels = [classifier.names[index] for index in classes.tolist()]
    return Reference(files, list(map(Answer, labels, scores.tolist())), classifier.data)


def verify(archive: Path, refer: Callable[[], Reference], load: Loader) -> Comparison:
    """Compare the answers of an archive with those of a run.

    Raises VerifyError, ArchiveError or StackError for an archive that is not right.
    """
    check_archive(archive)
    if read_checksum(archive) is None:
        raise VerifyError(f"{checksum_file(archive)} is not there: run `make archive`")
    check_contents(archive)
    reference = refer()
    with tempfile.TemporaryDirectory(prefix="fmnist-verify-") as scratch:
        folder = Path(scratch) / "archive"
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        if json.loads((folder / "model.json").read_text("utf-8"))["data"] != reference.data:
            raise VerifyError(
                "the archive is not of this run, which learned other data: name its run by --run"
            )
        config = yaml.safe_load((folder / CONFIG).read_text("utf-8"))
        found = load(folder, reference.images)
    tolerance = TOLERANCES[config["handler"]["precision"]]
    return compare(reference.answers, found, tolerance)


def compare(
    expected: Sequence[Answer],
    found: Sequence[Answer],
    tolerance: Tolerance = TOLERANCES["float32"],
) -> Comparison:
    """Compare answers; raises VerifyError for what is further off than the tolerance allows."""
    if len(found) != len(expected):
        raise VerifyError(f"{len(found):,} answers came to {len(expected):,} images")
    pairs = list(zip(expected, found, strict=True))
    wrong = [(index, a, b) for index, (a, b) in enumerate(pairs) if a.label != b.label]
    if len(wrong) > tolerance.labels * len(pairs):
        index, wanted, got = wrong[0]
        raise VerifyError(
            f"{len(wrong):,} of {len(pairs):,} labels are not the run's; image {index} is "
            f"{got.label!r} to the archive and {wanted.label!r} to the run"
        )
    differences = [abs(a.score - b.score) for a, b in pairs]
    for off in differences:
        if not off <= tolerance.score:  # NaN is not
            raise VerifyError(
                f"a score is {off:.6f} off that of the run, and {tolerance.score} is allowed"
            )
    return Comparison(len(pairs), len(wrong), max(differences))


def load_apart(folder: Path, images: Sequence[bytes]) -> list[Answer]:
    """Answer by TorchServe's loader in an environment of what the archive declares."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    # Not in /tmp: uv links within one file system only.
    with tempfile.TemporaryDirectory(prefix="verify-", dir=build) as scratch:
        python = make_environment(Path(scratch) / "venv", folder / REQUIREMENTS)
        return ask(python, folder, images, Path(scratch))


def make_environment(folder: Path, requirements: Path) -> Path:
    """Return the interpreter of a new environment with the requirements, and with the server.

    TorchServe comes without its own dependencies, or its Pillow would stand in for one that the
    archive forgot. What the requirements themselves need has the versions of the lock file.
    """
    lock = ROOT / "requirements.txt"
    python = folder / "bin" / "python"
    server = folder.with_name("server.txt")
    server.write_text(pin_requirements(lock.read_text("utf-8"), SERVER))
    install = ["pip", "install", "--link-mode", "hardlink", "--python", str(python)]
    for arguments in (
        ["venv", "--python", sys.executable, str(folder)],
        [*install, "--requirements", str(requirements), "--constraints", str(lock)],
        [*install, "--no-deps", "--requirements", str(server)],
    ):
        command = [str(Path(sys.executable).parent / "uv"), "--quiet", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT_S
        )
        if done.returncode:
            raise UnavailableError(f"uv {arguments[0]} failed: {done.stderr.strip()}")
    return python


def ask(python: Path, folder: Path, images: Sequence[bytes], scratch: Path) -> list[Answer]:
    """Let this interpreter load the archive and answer; `scratch` takes images and answers."""
    pictures, answers = scratch / "images", scratch / "answers.json"
    pictures.mkdir()
    for index, image in enumerate(images):
        (pictures / f"{index:06}.png").write_bytes(image)
    program = ROOT / "tools" / "load_archive.py"
    done = subprocess.run(
        [python, "-P", program, folder, pictures, ROOT / "serving" / "metrics.yaml", answers],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=LOAD_TIMEOUT_S,
    )
    if done.returncode:
        last = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise VerifyError(f"TorchServe cannot load the archive: {last}")
    return [read_answer(body) for body in json.loads(answers.read_text("utf-8"))]


def read_answer(body: dict[str, object]) -> Answer:
    """Return what the handler said of one image; raises VerifyError where it refused."""
    if "label" not in body:
        raise VerifyError(f"an image is answered {json.dumps(body)}")
    return Answer(str(body["label"]), float(str(body["score"])))


def find_obstacle(free_bytes: float) -> str | None:
    """Return why nothing can be verified here, or None."""
    if free_bytes >= NEEDED_BYTES:
        return None
    return f"{free_bytes / 1e9:.1f} GB are free here, and {NEEDED_BYTES / 1e9:.0f} may be needed"


def _name_others(compared: Comparison) -> str:
    return f", {compared.others:,} have others" if compared.others else ""


def main(argv: list[str] | None = None) -> int:
    """Verify one archive; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.verify", description=__doc__)
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    parser.add_argument("--run", default="latest", help="that it was exported from, without --tta")
    parser.add_argument("--images", type=int, default=1000, help="to compare (default: 1000)")
    asked = parser.parse_args(argv)
    if asked.images < 1:
        parser.error("--images: one image at least is compared")
    if obstacle := find_obstacle(shutil.disk_usage(ROOT).free):
        print(f"verify: skipped: {obstacle}")
        return 1 if os.environ.get("CI") else 0
    from training.errors import TrainingError  # noqa: PLC0415 - see read_reference

    try:
        refer = partial(read_reference, asked.run, asked.images)
        compared = verify(asked.archive, refer, load_apart)
    except ArchiveError as error:
        print(f"verify: {error}: run `make archive`", file=sys.stderr)
        return 1
    except (VerifyError, StackError, TrainingError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 1
    except (UnavailableError, subprocess.TimeoutExpired, OSError) as error:
        print(f"verify: nothing was verified: {error}", file=sys.stderr)
        return UNAVAILABLE
    except KeyboardInterrupt:
        print("verify: interrupted: nothing was verified", file=sys.stderr)
        return 130
    print(
        f"verify: {asked.archive}: {compared.images - compared.others:,} images have the labels of "
        f"run {asked.run}{_name_others(compared)}, the scores within {compared.off:.6f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
