"""Older names of flags, networks and recipe fields: they work, on the command line and in files."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from training import ImageClassifier
from training.__main__ import main
from training.choices import NETWORKS, OLD_NETWORKS, OLD_RECIPE_KEYS
from training.data import ImageSet, split
from training.options import make_parser
from training.recipe import Recipe
from training.runs import Run

from .conftest import stripes, write_idx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a small data set of its own in `data`."""
    monkeypatch.chdir(tmp_path)
    for part, number in (("train", 60), ("t10k", 30)):
        images = stripes(number)
        write_idx(tmp_path / "data" / f"{part}-images-idx3-ubyte", images.images[:, 0])
        write_idx(tmp_path / "data" / f"{part}-labels-idx1-ubyte", images.labels)
    return tmp_path


def train(*flags: str) -> int:
    return main(["train", "--data", "idx:data", "--run", "first", "--epochs", "2", *flags])


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def age(run: Path) -> None:
    """Give the files of a run the names that older trees wrote."""

    def age_config(config: dict[str, Any]) -> None:
        config["network"] = "P(16,48,96)"
        for old, new in OLD_RECIPE_KEYS.items():
            config["recipe"][old] = config["recipe"].pop(new)

    change_json(run / "config.json", age_config)
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save(content | {"network": "P(16,48,96)"}, run / "checkpoint.pt")


def test_every_older_name_leads_to_a_present_one() -> None:
    assert set(OLD_NETWORKS.values()) <= set(NETWORKS)
    assert set(OLD_RECIPE_KEYS.values()) <= set(Recipe.__slots__)
    assert not set(OLD_RECIPE_KEYS) & set(Recipe.__slots__)


@pytest.mark.parametrize(("old", "new"), OLD_NETWORKS.items())
def test_an_older_name_of_a_network_is_understood_and_said_once(
    old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = make_parser().parse_args(["train", "--network", old])

    assert options.network == new
    assert capsys.readouterr().err == (f"warning: --network {old} is an older name: write {new}\n")
    assert ImageClassifier(1, 3, size=12, network=old).network == new


@pytest.mark.parametrize("verb", ["evaluate", "export"])
def test_mirrored_is_an_older_name_of_tta(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()

    assert parser.parse_args([verb]).tta is False
    assert parser.parse_args([verb, "--tta"]).tta is True
    assert capsys.readouterr().err == ""
    assert parser.parse_args([verb, "--mirrored"]).tta is True
    assert capsys.readouterr().err == "warning: --mirrored is an older name: write --tta\n"
    with pytest.raises(SystemExit) as left:
        parser.parse_args([verb, "--tta", "--mirrored"])
    assert left.value.code == 2


def test_a_run_with_older_names_is_evaluated_exported_and_reported_on(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    run = workplace / "runs" / "first"
    config, weights = Run("first").config(), Run("first").classifier().model.state_dict()
    age(run)
    note = {"mirrored": True, "source": "idx:data", "time": "then", "robustness": {}}
    capsys.readouterr()

    assert main(["evaluate", "--json", "--run", "first"]) == 0
    note = json.loads(capsys.readouterr().out) | note
    del note["tta"]
    Run("first").note_evaluation(note)
    assert main(["export", "--run", "first"]) == 0
    assert main(["report", "first"]) == 0

    loaded = Run("first").classifier()
    assert Run("first").config() == config
    assert loaded.network == "pyramid-16-48-96"
    assert all(torch.equal(loaded.model.state_dict()[name], weights[name]) for name in weights)
    assert (workplace / "build" / "archive" / "model.pt").exists()
    page = (run / "MODEL_CARD.md").read_text()
    assert "| network | pyramid-16-48-96, " in page
    assert "| idx:data, then, with mirror images |" in page


def test_a_final_run_of_one_with_older_names_has_the_present_ones(workplace: Path) -> None:
    assert train() == 0
    age(workplace / "runs" / "first")

    assert main(["train", "--final", "first"]) == 0

    config = json.loads((workplace / "runs" / "first-final" / "config.json").read_text())
    assert config["network"] == "pyramid-16-48-96"
    assert not set(OLD_RECIPE_KEYS) & set(config["recipe"])


def test_an_interrupted_training_with_older_names_goes_on_to_the_same_bits(
    workplace: Path,
) -> None:
    assert train() == 0
    images = stripes(60)
    named = ImageSet(images.images, images.labels, ("0", "1", "2"))
    whole = Run("first").classifier()
    config = Run("first").config()
    cut = ImageClassifier(1, 3, size=12, network="P(16,48,96)")
    next(iter(cut.steps(*split(named), math.inf, recipe=config.recipe)))
    cut.save(workplace / "runs" / "first" / "checkpoint.pt")
    age(workplace / "runs" / "first")

    assert main(["train", "--resume", "first"]) == 0

    resumed = Run("first").classifier().model.state_dict()
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(resumed[name], weights), name
