"""Names that the command line and the files of a run may hold, with what they were called before.

Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NETWORKS = (
    *("pyramid-16-48-96", "pyramid-24-64-128", "pyramid-32-96-192"),
    *("residual-24-64-128", "residual-48-96-192"),
    "stride-32-64-128",
    "baseline",
)
"""A family of `networks.FAMILIES`, and the widths that it is built with."""

DEFAULT_NETWORK = "pyramid-16-48-96"
"""As quick to serve as the baseline, and far better: `python -m training frontier`."""

BASELINE = "baseline"
"""The network that all others are compared with."""

OLD_NETWORKS: Mapping[str, str] = {
    "P(16,48,96)": "pyramid-16-48-96",
    "P(24,64,128)": "pyramid-24-64-128",
    "P(32,96,192)": "pyramid-32-96-192",
    "R(24,64,128)": "residual-24-64-128",
    "R(48,96,192)": "residual-48-96-192",
    "S2(32,64,128)": "stride-32-64-128",
    "tutorial": "baseline",
}
"""Names in older checkpoints and config.json, and on older command lines."""

OLD_RECIPE_KEYS: Mapping[str, str] = {
    "peak": "max_lr",
    "smoothing": "label_smoothing",
    "shift": "translation",
    "erase": "cutout",
}
"""Keys of `recipe` in older config.json."""

PRECISIONS = ("float32", "bfloat16")
"""What layers may multiply in while they learn."""

FORMATS: Mapping[str, str] = {"torchscript": "model.pt", "pt2": "model.pt2"}
"""Forms of the exported module, and the file of each; the first one is the default."""

TORCHSCRIPT, PT2 = FORMATS

FASHION_MNIST = "fashion-mnist"
"""The source of images that is meant where none is named."""

LATEST = "latest"
"""The run that is meant where none is named: a link to the last one that was good enough."""


def modernise_network(name: str) -> str:
    """Return the present name of a network; a name that is not an older one stays as it is."""
    return OLD_NETWORKS.get(name, name)
