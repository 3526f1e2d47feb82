"""The HTTP server of pages: few threads, and none that a client can hold for long."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CONNECTION_TIMEOUT = 5.0
"""Seconds that a connection may last, whatever it sends."""

MAX_CONNECTIONS = 16
"""Connections, and threads that serve them, at once."""

SLOT_TIMEOUT = 0.1
"""Seconds to wait for a free thread before the oldest connection is ended."""


class Page(NamedTuple):
    """What is answered."""

    status: int
    content_type: str
    body: bytes


class _Server(ThreadingMixIn, TCPServer):
    """Answers in at most MAX_CONNECTIONS threads; a connection lasts CONNECTION_TIMEOUT seconds.

    When all are taken the oldest is ended, so that who holds them holds no probe up: an honest
    question is answered in milliseconds. Who hangs up meanwhile is not worth a line.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._slots = BoundedSemaphore(MAX_CONNECTIONS)
        self._since: dict[socket.socket, float] = {}  # oldest first
        super().__init__((address, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the library's signature
        while not self._slots.acquire(timeout=SLOT_TIMEOUT):
            self._end_connections(1)
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        now = time.monotonic()
        late = [since for since in list(self._since.values()) if now - since > CONNECTION_TIMEOUT]
        self._end_connections(len(late))

    def _end_connections(self, count: int) -> None:
        """End the oldest ones under the threads that serve them."""
        for connection in list(self._since)[:count]:
            with suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def server_close(self) -> None:
        super().server_close()
        self._end_connections(MAX_CONNECTIONS)
        for _ in range(MAX_CONNECTIONS):
            self._slots.acquire(timeout=SLOT_TIMEOUT)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextmanager
def serve_pages(
    address: str, port: int, pages: Mapping[str, Callable[[str], Page]]
) -> Iterator[int]:
    """Answer in threads until the end of the block; gives the port.

    Each page is made of the question's Accept header, by one thread at a time.
    Raises Stop(2) when the port cannot be had.
    """
    locks = {path: Lock() for path in pages}

    class Handler(BaseHTTPRequestHandler):
        timeout = CONNECTION_TIMEOUT  # of the connection

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            with locks.get(path, nullcontext()):
                page = pages.get(path, _not_found)(self.headers.get("Accept", ""))
            self.send_response(page.status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(page.body)))
            self.end_headers()
            self.wfile.write(page.body)

        def log_message(self, *_: object) -> None:
            """Quiet: a probe comes every few seconds."""

    try:
        server = _Server(address, port, Handler)
    except OSError as error:
        raise Stop(
            f"{address}:{port} cannot be served ({error}): correct --metrics-port or "
            "--metrics-address",
            Exit.USAGE,
        ) from None
    thread = Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(CONNECTION_TIMEOUT)


def _not_found(_: str) -> Page:
    return Page(404, "text/plain; charset=utf-8", b"/metrics, /livez or /readyz\n")
