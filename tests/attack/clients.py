"""The clients of an attack: honest ones that know the right answers, and the attacker."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from tools.exported import classes, first_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.handler.bomb import Bomb

HONEST_TIMEOUT_S = 30.0
ATTACK_TIMEOUT_S = 60.0
NO_ANSWER, WRONG = "no answer", "wrong class"


class Sample(NamedTuple):
    """An image file and the class that the model gives it."""

    body: bytes
    label: int


def make_samples(archive: Path, count: int = 200) -> list[Sample]:
    """Return PNGs of the test data with the archive's own classes."""
    images = first_images(count)
    return [
        Sample(encode(image), int(label))
        for image, label in zip(map(Image.fromarray, images), classes(images, archive), strict=True)
    ]


def encode(image: Image.Image) -> bytes:
    """Return a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Client(threading.Thread):
    """Posts one request after the other over one connection until it is told to stop.

    `counts`: answers by status. `latencies`: seconds of each. Both are read after `join`.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(daemon=True)
        self.place = urlsplit(url)
        self.timeout_s = timeout_s
        self.stopped = threading.Event()
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.connection = self.connect()

    def connect(self) -> HTTPConnection:
        """Return a new connection, opened with its first request."""
        return HTTPConnection(str(self.place.hostname), self.place.port, timeout=self.timeout_s)

    def post(self, body: bytes, content_type: str) -> tuple[int, bytes]:
        """Return status and body; 0 where there was no answer."""
        headers = {"Content-Type": content_type} if content_type else {}
        try:
            self.connection.request("POST", self.place.path, body, headers)
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException):
            self.connection.close()
            self.connection = self.connect()
            return 0, b""

    def run(self) -> None:
        """Ask until stopped."""
        while not self.stopped.is_set():
            begun = time.monotonic()
            self.counts[self.ask()] += 1
            self.latencies.append(time.monotonic() - begun)
        self.connection.close()

    def ask(self) -> str:
        """Post once and return the word to count."""
        raise NotImplementedError


class Honest(Client):
    """Posts images and compares the classes."""

    def __init__(self, url: str, samples: Sequence[Sample]) -> None:
        super().__init__(url, HONEST_TIMEOUT_S)
        self.samples = samples
        self.place_in_samples = 0

    def ask(self) -> str:
        """Return the status, or that the class is wrong."""
        sample = self.samples[self.place_in_samples % len(self.samples)]
        self.place_in_samples += 1
        status, body = self.post(sample.body, "image/png")
        if status != 200:
            return str(status) if status else NO_ANSWER
        return "200" if json.loads(body).get("class") == sample.label else WRONG


class Attacker(Client):
    """Posts one bomb back to back."""

    def __init__(self, url: str, bomb: Bomb) -> None:
        super().__init__(url, ATTACK_TIMEOUT_S)
        self.bomb = bomb
        self.body = bomb.body()

    def ask(self) -> str:
        """Return the status."""
        status, _ = self.post(self.body, self.bomb.content_type())
        return str(status) if status else NO_ANSWER
