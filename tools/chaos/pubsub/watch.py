"""The witness: reads results and dead letters while they come."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.cloud.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from tools.chaos.ledger import Fate, Pulse
from tools.chaos.pubsub.ledger import RepeatLedger, source
from tools.chaos.pubsub.load import due

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tools.chaos.load import Input
    from tools.chaos.watch import Topics
    from tools.stack_pubsub import Emulation

    Said = Callable[[Any], Fate]

PATIENCE = 10.0  # seconds


def result(found: Any) -> Fate:  # noqa: ANN401 - a Message of the library
    """What a result says, and whose it is, by its own words."""
    said = json.loads(found.data)
    return Fate(said["id"].encode(), said["class"])


def dead_letter(found: Any) -> Fate:  # noqa: ANN401
    """Whose dead letter it is, by its attributes."""
    attributes = found.attributes
    return Fate(attributes["connector.id"].encode(), None)


def lane(found: Any, keys: int) -> int:  # noqa: ANN401
    """The number of the ordering key that an outcome came with; -1 if there should be none."""
    if not keys:
        return -1 if found.ordering_key else int(found.attributes["number"])
    return int(found.ordering_key.removeprefix("key-") or -1)


class PubSubWatch:
    """Fills a ledger from the threads of two subscriptions, which are there before the load.

    What a subscription delivers twice is one outcome: the service knows its messages by id.
    """

    def __init__(
        self, emulator: Emulation, topics: Topics, keys: int, classes: Mapping[bytes, int]
    ) -> None:
        self.ledger = RepeatLedger()
        self.pulse = Pulse(time.monotonic())
        self._emulator = emulator
        self._topics = topics
        self._keys = keys
        self._classes = classes
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._channel = grpc.insecure_channel(emulator.host)
        self._subscriber = SubscriberClient(
            transport=SubscriberGrpcTransport(channel=self._channel)
        )
        self._streams: list[Any] = []

    def start(self) -> None:
        """Begin."""
        readers = {self._topics.predictions: result, self._topics.dead: dead_letter}
        for subscription, said in readers.items():
            path = self._emulator.subscription(subscription)
            stream = self._subscriber.subscribe(path, partial(self._leave, said))
            self._streams.append(stream)

    def check(self) -> None:
        """Raise what ended a stream, or what was wrong with an outcome."""
        if self._error:
            raise self._error
        for stream in self._streams:
            if stream.done():
                stream.result()

    def close(self) -> None:
        """Stop reading."""
        for stream in self._streams:
            stream.cancel()
            stream.result(PATIENCE)
        self._channel.close()

    def enter(self, record: Input, message: str) -> None:
        """A message went in, with this id."""
        identity = f"{self._topics.images}/{message}".encode()
        fate = Fate(identity, due(record.value, self._classes))
        with self._lock:
            if self.ledger.open <= 0:
                self.pulse.beat(time.monotonic())
            self.ledger.enter(source(int(record.key), self._keys), fate)

    def _leave(self, said: Said, found: Any) -> None:  # noqa: ANN401
        try:
            with self._lock:
                self._note(said, found)
        except (KeyError, ValueError) as error:
            self._error = error
        found.ack()

    def _note(self, said: Said, found: Any) -> None:  # noqa: ANN401
        if found.message_id in self._seen:
            return
        self._seen.add(found.message_id)
        number = int(found.attributes["number"])
        self.ledger.leave(source(number, self._keys), said(found), lane(found, self._keys))
        self.pulse.beat(time.monotonic())
