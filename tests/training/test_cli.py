from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from training import ImageClassifier, commands, configure, study, train_command
from training.__main__ import main
from training.card import compute_spread
from training.choices import FASHION_MNIST, NETWORKS, PRECISIONS
from training.corruptions import CORRUPTIONS
from training.data import ImageSet, split
from training.errors import RunError
from training.evaluation import count_confusion, measure_validation, wilson
from training.export import load_module
from training.fashion_mnist import data_folder
from training.options import duration, make_parser, percentage, size
from training.progress import Progress
from training.recipe import Epoch, Recipe, Step
from training.runs import Run
from training.sources import ImageSpec, load_training_images, load_unseen_images
from training.study import VARIANTS

from .conftest import stripes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLOW, QUICK = "at 0 GF/s in float32", "at 96 GF/s in bfloat16"


@pytest.fixture
def workplace(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder with the small data set, and learn in a moment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(small_data))
    monkeypatch.setattr(configure, "Recipe", lambda: Recipe(batch=64, epochs=2))
    monkeypatch.setattr(commands, "Recipe", lambda: Recipe(batch=64, epochs=2))
    monkeypatch.setattr(configure, "MIN_ACCURACY", 0.0)
    monkeypatch.setattr(configure, "measure_speed", machine(float32=1e-6, bfloat16=0.0))
    return tmp_path


def machine(**speeds: float) -> Callable[[str, torch.device], float]:
    """Stand for `speed.measure_speed` on a machine of so many GF/s in each precision."""
    return lambda precision, _device: speeds[precision]


def train(*flags: str) -> int:
    return main(["train", "--run", "first", "--min-accuracy", "0", *flags])


def test_a_good_run_leaves_everything_and_becomes_the_latest(workplace: Path) -> None:
    assert train() == 0

    assert {path.name for path in (workplace / "runs" / "first").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoint.pt",
        "curves.png",
        "confusion.png",
    }
    assert (workplace / "runs" / "latest").readlink() == Path("first")
    assert (workplace / "runs" / "first" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_run_says_what_was_asked_and_what_came_out(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--budget", "90s", "--seed", "3", "--json") == 0

    printed = json.loads(capsys.readouterr().out)
    folder = workplace / "runs" / "first"
    config = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert printed == json.loads((folder / "summary.json").read_text())
    assert printed["good"] is True
    assert printed["accuracy"] == lines[-1]["validation_accuracy"]
    assert (config["budget"], config["seed"], config["recipe"]["epochs"]) == (90.0, 3, 2)
    assert len(config["held_out"]) == 64
    assert [line["number"] for line in lines] == [1, 2]


def test_a_run_below_its_accuracy_fails_and_is_not_the_latest(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    assert main(["train", "--run", "second", "--min-accuracy", "100"]) == 1

    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: second reached ")
    assert "less than --min-accuracy 100: give it a longer --budget" in said
    assert (workplace / "runs" / "latest").readlink() == Path("first")
    assert json.loads((workplace / "runs" / "second" / "summary.json").read_text())["good"] is False


@pytest.mark.usefixtures("workplace")
def test_a_run_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    assert train() == 1

    assert "there is a run runs/first already: name another" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("name", ["latest", "../elsewhere", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--run", name]) == 1
    assert "cannot name a run" in capsys.readouterr().err


def signalled(number: signal.Signals, after: int) -> Callable[..., Iterator[Step | Epoch]]:
    """Return an ImageClassifier.steps that this process is signalled in."""
    whole = ImageClassifier.steps

    def steps(self: ImageClassifier, *args: Any, **kwargs: Any) -> Iterator[Step | Epoch]:  # noqa: ANN401 - passed on as they are
        for count, event in enumerate(whole(self, *args, **kwargs), start=1):
            if count == after:
                os.kill(os.getpid(), number)
            yield event

    return steps


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after", [2, 5])
def test_interrupted_it_leaves_a_run_that_goes_on_to_the_same_bits(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    after: int,
) -> None:
    assert train("--epochs", "2", "--network", "pyramid-24-64-128") == 0
    again = ["--min-accuracy", "0", "--epochs", "2", "--network", "pyramid-24-64-128"]
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patched:
        patched.setattr(ImageClassifier, "steps", signalled(number, after))
        assert main(["train", "--run", "second", *again]) == code

    assert "`python -m training train --resume second` goes on" in capsys.readouterr().err
    assert (workplace / "runs" / "latest").readlink() == Path("first")
    assert not (workplace / "runs" / "second" / "summary.json").exists()
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    assert main(["train", "--resume", "second"]) == 0
    first, second = (Run(name).classifier() for name in ("first", "second"))
    for name, weights in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weights), name
    assert [epoch.loss for epoch in Run("second").epochs()] == [
        epoch.loss for epoch in Run("first").epochs()
    ]


@pytest.mark.usefixtures("workplace")
def test_epochs_whose_weights_were_not_kept_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ImageClassifier, "steps", signalled(signal.SIGTERM, 2))
        assert train() == 143
    Run("first").record(EPOCH)

    assert main(["train", "--resume", "first"]) == 0
    assert [epoch.number for epoch in Run("first").epochs()] == [1, 2]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--resume", "first"], "runs/first came to its end: there is nothing to resume"),
        (["--resume", "none"], "runs/none has no config.json, so there is no such run"),
        (["--resume", "first", "--seed", "0"], "--resume does as runs/first did: leave out --seed"),
        (
            ["--resume", "first", "--precision", "bfloat16"],
            "--resume does as runs/first did: leave out --precision",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    assert main(["train", *flags]) == 1
    assert sentence in capsys.readouterr().err


def test_a_final_run_learns_all_images_and_is_as_good_as_the_one_before(workplace: Path) -> None:
    assert train("--epochs", "3", "--seed", "5") == 0
    assert main(["train", "--final", "latest"]) == 0

    first, final = (Run(name).summary() for name in ("first", "first-final"))
    assert (workplace / "runs" / "latest").readlink() == Path("first-final")
    for kept in ("accuracy", "temperature", "calibrated", "epochs"):
        assert final[kept] == first[kept]
    assert final["accuracy_of"] == "validation (by first)"
    classifier = Run("latest").classifier()
    assert classifier.data == stripes(240, classes=10).digest() != first["data"]
    assert classifier.model.temperature.item() == pytest.approx(first["temperature"])
    assert Run("latest").config().seed == 5
    assert all(epoch.validation_accuracy is None for epoch in Run("latest").epochs())


@pytest.mark.usefixtures("workplace")
def test_an_interrupted_final_run_goes_on_with_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train() == 0
    with monkeypatch.context() as patched:
        patched.setattr(ImageClassifier, "steps", signalled(signal.SIGTERM, 3))
        assert main(["train", "--final", "first", "--run", "second"]) == 143

    assert main(["train", "--resume", "second"]) == 0
    assert Run("second").classifier().data == stripes(240, classes=10).digest()


@pytest.mark.usefixtures("workplace")
def test_what_cannot_be_made_final_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    assert main(["train", "--final", "first"]) == 0
    assert main(["train", "--final", "first-final", "--run", "third"]) == 1
    assert "runs/first-final is a final run itself, or not good" in capsys.readouterr().err
    assert main(["train", "--final", "first", "--run", "third", "--epochs", "9"]) == 1
    assert "--final does as runs/first did: leave out --epochs" in capsys.readouterr().err


def test_the_report_of_a_run_is_a_page_with_pictures(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    assert main(["train", "--run", "second", "--seed", "1"]) == 0
    assert main(["evaluate", "--run", "first", "--corruptions"]) == 0
    capsys.readouterr()

    assert main(["report", "first", "second", "--json"]) == 0

    folder, result = workplace / "runs" / "first", json.loads(capsys.readouterr().out)
    page = (folder / "MODEL_CARD.md").read_text()
    shares = [Run(name).summary()["accuracy"] for name in ("first", "second")]
    assert result["mean"] == pytest.approx(sum(shares) / 2)
    assert result["deviation"] == pytest.approx(abs(shares[0] - shares[1]) / 2**0.5)
    assert f"Mean {100 * result['mean']:.2f} %, standard deviation" in page
    assert page.count("| fashion-mnist, ") == 2
    assert "Other images than those of validation were looked at 1 times." in page
    assert "| Ankle boot | 2 | " in page
    assert "| occlusion | " in page
    for picture in re.findall(r"\]\((\w+\.png)\)", page):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("workplace")
def test_the_report_of_a_final_run_judges_the_one_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train() == 0
    assert main(["train", "--final", "first"]) == 0
    capsys.readouterr()

    assert main(["report"]) == 0

    page = Path("runs/first-final/MODEL_CARD.md").read_text()
    assert "| final training of | first |" in page
    assert f"| validation | 20 | {100 * Run('first').summary()['accuracy']:.2f} % |" in page
    assert "## Several runs" not in page


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("flags", "told", "network", "precision"),
    [
        (
            [],
            f"{SLOW} and {QUICK}: residual-48-96-192 in bfloat16",
            "residual-48-96-192",
            "bfloat16",
        ),
        (
            ["--network", "stride-32-64-128"],
            f"{SLOW} and {QUICK}: stride-32-64-128 in bfloat16",
            "stride-32-64-128",
            "bfloat16",
        ),
        (
            ["--precision", "float32"],
            f"{SLOW}: pyramid-16-48-96 in float32",
            "pyramid-16-48-96",
            "float32",
        ),
    ],
)
def test_network_and_precision_follow_the_speed_of_the_machine_unless_they_are_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    told: str,
    network: str,
    precision: str,
) -> None:
    monkeypatch.setattr(configure, "list_fast_precisions", lambda _device: PRECISIONS)
    monkeypatch.setattr(configure, "measure_speed", machine(float32=1e-6, bfloat16=96.0))

    assert train(*flags) == 0

    said = capsys.readouterr().err
    assert said.count(f"this machine trains stride-32-64-128 {told} for this budget\n") == 1
    config = Run("first").config()
    assert (config.network, config.recipe.precision) == (network, precision)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(("worthwhile", "bfloat16"), [(PRECISIONS, 20.0), (("float32",), math.nan)])
def test_where_bfloat16_is_slow_nothing_is_multiplied_in_it(
    monkeypatch: pytest.MonkeyPatch, worthwhile: tuple[str, ...], bfloat16: float
) -> None:
    monkeypatch.setattr(configure, "list_fast_precisions", lambda _device: worthwhile)
    monkeypatch.setattr(configure, "measure_speed", machine(float32=80.0, bfloat16=bfloat16))

    assert train() == 0

    assert Run("first").config().recipe.precision == "float32"


@pytest.mark.usefixtures("workplace")
def test_a_training_of_so_many_passes_does_not_depend_on_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(configure, "measure_speed", machine())  # whoever measures fails

    assert train("--epochs", "1") == 0
    assert main(["train", "--run", "second", "--epochs", "1", "--precision", "bfloat16"]) == 0

    found = [Run(name).config().recipe.precision for name in ("first", "second")]
    assert found == ["float32", "bfloat16"]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(("epochs", "share"), [(34, 0.0), (35, 0.5), (54, 0.5), (55, 0.75)])
def test_images_are_blanked_in_part_where_they_are_seen_often(
    monkeypatch: pytest.MonkeyPatch, epochs: int, share: float
) -> None:
    monkeypatch.setattr(configure, "Recipe", lambda: Recipe(batch=64))
    monkeypatch.setattr(configure, "estimate_passes", lambda *_: float(epochs))

    assert train("--budget=1s") == 0
    assert main(["train", "--run", "second", f"--epochs={epochs}"]) == 0

    assert [Run(name).config().recipe.cutout for name in ("first", "second")] == [share, share]


@pytest.mark.usefixtures("workplace")
def test_a_training_that_ends_before_its_budget_is_blanked_by_its_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(configure, "Recipe", lambda: Recipe(batch=64, epochs=35))
    monkeypatch.setattr(configure, "estimate_passes", lambda *_: 1e6)

    assert train("--budget=1s") == 0

    assert Run("first").config().recipe.cutout == 0.5


@pytest.mark.usefixtures("workplace")
def test_the_ablation_changes_one_thing_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--seeds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["ingredients"]

    assert [each["name"] for each in found] == [*VARIANTS]
    assert all(len(each["accuracies"]) == 2 for each in found)
    assert all(each["mean"] == pytest.approx(sum(each["accuracies"]) / 2) for each in found)
    recipe = Recipe()
    changed = [change(recipe) for change in VARIANTS.values()]
    differences = [
        sum(getattr(recipe, name) != getattr(other, name) for name in Recipe.__slots__)
        for other in changed
    ]
    assert differences == [0] + [1] * (len(VARIANTS) - 1)


@pytest.mark.usefixtures("workplace")
def test_the_frontier_has_a_row_for_each_network_and_names_the_best(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        study, "measure_throughput", lambda _module, images, _seconds: 1000.0 * len(images)
    )

    assert main(["frontier", "--threads", "1"]) == 0

    said = capsys.readouterr()
    *rows, _, best = said.out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in NETWORKS]
    assert all(row.endswith("| 64,000 | 1,000 | 1.00 |") for row in rows)
    told = (line.removesuffix(" %").split(": ") for line in said.err.splitlines())
    accuracies = {name: float(accuracy) for name, accuracy in told}
    name = best.removeprefix("the best at 0.9 times the baseline's speed or more: ")
    assert accuracies[name] == max(accuracies.values())


def test_networks_are_compared_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = [
        study.TrainedNetwork(name, ImageClassifier(1, 2, size=9, network=name), accuracy)
        for name, accuracy in {
            "baseline": 0.90,
            "pyramid-16-48-96": 0.91,
            "pyramid-24-64-128": 0.93,
        }.items()
    ]
    # In batches of 64 and one by one, network after network; the second round is twice as slow.
    first = [100.0, 90.0, 60.0, 10.0, 9.0, 6.0]
    rounds = iter(first + [speed / 2 for speed in first] + [40.0, 40.0, 40.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(study, "measure_throughput", lambda *_: next(rounds))

    found = study.measure_frontier(trained, rounds=3)

    assert [each.relative for each in found] == pytest.approx([1.0, 0.9, 0.6])
    assert [dict(each.per_second) for each in found] == [
        {64: 50.0, 1: 5.0},
        {64: 45.0, 1: 4.5},
        {64: 40.0, 1: 4.0},
    ]
    assert study.choose_best(found).name == "pyramid-16-48-96"


@pytest.mark.usefixtures("workplace")
def test_a_run_of_another_version_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    Path("runs/first/config.json").write_text('{"budget": 180.0}')

    assert main(["export"]) == 1
    assert "is of another version ('source'): train again" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_interrupted_before_the_first_step_it_leaves_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "load_training_images", interrupt)

    assert train() == 130
    assert capsys.readouterr().err == "interrupted: nothing was kept\n"


@pytest.mark.usefixtures("workplace")
def test_evaluate_scores_the_test_images_of_the_latest_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train()
    capsys.readouterr()

    assert main(["evaluate", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "--run", "first"]) == 0
    sentence = capsys.readouterr().out

    assert (result["run"], result["images"]) == ("first", 60)
    assert result["interval"][0] <= result["accuracy"] <= result["interval"][1]
    assert sentence.startswith(f"first: {100 * result['accuracy']:.2f} % of 60 images")
    assert (
        f"NLL {result['uncalibrated']['nll']:.4f} -> {result['calibrated']['nll']:.4f}" in sentence
    )
    assert [note["images"] for note in Run("first").evaluations()] == [60, 60]


@pytest.mark.usefixtures("workplace")
def test_evaluate_tells_the_accuracy_under_corruptions(capsys: pytest.CaptureFixture[str]) -> None:
    train()
    capsys.readouterr()

    assert main(["evaluate", "--corruptions"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" %  ")[1] for line in lines[2:]] == [*CORRUPTIONS, "negative"]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("run", ["first", "first-final"])
def test_mirror_images_are_looked_at_too_if_asked(
    capsys: pytest.CaptureFixture[str], run: str
) -> None:
    train()
    assert main(["train", "--final", "first"]) == 0
    _, held = split(load_training_images(FASHION_MNIST, data_folder(None)))
    judged = Run("first").classifier().with_tta()
    temperature = judged.calibrate(held)
    capsys.readouterr()

    assert main(["evaluate", "--run", run, "--tta", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "--run", run, "--tta"]) == 0
    sentence = capsys.readouterr().out
    assert main(["export", "--run", run, "--tta"]) == 0

    test = load_unseen_images(FASHION_MNIST, data_folder(None), ImageSpec(None)).images
    both = Run(run).classifier()
    both.model.temperature.fill_(temperature)
    logits = (both.logits(test) + both.logits(test.flip(3))) / 2
    served = load_module(Path("build/archive/model.pt").read_bytes())
    assert torch.allclose(served(test), logits.softmax(1), atol=1e-5)
    assert result["temperature"] == pytest.approx(temperature)
    assert result["tta"] is True
    assert sentence.startswith(f"{run} with mirror images: ")
    described = json.loads(Path("build/archive/model.json").read_text())
    assert described["accuracy"] == judged.evaluate(held)
    assert described["validation"] == json.loads(
        json.dumps(asdict(measure_validation(judged, held)))
    )
    assert main(["report", run]) == 0
    assert Path(f"runs/{run}/MODEL_CARD.md").read_text().count(", with mirror images |") == 2


@pytest.mark.usefixtures("workplace")
def test_where_mirror_images_are_of_other_classes_they_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train("--no-flip")

    assert main(["export", "--tta"]) == 1
    assert "runs/first learned with --no-flip" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_other_images_are_scored_by_the_names_of_their_classes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    monkeypatch.setattr("json.given", stripes(9, classes=2), raising=False)
    capsys.readouterr()

    assert main(["evaluate", "--data", "json:given"]) == 1
    assert "there is no class 'every 2'" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_the_probabilities_of_a_run_are_calibrated(workplace: Path) -> None:
    train()
    summary = json.loads((workplace / "runs" / "first" / "summary.json").read_text())

    assert summary["temperature"] != 1.0
    assert summary["calibrated"]["nll"] < summary["uncalibrated"]["nll"]
    classifier = Run("first").classifier()
    assert classifier.model.temperature.item() == pytest.approx(summary["temperature"])


@pytest.mark.parametrize("images", [24, 36, 108])
def test_on_a_handful_of_validation_images_it_warns_and_calibrates_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str], images: int
) -> None:
    for at, name in itertools.product(range(images), ("cat", "dog")):
        (workplace / "own" / name).mkdir(parents=True, exist_ok=True)
        pixels = stripes(2).images[int(name == "dog"), 0].numpy()
        Image.fromarray(pixels).save(workplace / "own" / name / f"{at}.png")

    assert main(["train", "--run", "few", "--data", f"folder:{workplace}/own"]) == 0
    assert f"warning: {images // 6} images are too few to calibrate" in capsys.readouterr().err
    assert Run("few").summary()["temperature"] == 1.0


@pytest.mark.parametrize("flags", [("--run", "shapes"), ("--run", "latest-flowers"), ()])
def test_a_run_of_own_data_does_not_replace_the_model_of_the_archive(
    workplace: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    train()
    for name, image in zip(("cat", "dog"), stripes(2).images[:2, 0].numpy(), strict=True):
        (workplace / "own" / name).mkdir(parents=True)
        for at in range(24):
            Image.fromarray(image).save(workplace / "own" / name / f"{at}.png")

    assert main(["train", *flags, "--data", f"folder:{workplace}/own"]) == 0
    assert (workplace / "runs" / "latest").readlink() == Path("first")
    said = capsys.readouterr().out
    assert "runs/latest is for fashion-mnist and is as it was" in said
    made = re.search(r"--run (\S+)\)", said)
    assert made
    assert main(["train", "--final", made[1]]) == 0
    assert (workplace / "runs" / "latest").readlink() == Path("first")


@pytest.mark.parametrize("content", ["", "{", "[]", "\ud800"])
@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_damaged_file_of_a_run_is_named(workplace: Path, name: str, content: str) -> None:
    (workplace / "runs" / "first").mkdir(parents=True)
    for each in ("config.json", "summary.json"):
        (workplace / "runs" / "first" / each).write_text("{}")
    damaged = workplace / "runs" / "first" / name
    damaged.write_bytes(content.encode("utf-8", "surrogatepass"))

    with pytest.raises(RunError, match=rf"{name} is damaged .*: train again|, it holds no table"):
        Run("first").config_json() if name == "config.json" else Run("first").summary()


@pytest.mark.parametrize("path", ["~", "~/data", "~/new/folder"])
def test_a_path_behind_an_equals_sign_may_begin_with_the_home(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DATA_DIR", path)
    given = make_parser().parse_args(["export", f"--data-dir={path}", f"--output={path}"])

    expected = Path(path.replace("~", "/home/someone"))
    assert given.data_dir == given.output == data_folder() == expected


@pytest.mark.usefixtures("workplace")
def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert train("--device", "cuda") == 1
    assert "there is no GPU that torch can use" in capsys.readouterr().err
    assert train("--device", "auto") == 0


def test_export_writes_what_the_archive_needs(workplace: Path) -> None:
    train()
    summary = json.loads((workplace / "runs" / "first" / "summary.json").read_text())

    assert main(["export"]) == 0

    folder = workplace / "build" / "archive"
    description = json.loads((folder / "model.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == [
        "index_to_name.json",
        "model.json",
        "model.pt",
    ]
    assert description["input"] == {"channels": 1, "height": 12, "width": 12, "background": 0}
    assert description["accuracy"] == summary["accuracy"]
    assert description["data"] == summary["data"]
    found = description["validation"]
    assert found["images"] == 20
    assert found["calibration"]["temperature"] == pytest.approx(summary["temperature"], abs=1e-6)
    for key, value in summary["calibrated"].items():
        assert found["calibration"][key] == pytest.approx(value, abs=1e-5)
    assert json.loads((folder / "index_to_name.json").read_text())["9"] == "Ankle boot"


def export_to_bytes(*arguments: str) -> dict[str, bytes]:
    assert main(["export", *arguments]) == 0
    return {path.name: path.read_bytes() for path in Path("build/archive").iterdir()}


@pytest.mark.usefixtures("workplace")
def test_a_second_export_of_a_run_writes_the_same_model_json() -> None:
    train()
    first = export_to_bytes()["model.json"]

    assert export_to_bytes()["model.json"] == first
    torch.set_num_threads(2)
    assert export_to_bytes()["model.json"] == first


@pytest.mark.usefixtures("workplace")
def test_export_writes_a_program_of_torch_export_if_asked() -> None:
    train()

    files = export_to_bytes("--format", "pt2")

    assert sorted(files) == ["index_to_name.json", "model.json", "model.pt2"]
    assert json.loads(files["model.json"])["format"] == "pt2"


@pytest.mark.usefixtures("workplace")
def test_the_baseline_of_a_final_run_is_of_the_run_before_which_did_not_learn_the_images() -> None:
    train()
    before = json.loads(export_to_bytes()["model.json"])
    assert main(["train", "--final", "first"]) == 0

    final = json.loads(export_to_bytes("--run", "first-final")["model.json"])

    assert final["data"] != before["data"]
    assert final["validation"] == before["validation"]


@pytest.mark.usefixtures("workplace")
def test_without_the_images_of_a_run_the_export_has_no_baseline_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train()
    others = stripes(240, classes=10)
    others = ImageSet(255 - others.images, others.labels, others.names)
    monkeypatch.setattr(commands, "load_training_images", lambda *_: others)
    capsys.readouterr()

    files = export_to_bytes()

    assert "validation" not in json.loads(files["model.json"])
    warning = "warning: model.json says nothing of the validation images: the run learned from"
    assert warning in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_without_the_run_before_a_final_one_the_export_has_no_baseline_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train()
    assert main(["train", "--final", "first"]) == 0
    shutil.rmtree("runs/first")
    capsys.readouterr()

    files = export_to_bytes("--run", "first-final")

    assert "validation" not in json.loads(files["model.json"])
    assert "says nothing of the validation images: runs/first/checkpoint.pt is missing" in (
        capsys.readouterr().err
    )


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_without_a_run_it_says_how_to_get_one(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 1
    assert "runs/latest/checkpoint.pt is missing: `make train`" in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_run_that_is_not_there_is_told_with_those_that_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/kept").mkdir(parents=True)
    Path("runs/kept/checkpoint.pt").touch()
    assert main([command, "--run", "nowhere"]) == 1
    told = "runs/nowhere/checkpoint.pt is missing: name a run that was kept, kept"
    assert told in capsys.readouterr().err


@pytest.mark.usefixtures("workplace")
def test_data_verifies_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    assert "Fashion-MNIST is whole" in capsys.readouterr().out


def test_data_without_download_fails_on_a_missing_file(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "--no-download", "--data-dir", str(workplace / "nowhere")]) == 1
    assert "train-images-idx3-ubyte is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("180", 180), ("90s", 90), ("3m", 180), ("1h", 3600), ("0.5m", 30)]
)
def test_a_duration_has_its_usual_forms(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "3 minutes", "-3m", "0", "0s", "nan", "1d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 180, 90s, 3m or 1h"):
        duration(text)


@pytest.mark.parametrize("text", ["-1", "101", "nan", "ninety"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no percentage"):
        percentage(text)


@pytest.mark.parametrize(
    ("text", "pixels"), [("64", (64, 64)), ("64x48", (64, 48)), ("8x1024", (8, 1024))]
)
def test_a_size_is_height_times_width_or_one_number(text: str, pixels: tuple[int, int]) -> None:
    assert size(text) == pixels


@pytest.mark.parametrize("text", ["", "0", "64x", "x64", "64*48", "-8", "64x0", "8.5"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 64x48, height first, or 64"):
        size(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--budget", "1m", "--epochs", "2"],
        ["train", "--budget", "soon"],
        ["train", "--threads", "0"],
        ["fly"],
        [],
    ],
)
def test_wrong_usage_leaves_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)

    assert left.value.code == 2


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])

    assert left.value.code == 0
    assert "python -m training train --budget 15m" in capsys.readouterr().out


EPOCH = Epoch(3, 645, 44.4, 0.708, 0.909, 0.918, 3945.3)


def test_where_nobody_watches_an_epoch_is_one_plain_line() -> None:
    stream = io.StringIO()

    with Progress(stream) as progress:
        progress.show(Step(1, 0.5, 0.01, 256, 0.7, 0.9))
        progress.show(EPOCH)

    assert stream.getvalue() == (
        "epoch  3,   44 s: loss 0.708, accuracy 90.9 %, validation 91.80 %, 3,945 images/s\n"
    )


def test_on_a_terminal_there_is_a_bar_with_loss_accuracy_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()

    with Progress(stream) as progress:
        for number in range(1, 4):
            progress.show(Step(number, number / 4, 0.01, 256, 0.7, 0.9))
            progress.refresh()

    shown = stream.getvalue().split("\r")
    assert any("75 %" in text and "left" in text for text in shown)
    assert any("loss 0.700, accuracy 90.0 %" in text and "images/s" in text for text in shown)


def test_the_spread_of_several_runs_is_that_of_a_sample() -> None:
    assert compute_spread([0.9, 0.92, 0.94]) == pytest.approx((0.92, 0.02))
    assert compute_spread([0.9]) == (0.9, 0.0)


def test_a_training_without_validation_has_a_line_too() -> None:
    stream = io.StringIO()

    with Progress(stream) as progress:
        progress.show(replace(EPOCH, validation_accuracy=None))

    assert "accuracy 90.9 %, 3,945 images/s" in stream.getvalue()


def test_the_interval_is_wilsons() -> None:
    assert wilson(9400, 10_000) == pytest.approx((0.93518, 0.94448), abs=1e-5)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_the_confusion_counts_labels_in_rows_and_predictions_in_columns() -> None:
    matrix = count_confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3)

    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
