"""Known bugs of a relay on Pub/Sub, for the controls: each replaces one part of the product.

Each is replaced where the product looks it up, so a part that has moved is a PatchError.
"""

# ruff: noqa: ANN401 - to break the product one has to reach into its untyped inside

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from google.cloud.pubsub_v1.subscriber._protocol.leaser import Leaser

from connectors.brokers.pubsub import broker, messages
from tests.chaos.patching import replace_attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def _act_on_each_record(act: Callable[[Any], None]) -> None:
    def make(original: Any) -> Any:
        def poll(self: Any, limit: int, timeout: float) -> Sequence[Any]:
            records: Sequence[Any] = original(self, limit, timeout)
            for record in records:
                act(record.position)
            return records

        return poll

    replace_attribute(broker.PubSubBroker, "poll", make)


def acknowledge_first() -> None:
    """A message is acknowledged as soon as it is read, and its result published later."""
    _act_on_each_record(lambda message: message.ack())


def give_back() -> None:
    """A message is given back as soon as it is read, and answered all the same."""
    _act_on_each_record(lambda message: message.nack())


def let_leases_lapse() -> None:
    """Nothing extends the leases of what is held."""
    replace_attribute(Leaser, "maintain_leases", lambda _: lambda self: self._stop_event.wait())


def use_new_ids() -> None:
    """A message gets another id each time that it comes."""

    def make(original: Any) -> Any:
        def make_record(subscription: str, message: Any) -> Any:
            return original(f"{subscription}/{uuid4()}", message)

        return make_record

    replace_attribute(broker, "make_record", make)


def drop_keys() -> None:
    """Results and dead letters are published without their ordering keys."""

    def make(original: Any) -> Any:
        def build(self: Any, *of_what: Any) -> Any:
            return original(self, *of_what)._replace(key="")

        return build

    replace_attribute(messages.MessageBuilder, "_build", make)


BUGS: Mapping[str, Callable[[], None]] = {
    "acknowledged-first": acknowledge_first,
    "given-back": give_back,
    "leases-lapse": let_leases_lapse,
    "new-ids": use_new_ids,
    "keys-dropped": drop_keys,
}
