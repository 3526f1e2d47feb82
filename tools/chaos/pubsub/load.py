"""The way in: the numbered records of `tools.chaos.load` as messages of one topic."""

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

    from tools.chaos.load import Input
    from tools.stack_pubsub import Emulation

_TAG = re.compile(rb"<number (\d+)>")


def tagged(load: Iterable[Input]) -> Iterator[Input]:
    """Yield each record with its number behind the image, where no decoder looks."""
    for record in load:
        yield record._replace(value=record.value + b"<number %b>" % record.key)


def tags(body: bytes) -> list[int]:
    """Return the numbers of the records in a request."""
    return [int(number) for number in _TAG.findall(body)]


def due(value: bytes, classes: Mapping[bytes, int]) -> int | None:
    """What has to become of it; `classes`: what the model says of each picture."""
    found = (answer for picture, answer in classes.items() if value.startswith(picture))
    return next(found, None)


def key(record: Input, keys: int) -> str:
    """Return the ordering key of a record."""
    return f"key-{record.partition}" if keys else ""


class PubSubOutlet:
    """A topic of Pub/Sub. `entered` hears of each message that was taken, and its id."""

    def __init__(
        self, emulator: Emulation, topic: str, keys: int, entered: Callable[[Input, str], None]
    ) -> None:
        self._channel = grpc.insecure_channel(emulator.host)
        self._publisher = PublisherClient(
            publisher_options=PublisherOptions(enable_message_ordering=bool(keys)),
            transport=PublisherGrpcTransport(channel=self._channel),
        )
        self._topic = emulator.topic(topic)
        self._keys = keys
        self._entered = entered
        self._last: Any = None

    def send(self, record: Input, failed: Callable[[Exception], Any]) -> None:
        """See `Outlet`."""
        attributes = {name: value.decode() for name, value in record.headers}
        self._last = self._publisher.publish(
            self._topic, record.value, key(record, self._keys), **attributes
        )
        self._last.add_done_callback(partial(self._taken, record, failed))

    def _taken(self, record: Input, failed: Callable[[Exception], Any], future: Any) -> None:  # noqa: ANN401 - the library's
        if error := future.exception():
            failed(error)
        else:
            self._entered(record, future.result())

    def flush(self) -> None:
        """See `Outlet`."""
        self._publisher.stop()

    def close(self) -> None:
        """See `Outlet`."""
        self._channel.close()
