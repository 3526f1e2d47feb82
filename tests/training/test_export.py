from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from tools.servers.process import ROOT
from training import ImageClassifier
from training.errors import ExportError
from training.export import describe, export

from .conftest import stripes

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.load` is deprecated:FutureWarning")


@pytest.fixture
def classifier() -> ImageClassifier:
    made = ImageClassifier(3, 3, size=(12, 16))
    made.names = ("shoe", "T-shirt/top", "Jäckchen")
    made.background, made.data = 255, "5a" * 32
    made.model.temperature.fill_(1.7)
    return made


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (150, 3, 12, 16), dtype=torch.uint8, generator=generator)


def load(path: Path) -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.load(path)  # type: ignore[no-untyped-call] # torch has no types for it
    return module


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_exported_module_answers_as_the_classifier(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path, batch: int
) -> None:
    export(classifier, describe(classifier, 0.9), tmp_path, images)

    found = load(tmp_path / "model.pt")(images[:batch])

    expected = classifier.predict(images[:batch])
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_the_exported_module_is_frozen_and_a_norm_behind_a_convolution_is_folded(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    export(classifier, describe(classifier, 0.9), tmp_path, images)

    module = load(tmp_path / "model.pt")

    assert not list(module.parameters())
    assert str(module.graph).count("aten::batch_norm") == 3  # those behind the three poolings


def test_model_json_says_what_a_server_must_know(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    export(classifier, describe(classifier, 0.934, version="2.1"), tmp_path, images)

    assert json.loads((tmp_path / "model.json").read_text("utf-8")) == {
        "name": "fmnist",
        "version": "2.1",
        "input": {"channels": 3, "height": 12, "width": 16, "background": 255},
        "classes": 3,
        "accuracy": 0.934,
        "data": "5a" * 32,
    }


def test_an_export_holds_no_path_of_this_machine(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    export(classifier, describe(classifier, 0.875), tmp_path, images)
    with zipfile.ZipFile(tmp_path / "model.pt") as module:
        contents = {name: module.read(name) for name in module.namelist()}
    here = str(ROOT).encode()
    assert [name for name, content in contents.items() if here in content] == []
    assert [name for name in contents if name.endswith(".debug_pkl")] == []


def test_the_names_stand_under_their_labels(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    export(classifier, describe(classifier, 0.9), tmp_path / "new" / "folder", images)

    content = (tmp_path / "new" / "folder" / "index_to_name.json").read_text("utf-8")
    assert json.loads(content) == {"0": "shoe", "1": "T-shirt/top", "2": "Jäckchen"}


class Moody(nn.Module):
    """Looks at its whole batch, which no server's batch agrees with."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(144, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(self.flatten(images))
        return logits * images.shape[0]


def test_a_module_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    moody = ImageClassifier(1, 3, size=12, network=lambda _channels, _classes: Moody())
    (tmp_path / "model.pt").write_bytes(b"the one before")

    with pytest.raises(ExportError, match="in batches of 1 the exported module differs"):
        export(moody, describe(moody, 0.9), tmp_path, stripes(150).images)

    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"the one before"


class Unscriptable(nn.Flatten):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([*map(torch.Tensor.flatten, images)])[:, :3]


def test_a_network_that_torchscript_cannot_express_is_refused(tmp_path: Path) -> None:
    odd = ImageClassifier(1, 3, size=12, network=lambda _channels, _classes: Unscriptable())

    with pytest.raises(ExportError, match="TorchScript cannot express the network"):
        export(odd, describe(odd, 0.9), tmp_path, stripes(150).images)

    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_in_the_middle_leaves_the_archive_as_it_was(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    export(classifier, describe(classifier, 0.9), tmp_path, images)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    classifier.names = ("shoe", "\ud800", "hat")

    with pytest.raises(UnicodeEncodeError):
        export(classifier, describe(classifier, 0.1), tmp_path, images)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
