"""HTTP transport to an inference server: one thread and one connection for each request out."""

from __future__ import annotations

import random
import socket
import ssl
import time
from contextlib import contextmanager, suppress
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from math import inf
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from ..records import Busy, Failed, Reopened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ..records import Answer, Request
    from .dialect import Authorization, Call, Dialect

CONNECT_TIMEOUT = 5.0
CLOSE_TIMEOUT = 1.0
MAX_WATCH_INTERVAL = 0.25
"""Seconds between two looks at the deadlines of the answers that are awaited."""
LEAST_SHARE_OF_AGE = 0.5
"""Of `connection_age`, at which a connection may be old: a random time from there on."""
MAX_RESPONSE_BYTES = 8 << 20
"""Bytes; TorchServe's own limit for a response is 6,553,500."""


class Certificates(NamedTuple):
    """PEM files for https; each new connection reads them, so renewed ones are taken.

    Without `cafile` the public authorities are trusted. Without `keyfile` the key stands in the
    `certfile`.
    """

    cafile: Path | None = None
    certfile: Path | None = None
    keyfile: Path | None = None


NO_CERTIFICATES = Certificates()


class Exchange:
    """The request that one worker has out, with a deadline for its whole answer.

    The library bounds each wait for a byte, so a service that sends one now and then would hold
    its worker for ever. At the deadline another thread ends the connection under the worker.
    `carried`: the last request; `continued`: the one out goes over the connection of that one.
    `connection_age`: see `HttpClient`.
    """

    def __init__(self, timeout: float, certificates: Certificates, connection_age: float) -> None:
        self.session = _make_session(self, certificates)
        self.carried: Request | None = None
        self.continued = False
        self.late = False
        self.cut_off = False
        self._timeout = timeout
        self._connection_age = connection_age
        self._old_at = inf
        self._lock = Lock()
        self._deadline: float | None = None
        self._socket: socket.socket | None = None

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Let what is asked inside take no longer; `late` says afterwards whether it did.

        `cut_off` says whether the connection broke before the whole request was sent.
        """
        self.late, self.cut_off, self.continued = False, False, True
        self._set_deadline()
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Expect no answer: a connection is being made, or all is read."""
        with self._lock:
            self._deadline = None

    def begin_connection(self) -> None:
        """Expect no answer while a connection is being made, and remember that it is another."""
        self.continued = False
        self.pause()

    def note_connection(self, connection: socket.socket) -> None:
        """Take a new connection, on which the request goes out now."""
        self._socket = connection
        share = random.uniform(LEAST_SHARE_OF_AGE, 1.0)  # noqa: S311 - or all would be old at once
        self._old_at = time.monotonic() + share * self._connection_age
        self._set_deadline()

    def end_if_old(self) -> None:
        """End a connection that has had its time; called between two requests."""
        if time.monotonic() >= self._old_at:
            self._old_at = inf
            self.session.close()

    def _set_deadline(self) -> None:
        with self._lock:
            self._deadline = time.monotonic() + self._timeout

    def end_if_late(self) -> None:
        """End the connection when the deadline is over; called by another thread."""
        with self._lock:
            if self._deadline is None or time.monotonic() < self._deadline or not self._socket:
                return
            self.late, self._deadline = True, None
            with suppress(OSError):  # closed already; not by SSLSocket's own, which is no thread's
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    """Tells an exchange of each connection that is made for it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the library's
        super().init_poolmanager(*args, **options)
        pools = self.poolmanager.pool_classes_by_scheme
        self.poolmanager.pool_classes_by_scheme = {
            scheme: _watch_connections(pool, self._exchange) for scheme, pool in pools.items()
        }


def _watch_connections(pool: Any, exchange: Exchange) -> Any:  # noqa: ANN401 - a class of urllib3
    class Connection(pool.ConnectionCls):  # type: ignore[misc]  # known when it runs
        def connect(self) -> None:
            exchange.begin_connection()
            super().connect()
            exchange.note_connection(self.sock)

        def send(self, data: Any) -> None:  # noqa: ANN401 - the library's
            try:
                super().send(data)
            except (ConnectionError, ssl.SSLEOFError) as error:
                exchange.cut_off = True
                # The library goes on after this one, and reads what was answered meanwhile.
                raise BrokenPipeError(*error.args) from error

    return type("Pool", (pool,), {"ConnectionCls": Connection})


class HttpClient:
    """A Client whose answers come from POST requests to one URL.

    `send` and `collect` belong to one thread, which has at most `in_flight` requests out; so no
    queue here can be full. An unexpected error of a worker thread is raised by `collect`.
    `timeout`: seconds until a service has failed whose answer is not whole, be it silent or slow;
    a connection that has to be made is given its own. `authorize` makes the credentials of one
    thread. A request is encoded and its reply interpreted by `dialect`, in the worker threads.

    What `follows` another request goes over its connection if that is still open; such two have
    the client to themselves, so the session of the first is idle.

    `connection_age`: seconds after which a connection is ended, between two requests and never
    before one that follows; some are ended from half of them on, at random. A balancer by
    connection, such as a Service of Kubernetes, gives the next one to any server, also to one that
    is new.
    """

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        authorize: Callable[[], Authorization],
        *,
        timeout: float,
        in_flight: int,
        certificates: Certificates = NO_CERTIFICATES,
        connection_age: float = inf,
    ) -> None:
        self._url = url
        self._dialect = dialect
        self._authorize = authorize
        self._timeouts = (min(CONNECT_TIMEOUT, timeout), timeout)
        self._exchanges = [
            Exchange(timeout, certificates, connection_age) for _ in range(in_flight)
        ]
        self._closed = Event()
        self._waiting: Queue[Request | None] = Queue(in_flight)
        self._answered: Queue[tuple[Request, Answer | Exception]] = Queue(in_flight)
        self._threads = [
            Thread(target=self._work, args=(one,), name=f"client-{n}", daemon=True)
            for n, one in enumerate(self._exchanges)
        ]
        watch = partial(_watch, self._exchanges, timeout, self._closed)
        self._threads.append(Thread(target=watch, name="client-deadlines", daemon=True))
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
        self._closed.set()
        for _ in self._exchanges:
            self._waiting.put_nowait(None)
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, own: Exchange) -> None:
        authorization = self._authorize()
        with own.session:
            while request := self._waiting.get():
                exchange = self._find_carrier(request.follows) or own
                try:
                    answer = self._ask(exchange, authorization, request)
                except Exception as error:  # noqa: BLE001 - raised again where it ends the process
                    self._answered.put((request, error))
                else:
                    self._answered.put((request, answer))

    def _find_carrier(self, request: Request | None) -> Exchange | None:
        carriers = (one for one in self._exchanges if request and one.carried is request)
        return next(carriers, None)

    def _ask(self, exchange: Exchange, authorization: Authorization, request: Request) -> Answer:
        if not request.follows:
            exchange.end_if_old()
        with exchange.limited():
            answer = self._try(exchange, authorization, request)
        if exchange.late:
            exchange.session.close()  # or the next request would meet the connection that ended
            answer = Failed("TimeoutError: timed out")
        continued = exchange.continued and exchange.carried is request.follows
        exchange.carried = request
        return answer if continued or not request.follows else _discount(answer)

    def _try(self, exchange: Exchange, authorization: Authorization, request: Request) -> Answer:
        try:
            credentials = authorization.header()
        except (OSError, ValueError) as error:
            exchange.continued = False  # nothing goes over it
            return Busy(f"no credentials: {error}")
        call = self._dialect.encode(request.images)
        call = call._replace(headers={**call.headers, **credentials})
        answer = self._post(exchange, call, len(request.images))
        if isinstance(answer, Busy):
            authorization.forget()  # 400 InvalidKeyException, among others
        return answer

    def _post(self, exchange: Exchange, call: Call, count: int) -> Answer:
        try:
            with exchange.session.post(
                self._url + call.path,
                data=call.body,
                headers=call.headers,
                timeout=self._timeouts,
                allow_redirects=False,
                stream=True,
            ) as response:
                return self._read(response, count)
        except OSError as error:  # the library's, and a certificate's file that is gone
            return _interpret_fault(error, cut_off=exchange.cut_off)

    def _read(self, response: requests.Response, count: int) -> Answer:
        body = bytearray()
        for chunk in response.iter_content(1 << 16):
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                limit = f"the answer has more than {MAX_RESPONSE_BYTES} bytes"
                return Busy(f"{response.status_code}: {limit}")
        return self._dialect.interpret(response.status_code, response.headers, bytes(body), count)


def fetch(
    url: str,
    headers: Mapping[str, str],
    timeout: float,
    certificates: Certificates = NO_CERTIFICATES,
    max_bytes: int | None = None,
) -> tuple[int, bytes]:
    """Ask by GET; return status and body.

    Raises OSError when there is no whole answer within `timeout` seconds, or one of more than
    `max_bytes`, None: as many as an answer to a request may have.
    """
    most = MAX_RESPONSE_BYTES if max_bytes is None else max_bytes
    exchange, over = Exchange(timeout, certificates, connection_age=inf), Event()
    watch = partial(_watch, [exchange], timeout, over)
    Thread(target=watch, name="fetch-deadline", daemon=True).start()
    try:
        with exchange.session as session, exchange.limited():
            timeouts = min(CONNECT_TIMEOUT, timeout), timeout
            with session.get(
                url, headers=headers, timeout=timeouts, allow_redirects=False, stream=True
            ) as response:
                body = bytearray()
                for chunk in response.iter_content(1 << 16):
                    body += chunk
                    if len(body) > most:
                        raise OSError(f"the answer has more than {most} bytes")
                return response.status_code, bytes(body)
    finally:
        over.set()


def _watch(exchanges: Sequence[Exchange], timeout: float, over: Event) -> None:
    """End the exchanges that are late, until it is over."""
    while not over.wait(min(MAX_WATCH_INTERVAL, timeout / 10)):
        for exchange in exchanges:
            exchange.end_if_late()


def _discount(answer: Answer) -> Answer:
    """What an answer says over another connection: a failure says nothing, unless it is final."""
    match answer:
        case Busy(detail) | Failed(detail, final=False):
            return Reopened(detail)
    return answer


def _raise_or_return(answer: Answer | Exception) -> Answer:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _make_session(exchange: Exchange, certificates: Certificates) -> requests.Session:
    """A session that sends what it is told and nothing from its surroundings."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(exchange))
    session.trust_env = False  # no proxies, no .netrc
    cafile, certfile, keyfile = (str(file) if file else None for file in certificates)
    session.verify = cafile or True
    session.cert = (certfile, keyfile) if certfile and keyfile else certfile
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.clear()
    # TorchServe hands each header to the worker, so there are few.
    session.headers.update({"User-Agent": "fmnist-connectors", "Accept-Encoding": "identity"})
    return session


def _interpret_fault(error: OSError, *, cut_off: bool) -> Busy | Failed:
    """Failed once the request may have been read; Busy when nobody was there to read it.

    `cut_off`: whoever was there had enough before the request was whole, as a proxy has of a long
    one. Or it went away just then, so this is not final: the canary says which of the two.
    """
    chain = list(_chain(error))
    detail = f"{type(chain[-1]).__name__}: {chain[-1]}"
    if cut_off:
        return Failed(f"{detail}, while the request was sent", reason="too_large")
    if any(isinstance(link, ProtocolError | ReadTimeoutError) for link in chain):
        return Failed(detail)
    return Busy(detail)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """From the error down to the one that began it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
