"""Archives of other networks than the shipped one, to see what the relay costs beside them."""

from __future__ import annotations

import json
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

from tools.archive import pack
from tools.servers.torchserve import ARCHIVE

if TYPE_CHECKING:
    from pathlib import Path

    import torch

SHIPPED = "shipped"
RESNET_SIZE = 224
"""Pixels of each side; what torchvision's networks are made for."""


def pack_resnet(name: str, folder: Path) -> Path:
    """Return an archive of a ResNet of torchvision with random weights, made in `folder`.

    It takes grey images of RESNET_SIZE, and knows the shipped archive's classes by name only.
    """
    import torch  # noqa: PLC0415 - takes seconds, and most benchmarks do not need it

    with zipfile.ZipFile(ARCHIVE) as shipped:
        card = json.loads(shipped.read("model.json"))
        names = shipped.read("index_to_name.json")
    card["name"] = name
    card["input"] |= {"height": RESNET_SIZE, "width": RESNET_SIZE}
    del card["accuracy"], card["validation"]
    model = folder / name
    model.mkdir()
    (model / "model.json").write_text(json.dumps(card), encoding="utf-8")
    (model / "index_to_name.json").write_bytes(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and chosen
        example = torch.zeros((2, 1, RESNET_SIZE, RESNET_SIZE), dtype=torch.uint8)
        traced: Any = torch.jit.trace(_build(name, card["classes"]), example)  # type: ignore[no-untyped-call] # torch's own
        traced.save(str(model / "model.pt"))
    return pack(model, folder / "store", name)


def _build(name: str, count: int) -> torch.nn.Module:
    import torch  # noqa: PLC0415 - as above
    import torchvision  # noqa: PLC0415

    class Grey(torch.nn.Module):
        """Probabilities, float32 [n, classes], of images, uint8 [n, 1, height, width]."""

        def __init__(self) -> None:
            super().__init__()
            self.network = torchvision.models.get_model(name, num_classes=count)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            """See the class."""
            colours = images.float().div(255).expand(-1, 3, -1, -1)
            found: torch.Tensor = self.network(colours).softmax(1)
            return found

    return Grey().eval()
