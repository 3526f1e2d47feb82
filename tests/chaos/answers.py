"""An HTTP proxy between the relays and TorchServe: now and then it answers badly itself."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Bad = Literal["503", "500", "507", "prediction failed", "reset", "timeout"]
"""TorchServe's bad answers, and two ways to give none."""

SERVICE_TIMEOUT_S = 60.0  # longer than anybody here waits for the real service


OnAnswer = Callable[[int], None]
"""Called with the status of an answer, before the relay has it."""


class Reply(NamedTuple):
    """Status, content type and body."""

    status: int
    kind: str
    body: bytes


def _make_error(status: int, kind: str, message: str) -> Reply:
    body = f'{{"code": {status}, "type": "{kind}", "message": "{message}"}}'
    return Reply(status, "application/json", body.encode())


REPLIES: dict[Bad, Reply] = {
    "503": _make_error(
        503, "ServiceUnavailableException", "Model has no worker to serve inference"
    ),
    "500": _make_error(500, "InternalServerException", "Worker died."),
    "507": _make_error(507, "InternalServerException", "Out of memory"),
    "prediction failed": _make_error(503, "InternalServerException", "Prediction failed"),
}


class AnswerProxy(ThreadingHTTPServer):
    """Passes each request on to `target`, unless bad answers are ordered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str, delay: float = 0.0, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Exchange)
        self.target = urlsplit(target)
        self.delay = delay  # seconds before each answer
        self.given: Counter[Bad] = Counter()
        self.over = threading.Event()
        self._ordered: deque[Bad] = deque()

    @property
    def url(self) -> str:
        """The address that the relays ask."""
        return f"http://{self.server_address[0]!s}:{self.server_port}{self.target.path}"

    def ask(self, path: str, kind: str, body: bytes) -> Reply | None:
        """Return the answer of the real service; None when it gives none."""
        authority = cast("str", self.target.hostname), cast("int", self.target.port)
        connection = HTTPConnection(*authority, timeout=SERVICE_TIMEOUT_S)
        try:
            connection.request("POST", path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers["Content-Type"] or "", answer.read())
        except ConnectionRefusedError:
            return _make_error(502, "BadGateway", "nobody listens")
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def order(self, bad: Bad, count: int) -> None:
        """Answer the next `count` requests so."""
        self._ordered.extend([bad] * count)

    def enclose(self, kind: str, body: bytes) -> AbstractContextManager[OnAnswer]:  # noqa: ARG002 - for those who do
        """Enclose one request of this content type; what it yields is called with the answer.

        Nobody counts them here.
        """
        return nullcontext(lambda status: None)  # noqa: ARG005 - an OnAnswer

    def take_bad(self) -> Bad | None:
        """Return what the next request gets instead of an answer; None: it is passed on."""
        try:
            bad = self._ordered.popleft()
        except IndexError:
            return None
        self.given[bad] += 1
        return bad

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the library's signature
        """Pass over connections that broke, as those of killed relays do."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class InstantService(AnswerProxy):
    """Answers by itself and at once, as the handler of this project does: no service behind it.

    `unreadable`: what it calls no image; of anything else the class is `classify_bytes`.
    """

    def __init__(self, unreadable: Collection[bytes], host: str) -> None:
        super().__init__("http://nobody/predictions/instant", host=host)
        self._unreadable = frozenset(unreadable)

    def ask(self, path: str, kind: str, body: bytes) -> Reply | None:  # noqa: ARG002 - there is one model
        """See `AnswerProxy.ask`."""
        items = [self._answer_image(image) for image in split_parts(kind, body)]
        answer = {"predictions": items, "model": {"name": "instant", "version": "1.0"}}
        return Reply(200, "application/json", json.dumps(answer).encode())

    def _answer_image(self, image: bytes) -> dict[str, Any]:
        if image in self._unreadable:
            return {"error": {"code": "not_an_image", "message": "cannot be read"}}
        number = classify_bytes(image)
        best = {"class": number, "label": f"class {number}", "score": 0.5}
        return best | {"top": [best]}


def classify_bytes(image: bytes) -> int:
    """Return a class, 0 to 9, that depends on every byte of an image and on nothing else."""
    return crc32(image) % 10


def split_parts(kind: str, body: bytes) -> list[bytes]:
    """Return the images of a request, as TorchServe's dialect packs them."""
    boundary = b"--" + kind.partition("boundary=")[2].encode()
    return [part.partition(b"\r\n\r\n")[2][:-2] for part in body.split(boundary)[1:-1]]


Proxy = TypeVar("Proxy", bound=AnswerProxy)


@contextmanager
def serve(proxy: Proxy) -> Iterator[Proxy]:
    """Serve in a thread of its own until the end of the block."""
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), name="answers", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.over.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join(SERVICE_TIMEOUT_S)


class _Exchange(BaseHTTPRequestHandler):
    """One connection of a relay."""

    protocol_version = "HTTP/1.1"
    timeout = SERVICE_TIMEOUT_S
    server: AnswerProxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.enclose(self.headers["Content-Type"], body) as on_answer:
            if reply := self._make_reply(body):
                on_answer(reply.status)
                self._answer(reply)
            else:
                self._hang_up()

    def _make_reply(self, body: bytes) -> Reply | None:
        bad = self.server.take_bad()
        self.server.over.wait(SERVICE_TIMEOUT_S / 2 if bad == "timeout" else self.server.delay)
        if bad:
            return REPLIES.get(bad)
        return self.server.ask(self.path, self.headers["Content-Type"], body)

    def _answer(self, reply: Reply) -> None:
        with suppress(OSError):  # killed meanwhile
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

    def _hang_up(self) -> None:
        """End the connection with RST instead of an answer (socket(7), SO_LINGER of 0 s)."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
