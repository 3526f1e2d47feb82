"""What training exports, in each format, as the handler serves it."""

from __future__ import annotations

import json
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.handler.torchserve import CONFIG, METRICS, Request, Served, body, encode, pack
from tests.training.conftest import stripes
from tools import load_archive
from tools.verify import TOLERANCES
from training import ImageClassifier
from training.choices import FORMATS
from training.evaluation import measure_validation
from training.export import describe, export
from training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STRIPES = stripes(40, size=28, classes=10)
IMAGES = STRIPES.images
FILES = [encode(Image.fromarray(np.asarray(image[0]))) for image in IMAGES]


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    made = ImageClassifier(1, 10, size=28)
    made.train(STRIPES, None, recipe=Recipe(epochs=5, batch=20))
    made.model.temperature.fill_(1.5)
    return made


@pytest.fixture(scope="module")
def folders(
    classifier: ImageClassifier, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder for each format, with what was exported."""
    made = {}
    validation = measure_validation(classifier, STRIPES)
    for name in FORMATS:
        made[name] = tmp_path_factory.mktemp(name)
        description = describe(classifier, 0.9, file_format=name, validation=validation)
        export(classifier, description, made[name], IMAGES)
    return made


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> dict[str, Served]:
    return {name: Served(folder) for name, folder in folders.items()}


def ask(handler: Served) -> list[dict[str, Any]]:
    """Ask for all images: of one pack, and of requests of their own in one batch."""
    answer = handler.one(pack(*FILES))
    alone = handler.ask(*map(body, FILES))
    assert [one.status for one in [answer, *alone]] == [200] * 41
    predictions: list[dict[str, Any]] = answer.body["predictions"]
    assert [one["class"] for one in predictions] == [one.body["class"] for one in alone]
    return predictions


def test_every_format_answers_as_the_classifier(
    classifier: ImageClassifier, served: dict[str, Served]
) -> None:
    expected = classifier.predict(IMAGES)
    assert len(set(expected.argmax(1).tolist())) > 1
    for handler in served.values():
        found = ask(handler)
        assert [one["class"] for one in found] == expected.argmax(1).tolist()
        assert [one["score"] for one in found] == pytest.approx(expected.amax(1), abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_each_pass_multiplies_in_the_precision_of_the_settings(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, file_format: str, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    handler = Served(folders[file_format], precision=precision, chunk=len(IMAGES))
    seen, network = list[torch.dtype](), handler.handler.network

    def note(images: torch.Tensor) -> torch.Tensor:
        seen.append((torch.ones(1, 1) @ torch.ones(1, 1)).dtype)
        return network(images)

    handler.handler.network, handler.handler.pass_s = note, 1.0  # one is cut for the threads
    rows = handler.handler.predict([image.numpy() for image in IMAGES])
    assert seen == [getattr(torch, precision)] * handler.handler.passes
    assert [row.dtype for row in rows if row is not None] == [np.float32] * len(IMAGES)
    assert [float(row.sum()) for row in rows if row is not None] == pytest.approx(
        [1] * 40, abs=1e-6
    )


def test_scores_in_bfloat16_are_near_those_in_float32_and_as_fine(
    folders: dict[str, Path], served: dict[str, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    for name, folder in folders.items():
        exact = [one["score"] for one in ask(served[name])]
        narrow = Served(folder, precision="bfloat16", chunk=len(IMAGES))
        found = [one["score"] for one in ask(narrow)]
        assert found != exact
        assert found == pytest.approx(exact, abs=TOLERANCES["bfloat16"].score)
        assert any(score * 256 % 1 for score in found if score > 0.5)


def test_the_description_shows_the_format_the_versions_and_the_baseline(
    served: dict[str, Served],
) -> None:
    for name, handler in served.items():
        model = handler.one(Request([], {"describe": "True"})).body["model"]
        assert model["format"] == name
        assert model["data"] == STRIPES.digest()
        assert model["versions"]["torch"] == torch.__version__
        assert len(model["validation"]["class_mix"]) == 10
        assert model["validation"]["calibration"]["temperature"] == 1.5


# torchserve leaves the file of its metrics open.
@pytest.mark.filterwarnings("ignore:.*metrics.yaml:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*metrics.yaml:pytest.PytestUnraisableExceptionWarning")
def test_torchserves_loader_as_verify_calls_it_answers_each_image(
    folders: dict[str, Path], served: dict[str, Served], tmp_path: Path
) -> None:
    archive = shutil.copytree(folders["torchscript"], tmp_path / "archive")
    shutil.copy(CONFIG, archive)
    manifest = {"handler": "fmnist_handler.py", "modelName": "tiny", "configFile": CONFIG.name}
    (archive / "MAR-INF").mkdir()
    (archive / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": manifest}))
    (tmp_path / "images").mkdir()
    for index, file in enumerate(FILES):
        (tmp_path / "images" / f"{index:06}.png").write_bytes(file)

    load_archive.main(archive, tmp_path / "images", METRICS, tmp_path / "answers.json")

    found = json.loads((tmp_path / "answers.json").read_text())
    assert [one["class"] for one in found] == [one["class"] for one in ask(served["torchscript"])]


def test_an_older_archive_whose_model_json_names_no_format_holds_torchscript(
    folders: dict[str, Path], served: dict[str, Served], tmp_path: Path
) -> None:
    older = shutil.copytree(folders["torchscript"], tmp_path / "older")
    card = json.loads((older / "model.json").read_text())
    for key in ("format", "versions", "validation"):
        del card[key]
    (older / "model.json").write_text(json.dumps(card))

    handler = Served(older)

    assert ask(handler) == ask(served["torchscript"])
    assert handler.one(Request([], {"describe": "True"})).body["model"] == card


def test_a_format_that_the_handler_does_not_know_stops_the_worker(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    newer = shutil.copytree(folders["torchscript"], tmp_path / "newer")
    card = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps({**card, "format": "onnx"}))

    with pytest.raises(ValueError, match=r"format 'onnx' is unknown; .* torchscript and pt2"):
        Served(newer)


@pytest.mark.parametrize("kept", [0, 1000, -10])
def test_a_program_that_is_not_whole_stops_the_worker(
    folders: dict[str, Path], tmp_path: Path, kept: int
) -> None:
    broken = shutil.copytree(folders["pt2"], tmp_path / "broken")
    content = (broken / "model.pt2").read_bytes()
    (broken / "model.pt2").write_bytes(content[:kept])

    with pytest.raises(ValueError, match=r"model\.pt2 is damaged: make the archive again"):
        Served(broken)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"not JSON"])
def test_a_program_whose_parts_are_damaged_stops_the_worker_with_the_same_words(
    folders: dict[str, Path], tmp_path: Path, content: bytes
) -> None:
    broken = shutil.copytree(folders["pt2"], tmp_path / "broken")

    def rewrite(change: Callable[[bytes], bytes]) -> None:
        with (
            zipfile.ZipFile(folders["pt2"] / "model.pt2") as whole,
            zipfile.ZipFile(broken / "model.pt2", "w") as written,
        ):
            for name in whole.namelist():
                part = whole.read(name)
                is_graph = name.endswith("models/model.json")
                written.writestr(name, change(part) if is_graph else part)

    rewrite(lambda part: part)
    Served(broken)

    rewrite(lambda _: content)
    with pytest.raises(ValueError, match=r"model\.pt2 is damaged: make the archive again \("):
        Served(broken)


def test_a_program_of_a_newer_torch_stops_the_worker_and_names_both(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newer = shutil.copytree(folders["pt2"], tmp_path / "newer")
    card = json.loads((newer / "model.json").read_text())

    def write(torch: str) -> None:
        versions = card["versions"] | {"torch": torch}
        (newer / "model.json").write_text(json.dumps(card | {"versions": versions}))

    write("2.0.9")
    Served(newer)
    write("9.0.1+cpu")
    with pytest.raises(ValueError, match=r"of torch 9\.0\.1\+cpu, and this is the older 2"):
        Served(newer)
    # The server's log shows what a worker prints to stderr alone.
    assert "The archive cannot be served: model.pt2 is of torch 9" in capfd.readouterr().err


def test_a_program_for_images_of_another_size_stops_the_worker(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    other = shutil.copytree(folders["pt2"], tmp_path / "other")
    card = json.loads((other / "model.json").read_text())
    card["input"]["height"] = 32
    (other / "model.json").write_text(json.dumps(card))

    with pytest.raises(AssertionError, match="Guard failed"):
        Served(other)
