"""HTTP transport to an inference server: one thread and one connection for each request out."""

from __future__ import annotations

import time
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING

import requests
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from ..records import Busy, Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..records import Answer, Request
    from .dialect import Authorization, Call, Dialect

CONNECT_TIMEOUT = 5.0
CLOSE_TIMEOUT = 1.0
MAX_RESPONSE_BYTES = 8 << 20
"""Bytes; TorchServe's own limit for a response is 6,553,500."""


class HttpClient:
    """A Client whose answers come from POST requests to one URL.

    `send` and `collect` belong to one thread, which has at most `in_flight` requests out; so no
    queue here can be full. An unexpected error of a worker thread is raised by `collect`.
    `timeout`: seconds until a silent service has failed. `authorize` makes the credentials of one
    thread. A request is encoded and its reply interpreted by `dialect`, in the worker threads.
    """

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        authorize: Callable[[], Authorization],
        *,
        timeout: float,
        in_flight: int,
    ) -> None:
        self._url = url
        self._dialect = dialect
        self._authorize = authorize
        self._timeouts = (min(CONNECT_TIMEOUT, timeout), timeout)
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
        return [(request, _raise_or_return(answer)) for request, answer in answered]

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
        authorization = self._authorize()
        with _make_session() as session:
            while request := self._waiting.get():
                try:
                    answer = self._ask(session, authorization, request)
                except Exception as error:  # noqa: BLE001 - raised again where it ends the process
                    self._answered.put((request, error))
                else:
                    self._answered.put((request, answer))

    def _ask(
        self, session: requests.Session, authorization: Authorization, request: Request
    ) -> Answer:
        try:
            credentials = authorization.header()
        except (OSError, ValueError) as error:
            return Busy(f"no inference key: {error}")
        call = self._dialect.encode(request.images)
        call = call._replace(headers={**call.headers, **credentials})
        answer = self._post(session, call, len(request.images))
        if isinstance(answer, Busy):
            authorization.forget()  # 400 InvalidKeyException, among others
        return answer

    def _post(self, session: requests.Session, call: Call, count: int) -> Answer:
        try:
            with session.post(
                self._url + call.path,
                data=call.body,
                headers=call.headers,
                timeout=self._timeouts,
                allow_redirects=False,
                stream=True,
            ) as response:
                return self._read(response, count)
        except requests.RequestException as error:
            return _interpret_fault(error)

    def _read(self, response: requests.Response, count: int) -> Answer:
        body = bytearray()
        for chunk in response.iter_content(1 << 16):
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                limit = f"the answer has more than {MAX_RESPONSE_BYTES} bytes"
                return Busy(f"{response.status_code}: {limit}")
        return self._dialect.interpret(response.status_code, response.headers, bytes(body), count)


def _raise_or_return(answer: Answer | Exception) -> Answer:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _make_session() -> requests.Session:
    """A session that sends what it is told and nothing from its surroundings."""
    session = requests.Session()
    session.trust_env = False  # no proxies, no .netrc
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.clear()
    # TorchServe hands each header to the worker, so there are few.
    session.headers.update({"User-Agent": "fmnist-connectors", "Accept-Encoding": "identity"})
    return session


def _interpret_fault(error: requests.RequestException) -> Busy | Failed:
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
