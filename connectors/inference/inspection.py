"""Checks of a server of a standard protocol: is it ready, has it the model, does the model fit.

What a server does not tell is no fault: an image that is sent afterwards has the last word.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import Exit, Stop
from ..records import Advice, Ok
from ..text import parse_json, replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..records import Check
    from ..verbs import Address, Server

    Fetch = Callable[[str], tuple[int, bytes]]

BYTES = "BYTES"
DECODING = (
    "such a server needs a decoding step: a Triton ensemble or DALI, a KServe transformer, an "
    "MLServer runtime; see docs/servers.md"
)
_UNKNOWN = frozenset(
    {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
)
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})


class Inspector(NamedTuple):
    """One model of one server; `pack`: the most images that a request will have.

    `fetch` asks for a path by GET and returns status and body; it raises OSError or ValueError when
    there is no answer.
    """

    settings: Server
    address: Address
    pack: int
    fetch: Fetch

    @property
    def path(self) -> str:
        """Return where the model's own words are."""
        version = f"/versions/{self.address.version}" if self.address.version else ""
        return f"/{self.settings.protocol}/models/{self.address.model}{version}"

    def ask(self, path: str) -> tuple[int, Any]:
        """Return the status and the JSON of an answer, None for any other; raises Stop(69)."""
        try:
            status, body = self.fetch(path)
        except (OSError, ValueError) as error:
            raise Stop(
                f"{self.address.root} does not answer to {path} ({_shorten(error)}): start the "
                "server, or correct --url",
                Exit.UNAVAILABLE,
            ) from None
        if status in _REFUSED:
            raise Stop(
                f"the server refuses {path} ({status}): give its credentials by --header-file",
                Exit.UNAVAILABLE,
            )
        return status, parse_json(body)


def list_checks(inspector: Inspector) -> list[Check]:
    """Return the checks of the protocol, each of which depends on the one before."""
    if inspector.settings.protocol == "v1":
        return [("model", partial(check_v1_model, inspector))]
    return [
        ("ready", partial(check_ready, inspector)),
        ("server", partial(check_extensions, inspector)),
        ("model", partial(check_v2_model, inspector)),
        ("batch", partial(check_batch, inspector)),
    ]


def check_ready(inspector: Inspector) -> Ok | Advice:
    """Ask /v2/health/ready."""
    status, _ = inspector.ask("/v2/health/ready")
    if status in _UNKNOWN:
        return Advice(f"the server does not know /v2/health/ready ({status}): an image will tell")
    if status != HTTPStatus.OK:
        raise Stop(
            f"the server is not ready ({status}): wait until its models are loaded, or look into "
            "its log",
            Exit.UNAVAILABLE,
        )
    return Ok("the server and its models are ready")


def check_extensions(inspector: Inspector) -> Ok | Advice:
    """Ask /v2 whether the server knows the binary form of tensors."""
    status, server = inspector.ask("/v2")
    match server:
        case {"name": str(name), "version": str(version), "extensions": [*extensions]}:
            pass
        case _:
            return Ok(f"the server does not tell its extensions ({status})")
    known, binary = "binary_tensor_data" in extensions, inspector.settings.v2_binary
    about = f"{name} {version}".strip()
    if binary and not known:
        return Advice(
            f"{about} does not list the extension binary_tensor_data: if it refuses the image, "
            "give --no-v2-binary, as MLServer and KServe's SDK need"
        )
    if known and not binary:
        return Advice(f"{about} takes binary tensors, which cost less: leave out --no-v2-binary")
    return Ok(about)


def check_v2_model(inspector: Inspector) -> Ok | Advice:
    """Ask for the model's metadata, and compare its inputs and outputs with the settings."""
    status, model = inspector.ask(inspector.path)
    if status != HTTPStatus.OK:
        return _judge_missing(inspector, status)
    inputs, outputs = _read_tensors(model, "inputs"), _read_tensors(model, "outputs")
    name, settings = inspector.address.model, inspector.settings
    if settings.tensor_output and outputs and settings.tensor_output not in outputs:
        raise Stop(
            f"{name} has no output {settings.tensor_output}: its outputs are {', '.join(outputs)}",
            Exit.USAGE,
        )
    if not inputs:
        return Advice(f"{name} does not tell its inputs: an image will show whether they fit")
    datatype, shape = _choose_input(inputs, inspector)
    _require_shape(inspector, shape)
    return Ok(f"{name} takes image files: {settings.tensor_input} {datatype} {shape}")


Tensor = tuple[str, list[int]]
"""Datatype and shape."""


def _read_tensors(model: object, key: str) -> Mapping[str, Tensor]:
    found: dict[str, Tensor] = {}
    for one in model.get(key) or () if isinstance(model, dict) else ():
        match one:
            case {"name": str(name), "datatype": str(datatype), "shape": [*shape]}:
                sizes = [size if isinstance(size, int) else -1 for size in shape]
                found[replace_control_characters(name)] = datatype, sizes
    return found


def _choose_input(inputs: Mapping[str, Tensor], inspector: Inspector) -> Tensor:
    """Return the input of `--tensor-input`; raises Stop(2) when it takes no image files."""
    name, wanted = inspector.address.model, inspector.settings.tensor_input
    files = [one for one, (datatype, _) in inputs.items() if datatype == BYTES]
    others = [f"{one} {datatype} {shape}" for one, (datatype, shape) in inputs.items()]
    if not files:
        raise Stop(f"{name} takes no image files but {', '.join(others)}: {DECODING}", Exit.USAGE)
    if wanted not in files:
        no = f"{wanted} is no input of {name} for files" if wanted else f"{name} takes image files"
        raise Stop(f"{no}: give --tensor-input {' or '.join(files)}", Exit.USAGE)
    if len(inputs) > 1:
        raise Stop(
            f"{name} wants more than an image: {', '.join(others)}; the connectors send one input",
            Exit.USAGE,
        )
    return inputs[wanted]


def _require_shape(inspector: Inspector, shape: Sequence[int]) -> None:
    """Raise Stop(2) when a pack has another shape than the input."""
    fitting = {1: "n", 2: "nx1"}.get(len(shape))
    if fitting is None or (fitting == "nx1" and shape[1] not in {1, -1}):
        raise Stop(
            f"an input of shape {shape} takes no list of image files: {DECODING}", Exit.USAGE
        )
    if fitting != inspector.settings.v2_shape:
        raise Stop(f"the input has the shape {shape}: give --v2-shape {fitting}", Exit.USAGE)
    if shape[0] >= 1:
        _require_batch(inspector, shape[0])


def check_batch(inspector: Inspector) -> Ok:
    """Ask for the model's configuration, which Triton tells: how large may a batch be."""
    _, config = inspector.ask(f"{inspector.path}/config")
    match config:
        case {"max_batch_size": int(most)} if most > 0:
            _require_batch(inspector, most)
            return Ok(f"at most {most} images in a request, the model's max_batch_size")
    return Ok("the server tells no limit of a batch")


def _require_batch(inspector: Inspector, most: int) -> None:
    if inspector.pack > most:
        raise Stop(
            f"the model takes {most} image{'s' if most > 1 else ''} at once and a request would "
            f"have up to {inspector.pack}: give --max-batch {most}",
            Exit.USAGE,
        )


def _judge_missing(inspector: Inspector, status: int) -> Advice:
    """Raise Stop(69) when a server that knows the protocol does not have the model."""
    path = inspector.path
    if inspector.ask("/v2/health/ready")[0] == HTTPStatus.OK:
        raise Stop(
            f"the server has no model at {path} ({status}): load it, or correct --url",
            Exit.UNAVAILABLE,
        )
    return Advice(f"the server does not tell about {path} ({status}): an image will")


def check_v1_model(inspector: Inspector) -> Ok | Advice:
    """Ask for the model's state, as TensorFlow Serving and KServe tell it."""
    status, model = inspector.ask(inspector.path)
    if status == HTTPStatus.NOT_FOUND and _is_torchserve(model):
        return Advice("TorchServe does not tell about models in this protocol: an image will")
    if status == HTTPStatus.NOT_FOUND:
        raise Stop(
            f"the server has no model at {inspector.path} (404): load it, or correct --url",
            Exit.UNAVAILABLE,
        )
    match model:
        case {"model_version_status": [*versions]}:
            states = [one.get("state") for one in versions if isinstance(one, dict)]
            ready = "AVAILABLE" in states
        case {"ready": bool() | str() as told}:
            ready = str(told).lower() == "true"
        case _:
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                ready = False
            else:
                return Advice(f"the server does not tell whether it is ready ({status})")
    if not ready:
        raise Stop(
            f"{inspector.address.model} is not ready ({status}): wait until it is loaded, or look "
            "into the server's log",
            Exit.UNAVAILABLE,
        )
    return Ok(f"{inspector.address.model} is ready")


def _is_torchserve(answer: object) -> bool:
    """Say whether an error has the form of TorchServe's, which knows only how to predict in v1."""
    match answer:
        case {"code": int(), "type": str(), "message": str()}:
            return True
    return False


def _shorten(error: Exception) -> str:
    return replace_control_characters(" ".join(str(error).split()))[:200]
