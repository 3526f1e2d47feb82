"""Packing of the exported model and the handler as fmnist.mar: `python -m tools.archive`.

Exports the run of `runs/latest`, unless another is named; trains first when there is no run yet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tools.schemas import find_faults, load_schema
from tools.servers.torchserve import checksum_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
HANDLER = ROOT / "handler" / "fmnist_handler.py"
FORMATS = {"torchscript": "model.pt", "pt2": "model.pt2"}
"""The file of the network, by the format that model.json names."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MANIFEST = "MAR-INF/MANIFEST.json"
FIXED_TIME = (1980, 1, 1, 0, 0, 0)
"""The time of every entry of an archive, the first that a zip file can say."""
CONFIG, REQUIREMENTS = "model-config.yaml", "requirements.txt"
DECLARED = ("numpy", "pillow", "torch")
"""What handler and network import. TorchServe and its PyYAML are not the archive's."""


class ArchiveError(Exception):
    """There is nothing to pack, or it is not as docs/schemas say; the message is one sentence."""


def run_training(*arguments: str) -> None:
    """Run one verb of the training package; raises CalledProcessError."""
    run_child([sys.executable, "-m", "training", *arguments], cwd=ROOT)


def run_child(command: Sequence[str], **options: Any) -> None:  # noqa: ANN401 - those of Popen
    """Run a program to its end; raises CalledProcessError.

    It is in a process group of its own, so that it gets a Ctrl-C once and from here. It may then
    take its time to keep what it has: `subprocess.run` would kill it after a quarter of a second.
    """
    with subprocess.Popen(command, process_group=0, **options) as child:

        def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - Python's
            child.send_signal(number)

        before = {number: signal.signal(number, forward) for number in SIGNALS}
        try:
            code = child.wait()
        finally:
            for number, action in before.items():
                signal.signal(number, action)
    if code:
        raise subprocess.CalledProcessError(code, command)


def export(run: str, name: str, file_format: str) -> Path:
    """Return the folder with the files of a run, exported now for a model of this name.

    Without any run one is trained. Raises ArchiveError when there is no run of this name.
    """
    runs = ROOT / "runs"
    if run != "latest" and not (runs / run).exists():
        kept = sorted((path.parent.name for path in runs.glob("*/checkpoint.pt")), reverse=True)
        names = ", ".join(name for name in kept[:10] if name != "latest") or "none yet"
        raise ArchiveError(
            f"there is no run {run}: name one of runs/ ({names}), or leave out --run for the last"
        )
    if run == "latest" and not (runs / "latest").exists():
        print("archive: no trained model yet: training one, 3 minutes", flush=True)
        run_training("train", "--budget", "3m")
    folder = ROOT / "build" / "archive"
    named = ("--name", name, "--format", file_format)
    run_training("export", "--run", run, *named, "--output", str(folder))
    return folder


def find_network_file(card: bytes) -> str:
    """Return the name of the network's file beside this model.json; older ones name no format."""
    return FORMATS[json.loads(card).get("format", "torchscript")]


def pin_requirements(lock: str, names: Sequence[str] = DECLARED) -> str:
    """Return a requirements.txt of these packages in the versions of the lock file.

    Without hashes: with them pip wants one for each of torch's own dependencies too.
    """
    lines = (line.removesuffix("\\").rstrip() for line in lock.splitlines())
    return "".join(f"{line}\n" for line in lines if line.partition("==")[0] in names)


def pack(model: Path, store: Path, name: str = "fmnist", handler: Path = HANDLER) -> Path:
    """Return the archive `name`.mar in `store`, made of the folder `model` and the handler.

    `model` holds model.json, index_to_name.json and the network in the format that model.json
    names. Another `handler` can import the shipped one. The archive appears whole or not at all,
    its checksum beside it. The same files give the same bytes, whenever and wherever. Raises
    CalledProcessError when the archiver fails, and ArchiveError for what `check_contents` says.
    """
    card = (model / "model.json").read_bytes()
    version = json.loads(card)["version"]
    extra = [model / "model.json", model / "index_to_name.json"]
    extra += [file for file in sorted(HANDLER.parent.glob("*.py")) if file != handler]
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".packing-") as scratch:
        declared = Path(scratch) / REQUIREMENTS
        declared.write_text(pin_requirements((ROOT / "requirements.txt").read_text("utf-8")))
        # torch-model-archiver removes $TMPDIR/<model name> before it begins, whatever that is.
        command = [
            *(str(Path(sys.executable).parent / "torch-model-archiver"), "--force"),
            *("--model-name", name, "--version", str(version), "--runtime", "python"),
            *("--serialized-file", str(model / find_network_file(card))),
            *("--handler", str(handler)),
            *("--config-file", str(HANDLER.parent / CONFIG)),
            *("--requirements-file", str(declared)),
            *("--extra-files", ",".join(map(str, extra)), "--export-path", scratch),
        ]
        run_child(command, env=os.environ | {"TMPDIR": scratch})
        archive = Path(scratch) / f"{name}.mar"
        repack(archive)
        check_contents(archive)
        return publish(archive, store)


def repack(archive: Path) -> None:
    """Rewrite what torch-model-archiver made so that its bytes depend on the files alone.

    Entries are sorted and have one time and mode; the manifest loses the time of its creation.
    """
    with zipfile.ZipFile(archive) as opened:
        contents = {entry: opened.read(entry) for entry in opened.namelist() if entry[-1] != "/"}
    manifest = json.loads(contents[MANIFEST])
    manifest.pop("createdOn", None)
    contents[MANIFEST] = json.dumps(manifest, indent=2, sort_keys=True).encode()
    with zipfile.ZipFile(archive, "w") as opened:
        for entry, content in sorted(contents.items()):
            header = zipfile.ZipInfo(entry, FIXED_TIME)
            header.create_system, header.external_attr = 3, 0o100644 << 16  # 3: Unix
            opened.writestr(header, content, zipfile.ZIP_DEFLATED, compresslevel=6)


def check_contents(archive: Path) -> None:
    """Raise ArchiveError unless manifest and configuration have the form of their schemas.

    The manifest must give the version of model.json, too.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            manifest = json.loads(opened.read(MANIFEST))
            version = str(json.loads(opened.read("model.json"))["version"])
            config = yaml.safe_load(opened.read(CONFIG))
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ArchiveError(f"{archive.name} is no archive of this project: {error}") from error
    for name, content, schema in (
        (MANIFEST, manifest, "manifest"),
        (CONFIG, config, "model-config"),
    ):
        if faults := find_faults(content, load_schema(schema)):
            raise ArchiveError(f"{name} is not as docs/schemas/{schema}.json says: {faults[0]}")
    if (given := manifest["model"]["modelVersion"]) != version:
        raise ArchiveError(f"the manifest gives version {given}, and model.json {version}")


def publish(archive: Path, store: Path) -> Path:
    """Move the archive into `store` with NAME.mar.sha256, as sha256sum writes it; return its path.

    The old checksum goes first: between the steps an archive has none, never a wrong one.
    """
    sums = checksum_file(store / archive.name)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    written = archive.with_name(sums.name)
    written.write_text(f"{digest}  {archive.name}\n")
    sums.unlink(missing_ok=True)
    moved = archive.replace(store / archive.name)
    written.replace(sums)
    return moved


def say_interrupted(number: int) -> int:
    """Say what is there after a signal; return the exit code."""
    print("archive: interrupted: no archive was made or changed; run it again", file=sys.stderr)
    return 128 + number


def main(argv: list[str] | None = None) -> int:
    """Make the archive; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.archive", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, help="a folder with exported files; default: export")
    what.add_argument("--run", default="latest", help="export this run; default: latest")
    parser.add_argument("--format", choices=FORMATS, help="of the export (default: torchscript)")
    parser.add_argument("--store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--name", default="fmnist", help="the model's name in the service")
    asked = parser.parse_args(argv)
    if asked.model and asked.format:
        parser.error("--format is of an export: with --model, model.json names it")
    try:
        model = asked.model or export(asked.run, asked.name, asked.format or "torchscript")
        archive = pack(model, asked.store, asked.name)
    except subprocess.CalledProcessError as error:
        number = -error.returncode if error.returncode < 0 else error.returncode - 128
        if number in SIGNALS:
            return say_interrupted(number)
        print(f"archive: {error.cmd[0]} failed; nothing was changed", file=sys.stderr)
        return error.returncode
    except ArchiveError as error:
        print(f"archive: {error}; nothing was changed", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return say_interrupted(signal.SIGINT)
    print(f"archive: {archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
