"""The directory of one training: what was asked, how it went, what came out.

    config.json      every choice, and the machine
    metrics.jsonl    one line an epoch, written as it happens
    summary.json     the result; there once the training has come to its end
    checkpoint.pt    the classifier, as ImageClassifier.load takes it
    curves.png       loss and accuracy, epoch by epoch
    confusion.png    which class was taken for which, on the validation images

`runs/latest` leads to the last run that was good enough, and moves when everything is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .classifier import ImageClassifier
from .errors import RunError
from .files import point, write_json

if TYPE_CHECKING:
    from .recipe import Epoch

RUNS = Path("runs")
LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Run:
    """The directory of one training, by the name of the run."""

    name: str

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return RUNS / self.name

    def begin(self, config: dict[str, Any]) -> None:
        """Make the directory; raises RunError if there is such a run, so that none is lost."""
        if self.name == LATEST or Path(self.name).name != self.name:
            raise RunError(f"{self.name!r} cannot name a run: take one word other than {LATEST!r}")
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError:
            raise RunError(
                f"there is a run {self.folder} already: name another, or rm -r it"
            ) from None
        write_json(self.folder / "config.json", config)

    def record(self, epoch: Epoch) -> None:
        """Add one line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(epoch)) + "\n")

    def keep(self, classifier: ImageClassifier) -> Path:
        """Write the checkpoint and return where it is."""
        classifier.save(self.folder / "checkpoint.pt")
        return self.folder / "checkpoint.pt"

    def classifier(self) -> ImageClassifier:
        """Read the checkpoint; raises RunError if there is none."""
        return ImageClassifier.load(self.folder / "checkpoint.pt")

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the result."""
        write_json(self.folder / "summary.json", summary)

    def summary(self) -> dict[str, Any]:
        """Read the result; raises RunError if the training did not come to its end."""
        try:
            content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text("utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{self.folder} has no summary.json, so no run was finished there: `make train`"
            ) from None
        return content

    def publish(self) -> None:
        """Let runs/latest lead here."""
        point(RUNS / LATEST, self.name)
