"""The door to an inference server: a transport, and one module for each dialect (choose one)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..errors import Exit, Stop
from .answers import Classes, Model
from .files import HeaderFile, Together, load_labels
from .http import HttpClient
from .torchserve import KeyFile, TorchServe
from .v1 import KServeV1
from .v2 import OpenInference, Tensors

if TYPE_CHECKING:
    from ..verbs import Server
    from .dialect import Authorization, Dialect


def open_client(settings: Server, *, timeout: float, in_flight: int) -> HttpClient:
    """Make the client that an operator's settings describe; `timeout` in seconds.

    Raises Stop(2) when a file of the settings cannot be read, or one of them is missing.
    """

    def authorize() -> Authorization:
        return Together([KeyFile(settings.token_file), HeaderFile(settings.header_file)])

    dialect = make_dialect(settings)
    return HttpClient(settings.url, dialect, authorize, timeout=timeout, in_flight=in_flight)


def make_dialect(settings: Server) -> Dialect:
    """Make the dialect of `--protocol`; raises Stop(2), see `open_client`."""
    address = settings.address()
    if address is None:
        return TorchServe(time.time)
    labels, model = settings.labels, Model(address.model, address.version)
    classes = Classes(load_labels(labels), settings.scores) if labels else None
    wanted = settings.tensor_output
    if settings.protocol == "v1":
        named = settings.tensor_input
        return KServeV1(time.time, model, tensor_input=named, tensor_output=wanted, classes=classes)
    if settings.tensor_input is None:
        raise Stop(
            "with --protocol v2 --tensor-input is required, the name of the input that takes image "
            "files: `check` lists the model's inputs",
            Exit.USAGE,
        )
    tensors = Tensors(settings.tensor_input, wanted, settings.v2_shape, settings.v2_binary)
    return OpenInference(time.time, model, tensors, classes)
