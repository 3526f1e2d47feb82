"""What was predicted: how often each class, by which model, and how sure of it. Pure.

The loop's thread replaces a `Predicted` as a whole at each commit; others read it at any time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .text import replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_CLASSES = 100
"""Classes that are counted by their label; a service that names more has the rest under OTHER."""

OTHER = "other"

MAX_LABEL_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions that were committed since the start; never changed, only replaced."""

    classes: Mapping[str, int] = field(default_factory=dict)  # by label
    model: str = ""  # name and version of the one that answered last

    def followed_by(self, bodies: Iterable[Mapping[str, Any]]) -> Predicted:
        """Return the counts with these answers of the service, in order, among them."""
        classes, model = Counter(self.classes), self.model
        for body in bodies:
            label = clean_label(str(body.get("label", OTHER)))
            known = label in classes or len(classes) < MAX_CLASSES
            classes[label if known else OTHER] += 1
            model = name_model(body) or model
        return Predicted(classes, model)


def name_model(body: Mapping[str, Any]) -> str:
    """Return name and version of the model that gave an answer; empty: it does not say."""
    model = body.get("model", {})
    return clean_label(f"{model.get('name', '')} {model.get('version', '')}".strip())


def clean_label(text: str) -> str:
    """Make a service's word the value of a label."""
    return replace_control_characters(text[:MAX_LABEL_CHARACTERS])
