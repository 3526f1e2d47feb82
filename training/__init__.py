"""Training: images with labels -> a classifier, and the files that a server needs of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# torch's threads wait for each other many times a batch. Sleeping at once costs a fifth of the
# speed of an idle machine; spinning for long costs, beside other busy processes, a slice of
# somebody's time at each wait. So they spin for some 0.1 ms, then sleep (docs/decisions/006).
# Both settings are read once, when torch is loaded; whoever set them knows better.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

if TYPE_CHECKING:
    from .classifier import History, ImageClassifier

__all__ = ["History", "ImageClassifier"]

__version__ = "0.1.0"
"""Of the project, as `connectors.__version__`: neither package may import the other."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whichever of the two it is
    """Import torch only when a class is asked for: `--help` needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import classifier  # noqa: PLC0415 - see above

    return getattr(classifier, name)
