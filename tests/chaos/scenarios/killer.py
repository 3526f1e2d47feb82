"""An image that kills TorchServe's worker, in a full pack.

Its pack of 64 and three others are in the topic before the relay starts; meanwhile a steady load
comes in other partitions. A proxy before TorchServe sees each call. The image must be the one dead
letter, after as many tries of its own as are configured, at most 60 calls may be made that the load
would not have needed, and the other records must go on.
"""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from connectors.images import encode_png
from tests.chaos.answers import AnswerProxy, OnAnswer, serve, split_parts
from tests.chaos.brokers.kafka.observer import KafkaObserver, read_topic
from tests.chaos.brokers.kafka.producer import TopicProducer
from tests.chaos.brokers.kafka.testbed import (
    QUIET_S,
    TOPICS,
    check_commits,
    create_topics,
    open_observer,
    relay_argv,
)
from tests.chaos.load import MAX_RATE, Input, LoadGenerator
from tests.chaos.runner import wait_for_quiet
from tests.chaos.testbed import make_load, make_relay, wait_until
from tests.chaos.verdict import Verdict, list_violations
from tools.archive import pack
from tools.exported import classes, first_images
from tools.servers.kafka import Kafka
from tools.servers.process import ROOT, StackError
from tools.servers.torchserve import TorchServe

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.chaos.targets import RelayProcess

HANDLER = ROOT / "tests" / "chaos" / "deadly_handler.py"
EXPORTED = ROOT / "build" / "archive"
IMAGES = 10_000
SIDE = 28  # pixels
KILLER = encode_png(SIDE, SIDE, b"\xff" * SIDE * SIDE)
PACK, PACKS, POSITION = 64, 4, 100  # the killer is number 100, in the second of four packs
TRIES = 3
PARTITIONS = 3  # the killer's is the first
# Of the others' records that are due while it is on trial; most of that time the worker is dead, so
# the last of them are answered after it. A relay that held them back would have none answered.
LEAST_SHARE = 0.25
# About fifteen trials, a canary before each, and canaries while the worker comes back eight times.
MOST_EXTRA_CALLS = 60
RUN_TIMEOUT_S = 400.0  # nine deaths of the worker, which needs up to 16 s to come back
CHECK_INTERVAL_S = 0.05
SERVICE_TIMEOUT_S = 20.0  # that the relay gives the service, and so a worker to come back


class Call(NamedTuple):
    """One request: how many images it held, how many of the load for the first time."""

    at: float  # monotonic seconds
    images: int
    new: int
    killer: bool
    others: int  # pictures of the other partitions that had been answered until then


class Calls:
    """The calls to the service. The load is `packs`, the killer in them, and `others`.

    A call that holds none of them for the first time is one that the load did not need: a part of
    the killer's pack once more, or a canary.
    """

    def __init__(self, packs: Sequence[bytes], others: Sequence[bytes]) -> None:
        self.longest = 0.0  # seconds that one took
        self._unasked = {*packs, *others}
        self._unanswered = set(others)
        self._others = len(self._unanswered)
        self._made: list[Call] = []
        self._lock = threading.Lock()

    @contextmanager
    def note_call(self, images: Sequence[bytes]) -> Iterator[OnAnswer]:
        """Note one more call, until the end of the block; yields what takes its answer's status."""
        began = time.monotonic()
        with self._lock:
            new = self._unasked.intersection(images)
            self._unasked -= new
            answered = self._others - len(self._unanswered)
            self._made.append(Call(began, len(images), len(new), KILLER in images, answered))
        yield lambda status: self._note_answer(images, status)
        with self._lock:
            self.longest = max(self.longest, time.monotonic() - began)

    def _note_answer(self, images: Sequence[bytes], status: int) -> None:
        if status == HTTPStatus.OK:
            with self._lock:
                self._unanswered.difference_update(images)

    def list_all(self) -> list[Call]:
        """Return all calls until now."""
        with self._lock:
            return list(self._made)


class RecordingProxy(AnswerProxy):
    """Notes each call, and passes it on."""

    def __init__(self, target: str, calls: Calls) -> None:
        super().__init__(target)
        self.calls = calls

    def enclose(self, kind: str, body: bytes) -> AbstractContextManager[OnAnswer]:
        """See `AnswerProxy.enclose`."""
        return self.calls.note_call(split_parts(kind, body))


def generate_full_packs(pictures: Sequence[bytes]) -> Iterator[Input]:
    """Return the full packs that the relay finds, the killer in its position."""
    values = [*pictures[:POSITION], KILLER, *pictures[POSITION : PACK * PACKS - 1]]
    return (Input(value, b"%d" % number, [], 0) for number, value in enumerate(values))


def generate_others(pictures: Sequence[bytes]) -> Iterator[Input]:
    """Yield the load of the other partitions."""
    for number, value in enumerate(pictures[PACK * PACKS - 1 :], PACK * PACKS):
        yield Input(value, b"%d" % number, [], 1 + number % (PARTITIONS - 1))


@dataclass
class KillerTestbed:
    """One relay between a Kafka of its own and a service that dies of one image."""

    servers: str
    calls: Calls
    observer: KafkaObserver
    packs: LoadGenerator
    others: LoadGenerator
    relay: RelayProcess

    @classmethod
    def open(cls, rate: float, folder: Path, stack: ExitStack) -> Self:
        """Start the servers, and make the rest ready; all of it ends with `stack`."""
        kafka = stack.enter_context(Kafka())
        create_topics(kafka, PARTITIONS)
        servers = kafka.bootstrap_servers
        server = stack.enter_context(TorchServe(_pack_deadly_archive(stack)))
        images = first_images(IMAGES)
        pictures = [encode_png(SIDE, SIDE, image.tobytes()) for image in images]
        packs, others = generate_full_packs(pictures), generate_others(pictures)
        calls = Calls([one.value for one in packs], [one.value for one in others])
        proxy = stack.enter_context(serve(RecordingProxy(server.url, calls)))
        answers = dict(zip(pictures, classes(images, server.archive).tolist(), strict=True))
        observer = open_observer(servers, PARTITIONS, answers, stack)
        until_dead = takewhile(lambda _: not observer.log.dead_letters, generate_others(pictures))
        argv = relay_argv(("connectors",), servers, proxy.url, "relay")
        argv = [*argv, "--pack", str(PACK)]
        open_producer = partial(TopicProducer, servers, TOPICS.images)
        return cls(
            servers,
            calls,
            observer,
            make_load(open_producer(), generate_full_packs(pictures), MAX_RATE, stack),
            make_load(open_producer(), until_dead, rate, stack),
            make_relay("relay", argv, folder, stack),
        )

    def begin(self) -> None:
        """Let the relay find full packs."""
        self.observer.start()
        self.packs.start()
        self.wait_until(lambda: self.observer.log.inputs == PACK * PACKS)
        self.relay.start()
        self.others.start()

    def is_complete(self) -> bool:
        """Say whether all has gone in, and no outcome is missing."""
        log, sent = self.observer.log, self.packs.sent + self.others.sent
        return not self.others.is_running() and log.inputs == sent and log.missing <= 0

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Return when it holds; raises StackError when it does not in time."""
        wait_until(
            condition,
            RUN_TIMEOUT_S,
            self.observer.check,
            lambda: f"the relay's log ends with:\n{self.relay.process.tail()}",
            CHECK_INTERVAL_S,
        )

    def find_violations(self) -> dict[str, int]:
        """Check the promise; return for how many records it was broken, by way."""
        log = self.observer.log
        found = log.find_violations() | check_commits(log, self.servers)
        return {kind: len(records) for kind, records in found.items()}


def _pack_deadly_archive(stack: ExitStack) -> Path:
    if not EXPORTED.exists():
        raise StackError(f"{EXPORTED} is not there: run `make archive`")
    store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fmnist-deadly-")))
    return pack(EXPORTED, store, "deadly", HANDLER)


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:  # noqa: ARG001 - Kafka's
    """See `Scenario.add_arguments`."""
    parser.add_argument("--rate", type=float, default=40.0, help="records a second, of the others")


def run(asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Verdict:
    """See `Scenario.run`."""
    return run_killer(asked.rate, folder, say)


def run_killer(rate: float, folder: Path, say: Callable[[str], None]) -> Verdict:
    """Do one run; the relay's log stays in `folder`. Raises StackError when it does not end."""
    say("starting Kafka and TorchServe")
    with ExitStack() as stack:
        testbed = KillerTestbed.open(rate, folder, stack)
        testbed.begin()
        testbed.wait_until(lambda: any(call.killer for call in testbed.calls.list_all()))
        say("the killer was sent")
        testbed.wait_until(lambda: testbed.observer.log.dead_letters)
        say("it is a dead letter")
        testbed.wait_until(testbed.is_complete)
        testbed.relay.stop()
        wait_for_quiet(testbed.observer, QUIET_S)
        broken = testbed.find_violations()
        figures = measure(testbed, rate)
        return Verdict(figures | broken, find_complaints(figures, broken))


def measure(testbed: KillerTestbed, rate: float) -> dict[str, Any]:
    """Return what was measured, by name; the trial is from the killer's first call to its last."""
    calls = testbed.calls.list_all()
    extra = [call for call in calls if not call.new]
    trial = [call for call in calls if call.killer]
    first, last = trial[0], trial[-1]
    (dead_letter, *_) = read_topic(testbed.servers, TOPICS.dead)
    headers = {name: value.decode() for name, value in dead_letter.headers}
    return {
        "records": testbed.observer.log.inputs,
        "calls": len(calls),
        "longest_call_seconds": round(testbed.calls.longest, 1),
        "extra_calls": len(extra),
        "extra_calls_with_the_killer": sum(not call.new for call in trial),
        "images_in_its_first_pack": first.images,
        "dead_letters": testbed.observer.log.dead_letters,
        "reason": headers["connector.reason"],
        "attempts": int(headers["connector.attempts"]),
        "seconds_of_its_trial": round(last.at - first.at, 1),
        "others_due_meanwhile": round(rate * (last.at - first.at)),
        "others_answered_meanwhile": last.others - first.others,
        "longest_silence_seconds": round(testbed.observer.timer.longest, 1),
    }


def find_complaints(figures: Mapping[str, Any], broken: Mapping[str, int]) -> list[str]:
    """Return what was not as promised, a sentence each; `broken`: records, by way."""
    answered, due = figures["others_answered_meanwhile"], figures["others_due_meanwhile"]
    verdict = figures["reason"], figures["attempts"]
    longest = figures["longest_call_seconds"]
    found = {
        f"a call took {longest} s, more than the relay waits: the machine is too busy": (
            longest >= SERVICE_TIMEOUT_S
        ),
        f"{figures['extra_calls']} extra calls": figures["extra_calls"] > MOST_EXTRA_CALLS,
        f"{figures['dead_letters']} dead letters": figures["dead_letters"] != 1,
        f"the dead letter says {verdict}": verdict != ("failed", TRIES),
        # More than half a pack is cut as often as a whole one until the killer is alone.
        "the killer was not in a full pack": figures["images_in_its_first_pack"] <= PACK // 2,
        f"only {answered} of {due} others were answered meanwhile": answered < LEAST_SHARE * due,
        "no others were due meanwhile: nothing is shown": not due,
    }
    return [*(sentence for sentence, wrong in found.items() if wrong), *list_violations(broken)]
