"""Image files as other programs write them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from tools.exported import Bytes


def encode(image: Bytes) -> bytes:
    """Return a PNG file of a grey image, uint8 [height, width], as Pillow writes it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
