"""The first version of KServe's protocol, which TensorFlow Serving began: JSON, images in base64.

    {"instances": [{"b64": "..."}, ...]}    or, of a named input, [{"NAME": {"b64": "..."}}, ...]
    {"predictions": [..., ...]}             one value for each instance, in their order

The protocol knows no error of one instance: a bad image fails its whole request. Where an item has
the form of this project's own handler, it is a result, or a rejection, as it stands.
"""

from __future__ import annotations

import json
from base64 import b64encode
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ..records import Failed, Prediction, Rejection
from ..text import parse_json
from .answers import (
    classify,
    has_scores,
    interpret_item,
    is_failure,
    is_model,
    refuse,
    weigh_status,
)
from .dialect import Call, parse_retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..records import Answer, Image
    from .answers import Classes, Model


class KServeV1:
    """A `Dialect`; the operator's URL is the whole path, `.../v1/models/NAME:predict`.

    `wall_clock`: seconds since the epoch. `tensor_input`: the name of the input, where instances
    are objects. `tensor_output`: the output that has the scores, where predictions are objects.
    `classes`: what turns scores into a result; without, a result holds its prediction as `outputs`.
    """

    def __init__(
        self,
        wall_clock: Callable[[], float],
        model: Model,
        *,
        tensor_input: str | None = None,
        tensor_output: str | None = None,
        classes: Classes | None = None,
    ) -> None:
        self._wall_clock = wall_clock
        self._model = model.to_dict()
        self._tensor_input = tensor_input
        self._tensor_output = tensor_output
        self._classes = classes

    def encode(self, images: Sequence[Image]) -> Call:
        """See `Dialect.encode`."""
        instances = [self._instance(image) for image in images]
        body = json.dumps({"instances": instances}, separators=(",", ":"))
        return Call("", {"Content-Type": "application/json"}, body.encode("ascii"))

    def _instance(self, image: Image) -> dict[str, Any]:
        value = {"b64": b64encode(image.data).decode("ascii")}
        return {self._tensor_input: value} if self._tensor_input else value

    def interpret(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> Answer:
        """See `Dialect.interpret`."""
        if status != HTTPStatus.OK:
            after = parse_retry_after(headers.get("Retry-After"), self._wall_clock())
            return weigh_status(status, body, after)
        match parse_json(body):
            case {"predictions": [*items], **rest} if len(items) == count:
                answered = rest.get("model")  # this project's handler says which one answered
                model = answered if is_model(answered) else self._model
                outcomes = [self._outcome(item, model) for item in items]
            case _:
                return refuse(f"no list of {count} finite predictions", body)
        whys = [one for one in outcomes if isinstance(one, str)]
        if whys:
            return Failed(whys[0], status=status)
        return [one for one in outcomes if not isinstance(one, str)]

    def _outcome(self, item: object, model: object) -> Prediction | Rejection | str:
        """Return the outcome of one item, or why it is none."""
        if is_failure(item):
            return "the handler failed on an image"
        if known := interpret_item(item, model):
            return known
        if self._classes is None:
            return Prediction({"outputs": item, "model": model})
        scores = self._scores(item, self._classes)
        if scores is None:
            return f"no prediction of {len(self._classes.labels)} finite scores, one for each label"
        found = classify(scores, self._classes)
        return found if isinstance(found, str) else Prediction({**found, "model": model})

    def _scores(self, item: object, classes: Classes) -> Sequence[float] | None:
        """Return the scores: the item itself, or the one output in it that has as many."""
        outputs = item if isinstance(item, dict) else {self._tensor_output: item}
        named = (value for name, value in outputs.items() if self._tensor_output in {None, name})
        found = [value for value in named if has_scores(value, classes)]
        return found[0] if len(found) == 1 else None
