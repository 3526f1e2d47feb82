"""The door to an inference server: a transport, and one module for each dialect (choose one)."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from .http import Certificates, HttpClient
from .torchserve import KeyFile, TorchServe

if TYPE_CHECKING:
    from ..verbs import Service


def open_client(settings: Service, *, timeout: float, in_flight: int) -> HttpClient:
    """Make the client that an operator's settings describe; `timeout` in seconds."""
    return HttpClient(
        settings.url,
        TorchServe(time.time),
        partial(KeyFile, settings.token_file),
        timeout=timeout,
        in_flight=in_flight,
        connection_age=settings.connection_age,
        certificates=Certificates(settings.url_cafile, settings.url_certfile, settings.url_keyfile),
    )
