"""The door to an inference server: a transport, and one module for each dialect (choose one)."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from ..errors import Exit, Stop
from . import inspection
from .answers import Classes, Model
from .files import CombinedAuthorization, HeaderFile, check_header_file, load_labels
from .http import Certificates, HttpClient, fetch
from .torchserve import KeyFile, TorchServe
from .v1 import KServeV1
from .v2 import OpenInference, Tensors

if TYPE_CHECKING:
    from ..records import Check
    from ..verbs import Server
    from .dialect import Authorization, Dialect


def open_client(settings: Server, *, timeout: float, in_flight: int) -> HttpClient:
    """Make the client that an operator's settings describe; `timeout` in seconds.

    Raises Stop(2) when a file of the settings cannot be read, or one of them is missing.
    """
    dialect, credentials = make_dialect(settings), partial(authorize, settings)
    return HttpClient(
        settings.url,
        dialect,
        credentials,
        timeout=timeout,
        in_flight=in_flight,
        connection_age=settings.connection_age,
        certificates=find_certificates(settings),
    )


def find_certificates(settings: Server) -> Certificates:
    """Return whom to trust and what to show, for each connection."""
    return Certificates(settings.url_cafile, settings.url_certfile, settings.url_keyfile)


def authorize(settings: Server) -> Authorization:
    """Make the credentials of one thread."""
    return CombinedAuthorization([KeyFile(settings.token_file), HeaderFile(settings.header_file)])


def list_checks(settings: Server, pack: int) -> list[Check]:
    """Return what to ask of the server before an image is sent; `pack`: images in a request."""
    checks: list[Check] = []
    if settings.header_file:
        checks.append(("header file", partial(check_header_file, settings.header_file)))
    if address := settings.address():

        def ask(path: str) -> tuple[int, bytes]:
            headers, certificates = authorize(settings).header(), find_certificates(settings)
            return fetch(address.root + path, headers, settings.timeout, certificates)

        checks += inspection.list_checks(inspection.Inspector(settings, address, pack, ask))
    return checks


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
