"""Images of somebody's own, from a folder to the answer of the server, by commands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tools import archive
from tools.servers.process import ROOT
from tools.servers.torchserve import TorchServe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system

COLOURS = {
    "lemon": (230, 220, 40),
    "lime": (60, 200, 60),
    "orange": (240, 140, 20),
    "plum": (90, 30, 110),
    "tomato": (210, 30, 30),
}


def fruit(name: str, generator: np.random.Generator, side: int) -> Image.Image:
    """Make a disc of the fruit's colour on a bright, noisy ground."""
    rows, columns = np.ogrid[:side, :side]
    centre, radius = generator.uniform(0.35, 0.65, 2) * side, generator.uniform(0.15, 0.3) * side
    disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    pixels = np.where(disc[..., None], COLOURS[name], (235, 235, 235))
    noisy = pixels + generator.integers(-15, 16, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(url: str, *files: Path) -> list[str]:
    """Return the labels of the files, each asked for on its own."""
    each = [f"{{{','.join(map(str, files))}}}"]
    command = ["curl", "--silent", "--show-error", "--fail", "--upload-file", *each, url]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    decoder, labels, rest = json.JSONDecoder(), [], done.stdout
    while rest:
        answer, end = decoder.raw_decode(rest)
        labels.append(answer["label"])
        rest = rest[end:].lstrip()
    return labels


def test_a_folder_of_five_rgb_classes_becomes_a_served_model_with_its_own_labels(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(11)
    for name in COLOURS:
        for part, number in (("train", 24), ("test", 4)):
            folder = tmp_path / "fruit" / part / name
            folder.mkdir(parents=True)
            for index in range(number):
                fruit(name, generator, 64).save(folder / f"{index}.png")
    flags = ["--data", "folder:fruit", "--epochs", "10", "--run", "fruit", "--threads", "1"]

    run(tmp_path, "training", "train", *flags, "--min-accuracy", "90")
    scored = json.loads(run(tmp_path, "training", "evaluate", "--json"))
    run(tmp_path, "training", "export", "--name", "fruit", "--output", "exported")
    store = tmp_path / "model_store"
    store.mkdir()
    packed = archive.pack(tmp_path / "exported", store, "fruit")

    assert (scored["images"], scored["accuracy"]) == (20, 1.0)
    larger = tmp_path / "larger.jpg"
    fruit("plum", generator, 300).save(larger)
    with TorchServe(packed) as server:
        for name in COLOURS:
            files = sorted((tmp_path / "fruit" / "test" / name).iterdir())
            assert curl(server.url, *files) == [name] * 4
        assert curl(server.url, larger) == ["plum"]
