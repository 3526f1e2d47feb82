"""The HTTP server of pages: few threads, and none that a client can hold for long."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler
from operator import itemgetter
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

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

    When all are taken the one that would end next is ended, so that who holds them holds no probe
    up: an honest question is answered in milliseconds. Who hangs up meanwhile is not worth a line.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._slots = BoundedSemaphore(MAX_CONNECTIONS)
        self._ends: dict[socket.socket, float] = {}  # by the monotonic clock
        super().__init__((address, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the library's signature
        while not self._slots.acquire(timeout=SLOT_TIMEOUT):
            self._end_connections(sorted(dict(self._ends).items(), key=itemgetter(1))[:1])
        self._ends[request] = time.monotonic() + CONNECTION_TIMEOUT
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        self._ends.pop(request, None)
        super().shutdown_request(request)

    def extend(self, connection: socket.socket, seconds: float) -> None:
        """Let a connection last so long from now on; called by its own thread."""
        self._ends[connection] = time.monotonic() + seconds

    def service_actions(self) -> None:
        now = time.monotonic()
        self._end_connections(one for one in list(self._ends.items()) if one[1] < now)

    def _end_connections(self, connections: Iterable[tuple[socket.socket, float]]) -> None:
        """End them under the threads that serve them."""
        for connection, _ in connections:
            with suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    def server_close(self) -> None:
        super().server_close()
        self._end_connections(list(self._ends.items()))
        for _ in range(MAX_CONNECTIONS):
            self._slots.acquire(timeout=SLOT_TIMEOUT)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class PageHandler(BaseHTTPRequestHandler):
    """Answers one question; quiet, since probes and pages ask all the time."""

    timeout = CONNECTION_TIMEOUT  # of each wait for the client

    def do_GET(self) -> None:
        """Answer; called by the library."""
        self.answer(self.path.partition("?")[0])

    def answer(self, path: str) -> None:
        """Answer what was asked of this path; a subclass says how."""
        raise NotImplementedError

    def send_page(self, page: Page, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer."""
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(page.body)

    def extend(self, seconds: float) -> None:
        """Let this connection last so long from now on, for a stream."""
        server: Any = self.server
        server.extend(self.connection, seconds)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serve_pages(
    address: str, port: int, pages: Mapping[str, Callable[[str], Page]]
) -> Iterator[int]:
    """Answer in threads until the end of the block; gives the port.

    Each page is made of the question's Accept header, by one thread at a time.
    Raises Stop(2) when the port cannot be had.
    """
    locks = {path: Lock() for path in pages}

    class Handler(PageHandler):
        timeout = CONNECTION_TIMEOUT  # of the connection

        def answer(self, path: str) -> None:
            with locks.get(path, nullcontext()):
                page = pages.get(path, _not_found)(self.headers.get("Accept", ""))
            self.send_page(page)

    with run_server(address, port, Handler, "metrics") as served:
        yield served


@contextmanager
def run_server(address: str, port: int, handler: type[PageHandler], name: str) -> Iterator[int]:
    """Answer by `handler` in threads until the end of the block; gives the port.

    `name`: of the flags --NAME-port and --NAME-address, and of the thread. Raises Stop(2) when the
    port cannot be had.
    """
    try:
        server = _Server(address, port, handler)
    except OSError as error:
        raise Stop(
            f"{address}:{port} cannot be served ({error}): correct --{name}-port or "
            f"--{name}-address",
            Exit.USAGE,
        ) from None
    thread = Thread(target=server.serve_forever, args=(0.1,), name=name, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(CONNECTION_TIMEOUT)


def _not_found(_: str) -> Page:
    return Page(404, "text/plain; charset=utf-8", b"/metrics, /livez or /readyz\n")
