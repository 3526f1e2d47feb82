"""Pub/Sub's observer: reads results and dead letters while they come."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.cloud.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from tests.chaos.brokers.pubsub.operation_log import RepeatedOperationLog, make_source
from tests.chaos.brokers.pubsub.producer import expect_answer
from tests.chaos.observer import Observer, Topics
from tests.chaos.operation_log import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.chaos.load import Input
    from tools.servers.pubsub import Emulation

    Parse = Callable[[Any], Outcome]

CLOSE_TIMEOUT_S = 10.0
NO_KEY = -1


def parse_result(found: Any) -> Outcome:  # noqa: ANN401 - a Message of the library
    """Return what a result says, and whose it is, by its own words."""
    body = json.loads(found.data)
    return Outcome(body["id"].encode(), body["class"])


def parse_dead_letter(found: Any) -> Outcome:  # noqa: ANN401
    """Return whose dead letter it is, by its attributes."""
    attributes = found.attributes
    return Outcome(attributes["connector.id"].encode(), None)


def parse_lane(found: Any, keys: int) -> int:  # noqa: ANN401
    """Return the number of an outcome's ordering key; NO_KEY if there should be none."""
    if not keys:
        return NO_KEY if found.ordering_key else int(found.attributes["number"])
    return int(found.ordering_key.removeprefix("key-") or NO_KEY)


class PubSubObserver(Observer):
    """Fills an operation log from the threads of two subscriptions, made before the load.

    What a subscription delivers twice is one outcome: the service knows its messages by id.
    """

    log: RepeatedOperationLog

    def __init__(
        self, emulator: Emulation, topics: Topics, keys: int, classes: Mapping[bytes, int]
    ) -> None:
        super().__init__(RepeatedOperationLog())
        self._emulator = emulator
        self._topics = topics
        self._keys = keys
        self._classes = classes
        self._message_ids: set[str] = set()
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(emulator.host)
        self._subscriber = SubscriberClient(
            transport=SubscriberGrpcTransport(channel=self._channel)
        )
        self._streams: list[Any] = []

    def start(self) -> None:
        """See `Observer.start`."""
        parsers = {self._topics.predictions: parse_result, self._topics.dead: parse_dead_letter}
        for subscription, parse in parsers.items():
            path = self._emulator.subscription(subscription)
            stream = self._subscriber.subscribe(path, partial(self._receive, parse))
            self._streams.append(stream)

    def check(self) -> None:
        """Raise what ended a stream, or what was wrong with an outcome."""
        super().check()
        for stream in self._streams:
            if stream.done():
                stream.result()

    def close(self) -> None:
        """See `Observer.close`."""
        for stream in self._streams:
            stream.cancel()
            stream.result(CLOSE_TIMEOUT_S)
        self._channel.close()

    def note_input(self, record: Input, message_id: str) -> None:
        """Note a message that went in, with its id."""
        identity = f"{self._topics.images}/{message_id}".encode()
        expected = Outcome(identity, expect_answer(record.value, self._classes))
        with self._lock:
            if self.log.missing <= 0:
                self.timer.note_progress(time.monotonic())
            self.log.note_input(make_source(int(record.key), self._keys), expected)

    def _receive(self, parse: Parse, found: Any) -> None:  # noqa: ANN401
        try:
            with self._lock:
                self._note_outcome(parse, found)
        except (KeyError, ValueError) as error:
            self._error = error
        found.ack()

    def _note_outcome(self, parse: Parse, found: Any) -> None:  # noqa: ANN401
        if found.message_id in self._message_ids:
            return
        self._message_ids.add(found.message_id)
        source = make_source(int(found.attributes["number"]), self._keys)
        self.log.note_outcome(source, parse(found), parse_lane(found, self._keys))
        self.timer.note_progress(time.monotonic())
