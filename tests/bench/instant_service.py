"""An inference service that answers at once: what the relay can do when the model costs nothing.

It counts the parts of the multipart request by its boundary and answers each with the same class.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ITEM = {"class": 9, "label": "Ankle boot", "score": 0.99}
MODEL = {"name": "instant", "version": "1.0"}


@cache
def answer(count: int) -> bytes:
    """Return the body for so many images."""
    predictions = [{**ITEM, "top": [ITEM]}] * count
    return json.dumps({"predictions": predictions, "model": MODEL}).encode()


class Handler(BaseHTTPRequestHandler):
    """Keeps the connection, as TorchServe does."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer as many predictions as there are parts."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = self.headers["Content-Type"].rpartition("boundary=")[2].encode()
        content = answer(body.count(boundary) - 1)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n"
        self.wfile.write(head.encode() + content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.instant_service")
    parser.add_argument("port", type=int)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Handler).serve_forever()


if __name__ == "__main__":
    main()
