"""The Open Inference Protocol (KServe v2) over HTTP: image files as one tensor of BYTES.

    {"inputs": [{"name", "shape": [n], "datatype": "BYTES", "data": [...]}]}
    {"model_name", "model_version", "outputs": [{"name", "shape": [n, ...], "datatype", "data"}]}

With the binary tensor data extension, "parameters": {"binary_data_size"} stands in place of "data",
the bytes follow the JSON, and the header Inference-Header-Content-Length tells the length of the
JSON. Of BYTES each element is its length in 4 bytes, little-endian, and the bytes. Without the
extension an image is text in base64, as MLServer reads it.

The protocol knows no error of one item: a bad image fails its whole request. An answer is cut along
the first axis of its outputs.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from http import HTTPStatus
from math import isfinite, prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..records import Failed, Prediction
from ..text import parse_count, parse_json
from .answers import classify, has_scores, refuse, weigh_status
from .dialect import Call, parse_retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ..records import Answer, Image
    from .answers import Classes, Model

HEADER = "Inference-Header-Content-Length"
MAX_ELEMENTS = 1 << 23
"""Of one output; no answer that is read has more bytes."""

MAX_AXES = 32
"""Of one output; NumPy's arrays had no more for long."""

_FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "BF16": "H",
    "FP32": "f",
    "FP64": "d",
}
"""Of `struct`, for each datatype of a fixed size."""

_LENGTH = struct.Struct("<I")

Shape = Literal["n", "nx1"]


class Tensors(NamedTuple):
    """How images go in and which output is wanted; `output`: None for all of them."""

    input: str
    output: str | None = None
    shape: Shape = "n"
    binary: bool = True


class Output(NamedTuple):
    """One output of a reply: `data` is flat, row by row; `shape` has the images first."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Sequence[Any]

    def slice(self, number: int) -> dict[str, Any]:
        """Return what belongs to one image, in the protocol's form, without the first axis."""
        size = prod(self.shape[1:])
        data = self.data[number * size : (number + 1) * size]
        shape = list(self.shape[1:])
        return {"name": self.name, "datatype": self.datatype, "shape": shape, "data": data}


class OpenInference:
    """A `Dialect`; the operator's URL is the whole path, `.../v2/models/NAME/infer`.

    `wall_clock`: seconds since the epoch. `classes`: what turns scores into a result; without, a
    result holds its part of each output as `outputs`.
    """

    def __init__(
        self,
        wall_clock: Callable[[], float],
        model: Model,
        tensors: Tensors,
        classes: Classes | None = None,
    ) -> None:
        self._wall_clock = wall_clock
        self._model = model.to_dict()
        self._tensors = tensors
        self._classes = classes

    def encode(self, images: Sequence[Image]) -> Call:
        """See `Dialect.encode`."""
        name, wanted, shape, binary = self._tensors
        sizes = [len(images), 1] if shape == "nx1" else [len(images)]
        tensor: dict[str, Any] = {"name": name, "shape": sizes, "datatype": "BYTES"}
        request: dict[str, Any] = {"inputs": [tensor]}
        if wanted:
            request["outputs"] = [{"name": wanted}]
        if not binary:
            tensor["parameters"] = {"content_type": "base64"}
            tensor["data"] = [b64encode(image.data).decode("ascii") for image in images]
            return Call("", {"Content-Type": "application/json"}, _dump(request))
        data = b"".join(_LENGTH.pack(len(image.data)) + image.data for image in images)
        tensor["parameters"] = {"binary_data_size": len(data)}
        request["parameters"] = {"binary_data_output": True}
        head = _dump(request)
        headers = {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
        return Call("", headers, head + data)

    def interpret(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> Answer:
        """See `Dialect.interpret`."""
        if status != HTTPStatus.OK:
            after = parse_retry_after(headers.get("Retry-After"), self._wall_clock())
            return weigh_status(status, body, after)
        length = headers.get(HEADER)
        try:
            reply, outputs = parse_reply(body, length, count)
        except ValueError as error:
            return refuse(str(error), body)
        wanted = [one for one in outputs if self._tensors.output in {None, one.name}]
        if not wanted:
            return refuse(f"no output {self._tensors.output or 'at all'}", body)
        model = _read_model(reply, self._model)
        if self._classes is None:
            sliced = [[one.slice(number) for one in wanted] for number in range(count)]
            return [Prediction({"outputs": each, "model": model}) for each in sliced]
        return _classify(wanted, self._classes, model, count)


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _classify(
    outputs: Sequence[Output], classes: Classes, model: Mapping[str, str], count: int
) -> list[Prediction] | Failed:
    rows = [[one.slice(number)["data"] for number in range(count)] for one in outputs]
    fitting = [some for some in rows if all(has_scores(scores, classes) for scores in some)]
    if len(fitting) != 1:
        many = f"{len(fitting)} outputs have {len(classes.labels)} scores, one for each label"
        return Failed(f"{many}: name the right one by --tensor-output", status=HTTPStatus.OK)
    results = [classify(scores, classes) for scores in fitting[0]]
    for one in results:
        if isinstance(one, str):
            return Failed(one, status=HTTPStatus.OK)
    return [Prediction({**one, "model": model}) for one in results if not isinstance(one, str)]


def _read_model(reply: Mapping[str, Any], asked: Mapping[str, str]) -> dict[str, str]:
    """Return the model that answered, as far as it says so; else the one that was asked."""
    found = {"name": reply.get("model_name"), "version": reply.get("model_version")}
    return {key: value if isinstance(value, str) else asked[key] for key, value in found.items()}


def parse_reply(
    body: bytes, length: str | None, count: int
) -> tuple[Mapping[str, Any], Sequence[Output]]:
    """Return a reply to `count` images and its outputs.

    `length`: the header that tells how much of the body is JSON; None: all of it. Raises ValueError
    when the reply cannot be cut into one part for each image, or holds a number that is not finite.
    """
    size = _parse_length(length, len(body))
    reply, rest = parse_json(body[:size]), body[size:]
    match reply:
        case {"outputs": [*tensors]}:
            pass
        case _:
            raise ValueError("no JSON object with outputs and finite numbers")
    outputs = []
    for tensor in tensors:
        one, rest = _parse_output(tensor, rest)
        if not one.shape or one.shape[0] != count:
            raise ValueError(f"output {one.name} has shape {[*one.shape]} for {count} images")
        outputs.append(one)
    return reply, outputs


def _parse_length(length: str | None, whole: int) -> int:
    if length is None:
        return whole
    size = parse_count(length.encode("ascii", "replace"))
    if size is None or size > whole:
        raise ValueError(f"{HEADER} is no length within this answer")
    return size


def _parse_output(tensor: object, rest: bytes) -> tuple[Output, bytes]:
    """Return one output, and the binary data behind its own."""
    match tensor:
        case {"name": str(name), "shape": [*shape], "datatype": str(datatype)} if _is_shape(shape):
            elements = prod(shape)
        case _:
            raise ValueError("an output has no name, shape and datatype")
    data: Sequence[Any]
    match tensor:
        case {"data": [*nested]}:
            data = _flatten(nested)
        case {"parameters": {"binary_data_size": int(size)}} if 0 <= size <= len(rest):
            data, rest = _unpack(datatype, rest[:size], elements), rest[size:]
        case _:
            raise ValueError(f"output {name} has no data")
    if len(data) != elements:
        raise ValueError(f"output {name} has {len(data)} elements for shape {shape}")
    return Output(name, datatype, shape, data), rest


def _is_shape(shape: Sequence[object]) -> bool:
    few = len(shape) <= MAX_AXES
    return few and all(type(one) is int and 0 <= one <= MAX_ELEMENTS for one in shape)


def _flatten(nested: list[Any]) -> list[Any]:
    """Lay out nested lists row by row; raises ValueError for what is no number, text or truth."""
    flat = nested
    while any(isinstance(one, list) for one in flat):
        flat = [inner for one in flat for inner in (one if isinstance(one, list) else (one,))]
    if not all(isinstance(one, str | int | float) for one in flat):  # null is some servers' NaN
        raise ValueError("an output holds what is neither a finite number nor a text nor a truth")
    return flat


def _unpack(datatype: str, data: bytes, elements: int) -> list[Any]:
    if datatype == "BYTES":
        return list(_unpack_bytes(data))
    if datatype not in _FORMATS:
        raise ValueError(f"the datatype {datatype} is not known")
    form = struct.Struct(f"<{min(elements, MAX_ELEMENTS)}{_FORMATS[datatype]}")
    if form.size != len(data):
        raise ValueError(f"{len(data)} bytes for {elements} elements of {datatype}")
    values = list(form.unpack(data))
    if datatype == "BF16":  # the upper half of an FP32
        values = [struct.unpack("<f", struct.pack("<I", one << 16))[0] for one in values]
    if not all(map(isfinite, values)):
        raise ValueError("an output holds a number that is not finite")
    return values


def _unpack_bytes(data: bytes) -> Iterator[str | dict[str, str]]:
    """Yield each element: as text where it is UTF-8, else in base64 as `{"b64": ...}`."""
    at = 0
    while at < len(data):
        if len(data) - at < _LENGTH.size:
            raise ValueError("an element of BYTES has no length")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + size
        if at > len(data):
            raise ValueError("an element of BYTES is cut short")
        yield _render_bytes(data[at - size : at])


def _render_bytes(element: bytes) -> str | dict[str, str]:
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": b64encode(element).decode("ascii")}
