"""Runs: the directory of one training, with what was asked, how it went, what came out.

    config.json      every choice, the hash of the split, and the machine
    metrics.jsonl    one line an epoch, written as it happens
    summary.json     the result; there once the training has come to its end
    checkpoint.pt    the classifier, as ImageClassifier.load takes it; while it trains, of the
                     last epoch, with what is needed to go on
    evaluations.jsonl  one line for each time that it was scored, mostly on the test images
    curves.png       loss and accuracy, epoch by epoch
    confusion.png    which class was taken for which, on the validation images
    MODEL_CARD.md    all of this for people, with reliability.png and mistakes.png: `report`

`runs/latest` leads to the last run of Fashion-MNIST that was good enough, and moves when everything
is written. A run of other data is named where it is wanted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .choices import LATEST, OLD_RECIPE_KEYS, modernise_network
from .classifier import ImageClassifier
from .errors import RunError
from .files import atomic_write, symlink_atomically, write_json
from .output import list_names
from .recipe import Epoch, Recipe

if TYPE_CHECKING:
    import torch

    from .image_files import Size

RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Every choice of a training, so that config.json is enough to do it again.

    `budget` is in seconds; None: as many epochs as the recipe says, whatever the time.
    `min_accuracy` is a share from 0 to 1. `final_of` names the run whose choices were evaluated
    on validation images; this one learns these too.
    """

    source: str
    size: Size | None
    network: str
    seed: int
    budget: float | None
    min_accuracy: float
    recipe: Recipe
    final_of: str | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read what `asdict` made, from config.json; raises KeyError or TypeError."""
        kept = {field.name: content[field.name] for field in fields(cls)}
        size = tuple(kept["size"]) if kept["size"] else None
        return cls(**kept | {"size": size, "recipe": Recipe(**kept["recipe"])})


@dataclass(frozen=True, slots=True)
class Run:
    """The directory of one training, by the name of the run."""

    name: str

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return RUNS / self.name

    def resolve(self) -> Run:
        """Return the run that a link such as runs/latest leads to; otherwise this one."""
        return Run(self.folder.resolve().name)

    def begin(self, config: RunConfig, circumstances: dict[str, Any]) -> None:
        """Make the directory and write config.json: the choices, and their circumstances.

        Raises RunError if there is such a run, so that none is lost.
        """
        if self.name == LATEST or Path(self.name).name != self.name:
            raise RunError(f"{self.name!r} cannot name a run: take one word other than {LATEST!r}")
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"there is a run {self.folder} already: name another, or rm -r it"
            ) from None
        write_json(self.folder / "config.json", asdict(config) | circumstances)

    def config_json(self) -> dict[str, Any]:
        """Read config.json, in the words of this tree; raises RunError if there is no such run."""
        return modernise(self._json("config.json", "so there is no such run: `make train`"))

    def config(self) -> RunConfig:
        """Read the choices; raises RunError if there is no such run."""
        try:
            return RunConfig.from_json(self.config_json())
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.folder} is of another version ({error}): train again") from error

    def record(self, epoch: Epoch) -> None:
        """Add one line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(epoch)) + "\n")

    def epochs(self) -> list[Epoch]:
        """Read metrics.jsonl."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [Epoch(**json.loads(line)) for line in lines]

    def rewind(self, epochs: int) -> None:
        """Forget the lines of later epochs: the process was killed before it kept their weights."""
        kept = self.epochs()[:epochs]
        with atomic_write(self.folder / "metrics.jsonl") as partial:
            partial.write_text("".join(json.dumps(asdict(epoch)) + "\n" for epoch in kept), "utf-8")

    def keep(self, classifier: ImageClassifier) -> Path:
        """Write the checkpoint, whole or not at all, and return where it is."""
        classifier.save(self.folder / "checkpoint.pt")
        return self.folder / "checkpoint.pt"

    def classifier(self, device: torch.device | str = "cpu") -> ImageClassifier:
        """Read the checkpoint; raises RunError if there is none."""
        path = self.folder / "checkpoint.pt"
        if self.name != LATEST and not path.exists() and (kept := list_runs()):
            raise RunError(f"{path} is missing: name a run that was kept, {list_names(kept)}")
        return ImageClassifier.load(path, device=device)

    def note_evaluation(self, result: dict[str, Any]) -> None:
        """Add one line to evaluations.jsonl, so that nobody forgets how often he looked."""
        with (self.folder / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")

    def evaluations(self) -> list[dict[str, Any]]:
        """Read evaluations.jsonl, the oldest first."""
        path = self.folder / "evaluations.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the result."""
        write_json(self.folder / "summary.json", summary)

    def summary(self) -> dict[str, Any]:
        """Read the result; raises RunError if the training did not come to its end."""
        return self._json("summary.json", "so no run was finished there: `make train`")

    def _json(self, name: str, otherwise: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.folder} has no {name}, {otherwise}") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / name} is damaged ({error}): train again") from error
        if not isinstance(content, dict):
            raise RunError(f"{self.folder / name} is damaged, it holds no table: train again")
        return content

    def publish(self) -> None:
        """Let runs/latest lead here."""
        symlink_atomically(RUNS / LATEST, self.name)


def list_runs() -> list[str]:
    """Return the names of the runs with a checkpoint, the last by name first."""
    names = (path.parent.name for path in RUNS.glob("*/checkpoint.pt"))
    return sorted((name for name in names if name != LATEST), reverse=True)


def modernise(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a config.json with present names for those of older trees."""
    renamed: dict[str, Any] = {}
    if "recipe" in content:
        recipe = content["recipe"].items()
        renamed["recipe"] = {OLD_RECIPE_KEYS.get(key, key): value for key, value in recipe}
    if "network" in content:
        renamed["network"] = modernise_network(content["network"])
    return content | renamed


def format_now() -> str:
    """Return the present time as the files of a run hold it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
