"""The shipped handler, but for an image that kills the worker: one that is white all over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import fmnist_handler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fmnist_images import Pixels
    from fmnist_wire import Row

WHITE = 255


class DeadlyHandler(fmnist_handler.FmnistHandler):
    """Dies as a segmentation fault would make it: at once, without an answer."""

    def forward(self, images: Sequence[Pixels]) -> Row:
        """Predict, unless an image is white all over."""
        if any(image.min() == WHITE for image in images):
            os._exit(1)
        return super().forward(images)
