"""What replies of all dialects have in common: evidence of a status, items, scores. Pure."""

from __future__ import annotations

from http import HTTPStatus
from math import exp
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from ..records import Busy, Failed, Prediction, Reason, Rejection
from ..text import decode_text, is_finite, replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeGuard

EXCERPT_BYTES = 200
"""Of a reply, in the sentence that speaks of it."""

TOP = 3
"""Classes in `top` of a result that is made from scores."""

TOLERANCE = 1e-3
"""By which a probability in 16 bits may lie outside [0, 1]."""

_FAILURES = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)
"""Statuses by which a server says that it could not answer this very request."""

Scale = Literal["probabilities", "logits"]


class Model(NamedTuple):
    """The model that the operator's URL names; without a version the server chooses."""

    name: str
    version: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the `model` of a result."""
        return {"name": self.name, "version": self.version}


class Classes(NamedTuple):
    """The operator's labels in the order of the scores, and what the scores are."""

    labels: Sequence[str]
    scale: Scale = "probabilities"


def weigh_status(status: int, content: bytes, after: float | None) -> Busy | Failed:
    """Say what a reply without answers is evidence of, where a protocol knows no error of an item.

    Failed: the server has judged this request, so that its images are tried apart. Busy: it was not
    served, or nothing is known of who answered. `after`: seconds, from Retry-After.
    """
    detail = excerpt(f"{status}", content)
    if status in _FAILURES:
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return Failed(detail, final=True, status=status, reason="too_large")
        return Failed(detail, status=status)
    return Busy(detail, after)


def refuse(why: str, content: bytes) -> Failed:
    """Return the evidence of a 200 whose answers cannot be told apart: something in it failed."""
    return Failed(excerpt(why, content), status=HTTPStatus.OK)


def excerpt(what: str, content: bytes) -> str:
    """Return a sentence and the beginning of a reply, on one line."""
    text = " ".join(decode_text(content[:EXCERPT_BYTES]).split())
    return f"{what}: {replace_control_characters(text)}" if content else what


def interpret_item(item: object, model: object) -> Prediction | Rejection | None:
    """Return the outcome of an item in this project's own form; None for one in another form."""
    match item:
        case {"error": {"code": str(code), "message": str(message)}}:
            return _rejection(code, message)
        case {"top": [*top]} if isinstance(item, dict) and all(map(_is_ranked, [item, *top])):
            return Prediction({**item, "model": model})
    return None


def is_model(value: object) -> bool:
    """Say whether a value is the `model` of a result."""
    match value:
        case {"name": str(), "version": str()}:
            return True
    return False


def is_failure(item: object) -> bool:
    """Say whether an item is an error of our handler that is no mistake of the sender's."""
    match item:
        case {"error": {"code": "internal"}}:
            return True
    return False


def _rejection(code: str, message: str) -> Rejection:
    if code in get_args(Reason):
        return Rejection(cast("Reason", code), message, status=200)
    return Rejection("rejected", f"{code}: {message}", status=200)


def _is_ranked(value: object) -> bool:
    """Say whether a value names a class. It is asked of each class, and `match` is slower."""
    if not isinstance(value, dict):
        return False
    number, label, score = value.get("class"), value.get("label"), value.get("score")
    named = isinstance(number, int) and isinstance(label, str)
    return named and isinstance(score, (float, int)) and is_finite(score)


def has_scores(value: object, classes: Classes) -> TypeGuard[list[float]]:
    """Say whether a value is a list of one finite number for each label."""
    return (
        isinstance(value, list)
        and len(value) == len(classes.labels)
        and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
        and all(map(is_finite, value))
    )


def classify(scores: Sequence[float], classes: Classes) -> Mapping[str, Any] | str:
    """Return the best class and the TOP of them, or why these finite scores are none.

    Of equal scores the first class wins.
    """
    if classes.scale == "logits":
        probabilities = _softmax(scores)
    elif all(-TOLERANCE <= one <= 1 + TOLERANCE for one in scores):
        probabilities = [min(1.0, max(0.0, float(one))) for one in scores]
    else:
        return "scores are not in [0, 1]: if they are logits, give --scores logits"
    order = sorted(range(len(scores)), key=lambda number: -probabilities[number])
    top = [
        {"class": number, "label": classes.labels[number], "score": probabilities[number]}
        for number in order[:TOP]
    ]
    return {**top[0], "top": top}


def _softmax(scores: Sequence[float]) -> list[float]:
    highest = max(scores)
    powers = [exp(one - highest) for one in scores]
    whole = sum(powers)
    return [power / whole for power in powers]
