"""Known bugs of a relay on Kafka, for the controls: each replaces one part of the product.

Each is replaced where the product looks it up, so a part that has moved is a PatchError.
"""

# ruff: noqa: ANN401 - to break the product one has to reach into its untyped inside

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.structs import ConsumerGroupMetadata

from connectors.brokers.kafka import broker, clients, consumer, producer
from connectors.errors import Rewound
from tests.chaos.patching import replace_attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    FindMetadata = Callable[[Any], Any]


class SourceWithMetadata:
    """A GroupConsumer that answers otherwise when it is asked for its group metadata."""

    def __init__(self, source: Any, find_metadata: FindMetadata) -> None:
        self._source = source
        self._find_metadata = find_metadata

    @property
    def group_metadata(self) -> Any:
        """What the transaction names the group by."""
        return self._find_metadata(self._source._consumer)

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)


def _replace_metadata(find_metadata: FindMetadata) -> None:
    def make(original: Any) -> Any:
        def deliver(self: Any, pending_messages: Sequence[Any], source: Any) -> None:
            original(self, pending_messages, SourceWithMetadata(source, find_metadata))

        return deliver

    replace_attribute(producer.ExactlyOnce, "deliver", make)


def use_late_generation() -> None:
    """The group's generation is that of the commit; that of the read is not remembered."""
    replace_attribute(consumer.GroupConsumer, "_is_current", lambda _: lambda _: True)
    _replace_metadata(lambda client: client.group_metadata())


def use_no_generation() -> None:
    """The transaction names the group, and not the generation."""
    _replace_metadata(lambda client: ConsumerGroupMetadata(client.group_metadata().group_id))


def commit_offsets_first() -> None:
    """Offsets are committed as soon as records are read, and results later, without them."""

    def make(original: Any) -> Any:
        def poll(self: Any, limit: int, timeout: float) -> Any:
            found = original(self, limit, timeout)
            offsets = {
                TopicPartition(one.topic, one.partition): OffsetAndMetadata(one.offset + 1, "", -1)
                for one in found
            }
            if offsets:
                self._consumer.commit(offsets)
            return found

        return poll

    replace_attribute(consumer.GroupConsumer, "poll", make)
    replace_attribute(
        producer.BoundedProducer, "send_offsets_to_transaction", lambda _: lambda *_: None
    )


def send_dead_letters_outside() -> None:
    """Dead letters are published at once, by a producer without transactions."""

    def make(original: Any) -> Any:
        def send(self: Any, pending_messages: Sequence[Any]) -> Any:
            dead = self._settings.dead_letter_topic
            dead_letters = [
                one for one in pending_messages if one.message and one.message.topic == dead
            ]
            if not hasattr(self, "plain"):
                self.plain = KafkaProducer(bootstrap_servers=self._settings.bootstrap_servers)
            for dead_letter in dead_letters:
                self.plain.send(**dead_letter.message._asdict())
            self.plain.flush(timeout=10)
            return original(self, [one for one in pending_messages if one not in dead_letters])

        return send

    replace_attribute(producer.ExactlyOnce, "_send", make)


def ignore_abort() -> None:
    """After a commit that failed it goes on, as if it had succeeded."""

    def make(original: Any) -> Any:
        def commit(self: Any, settled: Sequence[Any]) -> None:
            group_metadata = self._source.group_metadata
            try:
                original(self, settled)
            except Rewound:
                self._source.group_metadata = group_metadata

        return commit

    replace_attribute(broker.KafkaBroker, "commit", make)


def ignore_cut_off() -> None:
    """What a broken connection cut off, and the library sent again, is not noticed."""
    replace_attribute(clients.CountingNetClient, "_count", lambda _: lambda *_: None)


def believe_offsets() -> None:
    """What the coordinator says is true, even when it knew better before."""
    replace_attribute(consumer.GroupConsumer, "verify_offsets", lambda _: lambda *_: None)


def take_one_acknowledgement() -> None:
    """A result counts when the leader has it, though nobody else may; with at-least-once alone."""

    def make(original: Any) -> Any:
        return lambda settings: original(settings) | {"acks": 1}

    replace_attribute(producer, "producer_arguments", make)


BUGS: Mapping[str, Callable[[], None]] = {
    "late-generation": use_late_generation,
    "no-generation": use_no_generation,
    "offsets-first": commit_offsets_first,
    "letters-outside": send_dead_letters_outside,
    "abort-ignored": ignore_abort,
    "cut-off-ignored": ignore_cut_off,
    "offsets-believed": believe_offsets,
    "one-acknowledgement": take_one_acknowledgement,
}
