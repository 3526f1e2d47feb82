"""TorchServe's side of the handler, with its own context, decoder and metrics."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from fmnist_handler import FmnistHandler
from torch import nn
from ts.context import Context
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.service import Service

if TYPE_CHECKING:
    from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "handler" / "model-config.yaml"
METRICS = ROOT / "serving" / "metrics.yaml"


class Network(nn.Module):
    """A linear layer with fixed weights; fails or forgets on marked images."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear = nn.Linear(channels * side * side, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 in, probabilities out."""
        corners = images[:, 0, 0, :2].sum(dim=1)
        if bool((corners == 510).any()):
            raise ValueError("two white pixels in the corner")
        logits = self.linear(images.flatten(1).float() / 255.0)
        probabilities = torch.softmax(logits, dim=1)
        return torch.where((corners == 509).unsqueeze(1), torch.nan, probabilities)


@dataclass(frozen=True)
class Request:
    """What Java hands over: (name, media type, bytes) of each entry, and the HTTP headers."""

    entries: list[tuple[str, str, Any]]
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self, index: int) -> dict[str, Any]:
        """As the worker's decoder gives it to the service."""
        return {
            "requestId": b"request-%d" % index,
            "parameters": [
                {"name": name, "contentType": kind, "value": value}
                for name, kind, value in self.entries
            ],
            "headers": [
                {"name": name.encode(), "value": value.encode()}
                for name, value in self.headers.items()
            ],
        }


@dataclass(frozen=True)
class Answer:
    """One answer of a batch."""

    status: int
    phrase: str
    content_type: str
    body: Any

    @property
    def code(self) -> str:
        """The word of an error."""
        return str(self.body["error"]["code"])


def body(data: object, kind: str = "", **headers: str) -> Request:
    """A body as it is: curl -T, or with a Content-Type."""
    named = {"Content-Type": kind} if kind else {}
    return Request([("body", kind, data)], {"Host": "localhost", **named, **headers})


def multipart(*parts: tuple[str, str, Any]) -> Request:
    """A multipart body: (name, media type, bytes) of each part."""
    return Request(list(parts), {"content-type": "multipart/form-data; boundary=x"})


def pack(*files: bytes) -> Request:
    """Image files as the connectors send them."""
    return multipart(
        *((f"{index:03}", "application/octet-stream", data) for index, data in enumerate(files))
    )


def instances(*items: object) -> Request:
    """A KServe v1 body, raw."""
    return body(json.dumps({"instances": items}).encode(), "application/json")


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_archive(folder: Path, channels: int = 1, side: int = 28, classes: int = 10) -> Path:
    """What lies in an archive beside the handler."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        network = torch.jit.freeze(torch.jit.script(Network(channels, side, classes).eval()))
        torch.jit.save(network, folder / "model.pt")
    card = {
        "name": "tiny",
        "version": "2.1",
        "input": {"channels": channels, "height": side, "width": side, "background": 0},
        "classes": classes,
        "accuracy": 0.1,
        "data": "0" * 64,
    }
    names = {str(index): f"label {index}" for index in range(classes)}
    (folder / "model.json").write_text(json.dumps(card))
    (folder / "index_to_name.json").write_text(json.dumps(names))
    return folder


def read_metrics() -> MetricsCacheYamlImpl:
    """The metrics that our server declares, as a worker reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # torchserve leaves the file open
        metrics = MetricsCacheYamlImpl(str(METRICS))
    metrics.initialize_cache()
    metrics.model_name = "tiny"
    return metrics


class Served:
    """The handler, loaded from an archive, as one worker has it; `settings` replace the shipped."""

    def __init__(self, folder: Path, *, measured: bool = True, **settings: int | str) -> None:
        self.handler = FmnistHandler()
        metrics = read_metrics() if measured else None
        config = yaml.safe_load(CONFIG.read_text())
        config["handler"].update(settings)
        self.context = Context(
            "tiny", str(folder), {}, 32, None, "0.12.0", metrics=metrics, model_yaml_config=config
        )
        self.handler.initialize(self.context)

    def ask(self, *requests: Request) -> list[Answer]:
        """The answers to one batch."""
        return [self.answer(index, data) for index, data in enumerate(self._handle(*requests))]

    def _handle(self, *requests: Request) -> list[bytes]:
        processors, rows, ids = Service.retrieve_data_for_inference(
            [request.encoded(index) for index, request in enumerate(requests)]
        )
        self.context.request_processor, self.context.request_ids = processors, ids
        if self.context.metrics is not None:
            self.context.metrics.request_ids = ids
        bodies = self.handler.handle(rows, self.context)
        assert len(bodies) == len(requests)
        return bodies

    def answer(self, index: int, data: bytes) -> Answer:
        """One answer, as the server would send it."""
        status, phrase = self.context.get_response_status(index)
        return Answer(
            status, phrase, self.context.get_response_content_type(index), json.loads(data)
        )

    def reply(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and bytes of the answer to a request that is alone in its batch."""
        (data,) = self._handle(request)
        headers = self.context.get_response_headers(0)
        return self.context.get_response_status(0)[0], headers, data

    def one(self, request: Request) -> Answer:
        """The answer to a request that is alone in its batch."""
        return self.ask(request)[0]
