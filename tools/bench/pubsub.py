"""The course for Pub/Sub: Google's emulator, backlogs of test images, and its own ceilings."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import wait
from contextlib import ExitStack, closing, suppress
from itertools import count
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc
from google.api_core.exceptions import DeadlineExceeded
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from connectors.codec import png
from tools.bench.figures import rate
from tools.exported import first_images
from tools.stack import ROOT, Process, StackError
from tools.stack_pubsub import Emulator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.contest import Who

PROGRAMS: dict[Who, tuple[str, ...]] = {
    "ours": ("connectors", "pubsub"),
    "plain": ("tools.bench.plain_pubsub",),
}
PATIENCE = 120.0  # seconds without a result
LOOK = 2.0  # seconds that one pull waits
AT_ONCE = 1000  # messages of one pull


class Topics(NamedTuple):
    """A backlog and where its results go; each topic has a subscription of the same name."""

    images: str
    predictions: str
    dead: str


class PubSubCourse:
    """An emulator of its own; each heat runs on topics of its own."""

    broker = "pubsub"

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._numbers = count()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._emulator = self._stack.enter_context(Emulator())
        channel = self._stack.enter_context(grpc.insecure_channel(self._emulator.host))
        self._publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        self._subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def heat(self, who: Who, records: int) -> float:
        """Let one of them relay a backlog; return its results a second."""
        topics = self._topics()
        self._publish(topics.images, records)
        with closing(_Contestant(self._argv(who, topics), self._environment(), self._log(who))):
            return rate(self._moments(topics.predictions, records))

    def ceilings(self, records: int) -> dict[str, float]:
        """Messages a second of the emulator and the library alone."""
        topics = self._topics()
        start = time.monotonic()
        self._publish(topics.images, records)
        published = time.monotonic() - start
        return {
            "publish alone": records / published,
            "subscribe and ack alone": rate(self._received(topics.images, records)),
        }

    def _topics(self) -> Topics:
        topics = Topics(*(f"{name}-{next(self._numbers)}" for name in Topics._fields))
        for topic in topics:
            self._emulator.create_topic(topic)
            self._emulator.create_subscription(topic, topic, ordering=False)
        return topics

    def _publish(self, topic: str, records: int) -> None:
        path = self._emulator.topic(topic)
        images = [png(28, 28, image.tobytes()) for image in first_images(records)]
        futures = [
            self._publisher.publish(path, image, number=str(number))
            for number, image in enumerate(images)
        ]
        wait(futures, PATIENCE)
        for future in futures:
            future.result(0)

    def _received(self, subscription: str, records: int) -> Sequence[float]:
        """The moments at which the library's callback had each message, and acknowledged it."""
        moments: list[float] = []
        complete = Event()

        def callback(message: Any) -> None:  # noqa: ANN401 - the library's
            message.ack()
            moments.append(time.monotonic())
            if len(moments) >= records:
                complete.set()

        stream = self._subscriber.subscribe(self._emulator.subscription(subscription), callback)
        there = complete.wait(PATIENCE)
        stream.cancel()
        stream.result(PATIENCE)
        if not there:
            raise StackError(f"the emulator delivered {len(moments)} of {records} messages")
        return moments

    def _moments(self, subscription: str, records: int) -> Sequence[float]:
        """When each result was published, by the emulator's own clock, in seconds."""
        path = self._emulator.subscription(subscription)
        moments: dict[str, float] = {}
        last = time.monotonic()
        while len(moments) < records:
            if time.monotonic() - last > PATIENCE:
                raise StackError(f"{len(moments)} of {records} results came; see {self._folder}")
            for message in self._pulled(path):
                moments[message.attributes["number"]] = message.publish_time.timestamp()
                last = time.monotonic()
        return list(moments.values())

    def _pulled(self, path: str) -> list[Any]:
        with suppress(DeadlineExceeded):
            found = self._subscriber.pull(
                subscription=path, max_messages=AT_ONCE, timeout=LOOK
            ).received_messages
            if found:
                ids = [one.ack_id for one in found]
                self._subscriber.acknowledge(subscription=path, ack_ids=ids, timeout=LOOK)
            return [one.message for one in found]
        return []

    def _argv(self, who: Who, topics: Topics) -> list[str]:
        flags = ["--project", self._emulator.project, "--subscription", topics.images]
        flags += ["--output-topic", topics.predictions, "--dead-letter-topic", topics.dead]
        return [sys.executable, "-m", *PROGRAMS[who], *flags, "--url", self._url]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._emulator.environment}

    def _log(self, who: Who) -> Path:
        return self._folder / f"{who}.log"


class _Contestant:
    def __init__(self, argv: Sequence[str], env: dict[str, str], log: Path) -> None:
        self._process = Process(argv, log, env, ROOT).start()

    def close(self) -> None:
        self._process.stop()
