"""The shipped nginx configuration before an upstream that writes down what reaches it.

The certificates are made by the lines of docs/production.md.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import TYPE_CHECKING

from tests.conftest import missing
from tests.test_docs import PAGES, ROOT, commands_in
from tools.servers.process import Process, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LINES = commands_in(PAGES["docs/production.md"].split("## A new version")[0])
FOLDER = "run/proxy"
TIMEOUT_S = 30.0


def require_nginx() -> str:
    """Return the path of nginx."""
    return shutil.which("nginx") or missing("there is no nginx: run `apt-get install nginx`")


def make_certificates(folder: Path) -> None:
    """Make ca.crt, and server.crt with its key, as the page says, in `folder`."""
    lines = [line.replace(FOLDER, str(folder)) for line in LINES if line.startswith("openssl ")]
    assert len(lines) == 2
    subprocess.run(
        ["bash", "-euc", "\n".join(lines)], check=True, capture_output=True, timeout=TIMEOUT_S
    )


@dataclass
class Reached:
    """What reached the upstream: heads with their line ends, bodies, and connections."""

    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0


class Upstream(ThreadingTCPServer):
    """Keeps every request and answers {}, unless it is `silent`; it knows lengths, no codings."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int) -> None:
        self.reached = Reached()
        self.silent = False
        super().__init__(("127.0.0.1", port), _Connection)


class _Connection(StreamRequestHandler):
    server: Upstream

    def handle(self) -> None:
        self.server.reached.connections += 1
        while head := self._read_head():
            lengths = re.findall(rb"(?im)^content-length: (\d+)\r$", head)
            body = self.rfile.read(int(lengths[0])) if lengths else b""
            self.server.reached.bodies.append(body)
            self.server.reached.heads.append(head)
            if self.server.silent:
                self.rfile.read()  # until the other side has waited long enough
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def _read_head(self) -> bytes:
        lines = []
        while line := self.rfile.readline():
            lines.append(line)
            if line in (b"\r\n", b"\n"):
                return b"".join(lines)
        return b""


@dataclass
class Proxy:
    """nginx, its port and its authority; what lies behind it."""

    folder: Path
    port: int
    upstream: Upstream
    process: Process

    @property
    def reached(self) -> Reached:
        return self.upstream.reached

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def authority(self) -> str:
        return str(self.folder / "ca.crt")

    def connect(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        """Return a TLS connection from this address."""
        plain = socket.create_connection(
            ("127.0.0.1", self.port), timeout=TIMEOUT_S, source_address=(source, 0)
        )
        context = ssl.create_default_context(cafile=self.authority)
        return context.wrap_socket(plain, server_hostname="localhost")

    def exchange(self, raw: bytes, source: str = "127.0.0.1") -> bytes:
        """Send these bytes as they are; return all that comes until the other side ends."""
        with self.connect(source) as connection:
            connection.sendall(raw)
            return read_to_end(connection)


def read_to_end(connection: ssl.SSLSocket) -> bytes:
    """Return all that comes until the other side ends the connection."""
    parts = []
    with suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def render(text: str, changes: Mapping[str, str]) -> str:
    """Return the configuration with these texts in place of the shipped ones, each found once."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextmanager
def start_proxy(folder: Path, changes: Mapping[str, str] | None = None) -> Iterator[Proxy]:
    """Start nginx with the shipped file, but for its ports and `changes`, and an upstream."""
    (upstream_port,) = free_ports(1)
    address = {"server 127.0.0.1:8080": f"server 127.0.0.1:{upstream_port}"}
    with Upstream(upstream_port) as upstream:
        Thread(target=upstream.serve_forever, args=(0.05,), daemon=True).start()
        try:
            with start_nginx(folder, address | dict(changes or {})) as (port, process):
                yield Proxy(folder, port, upstream, process)
        finally:
            upstream.shutdown()


@contextmanager
def start_nginx(folder: Path, changes: Mapping[str, str]) -> Iterator[tuple[int, Process]]:
    """Start nginx with the shipped file, but for port and `changes`; return its port."""
    program = require_nginx()
    make_certificates(folder)
    (port,) = free_ports(1)
    shipped = (ROOT / "serving" / "nginx.conf").read_text()
    listen = {"listen 8443": f"listen 127.0.0.1:{port}"}
    (folder / "nginx.conf").write_text(render(shipped, listen | dict(changes)))
    words = [program, "-p", str(folder), "-e", "error.log", "-c", "nginx.conf"]
    # Below pytest's folder, which is root's own, its workers need to be root's too.
    process = Process([*words, "-g", "daemon off; user root;"], folder / "out.log").start()
    try:
        wait_for_port(port, process)
        yield port, process
    finally:
        process.stop()


def wait_for_port(port: int, process: Process) -> None:
    """Return when somebody listens there."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.alive():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(process.tail())
