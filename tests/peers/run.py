"""One run: Kafka, a relay, an inference server that is killed now and then, and Kafka again."""

from __future__ import annotations

import time
from base64 import b64encode
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from itertools import cycle, islice
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import PIL.Image
import PIL.ImageDraw
import requests

from connectors.images import encode_png
from tests.chaos.brokers.kafka.observer import digest_outputs
from tests.chaos.brokers.kafka.producer import TopicProducer
from tests.chaos.brokers.kafka.testbed import (
    QUIET_S,
    TOPICS,
    check_commits,
    create_topics,
    open_observer,
    relay_argv,
)
from tests.chaos.load import POISON, Input, LoadGenerator
from tests.chaos.runner import wait_for_quiet
from tests.chaos.testbed import make_load, make_relay, wait_until
from tests.chaos.verdict import Verdict, list_violations
from tests.peers.runtimes.image_sum import CLASSES
from tests.peers.servers import ENVIRONMENTS, OWN, SERVERS, open_server
from tools.exported import classes as ask_model
from tools.exported import first_images
from tools.servers.kafka import Kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.chaos.brokers.kafka.observer import KafkaObserver
    from tests.chaos.targets import RelayProcess
    from tests.peers.servers import Server

PARTITIONS = 3
NUMBERS = 100
"""Different pictures that the server for text is sent."""
AWAY_S = 3.0
"""Seconds that a killed server stays away."""
RUN_TIMEOUT_S = 3600.0
CHECK_INTERVAL_S = 0.1


class Size(NamedTuple):
    """How much: `poison` is a share; `rate` is in records a second."""

    images: int = 10_000
    poison: float = 0.005
    kills: int = 3
    rate: float = 400.0
    flags: tuple[str, ...] = ()


class Load(NamedTuple):
    """The records, and the class of each picture; what is poison has none."""

    inputs: list[Input]
    classes: Mapping[bytes, int]
    poison: int


def sum_images(count: int) -> dict[bytes, int]:
    """Return test images of Fashion-MNIST, and the class of each by this project's own sum."""
    images = first_images(count)
    return {encode_png(28, 28, one.tobytes()): int(one.sum()) % CLASSES for one in images}


def ask_numbers(url: str) -> dict[bytes, int]:
    """Return pictures of numbers, and what the server says of each, asked alone, with no faults."""
    pictures = [draw_number(number) for number in range(100, 100 + NUMBERS)]
    found = {}
    for picture in pictures:
        asked = {"instances": [{"b64": b64encode(picture).decode("ascii")}]}
        (text,) = requests.post(url, json=asked, timeout=20).json()["predictions"]
        found[picture] = digest_outputs(text)
    return found


def ask_archive(count: int, *, as_tensor: bool) -> dict[bytes, int]:
    """Return test images of Fashion-MNIST, and what the archive's model says of each, alone.

    `as_tensor`: the class is the output of its name, else the own form of a result.
    """
    images = first_images(count)
    found = {}
    for image, number in zip(images, ask_model(images).tolist(), strict=True):
        output = {"name": "class", "datatype": "INT64", "shape": [], "data": [number]}
        answer = digest_outputs([output]) if as_tensor else number
        found[encode_png(28, 28, image.tobytes())] = answer
    return found


def expect_answers(name: str, url: str, count: int) -> dict[bytes, int]:
    """Return the pictures that a server is sent, and what each must become."""
    if name == "ocr":
        return ask_numbers(url)
    if name in OWN:
        return ask_archive(count, as_tensor=name == "torchserve-v2")
    return sum_images(count)


def draw_number(number: int) -> bytes:
    """Return a PNG of a number in black on white."""
    image = PIL.Image.new("L", (80, 40), "white")
    PIL.ImageDraw.Draw(image).text((8, 2), str(number), fill="black", font_size=32)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make_inputs(size: Size, classes: Mapping[bytes, int], seed: int = 0) -> Load:
    """Make the records: the pictures in turn, some of them replaced by what is none."""
    pictures = list(islice(cycle(classes), size.images))
    random = Random(seed)
    bad = set(random.sample(range(size.images), max(1, round(size.images * size.poison))))
    values = [
        random.choice(POISON) if number in bad else picture
        for number, picture in enumerate(pictures)
    ]
    inputs = [
        Input(value, b"%d" % number, [], number % PARTITIONS) for number, value in enumerate(values)
    ]
    return Load(inputs, classes, len(bad))


class Testbed(NamedTuple):
    """What takes part."""

    server: Server
    kafka: str
    observer: KafkaObserver
    generator: LoadGenerator
    relay: RelayProcess
    size: Size

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Return when it holds; raises StackError when the relay or the broker has failed."""

        def check() -> None:
            self.observer.check()
            self.generator.is_running()

        wait_until(condition, RUN_TIMEOUT_S, check, self.relay.process.tail, CHECK_INTERVAL_S)

    def is_complete(self) -> bool:
        """Say whether all has gone in, and no outcome is missing."""
        log = self.observer.log
        return log.inputs == self.size.images and log.missing <= 0

    def kill_server_now_and_then(self, say: Callable[[str], None]) -> Iterator[int]:
        """Kill the server and start it again, each time when so many more outcomes are there."""
        for number in range(1, self.size.kills + 1):
            self.wait_until(partial(self._has_outcomes, number / (self.size.kills + 1)))
            self.server.kill()
            say(f"killed after {self.observer.log.outcomes:,} outcomes")
            time.sleep(AWAY_S)
            self.server.start()
            yield self.observer.log.outcomes

    def _has_outcomes(self, share: float) -> bool:
        return self.observer.log.outcomes >= share * self.size.images


def open_testbed(
    name: str, size: Size, folder: Path, environments: Path, stack: ExitStack
) -> tuple[Testbed, Load]:
    """Start the servers, and make the rest ready; all of it ends with `stack`."""
    server = stack.enter_context(open_server(name, folder / f"{name}.log", environments))
    load = make_inputs(size, expect_answers(name, server.url, size.images))
    kafka = stack.enter_context(Kafka())
    create_topics(kafka, PARTITIONS)
    servers = kafka.bootstrap_servers
    argv = relay_argv(("connectors",), servers, server.url, "relay")
    argv += [*SERVERS[name], *size.flags]
    if name in {"mlserver", "kserve-v1", "kserve-v2"}:
        labels = folder / "labels.txt"
        labels.write_text("".join(f"sum {number}\n" for number in range(CLASSES)))
        argv += ["--labels", str(labels)]
    testbed = Testbed(
        server,
        servers,
        open_observer(servers, PARTITIONS, load.classes, stack),
        make_load(TopicProducer(servers, TOPICS.images), iter(load.inputs), size.rate, stack),
        make_relay("relay", argv, folder, stack),
        size,
    )
    return testbed, load


def run(
    name: str,
    size: Size,
    folder: Path,
    say: Callable[[str], None],
    environments: Path = ENVIRONMENTS,
) -> Verdict:
    """Do one run; logs stay in `folder`. Raises StackError when a server cannot be started."""
    say(f"starting {name} and Kafka")
    with ExitStack() as stack:
        testbed, load = open_testbed(name, size, folder, environments, stack)
        testbed.observer.start()
        testbed.relay.start()
        testbed.generator.start()
        began = time.monotonic()
        kills = len(list(testbed.kill_server_now_and_then(say)))
        testbed.wait_until(testbed.is_complete)
        seconds = time.monotonic() - began
        code = testbed.relay.stop()
        wait_for_quiet(testbed.observer, QUIET_S)
        log = testbed.observer.log
        broken = log.find_violations() | check_commits(log, testbed.kafka)
    counts = {kind: len(found) for kind, found in broken.items()}
    figures: dict[str, Any] = {
        "server": name,
        "records": log.inputs,
        "results": log.results,
        "dead_letters": log.dead_letters,
        "poison": load.poison,
        "server_kills": kills,
        "seconds": round(seconds, 1),
        "longest_silence_seconds": round(testbed.observer.timer.longest, 1),
        "exit_code": code,
        **counts,
    }
    return Verdict(figures, find_complaints(figures, counts))


def find_complaints(figures: Mapping[str, Any], broken: Mapping[str, int]) -> list[str]:
    """Return what was not as promised, a sentence each."""
    found = {
        "the dead letters are not the poison": figures["dead_letters"] != figures["poison"],
        f"the relay left with {figures['exit_code']}": figures["exit_code"],
    }
    return [*(sentence for sentence, wrong in found.items() if wrong), *list_violations(broken)]
