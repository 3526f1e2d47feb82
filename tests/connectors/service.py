"""Virtual time, and a model of TorchServe that lives in it.

`Timeline` runs threads one at a time and moves its clock from event to event, so the product's
real loop runs unchanged, hours pass in seconds, and a seed gives the same run every time.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count, islice
from typing import TYPE_CHECKING, Literal, Self

from connectors.records import (
    Answer,
    Busy,
    Failed,
    Image,
    Prediction,
    Rejection,
    Reopened,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random


class Killed(BaseException):
    """The process is gone, as after SIGKILL: nobody in it gets to do anything any more."""


@dataclass(eq=False)
class Process:
    """A thread that runs when it is its turn: whoever hands over releases the lock."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    alarm: int = 0
    killed: bool = False
    ended: bool = False
    thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.turn.acquire()


class Timeline:
    """Virtual time. Whoever sleeps hands over to whoever is to wake next.

    The thread that made it is a process too: it starts the others, sleeps while they work, and
    meets in its own `sleep` what one of them raised.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = count(1)
        self._events: list[tuple[float, int, Process | Callable[[], None]]] = []
        self._main = self.current = Process()
        self._started: list[Process] = []
        self._error: BaseException | None = None

    def __call__(self) -> float:
        return self.now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            self.kill(process)
        for process in self._started:
            while not process.ended:
                with suppress(BaseException):
                    self.sleep(0)
            if process.thread:
                process.thread.join()

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Call `act` when the time has come; it must not sleep."""
        heappush(self._events, (when, next(self._numbers), act))

    def start(self, act: Callable[[], None]) -> Process:
        """Start a process; it runs once somebody sleeps."""
        process = Process()
        process.thread = threading.Thread(target=self._live, args=(process, act), daemon=True)
        process.thread.start()
        self._started.append(process)
        self.wake(process)
        return process

    def kill(self, process: Process) -> None:
        """End a process where it sleeps."""
        process.killed = True
        if not process.ended:
            self.wake(process)

    def wake(self, process: Process, after: float = 0.0) -> None:
        """Let a process go on, now or later; this replaces its alarm."""
        process.alarm = next(self._numbers)
        heappush(self._events, (self.now + after, process.alarm, process))

    def sleep(self, seconds: float) -> None:
        """Let time pass, for the process that calls."""
        process = self.current
        self.wake(process, seconds)
        heir = self._next()
        if heir is not process:
            heir.turn.release()
            process.turn.acquire()
        if process.killed:
            raise Killed
        if process is self._main and self._error:
            error, self._error = self._error, None
            raise error

    def _next(self) -> Process:
        """Let everything happen up to the next process's turn."""
        while True:
            when, number, event = heappop(self._events)
            self.now = max(self.now, when)
            if not isinstance(event, Process):
                event()
            elif event.alarm == number and not event.ended:
                self.current = event
                return event

    def _live(self, process: Process, act: Callable[[], None]) -> None:
        process.turn.acquire()
        try:
            if not process.killed:
                act()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the test waits
            self._error = error
            self.wake(self._main)
        process.ended = True
        self._next().turn.release()


Weather = Literal[
    "fine",
    "busy",
    "crowded",
    "foreign",
    "500",
    "507",
    "413",
    "silent",
    "forgetful",
    "flapping",
]
"""What comes over everybody.

"busy": nobody is served. "crowded": of twenty requests one is. "foreign": somebody else answers.
"500", "507": each batch fails. "413": each request of several images is refused for good.
"silent": nothing is answered. "forgetful": one request in ten is not. "flapping": it fails and
recovers from one second to the next.
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The numbers of a service; times in seconds."""

    workers: int = 1
    batch: int = 4  # requests joined into one batch
    delay: float = 0.002  # for a batch to fill
    overhead: float = 0.005  # of a batch
    image: float = 0.001
    death: float = 0.01  # until the server has noticed that a worker is gone
    restart: float = 3.0
    refuses: bool = True  # while no worker is up; else requests queue meanwhile
    read_timeout: float = 20.0  # of the client; longer than death and restart together


@dataclass(eq=False)
class Worker:
    up: bool = True
    idle: bool = True


@dataclass(eq=False)
class Job:
    client: ServiceClient
    request: Request
    done: bool = False
    server: Service | None = None
    linked: bool = False  # over the connection of the request that it follows


class Service:
    """A model of TorchServe: what is out at the same time is one batch, and fails together.

    An image that begins with b"kill" takes its worker along, one with b"bad" is answered by an
    error in its place, one with b"odd" makes the server answer 500 in words that nobody knows.
    """

    def __init__(self, timeline: Timeline, random: Random, machine: Machine) -> None:
        self.timeline = timeline
        self.machine = machine
        self.weather: Weather = "fine"
        self.deaths = 0
        self._random = random
        self._flap: Weather = "fine"
        self._turns_at = 0.0
        self._queue: deque[Job] = deque()
        self._workers = [Worker() for _ in range(machine.workers)]

    def pick(self) -> Service:
        """The server of a new connection."""
        return self

    def submit(self, job: Job) -> None:
        """Take a request in, or say that nobody serves it."""
        down = self.machine.refuses and not any(worker.up for worker in self._workers)
        crowded = self.weather == "crowded" and self._random.random() > 0.05
        if down or crowded or self.weather == "busy":
            job.client.deliver(job, Busy("503: no worker"))
        elif any(image.data.startswith(b"odd") for image in job.request.images):
            job.client.deliver(job, Busy("500: ArrayIndexOutOfBoundsException"))
        elif self.weather == "413" and len(job.request.images) > 1:
            job.client.deliver(job, Failed("413: too large", final=True, status=413))
        else:
            self._queue.append(job)
            self._pump()

    def _pump(self) -> None:
        """Give each free worker what has gathered by the end of the delay."""
        free = [worker for worker in self._workers if worker.up and worker.idle]
        for worker in islice(free, len(self._queue)):
            worker.idle = False
            self._later(self.machine.delay, partial(self._take, worker))

    def _take(self, worker: Worker) -> None:
        size = min(len(self._queue), self.machine.batch)
        batch = [self._queue.popleft() for _ in range(size)]
        images = [image for job in batch for image in job.request.images]
        if any(image.data.startswith(b"kill") for image in images):
            self._later(self.machine.death, partial(self._die, worker, batch))
        else:
            seconds = self.machine.overhead + self.machine.image * len(images)
            self._later(seconds, partial(self._finish, worker, batch))

    def _die(self, worker: Worker, batch: Sequence[Job]) -> None:
        self.deaths += 1
        worker.up = False
        self._answer(batch, lambda _: Failed("500: Worker died.", status=500))
        self._later(self.machine.restart, partial(self._revive, worker))

    def _revive(self, worker: Worker) -> None:
        worker.up = worker.idle = True
        self._pump()

    def _finish(self, worker: Worker, batch: Sequence[Job]) -> None:
        worker.idle = True
        match self._sky():
            case "500" | "507" as status:
                self._answer(batch, lambda _: Failed(f"{status}: failed", status=int(status)))
            case "foreign":
                self._answer(batch, lambda _: Busy("not our handler's answer"))
            case "silent":
                pass
            case "forgetful":
                self._answer([job for job in batch if self._random.random() > 0.1], predict)
            case _:
                self._answer(batch, predict)
        self._pump()

    def _sky(self) -> Weather:
        if self.weather != "flapping":
            return self.weather
        if self.timeline.now >= self._turns_at:
            self._turns_at = self.timeline.now + self._random.expovariate(1.0)
            self._flap = self._random.choice(("fine", "500", "507"))
        return self._flap

    def _answer(self, batch: Sequence[Job], answer: Callable[[Request], Answer]) -> None:
        for job in batch:
            job.client.deliver(job, answer(job.request))

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self.timeline.at(self.timeline.now + seconds, act)


class Balancer:
    """Several servers behind one address, each with its own weather."""

    def __init__(self, servers: Sequence[Service], random: Random) -> None:
        self.servers = servers
        self.timeline, self.machine = servers[0].timeline, servers[0].machine
        self._random = random

    def pick(self) -> Service:
        return self._random.choice(self.servers)


def predict(request: Request) -> Sequence[Prediction | Rejection]:
    """Answer each image by what its bytes begin with."""
    return [_outcome(image) for image in request.images]


def _outcome(image: Image) -> Prediction | Rejection:
    if image.data.startswith(b"bad"):
        return Rejection("not_an_image", "no image", status=200)
    best = {"class": len(image.data), "label": image.data.decode(), "score": 1.0}
    return Prediction({**best, "top": [best], "model": {"name": "model", "version": "1"}})


class ServiceClient:
    """`connectors.records.Client` to the model; checks that no more than `most` are out.

    The servers keep a connection after an answer, and close it after an error, as TorchServe does.
    """

    def __init__(self, service: Service | Balancer, most: int) -> None:
        self._kept: tuple[Request, Service] | None = None  # the last one answered, and by whom
        self.out: set[Request] = set()
        self._service = service
        self._most = most
        self._answers: list[tuple[Request, Answer]] = []
        self._collecting: Process | None = None

    def send(self, request: Request) -> None:
        job = Job(self, request)
        self.out.add(request)
        assert len(self.out) <= self._most
        service, timeline = self._service, self._service.timeline
        timed_out = Failed("the read timed out")
        kept = self._kept
        job.linked = bool(kept and request.follows is kept[0])
        server = kept[1] if kept and job.linked else service.pick()
        job.server = server
        timeline.at(timeline.now + 0.001, partial(server.submit, job))
        limit = timeline.now + service.machine.read_timeout
        timeline.at(limit, partial(self.deliver, job, timed_out))

    def deliver(self, job: Job, answer: Answer) -> None:
        """Hand an answer over, unless the client has given up on it."""
        if not job.done:
            job.done = True
            served = not isinstance(answer, Busy | Failed | Reopened)
            self._kept = (job.request, job.server) if served and job.server else None
            if job.request.follows and isinstance(answer, Busy | Failed) and not job.linked:
                answer = Reopened(answer.detail)
            self._answers.append((job.request, answer))
            if self._collecting:
                self._service.timeline.wake(self._collecting)

    def collect(self, timeout: float) -> Sequence[tuple[Request, Answer]]:
        if not self._answers and timeout > 0:
            self._collecting = self._service.timeline.current
            self._service.timeline.sleep(timeout)
            self._collecting = None
        answers, self._answers = self._answers, []
        self.out.difference_update(request for request, _ in answers)
        return answers

    def close(self) -> None:
        self.out.clear()
