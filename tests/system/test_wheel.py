"""The connector as a package: what a wheel of this tree holds, alone in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from connectors import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).parent / "uv"

PUBSUB = ["--project", "mine", "--subscription", "images", "--output-topic", "predictions"]

pytestmark = pytest.mark.system


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Return what a command prints; shows all of it when it fails."""
    # Not this checkout, and not this virtual environment.
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_of_its_rooms(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    rooms = ("training", "connectors")
    files = {str(f.relative_to(ROOT)) for room in rooms for f in (ROOT / room).rglob("*.py")}
    assert held == files
    names = zipfile.ZipFile(wheel).namelist()
    page = {str(file.relative_to(ROOT)) for file in (ROOT / "connectors/live_page").iterdir()}
    assert set(names) >= page
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_kafka_extra_alone_runs_the_command(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    run([UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], tmp_path)
    install: list[str | Path] = [UV, "pip", "install", "--quiet", "--python", python]
    lock = ROOT / "requirements-kafka.txt"
    run([*install, "--require-hashes", "-r", lock], tmp_path)
    run([*install, "--no-deps", wheel], tmp_path)
    commands: list[list[str | Path]] = [[python.parent / "fmnist"], [python, "-m", "connectors"]]
    for command in commands:
        assert "--input-topic" in run([*command, "kafka", "--help"], tmp_path)
        assert run([*command, "--version"], tmp_path) == f"fmnist {__version__}\n"
    missing = subprocess.run(
        [python, "-m", "connectors", "check", "pubsub", *PUBSUB],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert missing.returncode == 69
    assert "pip install '.[pubsub]'" in missing.stderr
    assert "Traceback" not in missing.stderr
