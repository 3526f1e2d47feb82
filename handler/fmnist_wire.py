"""The wire format: request bodies to pixels, probabilities to answers.

No TorchServe, no torch, no clock of its own. A request goes two steps: its structure is inspected,
by `fmnist_gate` for each image file, which costs little and tells what decoding will cost; then
`fmnist_images` decodes it, as far as the budget of the batch reaches. What the sender did wrong is
raised as `Refused`, and kept in the place of the image.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from http import HTTPStatus
from math import prod
from typing import Any, NamedTuple, ParamSpec, TypeGuard, TypeVar

import fmnist_v2 as v2
import numpy as np
from fmnist_gate import FORMATS, Code, File, Refused, find_format, inspect
from fmnist_images import MODES, Model, Pixels, Settings, draw, draw_raw, to_form, to_pixels
from fmnist_json import decode_base64, is_json, parse_json
from fmnist_sandbox import decode_apart
from fmnist_v2 import Query
from PIL import Image

logger = logging.getLogger(__name__)

Row = v2.Row
Body = v2.Body

STATUS: Mapping[Code, HTTPStatus] = {
    "not_an_image": HTTPStatus.BAD_REQUEST,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "wrong_shape": HTTPStatus.BAD_REQUEST,
    "bad_request": HTTPStatus.BAD_REQUEST,
    "unsupported_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}
"""Of a sender's mistakes."""
OUR_STATUS: Mapping[Code, HTTPStatus] = {
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "busy": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Of what is no sender's mistake."""
LENGTH_HEADER = v2.HEADER
RETRY_AFTER_S = 1
"""Seconds after which a request that found the server busy may come again."""
MIN_WAIT_S = 1.0
"""Seconds that the process which decodes apart always gets: it may have to start."""
JSON_BYTE_S = 80e-9
"""Seconds of CPU for each byte of a JSON body, estimated on a 2-core Xeon."""

MODEL_MODES = ("L", "RGB")
"""Of MODES, what a model may take."""
PRECISIONS = ("float32", "bfloat16")
"""What the model may multiply in."""

P = ParamSpec("P")
T = TypeVar("T")


Item = File | Image.Image | Refused
"""One image of a request before it is decoded: a file that passed the gate, or drawn by lists."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose structure is known; that of a JSON body only when it is parsed.

    `query`: what an answer of the Open Inference Protocol must know; None for the other forms.
    """

    items: tuple[Item, ...]
    several: bool
    json: Any = None
    query: Query | None = None

    @property
    def cost(self) -> float:
        """Seconds of CPU to decode it, estimated; of JSON to parse it."""
        length = len(self.json) if isinstance(self.json, (str, bytes, bytearray)) else 0
        return sum(map(cost_of, self.items)) + JSON_BYTE_S * length


@dataclass(frozen=True, slots=True)
class Question:
    """The images of one request in its order; `several`: it was asked as a list, even of one."""

    items: tuple[Pixels | Refused, ...]
    several: bool
    query: Query | None = None


class Encoded(NamedTuple):
    """The bytes of an answer; `json`: how many of them are JSON, None where all are."""

    content: bytes
    json: int | None = None


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
        missing, unknown = sorted(wanted - table.keys()), sorted(map(str, table.keys() - wanted))
        raise ValueError(
            f"model-config.yaml: `handler:` must hold exactly {sorted(wanted)}; missing: "
            f"{missing}, unknown: {unknown}"
        )
    numbers = {name: value for name, value in table.items() if name != "precision"}
    wrong = [name for name, value in numbers.items() if type(value) is not int or value < 1]
    if wrong:
        raise ValueError(f"model-config.yaml: {wrong} in `handler:` must be whole numbers above 0")
    settings = Settings(**table)
    if settings.precision not in PRECISIONS:
        raise ValueError(f"model-config.yaml: `precision` must be {' or '.join(PRECISIONS)}")
    if settings.passes > settings.chunk:
        raise ValueError(
            "model-config.yaml: `passes` must not be above `chunk`: each takes an image at least"
        )
    return settings


def unpack(
    row: Mapping[str, Any],
    headers: Mapping[str, Any],
    model: Model,
    settings: Settings,
    budget: Budget | None = None,
) -> Question | Refused:
    """Read one request; never raises for what a client can send.

    `row` and `headers` are TorchServe's: a whole body is row["body"]; each part of a multipart
    body (and each query parameter, and each input of gRPC) is an entry of its own, in the order
    of arrival, of parts with the same name only the last. `headers` holds the HTTP headers in the
    sender's spelling and, under the name of each entry, {"content-type": its media type or ""}.
    """
    request = attempt(inspect_request, row, headers, model, settings)
    return complete(request, model, settings, budget or Budget.of(settings))


def unpack_batch(
    rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    model: Model,
    settings: Settings,
    clock: Callable[[], float],
    pass_s: float = 0.0,
) -> list[Question | Refused]:
    """Read the (row, headers) of each request of a batch, in order, within the batch's budget.

    The structure of all is read first, which is cheap; then the cheapest is decoded first, so that
    one dear request never takes the time of the others. `clock` counts seconds; `pass_s` are those
    that the model takes for an image.
    """
    budget = Budget.of(settings, clock, pass_s)
    requests = [attempt(inspect_request, row, headers, model, settings) for row, headers in rows]
    costs = [0.0 if isinstance(request, Refused) else request.cost for request in requests]
    questions: dict[int, Question | Refused] = {
        index: complete(requests[index], model, settings, budget)
        for index in sorted(range(len(requests)), key=costs.__getitem__)
    }
    return [questions[index] for index in range(len(requests))]


class Budget:
    """The seconds that a batch may cost, and of these what decoding one request may.

    What was spent is read from the clock, so a machine with other work counts; what comes next is
    estimated from above, and the model's pass over what is decoded is kept free. Together they
    keep a batch below TorchServe's responseTimeout.
    """

    def __init__(
        self, batch_s: float, request_s: float, clock: Callable[[], float], pass_s: float
    ) -> None:
        self._batch_s, self._request_s, self._clock, self._pass_s = (
            batch_s,
            request_s,
            clock,
            pass_s,
        )
        self._end = clock() + batch_s
        self.request_left = request_s

    @classmethod
    def of(
        cls, settings: Settings, clock: Callable[[], float] = lambda: 0.0, pass_s: float = 0.0
    ) -> Budget:
        """Return the budget of these settings; without a clock, that of a request alone."""
        return cls(settings.batch_ms / 1000, settings.max_request_ms / 1000, clock, pass_s)

    def start_request(self, cost: float, images: int = 0) -> None:
        """Begin the next request, whose decoding costs so many seconds by its estimate.

        The model's pass over so many images is kept free. Raises Refused.
        """
        self.request_left = self._request_s
        pass_s = images * self._pass_s
        if pass_s > self._batch_s:
            raise Refused(
                "too_large",
                f"The model would take about {pass_s:.0f} s for these {images} images: send fewer "
                "at once.",
            )
        self.check(cost + pass_s)
        self._end -= pass_s

    def check(self, cost: float) -> None:
        """Raise Refused where the seconds that the next work may cost are not left."""
        if cost > self.batch_left():
            raise Refused("busy", "The server has too much to decode at once: send it again.")

    def batch_left(self) -> float:
        """Return the seconds that are left to the batch."""
        return self._end - self._clock()


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Refused:
    """Return the refusal instead of raising it, without the frames that it would keep alive.

    What else is raised is our own failure: it is logged here, and answered in its own place. A
    lack of memory is neither; TorchServe answers it.
    """
    try:
        return function(*args, **kwargs)
    except Refused as refusal:
        return refusal.with_traceback(None)
    except MemoryError:
        raise
    except Exception:
        logger.exception("The handler failed on an image or a request; its answer is an error")
        return Refused("internal", "The handler failed on this.")


def inspect_request(
    row: Mapping[str, Any], headers: Mapping[str, Any], model: Model, settings: Settings
) -> Request:
    """Tell the forms apart: parts, JSON, JSON and tensors, one image. Raises Refused.

    Nothing is decoded yet.
    """
    request_type = find_request_type(headers)
    if request_type == "application/x-www-form-urlencoded":
        raise Refused(
            "bad_request",
            "The body came as a web form: send the file with curl -T, or name its Content-Type.",
        )
    if request_type.startswith("multipart/") or "body" not in row:
        return Request(inspect_parts(row, headers, settings), several=True)
    body, media_type = row["body"], find_media_type(headers, "body")
    length = v2.find_head_length(headers)
    if length is not None and isinstance(body, (bytes, bytearray)):
        return inspect_binary(body, length, model, settings)
    if is_json(body, media_type):
        return Request((), several=True, json="null" if body is None else body)
    return Request((inspect_body(body, media_type, model, settings),), several=False)


def inspect_body(body: object, media_type: str, model: Model, settings: Settings) -> Item:
    """Inspect a body that is one image: a file, or the model's pixels. Raises Refused."""
    if is_raw(body, media_type, model):
        return draw_raw(body, model)
    return inspect_file(body, media_type, settings)


def is_raw(body: object, media_type: str, model: Model) -> TypeGuard[bytes | bytearray]:
    """Tell whether a body is the model's pixels: named octets, as many as these, and no file.

    What begins as a file of a known format is that file, whatever its length.
    """
    if media_type != "application/octet-stream" or not isinstance(body, (bytes, bytearray)):
        return False
    return len(body) == prod(model.shape) and isinstance(attempt(find_format, body), Refused)


def inspect_binary(
    body: bytes | bytearray, length: int, model: Model, settings: Settings
) -> Request:
    """Inspect JSON of `length` bytes and the tensors behind it. Raises Refused."""
    if length == len(body):
        return Request((), several=True, json=body)
    if not length:  # Triton's "raw binary request": no JSON, one image
        item = attempt(inspect_body, body, "application/octet-stream", model, settings)
        return Request((item,), several=True, query=Query())
    with in_dialect():
        head, behind = v2.split_body(body, length)
        document = parse_json(head)
        if not isinstance(document, dict):
            raise v2.bad("The JSON before the binary data must be an object.")
    return inspect_inference(document, behind, model, settings)


@contextmanager
def in_dialect() -> Iterator[None]:
    """Turn a refusal into one that is answered as the Open Inference Protocol words it."""
    try:
        yield
    except Refused as refused:
        raise v2.Refusal(refused.code, str(refused)) from None


def inspect_inference(
    document: Mapping[str, Any], behind: memoryview, model: Model, settings: Settings
) -> Request:
    """Inspect a request of the Open Inference Protocol. Raises Refused."""
    with in_dialect():
        query = v2.read_query(document)
        tensor = v2.read_tensor(document, behind)
        check_count(tensor.shape[0], settings)
        v2.check_entries(query, tensor.shape[0], model)
        elements = v2.split_tensor(tensor, model)
    items = tuple(attempt(inspect_element, element, settings) for element in elements)
    return Request(items, several=True, query=query)


def inspect_element(element: v2.Element, settings: Settings) -> Item:
    """Inspect one image of a tensor: pixels, a file, or a file in Base64. Raises Refused."""
    if isinstance(element, Image.Image):
        return element
    if isinstance(element, bytes):
        return inspect_file(element, "", settings)
    if not isinstance(element, str):
        raise v2.bad("An element of BYTES must be a text: the Base64 of an image file.")
    return inspect_file(decode_base64(element), "", settings)


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


def inspect_parts(
    row: Mapping[str, Any], headers: Mapping[str, Any], settings: Settings
) -> tuple[Item, ...]:
    """Inspect every entry as an image file, in the order of arrival. Raises Refused."""
    # A gRPC request has no headers, and a protobuf map has no order: there the names decide.
    names = list(row) if find_request_type(headers) else sorted(row)
    check_count(len(names), settings)
    return tuple(
        attempt(inspect_file, row[name], find_media_type(headers, name), settings) for name in names
    )


def inspect_file(data: object, media_type: str, settings: Settings) -> File:
    """Let an image file pass the gate; `media_type` is "" if nobody named it.

    It is only a hint: what decodes is served under any name. Raises Refused.
    """
    encoded = data.encode() if isinstance(data, str) else data
    if not isinstance(encoded, (bytes, bytearray)):
        raise Refused("unsupported_type", f"This is {media_type}: send an image file.")
    if not encoded:
        raise Refused("bad_request", "There are no bytes: send an image file.")
    try:
        return inspect(encoded, settings.limits)
    except Refused as refusal:
        if refusal.code == "not_an_image" and not is_image(media_type):
            raise Refused(
                "unsupported_type", f"This is {media_type}: send one of {', '.join(FORMATS)}."
            ) from None
        raise


def is_image(media_type: str) -> bool:
    """Tell whether a media type leaves open that the bytes are an image."""
    return media_type in {"", "application/octet-stream"} or media_type.startswith("image/")


def complete(
    request: Request | Refused, model: Model, settings: Settings, budget: Budget
) -> Question | Refused:
    """Decode what was inspected; never raises for what a client can send."""
    if isinstance(request, Request) and request.json is not None:
        request = attempt(parse_request, request, model, settings, budget)
    if isinstance(request, Refused):
        return request
    return attempt(decode_request, request, model, settings, budget)


def parse_request(request: Request, model: Model, settings: Settings, budget: Budget) -> Request:
    """Parse the JSON of a request and inspect its images. Raises Refused."""
    budget.start_request(request.cost)
    raw = isinstance(request.json, (str, bytes, bytearray))
    document = parse_json(request.json) if raw else request.json
    if isinstance(document, dict) and "inputs" in document and "instances" not in document:
        return inspect_inference(document, memoryview(b""), model, settings)
    return Request(inspect_instances(document, model, settings), several=True)


def decode_request(request: Request, model: Model, settings: Settings, budget: Budget) -> Question:
    """Decode the images of a request. Raises Refused for all when together they cost too much.

    The sum is known before the first pixel is decoded; it bounds the time of one request, whatever
    its images are compressed to. They are decoded one after the other: the memory is that of one.
    """
    with in_dialect() if request.query else nullcontext():
        images = sum(not isinstance(item, Refused) for item in request.items)
        budget.start_request(price(request.items, settings), images)
        decoded = tuple(
            attempt(decode_item, item, model, settings, budget) for item in request.items
        )
        for item in decoded:
            if isinstance(item, Refused) and item.code == "busy":
                raise item
    return Question(decoded, request.several, request.query)


def price(items: Sequence[Item], settings: Settings) -> float:
    """Return the seconds that the images of a request cost together, by their estimates.

    Raises Refused where they are too large together.
    """
    files = [item for item in items if not isinstance(item, Refused)]
    pixels = sum(file.width * file.height for file in files)
    if pixels > settings.max_request_pixels:
        raise Refused(
            "too_large",
            f"The images of this request have {pixels} pixels together, more than "
            f"{settings.max_request_pixels}: send fewer at once.",
        )
    cost = sum(map(cost_of, items))
    milliseconds = round(1000 * cost)
    if milliseconds > settings.max_request_ms:
        raise Refused(
            "too_large",
            f"Decoding the images of this request would take about {milliseconds} ms together, "
            f"more than {settings.max_request_ms}: send fewer at once.",
        )
    return cost


def cost_of(item: Item) -> float:
    """Return the seconds that an item costs by its estimate."""
    return item.cost if isinstance(item, File) else 0.0


def decode_item(item: Item, model: Model, settings: Settings, budget: Budget) -> Pixels:
    """Bring one item to the model's form, in another process if its cost is not known.

    Raises Refused.
    """
    if isinstance(item, Refused):
        raise item
    if not isinstance(item, File):
        return to_form(item, model)
    return to_pixels(item, model) if item.known else decode_unknown(item, model, settings, budget)


def decode_unknown(file: File, model: Model, settings: Settings, budget: Budget) -> Pixels:
    """Decode in another process, with what is left of the request's seconds. Raises Refused."""
    if budget.request_left <= 0:
        raise Refused("too_large", "The images of this request take too long to decode.")
    limits = (budget.request_left, settings.sandbox_mb)
    result, seconds = decode_apart(file, model, limits, max(MIN_WAIT_S, budget.batch_left()))
    budget.request_left -= seconds
    if isinstance(result, Refused):
        raise result
    return result


def inspect_instances(document: object, model: Model, settings: Settings) -> tuple[Item, ...]:
    """Inspect the instances of a KServe v1 body. Raises Refused."""
    instances = document.get("instances") if isinstance(document, dict) else None
    if not isinstance(instances, list):
        raise Refused(
            "bad_request", 'The JSON must be an object {"instances": [...]} or {"inputs": [...]}.'
        )
    check_count(len(instances), settings)
    return tuple(attempt(inspect_instance, instance, model, settings) for instance in instances)


def check_count(count: int, settings: Settings) -> None:
    """Raise Refused for a request of no images or of too many."""
    if not count:
        raise Refused("bad_request", "The request holds no image: send at least one.")
    if count > settings.max_images:
        raise Refused(
            "too_large",
            f"The request holds {count} images: send at most {settings.max_images} at once.",
        )


def inspect_instance(instance: object, model: Model, settings: Settings) -> Item:
    """Inspect one JSON instance: {"b64": ...} or nested lists of pixels. Raises Refused."""
    if isinstance(instance, list):
        return draw(instance, model)
    encoded = instance.get("b64") if isinstance(instance, dict) else None
    if not isinstance(encoded, str):
        raise Refused("bad_request", 'An instance is {"b64": "..."} or nested lists of pixels.')
    return inspect_file(decode_base64(encoded), "", settings)


def good_images(question: Question | Refused) -> list[Pixels]:
    """Return the good images of one request."""
    items = () if isinstance(question, Refused) else question.items
    return [item for item in items if not isinstance(item, Refused)]


def count_refused(question: Question | Refused) -> int:
    """Return how many of the request's errors are its sender's mistakes."""
    items = (question,) if isinstance(question, Refused) else question.items
    return sum(isinstance(item, Refused) and item.code in STATUS for item in items)


def answer(
    question: Question | Refused, rows: Sequence[Row | None], model: Model, settings: Settings
) -> tuple[HTTPStatus, Body]:
    """Return the status and the body for one request.

    `rows` are the probabilities of its good images, in order; None where the model failed: that
    is our fault and never a rejection, so it fails the whole request, to be tried again.
    """
    if isinstance(question, Refused):
        return refuse(question)
    good = [row for row in rows if row is not None]
    if len(good) < len(rows):
        kind = Refused if question.query is None else v2.Refusal
        return refuse(kind("internal", "The model failed on an image of this request."))
    if question.query is not None:
        return answer_inference(question, question.query, good, model)
    rest = iter([predict_row(row, model, settings) for row in good])
    if not question.several and isinstance(question.items[0], Refused):
        return refuse(question.items[0])
    predictions = [
        render_refusal(item) if isinstance(item, Refused) else next(rest) for item in question.items
    ]
    if question.several:
        return HTTPStatus.OK, {"predictions": predictions, "model": model.tag}
    return HTTPStatus.OK, {**predictions[0], "model": model.tag}


def answer_inference(
    question: Question, query: Query, rows: Sequence[Row], model: Model
) -> tuple[HTTPStatus, Body]:
    """Return status and body of a request of the Open Inference Protocol."""
    bad = v2.refuse_bad_image(query, question.items)
    if bad is not None:
        return refuse(bad)
    return HTTPStatus.OK, v2.render(query, question.items, rows, model)


def refuse(refused: Refused) -> tuple[HTTPStatus, Body]:
    """Return status and body where a refusal is the whole answer."""
    status = {**STATUS, **OUR_STATUS}[refused.code]
    return status, render_refusal(refused) | TORCHSERVE.get(refused.code, {})


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
            "application/octet-stream": f"an image file, or {prod(model.shape)} bytes of pixels, "
            f"{list(model.shape)}",
            "/v2/models/NAME/infer": "the Open Inference Protocol; binary data may follow the JSON",
            "formats": list(FORMATS),
        },
        "v2": v2.describe_model(model),
        "limits": {
            field.name: getattr(settings, field.name)
            for field in fields(settings)
            if field.name.startswith("max_")
        },
    }


def render_refusal(refused: Refused) -> Body:
    """Return the error object, the same alone and in the place of an item."""
    if isinstance(refused, v2.Refusal):
        return {"error": v2.describe_error(refused)}
    return {"error": {"code": refused.code, "message": str(refused)}}


def encode(body: Body) -> Encoded:
    """Return the bytes of an answer: JSON, and behind it the tensors that are wanted as such."""
    outputs = body.get("outputs", ())
    if not any(isinstance(output["data"], bytes) for output in outputs):
        return Encoded(dump(body))
    head, behind = v2.detach(body)
    content = dump(head)
    return Encoded(content + behind, len(content))


def dump(body: Body) -> bytes:
    """Return compact JSON."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


TORCHSERVE: Mapping[str, Body] = {
    "internal": {
        "code": 500,
        "type": "InternalServerException",
        "message": "Prediction failed",
    },
    "busy": {
        "code": 503,
        "type": "ServiceUnavailableException",
        "message": "The server is busy",
    },
}
"""TorchServe's own words beside our error object, for those who know only them."""
