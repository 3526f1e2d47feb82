"""How the served model does on images as users send them: `python -m tests.photos`.

Makes photographs of the test images of Fashion-MNIST: dark on white, ten times as large, off the
middle, under uneven light, with the noise of a sensor, in colour, as JPEG. They go through the
handler's own decoding and the archive's own model.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tools.exported import Bytes, classes, first_images, first_labels
from tools.servers.process import ROOT
from tools.servers.torchserve import ARCHIVE

sys.path.insert(0, str(ROOT / "handler"))  # flat on purpose, as it lies in the archive
import fmnist_wire as wire

SCALE = 10
PAPER = 240.0
"""The grey value of the background."""


def photograph(image: Bytes, generator: np.random.Generator) -> bytes:
    """Return a JPEG of a garment, grey [28, 28] on black, as on a sheet of paper."""
    side = image.shape[0] * SCALE
    large = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    frame = side * 6 // 5
    top, left = generator.integers(0, frame - side + 1, 2)
    garment = np.zeros((frame, frame))
    garment[top : top + side, left : left + side] = np.asarray(large)
    light = 1 - 0.15 * np.linspace(0, 1, frame)[:, None] * generator.uniform(0, 1)
    grey = (PAPER - garment * PAPER / 255) * light + generator.normal(0, 4, (frame, frame))
    body = io.BytesIO()
    Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB").save(body, "JPEG")
    return body.getvalue()


def decode_like_handler(bodies: list[bytes], archive: Path) -> Bytes:
    """Return what the handler makes of the bodies, uint8 [N, height, width]."""
    with zipfile.ZipFile(archive) as opened:
        card = json.loads(opened.read("model.json"))
        names = json.loads(opened.read("index_to_name.json"))
    config = yaml.safe_load((ROOT / "handler" / "model-config.yaml").read_text())
    model, settings = wire.read_model(card, names), wire.read_settings(config)
    questions = [wire.unpack({"body": body}, {}, model, settings) for body in bodies]
    return np.stack([image[0] for each in questions for image in wire.good_images(each)])


def main(argv: list[str] | None = None) -> int:
    """Print the accuracy on test images and on their photographs; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.photos", description=__doc__)
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    parser.add_argument("--limit", type=int, default=1000, help="test images (default: 1000)")
    asked = parser.parse_args(argv)
    images, labels = first_images(asked.limit), first_labels(asked.limit)
    generator = np.random.default_rng(0)
    photos = [photograph(image, generator) for image in images]
    for name, pixels in (
        ("as they are", images),
        ("photographs", decode_like_handler(photos, asked.archive)),
    ):
        share = (classes(pixels, asked.archive) == labels).mean()
        print(f"photos: {100 * share:.2f} % of {len(labels):,} test images, {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
