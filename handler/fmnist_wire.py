"""The wire format: request bodies to pixels, probabilities to answers.

Pure functions: no TorchServe, no torch; `fmnist_images` decodes the images. What the sender did
wrong is raised as `Refused`, and kept in the place of the image.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from fmnist_images import (
    FORMATS,
    MODES,
    Code,
    Model,
    Pixels,
    Refused,
    Settings,
    check_size,
    draw,
    open_image,
    to_pixels,
)
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Row = NDArray[np.float32]
"""The probabilities of one image, [classes]."""
Body = dict[str, Any]

STATUS: Mapping[Code, HTTPStatus] = {
    "not_an_image": HTTPStatus.BAD_REQUEST,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "wrong_shape": HTTPStatus.BAD_REQUEST,
    "bad_request": HTTPStatus.BAD_REQUEST,
    "unsupported_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}

MODEL_MODES = ("L", "RGB")
"""Of MODES, what a model may take."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """The images of one request in its order; `several`: it was asked as a list, even of one."""

    items: tuple[Pixels | Refused, ...]
    several: bool


def read_model(card: Mapping[str, Any], names: Mapping[str, str]) -> Model:
    """Join model.json and index_to_name.json; `background` is one number or one per channel.

    Raises ValueError when they contradict each other.
    """
    taken, classes = card["input"], card["classes"]
    channels, background = taken["channels"], taken["background"]
    if MODES.get(channels) not in MODEL_MODES:
        raise ValueError(
            f"model.json: {channels} channels; this handler serves 1 (grey) or 3 (RGB)"
        )
    if set(names) != {str(index) for index in range(classes)}:
        raise ValueError(f'index_to_name.json must name "0" to "{classes - 1}", once each')
    colour = (background,) * channels if isinstance(background, int) else tuple(background)
    if len(colour) != channels:
        raise ValueError(
            f"model.json: background has {len(colour)} numbers for {channels} channels"
        )
    return Model(
        name=str(card["name"]),
        version=str(card["version"]),
        mode=MODES[channels],
        size=(taken["width"], taken["height"]),
        background=colour,
        labels=tuple(names[str(index)] for index in range(classes)),
    )


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Return the `handler:` table of model-config.yaml. Raises ValueError for a wrong one."""
    table = config.get("handler", {})
    wanted = {field.name for field in fields(Settings)}
    if table.keys() != wanted:
        raise ValueError(f"model-config.yaml: `handler:` must hold exactly {sorted(wanted)}")
    wrong = [name for name, value in table.items() if type(value) is not int or value < 1]
    if wrong:
        raise ValueError(f"model-config.yaml: {wrong} in `handler:` must be whole numbers above 0")
    return Settings(**table)


def unpack(
    row: Mapping[str, Any], headers: Mapping[str, Any], model: Model, settings: Settings
) -> Question | Refused:
    """Read one request; never raises for what a client can send.

    `row` and `headers` are TorchServe's: a whole body is row["body"]; each part of a multipart
    body (and each query parameter, and each input of gRPC) is an entry of its own, in the order
    of arrival, of parts with the same name only the last. `headers` holds the HTTP headers in the
    sender's spelling and, under the name of each entry, {"content-type": its media type or ""}.
    """
    return attempt(read_question, row, headers, model, settings)


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Refused:
    """Return the refusal instead of raising it, without the frames that it would keep alive."""
    try:
        return function(*args, **kwargs)
    except Refused as refusal:
        return refusal.with_traceback(None)


def read_question(
    row: Mapping[str, Any], headers: Mapping[str, Any], model: Model, settings: Settings
) -> Question:
    """Tell the three forms apart: parts, JSON, one image body. Raises Refused."""
    request_type = find_request_type(headers)
    if request_type == "application/x-www-form-urlencoded":
        raise Refused(
            "bad_request",
            "The body came as a web form: send the file with curl -T, or name its Content-Type.",
        )
    if request_type.startswith("multipart/") or "body" not in row:
        return Question(read_parts(row, headers, model, settings), several=True)
    body, media_type = row["body"], find_media_type(headers, "body")
    if is_json(body, media_type):
        return Question(read_instances(body, model, settings), several=True)
    image = open_image(body, media_type, settings)
    return Question((to_pixels(image, model),), several=False)


def find_request_type(headers: Mapping[str, Any]) -> str:
    """Return the media type of the whole request, whatever the case of its header's name."""
    named = (
        value
        for name, value in headers.items()
        if name.lower() == "content-type" and isinstance(value, str)
    )
    return strip_parameters(next(named, ""))


def find_media_type(headers: Mapping[str, Any], name: str) -> str:
    """Return the media type of one entry; "" if it has none, or a header bears the same name."""
    entry = headers.get(name)
    return strip_parameters(entry["content-type"]) if isinstance(entry, Mapping) else ""


def strip_parameters(content_type: str) -> str:
    """Return "image/png" of "Image/PNG; name=x"."""
    return content_type.partition(";")[0].strip().lower()


def is_json(body: object, media_type: str) -> bool:
    """Tell whether a body is JSON: decoded already, named so, or nameless and begun like it."""
    if isinstance(body, (dict, list)):
        return True
    nameless = not media_type and isinstance(body, (bytes, bytearray)) and body[:1] == b"{"
    return nameless or media_type.endswith(("/json", "+json"))


def read_parts(
    row: Mapping[str, Any], headers: Mapping[str, Any], model: Model, settings: Settings
) -> tuple[Pixels | Refused, ...]:
    """Read every entry as an image file, in the order of arrival. Raises Refused."""
    # A gRPC request has no headers, and a protobuf map has no order: there the names decide.
    names = list(row) if find_request_type(headers) else sorted(row)
    check_count(len(names), settings)
    media_types = [find_media_type(headers, name) for name in names]
    images = [
        attempt(open_image, row[name], media_type, settings)
        for name, media_type in zip(names, media_types, strict=True)
    ]
    return read_images(images, model, settings)


def read_instances(body: Any, model: Model, settings: Settings) -> tuple[Pixels | Refused, ...]:  # noqa: ANN401 - JSON is anything
    """Read the instances of a KServe v1 body, raw or decoded. Raises Refused."""
    decoded = body if isinstance(body, (dict, list)) else parse_json(body)
    instances = decoded.get("instances") if isinstance(decoded, dict) else None
    if not isinstance(instances, list):
        raise Refused("bad_request", 'The JSON must be an object {"instances": [...]}.')
    check_count(len(instances), settings)
    return read_images(
        [attempt(open_instance, instance, model, settings) for instance in instances],
        model,
        settings,
    )


def parse_json(body: str | bytes | bytearray) -> object:
    """Return the decoded JSON. Raises Refused for what is none, or too deep to be meant."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        # Without its cause: the parser's words may quote the body.
        raise Refused("bad_request", "The body is not JSON.") from None


def check_count(count: int, settings: Settings) -> None:
    """Raise Refused for a request of no images or of too many."""
    if not count:
        raise Refused("bad_request", "The request holds no image: send at least one.")
    if count > settings.max_images:
        raise Refused(
            "too_large",
            f"The request holds {count} images: send at most {settings.max_images} at once.",
        )


def read_images(
    images: Sequence[Image.Image | Refused], model: Model, settings: Settings
) -> tuple[Pixels | Refused, ...]:
    """Decode what was opened. Raises Refused for all when together they would unfold too far.

    Opening reads only headers, so the sum is known before the first pixel is decoded; it bounds
    the time and the memory of one request, whatever its images are compressed to.
    """
    total = sum(image.width * image.height for image in images if not isinstance(image, Refused))
    if total > settings.max_request_pixels:
        raise Refused(
            "too_large",
            f"The images of this request have {total} pixels together, more than "
            f"{settings.max_request_pixels}: send fewer at once.",
        )
    return tuple(
        image if isinstance(image, Refused) else attempt(to_pixels, image, model)
        for image in images
    )


def open_instance(instance: object, model: Model, settings: Settings) -> Image.Image:
    """Open one JSON instance: {"b64": ...} or nested lists of pixels. Raises Refused."""
    if isinstance(instance, list):
        return check_size(draw(instance, model), settings)
    encoded = instance.get("b64") if isinstance(instance, dict) else None
    if not isinstance(encoded, str):
        raise Refused("bad_request", 'An instance is {"b64": "..."} or nested lists of pixels.')
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise Refused("bad_request", "The value of b64 is not Base64.") from None
    return open_image(data, "", settings)


def good_images(question: Question | Refused) -> list[Pixels]:
    """Return the good images of one request."""
    items = () if isinstance(question, Refused) else question.items
    return [item for item in items if not isinstance(item, Refused)]


def count_refused(question: Question | Refused) -> int:
    """Return how many errors the request is answered with."""
    items = (question,) if isinstance(question, Refused) else question.items
    return sum(isinstance(item, Refused) for item in items)


def answer(
    question: Question | Refused, rows: Sequence[Row | None], model: Model, settings: Settings
) -> tuple[HTTPStatus, Body]:
    """Return the status and the body for one request.

    `rows` are the probabilities of its good images, in order; None where the model failed: that
    is our fault and never a rejection, so it fails the whole request, to be tried again.
    """
    if isinstance(question, Refused):
        return STATUS[question.code], render_refusal(question)
    good = [predict_row(row, model, settings) for row in rows if row is not None]
    if len(good) < len(rows):
        return HTTPStatus.INTERNAL_SERVER_ERROR, FAILED
    rest = iter(good)
    predictions = [
        render_refusal(item) if isinstance(item, Refused) else next(rest) for item in question.items
    ]
    if question.several:
        return HTTPStatus.OK, {"predictions": predictions, "model": model.tag}
    return HTTPStatus.OK, {**predictions[0], "model": model.tag}


def predict_row(row: Row, model: Model, settings: Settings) -> Body:
    """Return the likeliest class and the next ones; of equal scores the lower class comes first."""
    order = np.argsort(-row, kind="stable")[: settings.top_k].tolist()
    top = [
        {"class": index, "label": model.labels[index], "score": round(float(row[index]), 6)}
        for index in order
    ]
    return {**top[0], "top": top}


def describe(card: Mapping[str, Any], model: Model, settings: Settings) -> Body:
    """Say what the model is, what it takes and within which limits."""
    return {
        "model": dict(card),
        "labels": list(model.labels),
        "input": {
            "body": "one image file; answered with one object",
            "multipart/form-data": "image files, each part with its own name",
            "application/json": '{"instances": [{"b64": "..."} or nested lists of pixels, ...]}',
            "formats": list(FORMATS),
        },
        "limits": {
            field.name: getattr(settings, field.name)
            for field in fields(settings)
            if field.name.startswith("max_")
        },
    }


def render_refusal(refused: Refused) -> Body:
    """Return the error object, the same alone and in the place of an item."""
    return render_error(refused.code, str(refused))


def render_error(code: str, message: str) -> Body:
    """Return the one shape of an error."""
    return {"error": {"code": code, "message": message}}


def dump(body: Body) -> bytes:
    """Return compact JSON."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


FAILED: Body = {
    **render_error("internal", "The model failed on an image of this request."),
    "code": 500,
    "type": "InternalServerException",
    "message": "Prediction failed",
}
"""Our own error object, and TorchServe's, so that who knows only the latter understands."""
