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

    from numpy.typing import NDArray

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
    scored = json.loads(run(tmp_path, "training", "evaluate", "--run", "fruit", "--json"))
    named = ["--run", "fruit", "--name", "fruit"]
    run(tmp_path, "training", "export", *named, "--output", "exported")
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


SHAPES = ("bar", "disc", "frame")
GROUNDS = ("black", "white", "dark ink", "bright ink", "16 bits", "16 bits on white", "turned")


def shape(name: str, generator: np.random.Generator, side: int = 56) -> NDArray[np.bool_]:
    """Draw a shape somewhere in a square."""
    rows, columns = np.ogrid[:side, :side]
    y, x = (generator.uniform(0.4, 0.6, 2) * side).tolist()
    across, down = np.abs(columns - x), np.abs(rows - y)
    if name == "disc":
        return np.asarray(across**2 + down**2 < (side / 5) ** 2)
    if name == "bar":
        return np.asarray((across < side / 16) & (down < side / 3))
    return np.asarray((np.maximum(across, down) < side / 4) & (np.maximum(across, down) > side / 6))


def draw(drawn: NDArray[np.bool_], ground: str, file: Path) -> None:
    """Save a shape in one of the ways in which people have their drawings."""
    ink, paper = (0, 255) if "white" in ground or "dark" in ground else (255, 0)
    grey = np.where(drawn, ink, paper).astype(np.uint8)
    if "16" in ground:
        Image.fromarray(grey.astype(np.uint16) * 257).save(file.with_suffix(".png"))
    elif "ink" in ground:
        alpha = drawn.astype(np.uint8) * 255
        Image.fromarray(np.dstack([np.full_like(grey, ink), alpha]), "LA").save(
            file.with_suffix(".png")
        )
    elif ground == "turned":
        Image.fromarray(np.rot90(grey)).save(file.with_suffix(".tif"), tiffinfo={0x0112: 6})
    else:
        Image.fromarray(grey).save(file.with_suffix(".png"))


def test_grey_drawings_on_any_ground_are_served_as_well_as_they_were_learned(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(12)
    for name in SHAPES:
        for part, number in (("train", 9), ("test", 3)):
            folder = tmp_path / "shapes" / part / name
            folder.mkdir(parents=True)
            for index, ground in enumerate(GROUNDS * number):
                draw(shape(name, generator), ground, folder / f"{index:02}")
    flags = ["--data", "folder:shapes", "--size", "28x28", "--epochs", "12", "--threads", "1"]

    run(tmp_path, "training", "train", *flags, "--run", "shapes")
    scored = json.loads(run(tmp_path, "training", "evaluate", "--run", "shapes", "--json"))
    named = ["--run", "shapes", "--name", "shapes"]
    run(tmp_path, "training", "export", *named, "--output", "exported")
    store = tmp_path / "model_store"
    store.mkdir()

    with TorchServe(archive.pack(tmp_path / "exported", store, "shapes")) as server:
        right = 0
        for name in SHAPES:
            files = sorted((tmp_path / "shapes" / "test" / name).iterdir())
            right += curl(server.url, *files).count(name)
    assert scored["images"] == len(SHAPES) * len(GROUNDS) * 3
    assert right == round(scored["accuracy"] * scored["images"])
    assert scored["accuracy"] > 0.9
