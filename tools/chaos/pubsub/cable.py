"""A TCP proxy between the relays and the emulator, which can be cut."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.chaos.plan import Fault

CHUNK = 1 << 16
PATIENCE = 10.0  # seconds
LOOK = 0.1  # seconds between two looks for a connection


class Wire:
    """One connection of a client, and its continuation to `server`."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._ends = (client, server)
        self._carrying = 2
        self._lock = threading.Lock()

    def start(self) -> None:
        """Carry both ways, in a thread each."""
        for way in (self._ends, self._ends[::-1]):
            threading.Thread(target=self._carry, args=way, name="wire", daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while chunk := one.recv(CHUNK):
                other.sendall(chunk)
        self._wake()
        with self._lock:
            self._carrying -= 1
        if self.over():  # closed by the last one: nobody writes any more to what is closed
            for end in self._ends:
                end.close()

    def _wake(self) -> None:
        """End the waiting of both threads."""
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)

    def over(self) -> bool:
        """Say whether it has ended."""
        return not self._carrying

    def cut(self) -> None:
        """End it with RST at both ends; what is under way is lost."""
        for end in self._ends:
            _reset_when_closed(end)
        self._wake()


class Cable:
    """Carries any number of connections to `target` (host:port), until it is cut."""

    name = "the cable"

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._whole = True
        self._wires: list[Wire] = []
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
            server = socket.create_connection(self._target, PATIENCE)
        except OSError:  # the emulator is away, and so are we
            _reset_when_closed(client)
            client.close()
            return
        server.settimeout(None)
        wire = Wire(client, server)
        with self._lock:
            self._wires = [each for each in self._wires if not each.over()]
            self._wires.append(wire)
            wire.start()
            if not self._whole:
                wire.cut()

    def carries(self) -> bool:
        """Say whether there is any connection now."""
        with self._lock:
            return any(not wire.over() for wire in self._wires)

    def cut(self) -> int:
        """End all connections, and each new one, until `mend`; return how many there were."""
        with self._lock:
            self._whole = False
            there = [wire for wire in self._wires if not wire.over()]
            for wire in there:
                wire.cut()
            return len(there)

    def mend(self) -> None:
        """Let new connections through."""
        with self._lock:
            self._whole = True

    def suffer(self, fault: Fault, over: threading.Event) -> bool:
        """See `Victim`: it waits for something to cut, since clients are slow to come back."""
        while not self.carries() and not over.wait(LOOK):
            pass
        happened = self.cut() > 0
        over.wait(max(0.0, fault.seconds))
        self.mend()
        return happened

    def look_after(self) -> None:
        """It lives in this process."""

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
def laid(target: str) -> Iterator[Cable]:
    """Carry in threads of its own until the end of the block."""
    cable = Cable(target)
    thread = threading.Thread(target=cable.serve, name="cable")
    thread.start()
    try:
        yield cable
    finally:
        cable.close()
        thread.join(PATIENCE)
