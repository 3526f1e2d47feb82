"""What goes over the wire: request bodies to pixels, probabilities to answers.

Pure functions: no TorchServe, no torch. Pixels are uint8 [channels, height, width], as the model
takes them. What the sender did wrong is raised as `Refused`, and kept in the place of the image.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Row = NDArray[np.float32]
"""The probabilities of one image, [classes]."""
Body = dict[str, Any]
Code = Literal["not_an_image", "too_large", "wrong_shape", "bad_request", "unsupported_type"]

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
"""What Pillow may try; its rarer parsers are never shown a stranger's bytes."""

STATUS: Mapping[Code, HTTPStatus] = {
    "not_an_image": HTTPStatus.BAD_REQUEST,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "wrong_shape": HTTPStatus.BAD_REQUEST,
    "bad_request": HTTPStatus.BAD_REQUEST,
    "unsupported_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for 8-bit pixels of so many channels."""

MODEL_MODES = ("L", "RGB")
BYTES = frozenset(range(256))
MAX_DETAIL = 200

WHITE = 255
NEAR = 32
"""Grey values from black or white within which a background is a ground: noise and shadow."""
FAR = 2 / 3
"""The share of the border that must lie on the other side of grey for an image to have the opposite
ground. Of the 70,000 images of Fashion-MNIST the highest is 0.57, by a garment that fills it."""

P = ParamSpec("P")
T = TypeVar("T")


class Refused(Exception):
    """The sender's mistake: `code` is a word for programs, the message a sentence for people."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def body(self) -> Body:
        """The error object, the same alone and in the place of an item."""
        return error(self.code, str(self))


@dataclass(frozen=True, slots=True)
class Settings:
    """The `handler:` table of model-config.yaml, where each number has its reason."""

    threads: int
    chunk: int
    top_k: int
    max_bytes: int
    max_images: int
    max_pixels: int
    max_request_pixels: int


@dataclass(frozen=True, slots=True)
class Model:
    """What the handler must know of the model; `size` is (width, height), as Pillow has it."""

    name: str
    version: str
    mode: str
    size: tuple[int, int]
    background: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (len(self.background), self.size[1], self.size[0])

    @property
    def tag(self) -> dict[str, str]:
        """Who answered, for every good answer."""
        return {"name": self.name, "version": self.version}


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
    form = request_type(headers)
    if form == "application/x-www-form-urlencoded":
        raise Refused(
            "bad_request",
            "The body came as a web form: send the file with curl -T, or name its Content-Type.",
        )
    if form.startswith("multipart/") or "body" not in row:
        return Question(read_parts(row, headers, model, settings), several=True)
    body, named = row["body"], media_type(headers, "body")
    if is_json(body, named):
        return Question(read_instances(body, model, settings), several=True)
    image = open_image(body, named, settings)
    return Question((to_pixels(image, model),), several=False)


def request_type(headers: Mapping[str, Any]) -> str:
    """Return the media type of the whole request, whatever the case of its header's name."""
    named = (
        value
        for name, value in headers.items()
        if name.lower() == "content-type" and isinstance(value, str)
    )
    return without_parameters(next(named, ""))


def media_type(headers: Mapping[str, Any], name: str) -> str:
    """Return the media type of one entry; "" if it has none, or a header bears the same name."""
    entry = headers.get(name)
    return without_parameters(entry["content-type"]) if isinstance(entry, Mapping) else ""


def without_parameters(content_type: str) -> str:
    """Return "image/png" of "Image/PNG; name=x"."""
    return content_type.partition(";")[0].strip().lower()


def is_json(body: object, named: str) -> bool:
    """Tell whether a body is JSON: decoded already, named so, or nameless and begun like it."""
    if isinstance(body, (dict, list)):
        return True
    nameless = not named and isinstance(body, (bytes, bytearray)) and body[:1] == b"{"
    return nameless or named.endswith(("/json", "+json"))


def read_parts(
    row: Mapping[str, Any], headers: Mapping[str, Any], model: Model, settings: Settings
) -> tuple[Pixels | Refused, ...]:
    """Read every entry as an image file, in the order of arrival. Raises Refused."""
    # A gRPC request has no headers, and a protobuf map has no order: there the names decide.
    names = list(row) if request_type(headers) else sorted(row)
    check_count(len(names), settings)
    return read_images(
        [attempt(open_image, row[name], media_type(headers, name), settings) for name in names],
        model,
        settings,
    )


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
    """Raises Refused for what is not JSON, or too deep to be meant."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        # Without its cause: the parser's words may quote the body.
        raise Refused("bad_request", "The body is not JSON.") from None


def check_count(count: int, settings: Settings) -> None:
    """Raises Refused for a request of no images or of too many."""
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


def open_image(data: object, named: str, settings: Settings) -> Image.Image:
    """Open an image file by its header, decoding nothing; `named`: its media type, or "".

    A name is only a hint: what decodes is served under any name. Raises Refused.
    """
    encoded = data.encode() if isinstance(data, str) else data
    if not isinstance(encoded, (bytes, bytearray)):
        raise Refused("unsupported_type", f"This is {named}: send an image file.")
    if not encoded:
        raise Refused("bad_request", "There are no bytes: send an image file.")
    if len(encoded) > settings.max_bytes:
        raise Refused(
            "too_large",
            f"The image file has {len(encoded)} bytes: send at most {settings.max_bytes}.",
        )
    with decoding(named):
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    return check_size(image, settings)


@contextmanager
def decoding(named: str = "") -> Iterator[None]:
    """Turn whatever Pillow says about bytes into a Refused, and silence its warnings."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise Refused("too_large", "The image has far too many pixels.") from None
    except UnidentifiedImageError:
        raise unidentified(named) from None
    except Exception as reason:  # noqa: BLE001 - a parser raises anything on bytes not made for it
        raise Refused("not_an_image", f"The image is damaged: {reason}"[:MAX_DETAIL]) from None


def unidentified(named: str) -> Refused:
    """Return the refusal of bytes that no parser knows; their name decides whose fault it is."""
    if not named or named.startswith("image/") or named == "application/octet-stream":
        return Refused("not_an_image", f"The bytes are none of {', '.join(FORMATS)}.")
    return Refused("unsupported_type", f"This is {named}: send one of {', '.join(FORMATS)}.")


def check_size(image: Image.Image, settings: Settings) -> Image.Image:
    """Return the image, undecoded. Raises Refused when it has no pixels, or too many."""
    pixels = image.width * image.height
    if not pixels:
        raise Refused("not_an_image", "The image has no pixels.")
    if pixels > settings.max_pixels:
        raise Refused(
            "too_large",
            f"The image has {image.width} x {image.height} pixels: send at most "
            f"{settings.max_pixels}.",
        )
    return image


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


def draw(nested: list[Any], model: Model) -> Image.Image:
    """Make an image of lists of integers 0 to 255: [H][W], [C][H][W] or [H][W][C].

    Raises Refused.
    """
    array = np.array(nested, dtype=object)
    kinds = set(map(type, array.flat))
    if array.ndim not in (2, 3) or not array.size or list in kinds:
        raise Refused("wrong_shape", "The pixels must be a full [H][W], [C][H][W] or [H][W][C].")
    # bool is an int to Python, but not to whoever wrote true; 7.0 is how some languages write 7.
    if not kinds <= {int, float} or not all(value in BYTES for value in array.flat):
        raise Refused("not_an_image", "Each pixel must be an integer from 0 to 255.")
    return Image.fromarray(channels_last(array.astype(np.uint8), model))


def channels_last(array: Pixels, model: Model) -> Pixels:
    """Return [H, W] or [H, W, C]; in doubt as the model's own shape. Raises Refused."""
    if array.ndim == 2:  # noqa: PLR2004 - no channel axis
        return array
    channels, height, width = model.shape
    own = {0: (channels, height, width), 2: (height, width, channels)}
    axes = [axis for axis in own if array.shape[axis] in MODES]
    if len(axes) > 1:
        axes = [axis for axis in axes if array.shape == own[axis]]
    if len(axes) != 1:
        raise Refused(
            "wrong_shape",
            f"The pixels have the shape {list(array.shape)}: one axis, the first or the last, "
            "must be 1, 3 or 4 channels.",
        )
    last = np.moveaxis(array, axes[0], -1)
    return last[..., 0] if last.shape[-1] == 1 else np.ascontiguousarray(last)


def to_pixels(image: Image.Image, model: Model) -> Pixels:
    """Decode an opened image, as the model takes it, and close it. Raises Refused.

    An image of the model's own size and mode passes bit for bit.
    """
    with closing(image):
        side = 2 * max(model.size)
        with decoding():
            # JPEG can be decoded at 1/2, 1/4, 1/8 for a fraction of the time; others ignore this.
            image.draft(None, (side, side))
            image.load()
        turn_upright(image)
        fitted = image if is_own(image, model) else fit(to_8_bits(image), model)
        channels, height, width = model.shape
        return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def turn_upright(image: Image.Image) -> None:
    """Turn the image as its EXIF orientation says; a damaged EXIF says nothing."""
    with suppress(Refused), decoding():
        ImageOps.exif_transpose(image, in_place=True)


def is_own(image: Image.Image, model: Model) -> bool:
    """Tell whether the image has the model's size and mode, and no hole."""
    own = (image.mode, image.size) == (model.mode, model.size)
    return own and not image.has_transparency_data


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, where Pillow would cut it off; 32-bit integers count as 16."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def fit(image: Image.Image, model: Model) -> Image.Image:
    """Lay the image on the middle of the model's background, as large as it fits, aspect kept.

    Raises Refused for colours that cannot be converted.
    """
    mode = "RGBA" if image.has_transparency_data else model.mode
    try:
        colours = image.convert(mode)
    except ValueError:
        raise Refused("unsupported_type", f"The colour mode {image.mode} is not known.") from None
    width, height = model.size
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = colours.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    shown = Image.new(model.mode, size, model.background)
    shown.paste(scaled, (0, 0), scaled if mode == "RGBA" else None)
    canvas = Image.new(model.mode, model.size, model.background)
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.paste(on_known_ground(shown, model), corner)
    return canvas


def on_known_ground(image: Image.Image, model: Model) -> Image.Image:
    """Return the image, as a negative if it is grey and its ground is the opposite of the model's.

    Photographs show dark things on white; a data set may show bright ones on black. Only a ground
    of black or white has an opposite, and an image without any contrast is left as it is.
    """
    pixels, ground = np.asarray(image).astype(np.float64), model.background[0]
    if model.mode != "L" or min(ground, WHITE - ground) > NEAR:
        return image
    edge = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    opposite = (np.abs(edge - ground) > WHITE / 2).mean() > FAR
    shows = (np.abs(pixels - ground) <= WHITE / 2).any()
    return negative(pixels, float(np.median(edge)), ground) if opposite and shows else image


def negative(pixels: NDArray[np.float64], edge: float, ground: int) -> Image.Image:
    """Return the negative in which the value `edge` becomes `ground`, and the other end its own.

    Paper is seldom white in a photo. Left grey, its negative is a veil that no model has learned.
    """
    end = 0 if edge > ground else WHITE
    stretched = ground + (pixels - edge) * (WHITE - end - ground) / (end - edge)
    return Image.fromarray(stretched.round().clip(0, WHITE).astype(np.uint8))


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
        return STATUS[question.code], question.body
    good = [predict_row(row, model, settings) for row in rows if row is not None]
    if len(good) < len(rows):
        return HTTPStatus.INTERNAL_SERVER_ERROR, FAILED
    rest = iter(good)
    predictions = [
        item.body if isinstance(item, Refused) else next(rest) for item in question.items
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


def error(code: str, message: str) -> Body:
    """The one shape of an error."""
    return {"error": {"code": code, "message": message}}


def dump(body: Body) -> bytes:
    """Compact JSON."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


FAILED: Body = {
    **error("internal", "The model failed on an image of this request."),
    "code": 500,
    "type": "InternalServerException",
    "message": "Prediction failed",
}
"""Our own error object, and TorchServe's, so that who knows only the latter understands."""
