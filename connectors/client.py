"""The way to the inference API: HTTP, one thread and one connection a place in flight."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

import requests
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from . import codec
from .records import Busy, Failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .records import Answer, Request

CONNECT_TIMEOUT = 5.0
CLOSE_TIMEOUT = 1.0
RESPONSE_LIMIT = 8 << 20
"""Bytes; TorchServe's own limit for a response is 6,553,500."""


class HttpClient:
    """A Client whose answers come from POST requests to one URL.

    `send` and `collect` belong to one thread, which has at most `in_flight` requests out; so no
    queue here can be full. An unexpected error of a worker thread is raised by `collect`.
    `timeout`: seconds until a silent service has failed. `token_file`: TorchServe's key_file.json.
    """

    def __init__(
        self, url: str, *, timeout: float = 20.0, in_flight: int = 4, token_file: Path | None = None
    ) -> None:
        self._url = url
        self._timeouts = (min(CONNECT_TIMEOUT, timeout), timeout)
        self._token_file = token_file
        self._waiting: Queue[Request | None] = Queue(in_flight)
        self._answered: Queue[tuple[Request, Answer | Exception]] = Queue(in_flight)
        self._threads = [
            Thread(target=self._work, name=f"client-{n}", daemon=True) for n in range(in_flight)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, request: Request) -> None:
        """Take the request along; never blocks, never raises."""
        self._waiting.put_nowait(request)

    def collect(self, timeout: float) -> Sequence[tuple[Request, Answer]]:
        """Return what was answered, waiting at most `timeout` seconds for the first."""
        answered = []
        with suppress(Empty):
            answered.append(self._answered.get(timeout=max(0.0, timeout)))
            while True:
                answered.append(self._answered.get_nowait())
        return [(request, _raised(answer)) for request, answer in answered]

    def close(self) -> None:
        """Drop what is out; return within CLOSE_TIMEOUT.

        Threads that still wait for the service are left behind: they end with the process.
        """
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()
        for _ in self._threads:
            self._waiting.put_nowait(None)
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        key = _Key(self._token_file)
        with _session() as session:
            while request := self._waiting.get():
                try:
                    answer = self._ask(session, key, request)
                except Exception as error:  # noqa: BLE001 - raised again where it ends the process
                    self._answered.put((request, error))
                else:
                    self._answered.put((request, answer))

    def _ask(self, session: requests.Session, key: _Key, request: Request) -> Answer:
        try:
            authorization = key.header()
        except (OSError, ValueError) as error:
            return Busy(f"no inference key: {error}")
        content_type, body = codec.body(request.images)
        headers = {"Content-Type": content_type, **authorization}
        answer = self._post(session, headers, body, len(request.images))
        if isinstance(answer, Busy):
            key.forget()  # 400 InvalidKeyException, among others
        return answer

    def _post(
        self, session: requests.Session, headers: dict[str, str], body: bytes, count: int
    ) -> Answer:
        try:
            with session.post(
                self._url,
                data=body,
                headers=headers,
                timeout=self._timeouts,
                allow_redirects=False,
                stream=True,
            ) as response:
                return _answer(response, count)
        except requests.RequestException as error:
            return _fault(error)


def _raised(answer: Answer | Exception) -> Answer:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _session() -> requests.Session:
    """A session that sends what it is told and nothing from its surroundings."""
    session = requests.Session()
    session.trust_env = False  # no proxies, no .netrc
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.clear()
    # TorchServe hands each header to the worker, so there are few.
    session.headers.update({"User-Agent": "fmnist-connectors", "Accept-Encoding": "identity"})
    return session


def _answer(response: requests.Response, count: int) -> Answer:
    content = bytearray()
    for chunk in response.iter_content(1 << 16):
        content += chunk
        if len(content) > RESPONSE_LIMIT:
            return Busy(f"{response.status_code}: the answer has more than {RESPONSE_LIMIT} bytes")
    after = codec.retry_after(response.headers.get("Retry-After"), time.time())
    return codec.answer(response.status_code, bytes(content), count, after)


def _fault(error: requests.RequestException) -> Busy | Failed:
    """Failed once the request may have been read; Busy when nobody was there to read it."""
    chain = list(_chain(error))
    detail = f"{type(chain[-1]).__name__}: {chain[-1]}"
    if any(isinstance(link, ProtocolError | ReadTimeoutError) for link in chain):
        return Failed(detail)
    return Busy(detail)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """From the error down to the one that began it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _Key:
    """TorchServe's inference key, as its file holds it now. A renewed key voids the old at once."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen: int | None = None
        self._value = ""

    def header(self) -> dict[str, str]:
        """Raises OSError or ValueError when the file has no key."""
        if self._path is None:
            return {}
        changed = self._path.stat().st_mtime_ns
        if changed != self._seen:
            self._value = _inference_key(self._path)
            self._seen = changed
        return {"Authorization": f"Bearer {self._value}"}

    def forget(self) -> None:
        """Read the file again, though it may look unchanged."""
        self._seen = None


def _inference_key(path: Path) -> str:
    """TorchServe 0.12 writes `{"inference": {"key": ..., "expiration time": ...}, ...}`."""
    match json.loads(path.read_text(encoding="utf-8")):
        case {"inference": {"key": str(key)}} if key.isascii() and key.isprintable():
            return key
    raise ValueError(f"{path} is not a key file of TorchServe")
