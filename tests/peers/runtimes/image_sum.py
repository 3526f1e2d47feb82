"""The decoding step and the model of all runtimes: the class of an image is its sum modulo 10."""

from __future__ import annotations

from io import BytesIO

import PIL.Image

CLASSES = 10


def score(file: bytes) -> list[float]:
    """Return one score for each class; raises what Pillow raises for a file that is no image."""
    with PIL.Image.open(BytesIO(file)) as image:
        total = sum(image.convert("L").tobytes())
    return [float(number == total % CLASSES) for number in range(CLASSES)]
