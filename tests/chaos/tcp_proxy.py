"""A TCP proxy between the relays and a broker, which can be cut."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.schedule import Fault

CHUNK_BYTES = 1 << 16
CONNECT_TIMEOUT_S = 10.0
WAIT_INTERVAL_S = 0.1


class ProxiedConnection:
    """One connection of a client, and its continuation to `server`."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._ends = (client, server)
        self._open_ways = 2
        self._lock = threading.Lock()

    def start(self) -> None:
        """Copy both ways, in a thread each."""
        for way in (self._ends, self._ends[::-1]):
            threading.Thread(target=self._copy, args=way, name="tcp-proxy", daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while chunk := one.recv(CHUNK_BYTES):
                other.sendall(chunk)
        self._wake()
        with self._lock:
            self._open_ways -= 1
        if self.has_ended():  # closed by the last one: nobody writes any more to what is closed
            for end in self._ends:
                end.close()

    def _wake(self) -> None:
        """End the waiting of both threads."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)

    def has_ended(self) -> bool:
        """Say whether it has ended."""
        return not self._open_ways

    def cut(self) -> None:
        """End it with RST at both ends; what is under way is lost."""
        for end in self._ends:
            _reset_when_closed(end)
        self._wake()


class TcpProxy:
    """Copies any number of connections to `target` (host:port), until it is cut."""

    name = "the connections to the broker"

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._enabled = True
        self._connections: list[ProxiedConnection] = []
        self._lock = threading.Lock()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"  # where clients connect to

    def serve(self) -> None:
        """Take connections until `close`."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, CONNECT_TIMEOUT_S)
        except OSError:  # the broker is away, and so are we
            _reset_when_closed(client)
            client.close()
            return
        server.settimeout(None)
        connection = ProxiedConnection(client, server)
        with self._lock:
            self._connections = [each for each in self._connections if not each.has_ended()]
            self._connections.append(connection)
            connection.start()
            if not self._enabled:
                connection.cut()

    def is_connected(self) -> bool:
        """Say whether there is any connection now."""
        with self._lock:
            return any(not one.has_ended() for one in self._connections)

    def cut(self) -> int:
        """End all connections, and each new one, until `restore`; return how many there were."""
        with self._lock:
            self._enabled = False
            open_now = [one for one in self._connections if not one.has_ended()]
            for connection in open_now:
                connection.cut()
            return len(open_now)

    def restore(self) -> None:
        """Let new connections through."""
        with self._lock:
            self._enabled = True

    def inject(self, fault: Fault, over: threading.Event) -> bool:
        """See `Target.inject`; waits for something to cut, since clients are slow to come back."""
        while not self.is_connected() and not over.wait(WAIT_INTERVAL_S):
            pass
        happened = self.cut() > 0
        over.wait(max(0.0, fault.seconds))
        self.restore()
        return happened

    def supervise(self) -> None:
        """See `Target.supervise`; it lives in this process."""

    def close(self) -> None:
        """Take no more connections, and end those that there are."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


def _reset_when_closed(end: socket.socket) -> None:
    """End with RST and without what was not sent yet (socket(7), SO_LINGER of 0 s)."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def open_tcp_proxy(target: str) -> Iterator[TcpProxy]:
    """Serve in threads of its own until the end of the block."""
    proxy = TcpProxy(target)
    thread = threading.Thread(target=proxy.serve, name="proxy")
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(CONNECT_TIMEOUT_S)
