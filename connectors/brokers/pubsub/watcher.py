"""What `watch` sees of Pub/Sub: the predictions from now on, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...records import Sighting
from . import admin
from .endpoints import TopicReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...records import Watcher
    from .settings import WatchPubSub


class ResultWatcher:
    """Reads the predictions; a message cannot be found by its id, so they have no images."""

    def __init__(self, reader: TopicReader) -> None:
        self._reader = reader

    def read(self, timeout: float) -> Sequence[Sighting]:
        """See `Watcher.read`."""
        return [Sighting(record) for record in self._reader.read(timeout)]

    def measure(self) -> None:
        """See `Watcher.measure`."""

    def fetch(self, _: Sequence[str]) -> Mapping[str, bytes]:
        """See `Watcher.fetch`."""
        return {}

    def trouble(self) -> str:
        """See `Watcher.trouble`; the library mends its connections itself."""
        return ""

    def close(self) -> None:
        """See `Watcher.close`."""
        self._reader.close()


def open_watcher(settings: WatchPubSub) -> Watcher:
    """The way of `watch` out of the output topic."""
    admin.create_if_asked(settings)
    return ResultWatcher(TopicReader(settings, settings.output_topic))
