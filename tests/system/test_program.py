"""An archive with a program of torch.export, served by the real TorchServe."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING

import pytest
import requests

from tests.conftest import missing
from tests.system.test_archive import description, png
from tools import archive
from tools.exported import classes, first_images
from tools.schemas import find_faults, load_schema
from tools.servers.process import ROOT
from tools.servers.torchserve import ARCHIVE, TorchServe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of the latest run in the other format."""
    if not (ROOT / "runs" / "latest").exists():
        missing("runs/latest is not there: run `make train`")
    folder = tmp_path_factory.mktemp("exported")
    archive.run_training("export", "--format", "pt2", "--output", str(folder))
    assert archive.main(["--model", str(folder), "--store", str(folder)]) == 0
    return folder / "fmnist.mar"


def test_torchserve_serves_a_program_with_the_labels_of_the_torchscript_module(
    packed: Path,
) -> None:
    with zipfile.ZipFile(packed) as opened:
        manifest = json.loads(opened.read("MAR-INF/MANIFEST.json"))
        assert manifest["model"]["serializedFile"] == "model.pt2"
        assert "model.pt" not in opened.namelist()
        card = json.loads(opened.read("model.json"))
    images = first_images(200)
    files = {f"{i:03}": png(image) for i, image in enumerate(images)}
    with TorchServe(packed) as server:
        answer = requests.post(server.url, files=files, timeout=30)
        described = description(server)["customizedMetadata"]

    served = [one["class"] for one in answer.json()["predictions"]]
    assert served == classes(images, ARCHIVE).tolist() == classes(images, packed).tolist()
    assert described["model"] == card
    assert find_faults(card, load_schema("model")) == []
    assert card["format"] == "pt2"
    assert len(card["validation"]["class_mix"]) == card["classes"]
