"""The grammar: which verbs there are for which brokers, and where a broker's modules lie.

A broker is a package below `brokers/` whose modules have the same names as its siblings'. It is
made known here by two lines: the import of its settings and its entry in BROKERS. Its settings
must not import its library, which is an extra: all other modules are imported when a command
asks for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .brokers.kafka import settings as kafka
from .brokers.pubsub import settings as pubsub
from .errors import Exit, Stop
from .settings import former_name, setting_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .brokers.publishing import Encode
    from .commands.dlq import DeadLetterReader, ReplayBroker
    from .records import Broker, Check, Publisher, Reader, Watcher
    from .settings import Settings

BROKERS: Mapping[str, Mapping[str, type[Settings]]] = {
    "kafka": kafka.VERBS,
    "pubsub": pubsub.VERBS,
}
"""The settings of each verb, by the broker's name: of its package, and of its extra."""

KINDS: Mapping[tuple[str, str], type[Settings]] = {
    (verb, broker): kind for broker, verbs in BROKERS.items() for verb, kind in verbs.items()
}
"""The settings of each command, by verb and broker."""


def list_settings() -> set[str]:
    """Return the name of every setting of every command, former names included."""

    def names() -> Iterator[str]:
        for kind in KINDS.values():
            for name, field in kind.model_fields.items():
                yield setting_name(name, field)
                if former := former_name(field):
                    yield former

    return set(names())


def open_broker(broker: str, settings: Settings, encode: Encode) -> Broker:
    """Open the daemon's way in and out."""
    opened: Broker = _import(broker, "broker").open_broker(settings, encode)
    return opened


def open_publisher(broker: str, settings: Settings) -> Publisher:
    """Open the way of `send` into the input topic."""
    opened: Publisher = _import(broker, "endpoints").open_publisher(settings)
    return opened


def open_reader(broker: str, settings: Settings) -> Reader:
    """Open the way of `listen` out of the output topic."""
    opened: Reader = _import(broker, "endpoints").open_reader(settings)
    return opened


def open_watcher(broker: str, settings: Settings) -> Watcher:
    """Open the look of `watch` at topics and group."""
    opened: Watcher = _import(broker, "watcher").open_watcher(settings)
    return opened


def open_dead_letters(broker: str, settings: Settings) -> DeadLetterReader:
    """Open the dead letters that are there now, to be looked at."""
    opened: DeadLetterReader = _import(broker, "admin").open_dead_letters(settings)
    return opened


def open_replay(broker: str, settings: Settings, encode: Encode) -> ReplayBroker:
    """Open the way of the dead letters back to the input topic."""
    opened: ReplayBroker = _import(broker, "admin").open_replay(settings, encode)
    return opened


def list_checks(broker: str, settings: Settings, *, thorough: bool) -> list[Check]:
    """Return what to ask of the broker; thorough: also what is worth knowing besides."""
    admin = _import(broker, "admin")
    checks: list[Check] = (admin.list_all_checks if thorough else admin.list_checks)(settings)
    return checks


def _import(broker: str, module: str) -> Any:  # noqa: ANN401 - a module, with the functions above
    """Import a module of a broker; raises Stop(69) when the broker's library is not installed."""
    try:
        return import_module(f".brokers.{broker}.{module}", __package__)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(str(__package__)):
            raise
        raise Stop(
            f"{error.name} is not installed, which {broker} needs: install this project with its "
            f"extra, in its checkout: pip install '.[{broker}]'",
            Exit.UNAVAILABLE,
        ) from error
