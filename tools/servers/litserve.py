"""The archive's handler on LitServe, in place of TorchServe: `make serve SERVER=litserve`.

It runs in an environment of its own, build/litserve-venv, and takes the same requests at the same
paths. Only `Context` stands between: what the handler knows of its server. There is no token, no
gRPC and no management: others reach it through the proxy.
"""
# LitServe and FastAPI read the annotations: no postponed ones here.

import argparse
import json
import os
import signal
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple

import litserve
import yaml
from fastapi import Depends, Request, Response
from starlette.datastructures import UploadFile

from tools.servers.process import StackError, check_free
from tools.servers.torchserve import ARCHIVE, check_archive

MAX_BYTES = 6_553_500
"""Of a request: max_request_size of config.properties."""
MAX_PARTS = 2048
"""Of a multipart request; the handler's own limit of images is below it."""


class Question(NamedTuple):
    """A request as the handler takes it: its entries, and headers with the type of each entry."""

    row: dict[str, bytes]
    headers: dict[str, Any]


async def read_question(request: Request) -> Question:
    """Read a body whole, as TorchServe does: `body`, or the parts of a form by their names."""
    headers: dict[str, Any] = dict(request.headers)
    kind = headers.get("content-type", "").partition(";")[0].strip()
    if kind != "multipart/form-data":
        return Question({"body": await request.body()}, headers | {"body": {"content-type": kind}})
    row: dict[str, bytes] = {}
    async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS) as form:
        for name, part in form.multi_items():
            file = isinstance(part, UploadFile)
            row[name] = await part.read() if file else part.encode()
            headers[name] = {"content-type": (part.content_type or "") if file else ""}
    return Question(row, headers)


class Context:
    """What the handler uses of TorchServe's context, for one batch after another."""

    metrics = None

    def __init__(self, folder: Path) -> None:
        config = yaml.safe_load((folder / "model-config.yaml").read_text())
        self.system_properties: Mapping[str, Any] = {"model_dir": str(folder), "gpu_id": None}
        self.model_yaml_config: Mapping[str, Any] = config
        self.begin([])

    def begin(self, questions: Sequence[Question]) -> None:
        """Take the headers of a new batch."""
        self.questions = questions
        self.statuses = [200] * len(questions)
        self.headers: list[dict[str, str]] = [{} for _ in questions]

    def get_all_request_header(self, idx: int) -> Mapping[str, Any]:
        """Return the HTTP headers, and the type of each entry under its name."""
        return self.questions[idx].headers

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:  # noqa: ARG002 - HTTP has one
        """Take the status of one answer."""
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Take the type of one answer."""
        self.headers[idx]["Content-Type"] = value

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Take a header of one answer."""
        self.headers[idx][key] = value


class HandlerAPI(litserve.LitAPI):  # type: ignore[misc] # it is not in the main environment
    """The handler of an unpacked archive; lives in a worker, which asks it a batch at a time."""

    def __init__(self, folder: Path, **options: Any) -> None:  # noqa: ANN401 - LitServe's
        self.folder = folder
        super().__init__(**options)

    def setup(self, device: str) -> None:  # noqa: ARG002 - the handler chooses
        """Load the handler and the model."""
        sys.path.insert(0, str(self.folder))
        os.chdir(self.folder)
        from fmnist_handler import FmnistHandler  # noqa: PLC0415 - it lies in the archive

        self.context = Context(self.folder)
        self.handler = FmnistHandler()
        self.handler.initialize(self.context)

    def decode_request(self, request: Annotated[Question, Depends(read_question)]) -> Question:
        """Take it as it was read."""
        return request

    def batch(self, inputs: list[Question]) -> list[Question]:
        """Leave the batch to the handler."""
        return inputs

    def predict(self, x: list[Question]) -> list[Response]:
        """Answer a batch, each request for itself."""
        self.context.begin(x)
        bodies = self.handler.handle([question.row for question in x], self.context)
        kept = zip(bodies, self.context.statuses, self.context.headers, strict=True)
        return [Response(body, status, headers) for body, status, headers in kept]

    def unbatch(self, output: list[Response]) -> list[Response]:
        """Return one answer for each request."""
        return output

    def encode_response(self, output: Response) -> Response:
        """Take it as it is."""
        return output


class SameRoutes:
    """Middleware that leads TorchServe's other routes and PUT to the one of LitServe."""

    def __init__(self, app: Any, path: str, others: Sequence[str]) -> None:  # noqa: ANN401 - ASGI
        self.app, self.path, self.others = app, path, others

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Pass a request on, perhaps as another."""
        if scope["type"] == "http" and scope["path"] in {self.path, *self.others}:
            method = "POST" if scope["method"] == "PUT" else scope["method"]
            scope = scope | {"path": self.path, "raw_path": self.path.encode(), "method": method}
        await self.app(scope, receive, send)


def make_server(folder: Path, name: str, version: str) -> litserve.LitServer:
    """Return the server of an unpacked archive, in the sizes of its model-config.yaml."""
    config = yaml.safe_load((folder / "model-config.yaml").read_text())
    path = f"/predictions/{name}"
    others = [f"{path}/{version}", f"/v1/models/{name}:predict", f"/v2/models/{name}/infer"]
    api = HandlerAPI(
        folder,
        max_batch_size=config["batchSize"],
        batch_timeout=config["maxBatchDelay"] / 1000,
        api_path=path,
    )
    return litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=config["maxWorkers"],
        timeout=config["clientTimeoutInMills"] / 1000,
        max_payload_size=MAX_BYTES,
        healthcheck_path="/ping",
        middlewares=[(SameRoutes, {"path": path, "others": others})],
    )


def serve(archive: Path, port: int) -> None:
    """Serve until a signal ends it; raises StackError when it cannot start."""
    check_archive(archive)
    check_free(port)
    with tempfile.TemporaryDirectory(prefix="fmnist-") as name:
        folder = Path(name)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        version = str(json.loads((folder / "model.json").read_text())["version"])
        server = make_server(folder, archive.stem, version)
        print(f"serve: LitServe on http://127.0.0.1:{port}; Ctrl-C ends it", flush=True)
        server.run(
            host="127.0.0.1",
            port=port,
            generate_client_file=False,
            num_api_servers=1,
            log_level="warning",
        )


def main() -> int:
    """Serve one archive; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.servers.litserve", description=__doc__)
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    parser.add_argument("--port", type=int, default=8080)
    asked = parser.parse_args()
    starter = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - Python's
        if os.getpid() == starter:  # its children have their own way out
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        serve(asked.archive, asked.port)
    except StackError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 69
    except KeyboardInterrupt:
        print("serve: stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
