"""What `check` says of a server of a standard protocol before it sends an image."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from connectors.brokers.kafka.settings import RunKafka
from connectors.commands import doctor
from connectors.errors import Exit
from connectors.inference import list_checks
from connectors.inference.http import fetch
from connectors.inference.inspection import Inspector
from connectors.inference.inspection import list_checks as list_protocol_checks
from tests.connectors.test_client import PATIENCE, raw_server, unused_port

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from connectors.commands.doctor import Finding

Replies = dict[str, tuple[int, object]]
TRITON = {"name": "triton", "version": "2.59.0", "extensions": ["classification"]}
BINARY = {**TRITON, "extensions": ["binary_tensor_data", "statistics"]}
FILES = {"name": "image", "datatype": "BYTES", "shape": [-1]}
SCORES = {"name": "scores", "datatype": "FP32", "shape": [-1, 10]}


def model(*inputs: object, outputs: object = (SCORES,)) -> dict[str, object]:
    return {"name": "a", "platform": "p", "inputs": inputs, "outputs": outputs}


GOOD: Replies = {
    "/v2/health/ready": (200, None),
    "/v2": (200, BINARY),
    "/v2/models/a": (200, model(FILES)),
    "/v2/models/a/config": (200, {"max_batch_size": 256}),
}


def settings(**given: Any) -> RunKafka:  # noqa: ANN401 - any field
    more = {"protocol": "v2", "url": "http://host/x/v2/models/a/infer", "tensor_input": "image"}
    return RunKafka(input_topic="images", output_topic="predictions", **{**more, **given})


def inspect(replies: Mapping[str, tuple[int, object]], **given: Any) -> dict[str, Finding]:  # noqa: ANN401
    """Return the findings by name; a path that is not in `replies` is 404."""
    asked = settings(**given)
    address = asked.address()
    assert address

    def answer(path: str) -> tuple[int, bytes]:
        status, document = replies.get(path, (404, None))
        return status, b"" if document is None else json.dumps(document).encode()

    inspector = Inspector(asked, address, asked.max_batch or asked.pack, answer)
    return {one.check: one for one in doctor.run_checks(list_protocol_checks(inspector))}


def test_a_server_that_fits_is_told_in_four_lines() -> None:
    found = inspect(GOOD)
    assert {name: one.result for name, one in found.items()} == dict.fromkeys(
        ("ready", "server", "model", "batch"), "ok"
    )
    assert found["server"].text == "triton 2.59.0"
    assert found["model"].text == "a takes image files: image BYTES [-1]"
    assert found["batch"].text == "at most 256 images in a request, the model's max_batch_size"


def test_a_version_is_asked_for_by_its_path() -> None:
    replies = {path.replace("/a", "/a/versions/3"): reply for path, reply in GOOD.items()}
    found = inspect(replies, url="http://host/v2/models/a/versions/3/infer")
    assert {one.result for one in found.values()} == {"ok"}


DECODE = "decoding step"
SENTENCES: list[tuple[Replies, dict[str, Any], str, str, str]] = [
    ({"/v2/health/ready": (503, None)}, {}, "ready", "failed", "not ready (503)"),
    ({"/v2/health/ready": (400, None)}, {}, "ready", "failed", "not ready (400)"),
    ({"/v2/health/ready": (405, None)}, {}, "ready", "advice", "an image will tell"),
    ({"/v2/health/ready": (401, None)}, {}, "ready", "failed", "--header-file"),
    ({"/v2": (404, None)}, {}, "server", "ok", "does not tell its extensions (404)"),
    ({"/v2": (200, TRITON)}, {}, "server", "advice", "--no-v2-binary"),
    ({"/v2": (200, TRITON)}, {"v2_binary": False}, "server", "ok", "triton"),
    ({}, {"v2_binary": False}, "server", "advice", "leave out --no-v2-binary"),
    ({"/v2/models/a": (404, None)}, {}, "model", "failed", "no model at /v2/models/a (404)"),
    ({"/v2/models/a": (400, {"error": "x"})}, {}, "model", "failed", "no model at"),
    (
        {"/v2/models/a": (404, None), "/v2/health/ready": (404, None)},
        {},
        "model",
        "advice",
        "does not tell about",
    ),
    ({"/v2/models/a": (200, None)}, {}, "model", "advice", "does not tell its inputs"),
    ({"/v2/models/a": (200, model())}, {}, "model", "advice", "does not tell its inputs"),
    ({"/v2/models/a": (200, model(7, {"name": 1}))}, {}, "model", "advice", "does not tell"),
    (
        {"/v2/models/a": (200, model({**FILES, "datatype": "FP32", "shape": [-1, 3, 224, 224]}))},
        {},
        "model",
        "failed",
        "takes no image files but image FP32 [-1, 3, 224, 224]: " + "such a server needs a decod",
    ),
    ({}, {"tensor_input": None}, "model", "failed", "give --tensor-input image"),
    ({}, {"tensor_input": "x"}, "model", "failed", "x is no input of a for files: give --tensor"),
    (
        {"/v2/models/a": (200, model(FILES, SCORES))},
        {},
        "model",
        "failed",
        "wants more than an image",
    ),
    ({}, {"tensor_output": "x"}, "model", "failed", "has no output x: its outputs are scores"),
    ({}, {"v2_shape": "nx1"}, "model", "failed", "give --v2-shape n"),
    (
        {"/v2/models/a": (200, model({**FILES, "shape": [-1, 1]}))},
        {},
        "model",
        "failed",
        "give --v2-shape nx1",
    ),
    ({"/v2/models/a": (200, model({**FILES, "shape": [-1, 7]}))}, {}, "model", "failed", DECODE),
    ({"/v2/models/a": (200, model({**FILES, "shape": []}))}, {}, "model", "failed", DECODE),
    (
        {"/v2/models/a": (200, model({**FILES, "shape": [1]}))},
        {},
        "model",
        "failed",
        "the model takes 1 image at once and a request would have up to 256: give --max-batch 1",
    ),
    ({"/v2/models/a": (200, model({**FILES, "shape": [1]}))}, {"max_batch": 1}, "model", "ok", "a"),
    (
        {"/v2/models/a/config": (200, {"max_batch_size": 8})},
        {},
        "batch",
        "failed",
        "the model takes 8 images at once and a request would have up to 256: give --max-batch 8",
    ),
    ({"/v2/models/a/config": (200, {"max_batch_size": 8})}, {"max_batch": 8}, "batch", "ok", "8"),
    ({"/v2/models/a/config": (200, {"max_batch_size": 0})}, {}, "batch", "ok", "no limit"),
    ({"/v2/models/a/config": (404, None)}, {}, "batch", "ok", "no limit"),
]


@pytest.mark.parametrize(("replies", "given", "check", "result", "text"), SENTENCES)
def test_what_does_not_fit_is_said_with_its_fix(
    replies: Replies, given: dict[str, Any], check: str, result: str, text: str
) -> None:
    found = inspect({**GOOD, **replies}, **given)[check]
    assert found.result == result
    assert text in found.text
    assert found.text.isprintable()


HALF_PLUS_THREE = b"""{
 "model_version_status": [
  {
   "version": "123",
   "state": "AVAILABLE",
   "status": {
    "error_code": "OK",
    "error_message": ""
   }
  }
 ]
}
"""
"""The status of a model in TensorFlow Serving's RESTful API."""

V1: list[tuple[int, object, str, str]] = [
    (200, {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}, "ok", "ready"),
    (200, json.loads(HALF_PLUS_THREE), "ok", "ready"),
    (200, {"model_version_status": [{"state": "LOADING"}, 1]}, "failed", "not ready"),
    (200, {"name": "a", "ready": "True"}, "ok", "ready"),
    (200, {"name": "a", "ready": True}, "ok", "ready"),
    (503, {"name": "a", "ready": False}, "failed", "not ready"),
    (503, None, "failed", "not ready"),
    (404, {"error": "x"}, "failed", "no model at /v1/models/a (404)"),
    (
        404,
        {"code": 404, "type": "ResourceNotFoundException", "message": "no such resource"},
        "advice",
        "TorchServe does not tell",
    ),
    (405, None, "advice", "does not tell"),
]


@pytest.mark.parametrize(("status", "document", "result", "text"), V1)
def test_a_v1_model_that_is_not_ready_is_said(
    status: int, document: object, result: str, text: str
) -> None:
    replies = {"/v1/models/a": (status, document)}
    found = inspect(replies, protocol="v1", url="http://host/v1/models/a:predict")
    assert found["model"].result == result
    assert text in found["model"].text


# Over the wire


@contextmanager
def serve(replies: Mapping[str, tuple[int, object]], asked: list[Any]) -> Iterator[str]:
    """Serve GET as in `replies`, and POST with two scores for each of one image."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers))
            self._answer(*replies.get(self.path, (404, None)))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            output = {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}
            self._answer(200, {"model_name": "a", "model_version": "", "outputs": [output]})

        def _answer(self, status: int, document: object) -> None:
            body = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_all_checks_of_a_server_that_fits(tmp_path: Path) -> None:
    headers, asked = tmp_path / "headers", []  # type: ignore[var-annotated]
    headers.write_text("Authorization: Bearer x\n")
    headers.chmod(0o600)
    with serve(GOOD, asked) as root:
        found = list(
            doctor.run_all(
                settings(url=f"{root}/v2/models/a/infer", header_file=headers), [], thorough=False
            )
        )
    names = ["settings", "header file", "ready", "server", "model", "batch", "service"]
    assert [(one.check, one.result) for one in found] == [(name, "ok") for name in names]
    assert found[-1].text.startswith("a answers in ")
    assert {headers["Authorization"] for _, headers in asked} == {"Bearer x"}


def test_after_a_check_that_failed_no_image_is_sent() -> None:
    url = f"http://127.0.0.1:{unused_port()}/v2/models/a/infer"
    found = list(doctor.run_all(settings(url=url), [], thorough=False))
    assert [(one.check, one.result) for one in found[1:]] == [
        ("ready", "failed"),
        *((name, "skipped") for name in ("server", "model", "batch", "service")),
    ]
    assert "does not answer to /v2/health/ready" in found[1].text
    assert found[1].code == Exit.UNAVAILABLE


@pytest.mark.parametrize(
    ("mode", "content", "result", "text"),
    [
        (0o600, "A: b", "ok", "1 to be sent along"),
        (0o644, "A: b", "advice", "chmod 600"),
        (0o660, "A: b", "advice", "chmod 600"),
        (0o600, "A", "failed", "line 1"),
    ],
)
def test_a_header_file_that_others_may_read_is_said(
    tmp_path: Path, mode: int, content: str, result: str, text: str
) -> None:
    file = tmp_path / "headers"
    file.write_text(content)
    file.chmod(mode)
    asked = settings(protocol="fmnist", tensor_input=None, header_file=file)
    (found,) = doctor.run_checks(list_checks(asked, 1))
    assert (found.check, found.result) == ("header file", result)
    assert text in found.text


def test_an_endless_answer_about_the_server_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("connectors.inference.http.MAX_RESPONSE_BYTES", 100)
    with (
        serve({"/v2": (200, "x" * 1000)}, []) as root,
        pytest.raises(OSError, match="more than 100 bytes"),
    ):
        fetch(f"{root}/v2", {}, 5.0)


def test_a_server_that_stops_within_its_answer_is_not_waited_for() -> None:
    over = threading.Event()

    def begin(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        over.wait(PATIENCE)

    with raw_server(begin) as url:
        with pytest.raises(OSError, match=r".+"):
            fetch(url, {}, 0.2)
        over.set()


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for() -> None:
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not over.wait(0.05):
            try:
                connection.sendall(b" ")
            except OSError:
                return

    with raw_server(trickle) as url:
        with pytest.raises(OSError, match=r".+"):
            fetch(url, {}, 0.3)
        over.set()
