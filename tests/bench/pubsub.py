"""The benchmark on Pub/Sub: Google's emulator, backlogs of test images, and its own ceilings."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import wait
from contextlib import ExitStack, suppress
from itertools import count
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc
from google.api_core.exceptions import DeadlineExceeded
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from tests.bench.figures import compute_rate
from tests.bench.pictures import encode
from tools.exported import first_images
from tools.servers.process import ROOT, Process, StackError
from tools.servers.pubsub import Emulator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.bench.benchmark import Who

PROGRAMS: dict[Who, tuple[str, ...]] = {
    "ours": ("connectors", "pubsub"),
    "plain": ("tests.bench.plain_pubsub",),
}
RESULT_TIMEOUT_S = 120.0  # without a result
PULL_TIMEOUT_S = 2.0
PULL_MESSAGES = 1000


class RunTopics(NamedTuple):
    """A backlog and where its results go; each topic has a subscription of the same name."""

    images: str
    predictions: str
    dead: str


class PubSubBenchmark:
    """A `Benchmark` with an emulator of its own; each run has topics of its own."""

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

    def run(self, who: Who, records: int) -> float:
        """See `Benchmark.run`."""
        topics = self._create_topics()
        self._publish(topics.images, records)
        log, environment = self._folder / f"{who}.log", {**os.environ, **self._emulator.environment}
        with ExitStack() as stack:
            process = Process(self._argv(who, topics), log, environment, ROOT).start()
            stack.callback(process.stop)
            return compute_rate(self._collect_moments(topics.predictions, records))

    def measure_ceilings(self, records: int) -> dict[str, float]:
        """See `Benchmark.measure_ceilings`."""
        topics = self._create_topics()
        start = time.monotonic()
        self._publish(topics.images, records)
        published = time.monotonic() - start
        return {
            "publish alone": records / published,
            "subscribe and ack alone": compute_rate(self._receive_all(topics.images, records)),
        }

    def _create_topics(self) -> RunTopics:
        topics = RunTopics(*(f"{name}-{next(self._numbers)}" for name in RunTopics._fields))
        for topic in topics:
            self._emulator.create_topic(topic)
            self._emulator.create_subscription(topic, topic, ordering=False)
        return topics

    def _publish(self, topic: str, records: int) -> None:
        path = self._emulator.topic(topic)
        images = [encode(image) for image in first_images(records)]
        futures = [
            self._publisher.publish(path, image, number=str(number))
            for number, image in enumerate(images)
        ]
        wait(futures, RESULT_TIMEOUT_S)
        for future in futures:
            future.result(0)

    def _receive_all(self, subscription: str, records: int) -> Sequence[float]:
        """Return the moments at which the library's callback acknowledged each message."""
        moments: list[float] = []
        complete = Event()

        def callback(message: Any) -> None:  # noqa: ANN401 - the library's
            message.ack()
            moments.append(time.monotonic())
            if len(moments) >= records:
                complete.set()

        stream = self._subscriber.subscribe(self._emulator.subscription(subscription), callback)
        there = complete.wait(RESULT_TIMEOUT_S)
        stream.cancel()
        stream.result(RESULT_TIMEOUT_S)
        if not there:
            raise StackError(f"the emulator delivered {len(moments)} of {records} messages")
        return moments

    def _collect_moments(self, subscription: str, records: int) -> Sequence[float]:
        """Return when each result was published, by the emulator's own clock, in seconds."""
        path = self._emulator.subscription(subscription)
        moments: dict[str, float] = {}
        last = time.monotonic()
        while len(moments) < records:
            if time.monotonic() - last > RESULT_TIMEOUT_S:
                raise StackError(f"{len(moments)} of {records} results came; see {self._folder}")
            for message in self._pull(path):
                moments[message.attributes["number"]] = message.publish_time.timestamp()
                last = time.monotonic()
        return list(moments.values())

    def _pull(self, path: str) -> list[Any]:
        with suppress(DeadlineExceeded):
            found = self._subscriber.pull(
                subscription=path, max_messages=PULL_MESSAGES, timeout=PULL_TIMEOUT_S
            ).received_messages
            if found:
                ids = [one.ack_id for one in found]
                self._subscriber.acknowledge(subscription=path, ack_ids=ids, timeout=PULL_TIMEOUT_S)
            return [one.message for one in found]
        return []

    def _argv(self, who: Who, topics: RunTopics) -> list[str]:
        flags = ["--project", self._emulator.project, "--subscription", topics.images]
        flags += ["--output-topic", topics.predictions, "--dead-letter-topic", topics.dead]
        return [sys.executable, "-m", *PROGRAMS[who], *flags, "--url", self._url]
