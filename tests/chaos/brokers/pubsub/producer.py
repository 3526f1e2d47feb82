"""The way into a topic of Pub/Sub: the numbered records of `tests.chaos.load` as messages."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.cloud.pubsub_v1 import PublisherClient
from google.cloud.pubsub_v1.types import PublisherOptions
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tests.chaos.load import Input
    from tools.servers.pubsub import Emulation

_NUMBER = re.compile(rb"<number (\d+)>")


def add_numbers(load: Iterable[Input]) -> Iterator[Input]:
    """Yield each record with its number behind the image, where no decoder looks."""
    for record in load:
        yield record._replace(value=record.value + b"<number %b>" % record.key)


def find_numbers(body: bytes) -> list[int]:
    """Return the numbers of the records in a request."""
    return [int(number) for number in _NUMBER.findall(body)]


def expect_answer(value: bytes, classes: Mapping[bytes, int]) -> int | None:
    """Return what a record must become; `classes`: what the model says of each picture."""
    found = (answer for picture, answer in classes.items() if value.startswith(picture))
    return next(found, None)


def ordering_key(record: Input, keys: int) -> str:
    """Return the ordering key of a record."""
    return f"key-{record.partition}" if keys else ""


class TopicProducer:
    """A `Producer`. `on_taken` is called with each message that was taken, and its id."""

    def __init__(
        self, emulator: Emulation, topic: str, keys: int, on_taken: Callable[[Input, str], None]
    ) -> None:
        self._channel = grpc.insecure_channel(emulator.host)
        self._publisher = PublisherClient(
            publisher_options=PublisherOptions(enable_message_ordering=bool(keys)),
            transport=PublisherGrpcTransport(channel=self._channel),
        )
        self._topic = emulator.topic(topic)
        self._keys = keys
        self._on_taken = on_taken

    def send(self, record: Input, on_error: Callable[[Exception], Any]) -> None:
        """See `Producer.send`."""
        attributes = {name: value.decode() for name, value in record.headers}
        future: Any = self._publisher.publish(
            self._topic, record.value, ordering_key(record, self._keys), **attributes
        )
        future.add_done_callback(partial(self._finish, record, on_error))

    def _finish(self, record: Input, on_error: Callable[[Exception], Any], future: Any) -> None:  # noqa: ANN401 - the library's
        if error := future.exception():
            on_error(error)
        else:
            self._on_taken(record, future.result())

    def flush(self) -> None:
        """See `Producer.flush`."""
        self._publisher.stop()

    def close(self) -> None:
        """See `Producer.close`."""
        self._channel.close()
