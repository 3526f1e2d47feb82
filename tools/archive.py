"""Packing of the exported model and the handler as fmnist.mar: `python -m tools.archive`.

Exports the run of `runs/latest`, unless another is named; trains first when there is no run yet.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
HANDLER = ROOT / "handler" / "fmnist_handler.py"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


def export(run: str, name: str) -> Path:
    """Return the folder with the files of a run, exported now for a model of this name."""
    if run == "latest" and not (ROOT / "runs" / "latest").exists():
        print("archive: no trained model yet: training one, 3 minutes", flush=True)
        run_training("train", "--budget", "3m")
    folder = ROOT / "build" / "archive"
    run_training("export", "--run", run, "--name", name, "--output", str(folder))
    return folder


def pack(model: Path, store: Path, name: str = "fmnist", handler: Path = HANDLER) -> Path:
    """Return the archive `name`.mar in `store`, made of the folder `model` and the handler.

    `model` holds model.pt, model.json and index_to_name.json. Another `handler` can import the
    shipped one. The archive appears whole or not at all. Raises CalledProcessError when the
    archiver fails.
    """
    version = json.loads((model / "model.json").read_text())["version"]
    extra = [model / "model.json", model / "index_to_name.json"]
    extra += [file for file in sorted(HANDLER.parent.glob("*.py")) if file != handler]
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".packing-") as scratch:
        # torch-model-archiver removes $TMPDIR/<model name> before it begins, whatever that is.
        command = [
            *(str(Path(sys.executable).parent / "torch-model-archiver"), "--force"),
            *("--model-name", name, "--version", str(version), "--runtime", "python"),
            *("--serialized-file", str(model / "model.pt")),
            *("--handler", str(handler)),
            *("--config-file", str(HANDLER.parent / "model-config.yaml")),
            *("--extra-files", ",".join(map(str, extra)), "--export-path", scratch),
        ]
        run_child(command, env=os.environ | {"TMPDIR": scratch})
        return (Path(scratch) / f"{name}.mar").replace(store / f"{name}.mar")


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
    parser.add_argument("--store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--name", default="fmnist", help="the model's name in the service")
    asked = parser.parse_args(argv)
    try:
        archive = pack(asked.model or export(asked.run, asked.name), asked.store, asked.name)
    except subprocess.CalledProcessError as error:
        number = -error.returncode if error.returncode < 0 else error.returncode - 128
        if number in SIGNALS:
            return say_interrupted(number)
        print(f"archive: {error.cmd[0]} failed; nothing was changed", file=sys.stderr)
        return error.returncode
    except KeyboardInterrupt:
        return say_interrupted(signal.SIGINT)
    print(f"archive: {archive} ({archive.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
