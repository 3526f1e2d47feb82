"""What was predicted, and how far that is from the validation images of the model. Pure.

The loop's thread replaces a `Predicted` as a whole at each commit; others read it at any time.

Nobody knows the labels of the traffic, so its accuracy cannot be watched. Three figures of the
answers move when the images are no longer those that were learned from: which classes are named,
how sure the model is, and how often the two likeliest classes are nearly equal. They are taken of
the last WINDOW predictions of one model, and compared with those of its validation images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING, Any, NamedTuple

from .text import replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_CLASSES = 100
"""Classes that are counted by their label; a service that names more has the rest under OTHER."""

OTHER = "other"

MAX_LABEL_CHARACTERS = 100

WINDOW = 2000
"""Predictions that the figures are of; fewer have none."""

LEAST_SHARE = 0.5 / WINDOW
"""What a class counts for that is not there at all: the index is a logarithm of shares."""


class Answer(NamedTuple):
    """What is kept of a prediction; `margin`: by how much the likeliest class leads, if known."""

    number: int  # of the class
    score: float
    margin: float | None


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions that were committed since the start; never changed, only replaced."""

    classes: Mapping[str, int] = field(default_factory=dict)  # by label
    model: str = ""  # name and version of the one that answered last
    recent: tuple[Answer, ...] = ()  # at most WINDOW, of that model alone

    def followed_by(self, bodies: Iterable[Mapping[str, Any]]) -> Predicted:
        """Return the counts with these answers of the service, in order, among them."""
        model, recent = self.model, list(self.recent)
        labels: Counter[str] = Counter()
        card: object = None
        for body in bodies:
            if (found := body.get("model")) is not card:  # answers of one request share it
                card = found
                if (named := name_model(body) or model) != model:
                    model, recent = named, []
            if "label" in body:  # else it names no class: the outputs of any other model
                labels[str(body["label"])] += 1
                recent.append(read_answer(body))
        return Predicted(self._count(labels), model, tuple(recent[-WINDOW:]))

    def _count(self, labels: Mapping[str, int]) -> Mapping[str, int]:
        """Add these in order, by label until there are MAX_CLASSES, the rest as OTHER."""
        classes = Counter(self.classes)
        for text, count in labels.items():
            label = clean_label(text)
            known = label in classes or len(classes) < MAX_CLASSES
            classes[label if known else OTHER] += count
        return classes


def name_model(card: Mapping[str, Any]) -> str:
    """Return name and version of the `model` that an answer or a description names."""
    model = card.get("model", {})
    return clean_label(f"{model.get('name', '')} {model.get('version', '')}".strip())


def clean_label(text: str) -> str:
    """Make a service's word the value of a label."""
    return replace_control_characters(text[:MAX_LABEL_CHARACTERS])


def read_answer(body: Mapping[str, Any]) -> Answer:
    """Keep class, score and margin of the service's answer for one image."""
    scores = [one["score"] for one in body.get("top", ())[:2]]
    margin = scores[0] - scores[1] if len(scores) > 1 else None
    return Answer(body.get("class", -1), body.get("score", 0.0), margin)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The answers for the validation images, as model.json of an archive has them.

    Shares and means are from 0 to 1; `class_mix` is in the order of the classes.
    """

    model: str
    class_mix: tuple[float, ...]
    mean_confidence: float
    near_ties: float
    near_tie_margin: float


def parse_baseline(description: Any) -> Baseline:  # noqa: ANN401 - JSON of others
    """Read model.json, or what TorchServe answers to GET /models/NAME?customized=true.

    Raises ValueError, in a sentence, when it holds no baseline.
    """
    try:
        whole = description[0] if isinstance(description, list) else description
        card = whole.get("customizedMetadata", {}).get("model", whole)
        found = card["validation"]
        baseline = Baseline(
            name_model({"model": card}),
            tuple(float(share) for share in found["class_mix"]),
            *(float(found[key]) for key in ("mean_confidence", "near_ties", "near_tie_margin")),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ValueError(
            "the model's description has no figures of its validation images: make the archive anew"
        ) from None
    if not 1 <= len(baseline.class_mix) <= WINDOW:
        raise ValueError(f"its class_mix has {len(baseline.class_mix)} shares")
    return baseline


class Drift(NamedTuple):
    """How far the last answers are from the baseline; 0: not at all."""

    class_mix: float  # population stability index, never negative
    confidence: float  # the mean, less that of the baseline
    near_ties: float | None  # the share, less that of the baseline; None: margins are not known


ALERT_ABOVE = Drift(class_mix=0.03, confidence=0.02, near_ties=0.02)
"""What the alerts of deploy/prometheus/rules.yaml fire above, in either direction."""


def measure_drift(recent: Sequence[Answer], baseline: Baseline) -> Drift | None:
    """Compare the last WINDOW answers with the baseline; None: there are not so many yet."""
    if len(recent) < WINDOW:
        return None
    margins = [answer.margin for answer in recent if answer.margin is not None]
    ties = sum(margin < baseline.near_tie_margin for margin in margins) / len(recent)
    confidence = sum(answer.score for answer in recent) / len(recent)
    return Drift(
        _stability_index(Counter(answer.number for answer in recent), baseline.class_mix),
        confidence - baseline.mean_confidence,
        ties - baseline.near_ties if len(margins) == len(recent) else None,
    )


def _stability_index(counts: Mapping[int, int], expected: Sequence[float]) -> float:
    """Return the population stability index; classes that the baseline lacks are one more."""
    known = range(len(expected))
    found = [counts.get(number, 0) / WINDOW for number in known]
    shares = zip((*found, 1 - sum(found)), (*expected, 0.0), strict=True)
    pairs = [(max(one, LEAST_SHARE), max(other, LEAST_SHARE)) for one, other in shares]
    return sum((one - other) * log(one / other) for one, other in pairs)
