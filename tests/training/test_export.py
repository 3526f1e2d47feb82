from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import connectors
import training
from tools.schemas import find_faults, load_schema
from tools.servers.process import ROOT
from training import ImageClassifier
from training.choices import FORMATS
from training.errors import ExportError
from training.evaluation import NEAR_TIE, evaluate, measure_validation
from training.export import LOADERS, describe, export
from training.recipe import Recipe

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


@pytest.fixture
def learned() -> ImageClassifier:
    """Return a classifier that has learned a little: some of its answers are nearly tied."""
    made = ImageClassifier(1, 3, size=12)
    made.train(stripes(60), None, recipe=Recipe(epochs=2, batch=16))
    made.model.temperature.fill_(1.7)
    return made


def load(path: Path) -> torch.jit.ScriptModule:
    module: torch.jit.ScriptModule = torch.jit.load(path)  # type: ignore[no-untyped-call] # torch has no types for it
    return module


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_exported_module_answers_as_the_classifier(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path, file_format: str
) -> None:
    export(classifier, describe(classifier, 0.9, file_format=file_format), tmp_path, images)

    module = LOADERS[file_format]((tmp_path / FORMATS[file_format]).read_bytes())

    for batch in (1, 7, 64):
        found, expected = module(images[:batch]), classifier.predict(images[:batch])
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, atol=1e-4)
        assert torch.equal(found.argmax(1), expected.argmax(1))


EXPORT = """
import sys, torch
from pathlib import Path
from training import ImageClassifier
from training.export import describe, export
made = ImageClassifier(1, 3, size=12)
images = torch.zeros(3, 1, 12, 12, dtype=torch.uint8)
for file_format in ("torchscript", "pt2"):
    export(made, describe(made, 0.9, file_format=file_format), Path(sys.argv[1]), images)
"""


def test_an_export_from_another_folder_has_the_same_bytes_and_names_no_folder(
    tmp_path: Path,
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(ROOT / "training", moved / "training")
    command = [sys.executable, "-c", EXPORT]
    with (
        subprocess.Popen([*command, str(tmp_path / "here")], cwd=ROOT) as here,
        subprocess.Popen([*command, str(tmp_path / "there")], cwd=moved) as there,
    ):
        assert (here.wait(300), there.wait(300)) == (0, 0)

    files = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert files == ["index_to_name.json", "model.json", "model.pt", "model.pt2"]
    for name in files:
        content = (tmp_path / "here" / name).read_bytes()
        assert content == (tmp_path / "there" / name).read_bytes(), name
        assert str(ROOT).encode() not in content
    for name in FORMATS.values():
        with zipfile.ZipFile(tmp_path / "here" / name) as opened:
            assert not [each for each in opened.namelist() if b".py" in opened.read(each)]


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

    content = json.loads((tmp_path / "model.json").read_text("utf-8"))
    assert find_faults(content, load_schema("model")) == []
    assert content == {
        "name": "fmnist",
        "version": "2.1",
        "input": {"channels": 3, "height": 12, "width": 16, "background": 255},
        "classes": 3,
        "accuracy": 0.934,
        "data": "5a" * 32,
        "format": "torchscript",
        "versions": {
            "project": connectors.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def test_the_packages_of_the_project_are_of_one_version() -> None:
    assert training.__version__ == connectors.__version__


def test_model_json_says_how_images_that_were_not_learned_are_answered(
    learned: ImageClassifier, tmp_path: Path
) -> None:
    validation = stripes(90)
    measured = measure_validation(learned, validation)
    export(learned, describe(learned, 0.9, validation=measured), tmp_path, validation.images)

    content = json.loads((tmp_path / "model.json").read_text("utf-8"))
    assert find_faults(content, load_schema("model")) == []
    found = content["validation"]
    best = learned.predict(validation.images).topk(2).values
    answers = learned.predict(validation.images).argmax(1)
    assert found["images"] == 90
    assert found["class_mix"] == pytest.approx(
        [(answers == label).float().mean().item() for label in range(3)], abs=1e-6
    )
    assert found["mean_confidence"] == pytest.approx(best[:, 0].mean().item(), abs=1e-6)
    assert found["near_tie_margin"] == NEAR_TIE
    close = (best[:, 0] - best[:, 1] < NEAR_TIE).float().mean().item()
    assert 0 < close < 1
    assert found["near_ties"] == pytest.approx(close, abs=1e-6)
    expected = evaluate(learned, validation)
    assert found["calibration"] == {
        "temperature": pytest.approx(expected.temperature, abs=1e-6),
        **{
            key: pytest.approx(value, abs=1e-6)
            for key, value in asdict(expected.calibrated).items()
        },
        "ece_bins": 15,
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


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_module_that_answers_otherwise_is_not_written(tmp_path: Path, file_format: str) -> None:
    moody = ImageClassifier(1, 3, size=12, network=lambda _channels, _classes: Moody())
    file = tmp_path / FORMATS[file_format]
    file.write_bytes(b"the one before")

    description = describe(moody, 0.9, file_format=file_format)
    with pytest.raises(ExportError, match="in batches of 1 the exported module differs"):
        export(moody, description, tmp_path, stripes(150).images)

    assert [*tmp_path.iterdir()] == [file]
    assert file.read_bytes() == b"the one before"


class Unscriptable(nn.Flatten):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([*map(torch.Tensor.flatten, images)])[:, :3]


def test_a_network_that_torchscript_cannot_express_is_refused(tmp_path: Path) -> None:
    odd = ImageClassifier(1, 3, size=12, network=lambda _channels, _classes: Unscriptable())

    with pytest.raises(ExportError, match="TorchScript cannot express the network"):
        export(odd, describe(odd, 0.9), tmp_path, stripes(150).images)

    assert not list(tmp_path.iterdir())


class Undecided(nn.Flatten):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = super().forward(images)
        return flat[:, :3] if flat.sum() > 0 else flat[:, 3:6]


def test_a_network_that_torch_export_cannot_express_is_refused(tmp_path: Path) -> None:
    odd = ImageClassifier(1, 3, size=12, network=lambda _channels, _classes: Undecided())

    with pytest.raises(ExportError, match=r"torch\.export cannot express the network: .*--format"):
        export(odd, describe(odd, 0.9, file_format="pt2"), tmp_path, stripes(150).images)

    assert not list(tmp_path.iterdir())


def test_an_export_in_another_format_says_which_module_it_belongs_to(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    export(classifier, describe(classifier, 0.9), tmp_path, images)
    script = (tmp_path / "model.pt").read_bytes()

    export(classifier, describe(classifier, 0.9, file_format="pt2"), tmp_path, images)

    assert (tmp_path / "model.pt").read_bytes() == script
    assert json.loads((tmp_path / "model.json").read_text())["format"] == "pt2"


def test_a_write_that_fails_in_the_middle_leaves_the_archive_as_it_was(
    classifier: ImageClassifier, images: torch.Tensor, tmp_path: Path
) -> None:
    export(classifier, describe(classifier, 0.9), tmp_path, images)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    classifier.names = ("shoe", "\ud800", "hat")

    with pytest.raises(UnicodeEncodeError):
        export(classifier, describe(classifier, 0.1), tmp_path, images)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
