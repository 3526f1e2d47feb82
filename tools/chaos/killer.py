"""An image that kills the worker, in a full pack: `python -m tools.chaos.killer`, or `make killer`.

Its pack of 64 and three others are in the topic before the relay starts; meanwhile a steady load
comes in other partitions. A proxy before TorchServe sees each call. Exit code 0 only if the image
is the one dead letter, after as many tries of its own as are configured, at most 24 calls were made
that the load would not have needed, and the other records went on. Needs Kafka, TorchServe and
`make archive`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from connectors import codec
from tools.archive import pack
from tools.chaos.answers import AnswerProxy, Heard, serving
from tools.chaos.ledger import behind
from tools.chaos.load import Feeder, Input, KafkaOutlet
from tools.chaos.run import await_quiet
from tools.chaos.scene import GROUP, QUIET, TOPICS, relay_argv
from tools.chaos.verdict import Verdict, concluded, logs_of
from tools.chaos.victims import Seat
from tools.chaos.watch import Watch, committed, whole
from tools.exported import classes, first_images
from tools.stack import ROOT, StackError, TorchServe
from tools.stack_kafka import Kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HANDLER = ROOT / "tools" / "chaos" / "deadly_handler.py"
IMAGES = 10_000
SIDE = 28  # pixels
KILLER = codec.png(SIDE, SIDE, b"\xff" * SIDE * SIDE)
PACK, PACKS, PLACE = 64, 4, 100  # the killer is number 100, in the second of four packs
TRIES = 3
PARTITIONS = 3  # the killer's is the first
# Of the others' records that are due while it is on trial; most of that time the worker is dead, so
# the last of them are answered after it. A relay that held them back would have none answered.
LEAST_SHARE = 0.25
MOST_EXTRA = 24
PATIENCE = 400.0  # seconds; nine deaths of the worker, which needs up to 16 s to come back
AT_ONCE = 1e6  # records a second
LOOK = 0.05  # seconds
WAITS = 20.0  # seconds that the relay gives the service, and so a worker to come back


class Call(NamedTuple):
    """One request: how many images it held, how many of the load for the first time."""

    at: float  # monotonic seconds
    images: int
    new: int
    killer: bool
    others: int  # pictures of the other partitions that had been answered until then


def parts(kind: str, body: bytes) -> list[bytes]:
    """The images of a request, as `codec.body` packs them."""
    boundary = b"--" + kind.partition("boundary=")[2].encode()
    return [part.partition(b"\r\n\r\n")[2][:-2] for part in body.split(boundary)[1:-1]]


class Calls:
    """What the service was asked. The load is `packs`, the killer in them, and `others`.

    A call that holds none of them for the first time is one that the load did not need: a part of
    the killer's pack once more, or a witness.
    """

    def __init__(self, packs: Sequence[bytes], others: Sequence[bytes]) -> None:
        self.longest = 0.0  # seconds that one took
        self._unasked = {*packs, *others}
        self._unanswered = set(others)
        self._others = len(self._unanswered)
        self._made: list[Call] = []
        self._lock = threading.Lock()

    @contextmanager
    def noted(self, images: Sequence[bytes]) -> Iterator[Heard]:
        """One more call, until the end of the block; to be told of the status of its answer."""
        began = time.monotonic()
        with self._lock:
            new = self._unasked.intersection(images)
            self._unasked -= new
            answered = self._others - len(self._unanswered)
            self._made.append(Call(began, len(images), len(new), KILLER in images, answered))
        yield lambda status: self._hear(images, status)
        with self._lock:
            self.longest = max(self.longest, time.monotonic() - began)

    def _hear(self, images: Sequence[bytes], status: int) -> None:
        if status == HTTPStatus.OK:
            with self._lock:
                self._unanswered.difference_update(images)

    def made(self) -> list[Call]:
        """All until now."""
        with self._lock:
            return list(self._made)


class CountingProxy(AnswerProxy):
    """Notes each call, and passes it on."""

    def __init__(self, target: str, calls: Calls) -> None:
        super().__init__(target)
        self.calls = calls

    def noted(self, kind: str, body: bytes) -> AbstractContextManager[Heard]:
        """See `AnswerProxy`."""
        return self.calls.noted(parts(kind, body))


def full_packs(pictures: Sequence[bytes]) -> Iterator[Input]:
    """The full packs that the relay finds, the killer in its place."""
    values = [*pictures[:PLACE], KILLER, *pictures[PLACE : PACK * PACKS - 1]]
    return (Input(value, b"%d" % number, [], 0) for number, value in enumerate(values))


def others(pictures: Sequence[bytes]) -> Iterator[Input]:
    """The load of the other partitions."""
    for number, value in enumerate(pictures[PACK * PACKS - 1 :], PACK * PACKS):
        yield Input(value, b"%d" % number, [], 1 + number % (PARTITIONS - 1))


@dataclass
class Stage:
    """One relay between a Kafka of its own and a service that dies of one image."""

    servers: str
    calls: Calls
    watch: Watch
    packs: Feeder
    others: Feeder
    seat: Seat

    @classmethod
    def set(cls, rate: float, folder: Path, stack: ExitStack) -> Self:
        """Start the servers, and make the rest ready; all of it ends with `stack`."""
        kafka = stack.enter_context(Kafka())
        for topic in TOPICS:
            kafka.create_topic(topic, PARTITIONS)
        store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fmnist-deadly-")))
        server = stack.enter_context(
            TorchServe(pack(ROOT / "build" / "archive", store, "deadly", HANDLER))
        )
        images = first_images(IMAGES)
        pictures = [codec.png(SIDE, SIDE, image.tobytes()) for image in images]
        packs, beside = full_packs(pictures), others(pictures)
        calls = Calls([one.value for one in packs], [one.value for one in beside])
        proxy = stack.enter_context(serving(CountingProxy(server.url, calls)))
        servers = kafka.bootstrap_servers
        answers = dict(zip(pictures, classes(images, server.archive).tolist(), strict=True))
        watch = Watch(servers, TOPICS, PARTITIONS, answers)
        stack.callback(watch.close)
        meanwhile = takewhile(lambda _: not watch.ledger.dead_letters, others(pictures))
        first = Feeder(KafkaOutlet(servers, TOPICS.images), full_packs(pictures), AT_ONCE)
        then = Feeder(KafkaOutlet(servers, TOPICS.images), meanwhile, rate)
        argv = relay_argv(("connectors",), servers, proxy.url, "seat")
        seat = Seat("seat", argv, folder, Counter())
        for close in (first.close, then.close, seat.end):
            stack.callback(close)
        return cls(servers, calls, watch, first, then, seat)

    def begin(self) -> None:
        """Let the relay find full packs."""
        self.watch.start()
        self.packs.start()
        self.wait_for(lambda: self.watch.ledger.entered == PACK * PACKS)
        self.seat.take()
        self.others.start()

    def complete(self) -> bool:
        """Say whether all has gone in, and no outcome is missing."""
        ledger, sent = self.watch.ledger, self.packs.sent + self.others.sent
        return not self.others.feeding() and ledger.entered == sent and ledger.open <= 0

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Return when it holds; raises StackError when it does not in time."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.watch.check()
            if time.monotonic() > deadline:
                words = self.seat.process.tail()
                raise StackError(f"not done in {PATIENCE:g} s; the relay's last words:\n{words}")
            time.sleep(LOOK)


def run(rate: float, folder: Path, say: Callable[[str], None]) -> Verdict:
    """Do one run; the relay's log stays in `folder`. Raises StackError when it does not end."""
    say("starting Kafka and TorchServe")
    with ExitStack() as stack:
        stage = Stage.set(rate, folder, stack)
        stage.begin()
        stage.wait_for(lambda: any(call.killer for call in stage.calls.made()))
        say("the killer was sent")
        stage.wait_for(lambda: stage.watch.ledger.dead_letters)
        say("it is a dead letter")
        stage.wait_for(stage.complete)
        stage.seat.leave()
        await_quiet(stage.watch, QUIET)
        found = stage.watch.ledger.findings() | {
            "partitions not committed": behind(
                stage.watch.ledger.ends(), committed(stage.servers, GROUP)
            )
        }
        broken = {kind: len(records) for kind, records in found.items()}
        figures = measured(stage, rate)
        return Verdict(figures | broken, complaints(figures, broken))


def measured(stage: Stage, rate: float) -> dict[str, Any]:
    """What was measured, by name. The trial is from the killer's first call to its last one."""
    calls = stage.calls.made()
    extra = [call for call in calls if not call.new]
    trial = [call for call in calls if call.killer]
    first, last = trial[0], trial[-1]
    (letter, *_) = whole(stage.servers, TOPICS.dead)
    said = {name: value.decode() for name, value in letter.headers}
    return {
        "records": stage.watch.ledger.entered,
        "calls": len(calls),
        "longest_call_seconds": round(stage.calls.longest, 1),
        "extra_calls": len(extra),
        "extra_calls_with_the_killer": sum(not call.new for call in trial),
        "images_in_its_first_pack": first.images,
        "dead_letters": stage.watch.ledger.dead_letters,
        "reason": said["connector.reason"],
        "attempts": int(said["connector.attempts"]),
        "seconds_of_its_trial": round(last.at - first.at, 1),
        "others_due_meanwhile": round(rate * (last.at - first.at)),
        "others_answered_meanwhile": last.others - first.others,
        "longest_silence_seconds": round(stage.watch.pulse.longest, 1),
    }


def complaints(figures: Mapping[str, Any], broken: Mapping[str, int]) -> list[str]:
    """What was not as promised, a sentence each; `broken`: records, by the way it was broken."""
    answered, due = figures["others_answered_meanwhile"], figures["others_due_meanwhile"]
    letter = figures["reason"], figures["attempts"]
    longest = figures["longest_call_seconds"]
    found = {
        f"a call took {longest} s, more than the relay waits: the machine is too busy": (
            longest >= WAITS
        ),
        f"{figures['extra_calls']} extra calls": figures["extra_calls"] > MOST_EXTRA,
        f"{figures['dead_letters']} dead letters": figures["dead_letters"] != 1,
        f"the letter says {letter}": letter != ("failed", TRIES),
        # More than half a pack is cut as often as a whole one until the killer is alone.
        "the killer was not in a full pack": figures["images_in_its_first_pack"] <= PACK // 2,
        f"only {answered} of {due} others were answered meanwhile": answered < LEAST_SHARE * due,
        "no others were due meanwhile: nothing is shown": not due,
        **{f"{count} {kind}": count for kind, count in broken.items()},
    }
    return [sentence for sentence, wrong in found.items() if wrong]


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"killer: {text}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.chaos.killer", description=__doc__)
    made.add_argument("--rate", type=float, default=40.0, help="records a second, of the others")
    made.add_argument("--output", type=Path, default=ROOT / "run" / "killer.json")
    return made


def main(argv: list[str] | None = None) -> int:
    """Do one run; return the exit code."""
    asked = parser().parse_args(argv)
    folder = logs_of(asked.output)
    return concluded(lambda: run(asked.rate, folder, say), asked.output, say)


if __name__ == "__main__":
    sys.exit(main())
