"""Packing of the exported model and the handler as fmnist.mar: `python -m tools.archive`.

Exports the run of `runs/latest`, unless another is named; trains first when there is no run yet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HANDLER = ROOT / "handler" / "fmnist_handler.py"
FORMATS = {"torchscript": "model.pt", "pt2": "model.pt2"}
"""The file of the network, by the format that model.json names."""


def run_training(*arguments: str) -> None:
    """Run one verb of the training package; raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "training", *arguments], cwd=ROOT, check=True)


def export(run: str, name: str, file_format: str) -> Path:
    """Return the folder with the files of a run, exported now for a model of this name."""
    if run == "latest" and not (ROOT / "runs" / "latest").exists():
        print("archive: no trained model yet: training one, 3 minutes", flush=True)
        run_training("train", "--budget", "3m")
    folder = ROOT / "build" / "archive"
    named = ("--name", name, "--format", file_format)
    run_training("export", "--run", run, *named, "--output", str(folder))
    return folder


def find_network_file(card: bytes) -> str:
    """Return the name of the network's file beside this model.json; older ones name no format."""
    return FORMATS[json.loads(card).get("format", "torchscript")]


def pack(model: Path, store: Path, name: str = "fmnist", handler: Path = HANDLER) -> Path:
    """Return the archive `name`.mar in `store`, made of the folder `model` and the handler.

    `model` holds model.json, index_to_name.json and the network in the format that model.json
    names. Another `handler` can import the shipped one. The archive appears whole or not at all.
    Raises CalledProcessError when the archiver fails.
    """
    card = (model / "model.json").read_bytes()
    version = json.loads(card)["version"]
    extra = [model / "model.json", model / "index_to_name.json"]
    extra += [file for file in sorted(HANDLER.parent.glob("*.py")) if file != handler]
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".packing-") as scratch:
        # torch-model-archiver removes $TMPDIR/<model name> before it begins, whatever that is.
        command = [
            *(str(Path(sys.executable).parent / "torch-model-archiver"), "--force"),
            *("--model-name", name, "--version", str(version), "--runtime", "python"),
            *("--serialized-file", str(model / find_network_file(card))),
            *("--handler", str(handler)),
            *("--config-file", str(HANDLER.parent / "model-config.yaml")),
            *("--extra-files", ",".join(map(str, extra)), "--export-path", scratch),
        ]
        subprocess.run(command, env=os.environ | {"TMPDIR": scratch}, check=True)
        return (Path(scratch) / f"{name}.mar").replace(store / f"{name}.mar")


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
        print(f"archive: {error.cmd[0]} failed; nothing was changed", file=sys.stderr)
        return error.returncode
    print(f"archive: {archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
