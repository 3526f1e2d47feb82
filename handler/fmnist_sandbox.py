"""Decoding in a process that may die: for files whose cost the gate does not know.

What a decoder does with compressed data can go beyond every structure that a gate can count: the
scans of a JPEG inside a TIFF, the tables of a lossless WebP. Such a file is decoded by a child
process under limits of CPU and memory. If it dies, its file is refused, and the worker with all
other requests lives. The child imports Pillow and NumPy but no torch, so another starts in 0.2 s.

Parent and child talk over two pipes: a line of JSON and the bytes of the file there, a verdict
with the pixels or the refusal back. Nothing that the child says is trusted beyond its length.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from math import prod
from pathlib import Path
from struct import Struct
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast, get_args

import numpy as np
from fmnist_gate import Code, File, Refused
from fmnist_images import Model, Pixels, to_pixels

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_BYTES = 4_096
"""The longest refusal that is read."""
MEGABYTE = 2**20
DONE, REFUSED = b"P", b"R"
HEAD = Struct(">cdI")
"""Of an answer: verdict, seconds of CPU, bytes that follow."""


class Decoded(NamedTuple):
    """What became of a file, and the seconds of CPU that it took."""

    result: Pixels | Refused
    seconds: float


class Died(Exception):
    """The child ended, or was ended, before it had answered."""


class Sandbox:
    """Decodes one file at a time in a child, which is started when it is needed.

    Not for use by several threads at once.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, file: File, model: Model, limits: tuple[float, int], wait_s: float) -> Decoded:
        """Return the pixels of a file, within seconds of CPU and megabytes above the child's own.

        Or Refused: `too_large` where a limit was met; `busy` where `wait_s` seconds on the clock
        were too short to tell, on a machine with other work; or what the decoder said. Raises
        OSError where no child can be started.
        """
        child = self._start()
        head = describe(file, model, *limits)
        deadline = time.monotonic() + wait_s
        try:
            return read_answer(Exchange(child, [head, file.data], deadline), model)
        except Died:
            return Decoded(explain(self._end()), limits[0])

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self._end()
        if self._child is None:
            command = [sys.executable, "-E", "-s", str(Path(__file__).resolve())]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        return self._child

    def _end(self) -> int:
        """Kill the child if it lives, and return how it ended."""
        child, self._child = self._child, None
        assert child is not None, "only a started child ends"  # noqa: S101
        # A limit that was met ends the child a moment after its pipe.
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.5)
        child.kill()
        with child:
            return child.wait()

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._end()


SHARED = Sandbox()
atexit.register(SHARED.close)


def decode_apart(file: File, model: Model, limits: tuple[float, int], wait_s: float) -> Decoded:
    """Decode in the one child of this process; see `Sandbox.decode`."""
    return SHARED.decode(file, model, limits, wait_s)


def describe(file: File, model: Model, seconds: float, megabytes: int) -> bytes:
    """Return the line that goes before the bytes of a file."""
    fields = {
        "file": {**file._asdict(), "data": len(file.data)},
        "model": {"mode": model.mode, "size": model.size, "background": model.background},
        "seconds": seconds,
        "megabytes": megabytes,
    }
    return json.dumps(fields).encode() + b"\n"


def explain(code: int) -> Refused:
    """Return the refusal of a file that ended the child with this exit code."""
    if code in {-signal.SIGPROF, os.EX_OSERR}:
        return Refused("too_large", "Decoding the image takes too much time or memory.")
    if code == -signal.SIGKILL:
        return Refused("busy", "The server is too busy to decode this image: send it again.")
    return Refused("not_an_image", "The image is damaged: its decoder crashed.")


class Exchange:
    """One question to the child and its answer, both before a deadline. Raises Died."""

    def __init__(
        self, child: subprocess.Popen[bytes], parts: list[bytes | bytearray], deadline: float
    ) -> None:
        assert child.stdin is not None, "a pipe"  # noqa: S101
        assert child.stdout is not None, "a pipe"  # noqa: S101
        self._deadline = deadline
        self._source = child.stdout.fileno()
        self._send(child.stdin.fileno(), parts)

    def _send(self, target: int, parts: list[bytes | bytearray]) -> None:
        for part in parts:
            rest = memoryview(part)
            while rest:
                self._wait([], [target])
                try:
                    # A pipe that is ready takes this much at least without blocking.
                    rest = rest[os.write(target, rest[: select.PIPE_BUF]) :]
                except BrokenPipeError:
                    raise Died from None

    def receive(self, length: int) -> bytes:
        """Return exactly so many bytes."""
        content = b""
        while len(content) < length:
            self._wait([self._source], [])
            piece = os.read(self._source, length - len(content))
            if not piece:
                raise Died
            content += piece
        return content

    def _wait(self, readable: list[int], writable: list[int]) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0 or not any(select.select(readable, writable, [], left)):
            raise Died


def read_answer(exchange: Exchange, model: Model) -> Decoded:
    """Return what the child says. Raises Died, also where it says something else."""
    verdict, seconds, length = HEAD.unpack(exchange.receive(HEAD.size))
    if verdict == DONE and length == prod(model.shape):
        content = exchange.receive(length)
        return Decoded(np.frombuffer(content, np.uint8).reshape(model.shape), seconds)
    if verdict != REFUSED or length > ANSWER_BYTES:
        raise Died
    code, _, message = exchange.receive(length).decode("utf-8", "replace").partition(" ")
    if code not in get_args(Code):
        raise Died
    return Decoded(Refused(cast("Code", code), message), seconds)


# The child


def main() -> None:
    """Decode what comes from standard input until it ends."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    # Ctrl-C is for the parent, which ends the child by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while line := source.readline():
        answer(json.loads(line), source, target.write)
        target.flush()


def answer(fields: dict[str, Any], source: IO[bytes], write: Callable[[bytes], object]) -> None:
    """Decode one file within its limits, and write what came of it."""
    file = File(**{**fields["file"], "data": source.read(fields["file"]["data"])})
    taken = fields["model"]
    model = Model("", "", taken["mode"], tuple(taken["size"]), tuple(taken["background"]), ())
    started = time.process_time()
    limit(fields["seconds"], fields["megabytes"])
    try:
        verdict, content = DONE, to_pixels(file, model).tobytes()
    except MemoryError:
        os._exit(os.EX_OSERR)
    except Refused as refusal:
        verdict, content = REFUSED, f"{refusal.code} {refusal}".encode()
    signal.setitimer(signal.ITIMER_PROF, 0)
    write(HEAD.pack(verdict, time.process_time() - started, len(content)) + content)


def limit(seconds: float, megabytes: int) -> None:
    """Bound the CPU and the memory of this process, from now on.

    The timer counts the process's own CPU; its signal ends it.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
