"""Export of a trained classifier: model.pt, model.json, index_to_name.json.

model.pt is a frozen TorchScript module: uint8 [N, C, H, W] in, probabilities float32 [N, classes]
out. Normalisation, temperature and softmax are inside, so whoever serves it knows no mean and no
deviation.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .classifier import BATCH, ImageClassifier
from .errors import ExportError
from .files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOLERANCE = 1e-4
"""How far a probability may move between the trained and the exported module."""

PROOF_BATCHES = (1, 7, 64)
"""Batch sizes that a server will use: one, an odd one, a large one."""


class Serving(nn.Module):
    """Pixels uint8 [N, C, H, W] -> probabilities float32 [N, classes]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of each image."""
        probabilities: Tensor = self.model(images).softmax(1)
        return probabilities


@dataclass(frozen=True, slots=True)
class Input:
    """The images that the module takes; `background` (0 to 255) pads those of another shape."""

    channels: int
    height: int
    width: int
    background: int


@dataclass(frozen=True, slots=True)
class Description:
    """The content of model.json.

    `accuracy` is a share from 0 to 1, measured on the validation images of the run: the test
    images are for `evaluate` alone. `data` is the SHA-256 of the training images and labels.
    """

    name: str
    version: str
    input: Input
    classes: int
    accuracy: float
    data: str


def describe(
    classifier: ImageClassifier, accuracy: float, *, name: str = "fmnist", version: str = "1.0"
) -> Description:
    """Return what a server must know of the classifier."""
    height, width = classifier.size
    return Description(
        name=name,
        version=version,
        input=Input(classifier.channels, height, width, classifier.background),
        classes=classifier.classes,
        accuracy=accuracy,
        data=classifier.data,
    )


def export(
    classifier: ImageClassifier, description: Description, folder: Path, proof: Tensor
) -> None:
    """Write the three files to `folder`, all of them or none.

    Raises ExportError, and writes nothing, unless the module answers every image of `proof`,
    uint8 [N, C, H, W], as the classifier does: same label, probabilities within TOLERANCE.
    """
    module = freeze(classifier)
    prove(classifier, module, proof)
    names = {str(label): name for label, name in enumerate(classifier.names)}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        contents = {
            "model.pt": module,
            "model.json": _json(asdict(description)),
            "index_to_name.json": _json(names),
        }
        for name, content in contents.items():
            files.enter_context(atomic_write(folder / name)).write_bytes(content)


def freeze(classifier: ImageClassifier) -> bytes:
    """Return the serving module as a TorchScript file, with norms folded where they can be."""
    content = io.BytesIO()
    with _ignore_deprecation():
        try:
            scripted = torch.jit.script(Serving(copy.deepcopy(classifier.model).cpu()).eval())
        except (RuntimeError, ValueError, torch.jit.frontend.FrontendError) as error:
            raise ExportError(
                f"TorchScript cannot express the network: write its forward more plainly ({error})"
            ) from error
        # Not optimize_for_inference: what it saves cannot be loaded (pytorch #69608).
        torch.jit.save(torch.jit.freeze(scripted), content)
    return strip_sources(content.getvalue())


def strip_sources(module: bytes) -> bytes:
    """Return the TorchScript file without its debug records.

    They hold the paths of our sources on this machine: an export elsewhere had other bytes.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(module))  # noqa: SLF001 - keeps alignment
    content = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(content)  # noqa: SLF001
    writer.set_min_version(int(reader.get_record("version")))
    own = {"version", "byteorder", ".data/serialization_id"}  # what the writer adds by itself
    for name in reader.get_all_records():
        if name not in own and not name.endswith(".debug_pkl"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return content.getvalue()


def load_module(module: bytes) -> Any:  # noqa: ANN401 - torch's module has no types
    """Return the module of such a file, as a server loads it."""
    with _ignore_deprecation():
        return torch.jit.load(io.BytesIO(module), map_location="cpu")  # type: ignore[no-untyped-call] # torch's


def prove(classifier: ImageClassifier, module: bytes, images: Tensor) -> None:
    """Raise ExportError unless the module, loaded from its bytes, answers as the classifier."""
    served = load_module(module)
    for size in (*PROOF_BATCHES, BATCH):
        # All of the images once, in the size that is quickest; a few in every other one.
        part = images if size == BATCH else images[: 2 * size + 1]
        expected = classifier.predict(part)
        with torch.inference_mode():
            found = torch.cat([served(batch) for batch in torch.split(part, size)])
        _compare(expected, found, size)


def _compare(expected: Tensor, found: Tensor, size: int) -> None:
    apart = (expected - found).abs().max().item()
    changed = int((expected.argmax(1) != found.argmax(1)).sum())
    if not apart <= TOLERANCE or changed:
        raise ExportError(
            f"in batches of {size} the exported module differs from the trained one by {apart:.1e} "
            f"(at most {TOLERANCE:.0e} is allowed) and changes {changed} labels: nothing was "
            "written; a layer that behaves at random or by batch is the usual cause"
        )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def _ignore_deprecation() -> Iterator[None]:
    # It is, and it is also the only form that TorchServe loads without our code beside it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        yield
