"""Export of a trained classifier: the module, model.json, index_to_name.json.

The module takes uint8 [N, C, H, W] and returns probabilities float32 [N, classes]. Normalisation,
temperature and softmax are inside, so whoever serves it knows no mean and no deviation. It is
model.pt, a frozen TorchScript module, or model.pt2, a program of torch.export (docs/decisions/030).
Equal weights give equal bytes, in whatever folder of whatever machine they are exported.
"""

from __future__ import annotations

import copy
import io
import json
import platform
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import __version__
from .choices import FORMATS, PT2, TORCHSCRIPT
from .classifier import BATCH, ImageClassifier
from .errors import ExportError
from .files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .evaluation import Validation

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
        # In float32 also where a server multiplies in bfloat16, or scores were multiples of 1/256.
        probabilities: Tensor = self.model(images).softmax(1, dtype=torch.float32)
        return probabilities


@dataclass(frozen=True, slots=True)
class Input:
    """The images that the module takes; `background` (0 to 255) pads those of another shape."""

    channels: int
    height: int
    width: int
    background: int


@dataclass(frozen=True, slots=True)
class Versions:
    """Of what wrote the files."""

    project: str
    python: str
    torch: str


@dataclass(frozen=True, slots=True)
class Description:
    """The content of model.json; docs/schemas/model.json defines each key.

    `accuracy` is a share from 0 to 1, measured on the validation images of the run: the test
    images are for `evaluate` alone. `data` is the SHA-256 of the training images and labels.
    `format` is one of `choices.FORMATS`. Without `validation` the file has no such key.
    """

    name: str
    version: str
    input: Input
    classes: int
    accuracy: float
    data: str
    format: str
    versions: Versions
    validation: Validation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what is written; a second export of the same run writes the same."""
        content = asdict(self)
        if self.validation is None:
            del content["validation"]
        return content


def describe(
    classifier: ImageClassifier,
    accuracy: float,
    *,
    name: str = "fmnist",
    version: str = "1.0",
    file_format: str = TORCHSCRIPT,
    validation: Validation | None = None,
) -> Description:
    """Return what a server must know of the classifier, and what its answers should look like."""
    height, width = classifier.size
    return Description(
        name=name,
        version=version,
        input=Input(classifier.channels, height, width, classifier.background),
        classes=classifier.classes,
        accuracy=accuracy,
        data=classifier.data,
        format=file_format,
        versions=Versions(__version__, platform.python_version(), torch.__version__),
        validation=validation,
    )


def export(
    classifier: ImageClassifier, description: Description, folder: Path, proof: Tensor
) -> None:
    """Write the three files to `folder`, all of them or none, the module in the described format.

    A module in another format that lies there stays: model.json says which one it belongs to.
    Raises ExportError, and writes nothing, unless the module answers every image of `proof`,
    uint8 [N, C, H, W], as the classifier does: same label, probabilities within TOLERANCE.
    """
    module = SERIALISERS[description.format](classifier)
    prove(classifier, LOADERS[description.format](module), proof)
    names = {str(label): name for label, name in enumerate(classifier.names)}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        contents = {
            FORMATS[description.format]: module,
            "model.json": _json(description.to_dict()),
            "index_to_name.json": _json(names),
        }
        for name, content in contents.items():
            files.enter_context(atomic_write(folder / name)).write_bytes(content)


def freeze(classifier: ImageClassifier) -> bytes:
    """Return the serving module as a TorchScript file, with norms folded where they can be."""
    content = io.BytesIO()
    with _ignore_deprecation():
        try:
            scripted = torch.jit.script(_make_serving(classifier))
        except (RuntimeError, ValueError, torch.jit.frontend.FrontendError) as error:
            raise ExportError(
                f"TorchScript cannot express the network: write its forward more plainly ({error})"
            ) from error
        # Not optimize_for_inference: what it saves cannot be loaded (pytorch #69608).
        torch.jit.save(torch.jit.freeze(scripted), content)
    return strip_sources(content.getvalue())


def trace(classifier: ImageClassifier) -> bytes:
    """Return the serving module as a file of torch.export, for any number of images at once."""
    serving = _make_serving(classifier)
    sample = torch.zeros(2, classifier.channels, *classifier.size, dtype=torch.uint8)
    try:
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(serving, (sample,), dynamic_shapes=({0: batch},))
    except Exception as error:  # the network is anybody's
        raise ExportError(
            "torch.export cannot express the network: write its forward more plainly, or export "
            f"--format {TORCHSCRIPT} ({error})"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the folder of this machine
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Weights whose channels lie last are not "complete" to it. They share no storage, so it
        # writes each of them whole; in the other order the module is half as fast.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        torch.export.save(program, content)
    return content.getvalue()


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


def load_program(program: bytes) -> Any:  # noqa: ANN401 - torch's module has no types
    """Return the module of a file that `trace` made.

    For files of our own alone: torch.export.load runs what a pickle in the file says.
    """
    return torch.export.load(io.BytesIO(program)).module()


def load_module(module: bytes) -> Any:  # noqa: ANN401 - torch's module has no types
    """Return the module of such a file, as a server loads it."""
    with _ignore_deprecation():
        return torch.jit.load(io.BytesIO(module), map_location="cpu")  # type: ignore[no-untyped-call] # torch's


SERIALISERS = {TORCHSCRIPT: freeze, PT2: trace}
LOADERS = {TORCHSCRIPT: load_module, PT2: load_program}
"""By the format, one of `choices.FORMATS`."""


def prove(classifier: ImageClassifier, served: nn.Module, images: Tensor) -> None:
    """Raise ExportError unless the module, loaded from its bytes, answers as the classifier."""
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


def _make_serving(classifier: ImageClassifier) -> Serving:
    return Serving(copy.deepcopy(classifier.model).cpu()).eval()


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def _ignore_deprecation() -> Iterator[None]:
    # It is, and it is also the only form that TorchServe loads without our code beside it.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        yield
