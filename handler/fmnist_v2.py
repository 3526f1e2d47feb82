"""The Open Inference Protocol, version 2: a request's tensor to images, predictions to tensors.

The specification is https://github.com/kserve/open-inference-protocol; the bytes behind the JSON
are those of Triton's "binary tensor data extension". A request looks like this:

    {"id": "42", "parameters": {"top": 3}, "outputs": [{"name": "label"}, {"name": "error"}],
     "inputs": [{"name": "images", "datatype": "BYTES", "shape": [2], "data": ["...", "..."]}]}

There is one input, under any name. BYTES are image files: in JSON each a text of Base64, since JSON
has no bytes; behind the JSON each with its length before it. UINT8 are pixels, and the first axis
counts the images.

The protocol has no error of one image. Who asks for the output `error` gets one for each image, and
the good ones are answered; to anybody else a bad image fails the whole request, for a client that
knows no `error` would take what stands in its place for a prediction.

Pure, as `fmnist_images` is: the decoding of files and the limits of a request are left to
`fmnist_wire`. Whatever is allocated here is bounded by the bytes that came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from fmnist_gate import Refused
from fmnist_images import Model, move_channels_last, no_pixel
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Row = NDArray[np.float32]
"""The probabilities of one image, [classes]."""
Body = dict[str, Any]

HEADER = "Inference-Header-Content-Length"
"""Bytes of JSON at the start of a body; the tensors' own bytes follow."""
LENGTH = re.compile(r"[0-9]{1,10}")
MAX_HEAD_BYTES = 65_536
"""Of the JSON before binary tensors: it is parsed before the budget of the batch is known."""
MAX_ID = 1_024
"""Characters of a request's id, which its answer repeats."""
MAX_DIMENSIONS = 4
MAX_UINT64 = 2**64 - 1
MAX_ENTRIES = 20_480
"""Labels of one answer: the server takes 6,553,500 bytes of a worker, not more."""
MAX_QUOTED = 40
"""Characters of a name that a message quotes."""

DATATYPES = {"label": "BYTES", "score": "FP32", "class": "INT64", "error": "BYTES"}
"""Of the outputs."""
USUAL = ("label", "score", "class")
"""The outputs of a request that names none."""

ELEMENT = Struct("<I")
"""The length before an element of binary BYTES."""

Element = bytes | Image.Image | object
"""One image of a tensor: the bytes of a file, pixels, or what JSON has in place of Base64."""


class Refusal(Refused):
    """The refusal of a whole request of this protocol, whose answer must have its form."""


@dataclass(frozen=True, slots=True)
class Query:
    """What the answer must know of its request.

    `top`: classes for each image, None for the likeliest without an axis of its own. `outputs`:
    their names in order, and whether each is wanted as binary data.
    """

    id: str | None = None
    top: int | None = None
    outputs: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(USUAL, False))


class Tensor(NamedTuple):
    """The input: `data` are lists of JSON, or the bytes behind it."""

    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | memoryview


def bad(message: str) -> Refused:
    """Return the refusal of what is not the protocol."""
    return Refused("bad_request", message)


def find_head_length(headers: Mapping[str, Any]) -> int | None:
    """Return the bytes of JSON before binary tensors; None without the header. Raises Refused."""
    found = {
        value
        for name, value in headers.items()
        if name.lower() == HEADER.lower() and isinstance(value, str)
    }
    if not found:
        return None
    text = found.pop().strip()
    if found or not LENGTH.fullmatch(text):
        raise bad(f"{HEADER} must be one number, the bytes of the JSON.")
    return int(text)


def split_body(body: bytes | bytearray, length: int) -> tuple[bytes, memoryview]:
    """Return the JSON and the bytes behind it. Raises Refused."""
    if length > len(body):
        raise bad(f"{HEADER} is {length}, but the body has {len(body)} bytes.")
    if length > MAX_HEAD_BYTES:
        raise Refused(
            "too_large",
            f"The JSON before the binary data has {length} bytes, more than {MAX_HEAD_BYTES}: "
            "send all data as binary.",
        )
    return bytes(body[:length]), memoryview(body)[length:]


# The request


def read_query(document: Mapping[str, Any]) -> Query:
    """Return what the answer must know. Raises Refused."""
    name = document.get("id")
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_ID):
        raise bad(f"The id must be a text of at most {MAX_ID:,} characters.")
    parameters = read_parameters(document)
    top = parameters.get("top")
    if top is not None and not (type(top) is int and top >= 1):
        raise bad("The parameter top must be a whole number above 0: how many classes to name.")
    binary = read_flag(parameters, "binary_data_output", default=False)
    return Query(name, top, read_outputs(document.get("outputs"), binary=binary))


def read_parameters(thing: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of a request, an input or an output. Raises Refused."""
    parameters = thing.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise bad("The parameters must be an object.")
    return parameters


def read_flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return a parameter that is true or false. Raises Refused."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad(f"The parameter {name} must be true or false.")
    return value


def read_outputs(asked: object, *, binary: bool) -> dict[str, bool]:
    """Return the outputs that are asked for, and whether as binary data. Raises Refused.

    `binary`: where an output does not say it.
    """
    if asked is None or asked == []:
        return dict.fromkeys(USUAL, binary)
    if not isinstance(asked, list) or len(asked) > len(DATATYPES):
        raise bad(f"The outputs must be a list of some of {', '.join(DATATYPES)}, each once.")
    outputs: dict[str, bool] = {}
    for output in asked:
        name = output.get("name") if isinstance(output, dict) else None
        if not isinstance(name, str) or name not in DATATYPES or name in outputs:
            raise bad(
                f"There is no output {quote(name)}, or it is named twice: ask for some of "
                f"{', '.join(DATATYPES)}."
            )
        outputs[name] = read_flag(read_parameters(output), "binary_data", default=binary)
    return outputs


def quote(name: object) -> str:
    """Return a name as a message may show it."""
    return repr(name[:MAX_QUOTED]) if isinstance(name, str) else "without a name"


def read_tensor(document: Mapping[str, Any], behind: memoryview) -> Tensor:
    """Return the one input; `behind`: the bytes behind the JSON. Raises Refused."""
    inputs = document.get("inputs")
    if not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict)):
        raise bad('Send one input: {"inputs": [{"name", "datatype", "shape", "data"}]}.')
    tensor = inputs[0]
    datatype = tensor.get("datatype")
    if not (isinstance(datatype, str) and datatype in READERS):
        raise Refused(
            "unsupported_type",
            f"The datatype {quote(datatype)} is not taken: send BYTES (image files) or UINT8 "
            "(pixels).",
        )
    return Tensor(datatype, read_shape(tensor.get("shape")), read_data(tensor, behind))


def read_shape(shape: object) -> tuple[int, ...]:
    """Return the lengths of the axes. Raises Refused."""
    if not (isinstance(shape, list) and 1 <= len(shape) <= MAX_DIMENSIONS):
        raise Refused("wrong_shape", f"The shape must be a list of 1 to {MAX_DIMENSIONS} numbers.")
    if not all(type(size) is int and 1 <= size <= MAX_UINT64 for size in shape):
        raise Refused("wrong_shape", "Each dimension of the shape must be a whole number above 0.")
    return tuple(shape)


def read_data(tensor: Mapping[str, Any], behind: memoryview) -> list[Any] | memoryview:
    """Return the lists of JSON, or all bytes behind it, as the input says. Raises Refused."""
    size = read_parameters(tensor).get("binary_data_size")
    if size is None:
        data = tensor.get("data")
        if isinstance(data, list) and not behind:
            return data
        raise bad("The input must have its data as a list, or a binary_data_size and its bytes.")
    if "data" in tensor or type(size) is not int or size != len(behind):
        raise bad(
            f"The binary_data_size must be the {len(behind)} bytes behind the JSON, without data."
        )
    return behind


def split_tensor(tensor: Tensor, model: Model) -> list[Element]:
    """Return the images of a tensor, whose count is known to be small. Raises Refused."""
    return READERS[tensor.datatype](tensor, model)


def split_files(tensor: Tensor, _: Model) -> list[Element]:
    """Return the files of BYTES [n] or [n, 1]: as texts of Base64, or as bytes. Raises Refused."""
    if prod(tensor.shape) != tensor.shape[0]:
        raise Refused("wrong_shape", "BYTES must have the shape [n] or [n, 1]: n image files.")
    if isinstance(tensor.data, list):
        return flatten(tensor.data, tensor.shape)
    return list(walk_elements(tensor.data, tensor.shape[0]))


def walk_elements(data: memoryview, count: int) -> Iterator[bytes]:
    """Yield the elements of binary BYTES. Raises Refused unless they are all the data."""
    end = 0
    for _ in range(count):
        start = end + ELEMENT.size
        if start > len(data):
            raise bad(f"The binary data end before {count} elements, each a length and its bytes.")
        end = start + ELEMENT.unpack_from(data, end)[0]
        if end > len(data):
            raise bad("An element of the binary data is longer than the data.")
        yield bytes(data[start:end])
    if end != len(data):
        raise bad(f"The binary data go on behind {count} elements.")


def split_pixels(tensor: Tensor, model: Model) -> list[Element]:
    """Return the images of UINT8 [n, C, H, W] or [n, H, W, C]; grey ones of [n, H, W], too.

    Raises Refused.
    """
    form = tensor.shape[1:]
    # [3, H, W] would be one image to some and three to others; a grey model can mean only three.
    if len(form) < 2 or (len(form) == 2 and model.mode != "L"):  # noqa: PLR2004 - axes
        grey = ", or [n, H, W]" if model.mode == "L" else ""
        raise Refused("wrong_shape", f"UINT8 must have the shape [n, C, H, W], [n, H, W, C]{grey}.")
    pixels = np.frombuffer(read_pixels(tensor), np.uint8).reshape(tensor.shape)
    return [Image.fromarray(move_channels_last(image, model)) for image in pixels]


def read_pixels(tensor: Tensor) -> bytes | memoryview:
    """Return the bytes of UINT8, as many as the shape says. Raises Refused."""
    if isinstance(tensor.data, list):
        flat = flatten(tensor.data, tensor.shape)
        # bool is an int to Python; 7.0 is a float, and the datatype says that there are none.
        if set(map(type, flat)) != {int}:
            raise no_pixel()
        try:
            return bytes(flat)
        except ValueError:
            raise no_pixel() from None
    if len(tensor.data) != prod(tensor.shape):
        raise wrong_count(tensor.shape, len(tensor.data))
    return tensor.data


def flatten(data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return the elements of nested lists or of a flat one. Raises Refused unless they fill it.

    Each level is walked once and never grows beyond what came.
    """
    level = data
    if level and isinstance(level[0], list):
        for size in shape[1:]:
            if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
                raise wrong_count(shape, None)
            level = list(chain.from_iterable(level))
    if len(level) != prod(shape):
        raise wrong_count(shape, len(level))
    return level


def wrong_count(shape: tuple[int, ...], count: int | None) -> Refused:
    """Return the refusal of data that do not fill their shape."""
    held = "are nested otherwise" if count is None else f"hold {count} elements"
    return Refused("wrong_shape", f"The data {held}; the shape is {list(shape)}.")


READERS = {"BYTES": split_files, "UINT8": split_pixels}
"""Of the datatypes that are taken."""


# The answer


def check_entries(query: Query, count: int, model: Model) -> None:
    """Raise Refused where so many images with so many classes each make too long an answer."""
    entries = count * min(query.top or 1, len(model.labels))
    if entries > MAX_ENTRIES:
        raise Refused(
            "too_large",
            f"The answer would name {entries} classes, more than {MAX_ENTRIES}: send fewer images "
            "or a lower top.",
        )


def refuse_bad_image(query: Query, items: Sequence[object]) -> Refusal | None:
    """Return the refusal of a request for its first bad image; None where `error` is asked for."""
    if "error" in query.outputs:
        return None
    for place, item in enumerate(items):
        if isinstance(item, Refused):
            where = f"Image {place}, counted from 0: {item} "
            hint = 'Ask for the output "error" to have the others answered.'
            return Refusal(item.code, where + hint if len(items) > 1 else str(item))
    return None


def render(query: Query, items: Sequence[object], rows: Sequence[Row], model: Model) -> Body:
    """Return the answer. `items`: a Refused stands where an image was bad; `rows`: of the others.

    Binary data are bytes in it; `encode` moves them behind the JSON.
    """
    classes, scores = rank(query, items, rows, model)
    values: dict[str, list[Any]] = {
        "label": [model.labels[index] if index >= 0 else "" for index in classes.flat],
        "score": scores.ravel().tolist(),
        "class": classes.ravel().tolist(),
        "error": [describe_error(item) if isinstance(item, Refused) else "" for item in items],
    }
    shape = list(classes.shape if query.top else classes.shape[:1])
    outputs = [
        {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": shape[:1] if name == "error" else shape,
            "data": pack(DATATYPES[name], values[name]) if binary else values[name],
        }
        for name, binary in query.outputs.items()
    ]
    named = {} if query.id is None else {"id": query.id}
    return {"model_name": model.name, "model_version": model.version, **named, "outputs": outputs}


def rank(
    query: Query, items: Sequence[object], rows: Sequence[Row], model: Model
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the likeliest classes and their scores, [images, top], best first.

    Of equal scores the lower class comes first. A bad image has the class -1 and the score 0.
    """
    shape = (len(items), min(query.top or 1, len(model.labels)))
    classes, scores = np.full(shape, -1), np.zeros(shape)
    if rows:
        good = [place for place, item in enumerate(items) if not isinstance(item, Refused)]
        table = np.stack(rows).astype(np.float64)
        order = np.argsort(-table, axis=1, kind="stable")[:, : shape[1]]
        classes[good] = order
        scores[good] = np.take_along_axis(table, order, axis=1).round(6)
    return classes, scores


def describe_error(refused: Refused) -> str:
    """Return the one form of an error: its code, and the sentence."""
    return f"{refused.code}: {refused}"


def pack(datatype: str, values: list[Any]) -> bytes:
    """Return an output as binary data."""
    if datatype == "BYTES":
        encoded = [value.encode("utf-8", "replace") for value in values]
        return b"".join(ELEMENT.pack(len(value)) + value for value in encoded)
    return np.array(values, {"FP32": "<f4", "INT64": "<i8"}[datatype]).tobytes()


def detach(body: Body) -> tuple[Body, bytes]:
    """Return the answer without its binary data, and these, as the extension orders them."""
    outputs = [
        {
            **{key: value for key, value in output.items() if key != "data"},
            "parameters": {"binary_data_size": len(output["data"])},
        }
        if isinstance(output["data"], bytes)
        else output
        for output in body["outputs"]
    ]
    data = (output["data"] for output in body["outputs"])
    return {**body, "outputs": outputs}, b"".join(part for part in data if isinstance(part, bytes))


def describe_model(model: Model) -> Body:
    """Return the metadata of the model, as the protocol words them."""
    channels, height, width = model.shape
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "pytorch_torchscript",
        "inputs": [
            {"name": "images", "datatype": "BYTES", "shape": [-1]},
            {"name": "images", "datatype": "UINT8", "shape": [-1, channels, height, width]},
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, datatype in DATATYPES.items()
        ],
    }
