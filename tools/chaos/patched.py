"""A relay with one known bug, for the controls: `python -m tools.chaos.patched BUG kafka …`.

The product has no such switch: one part of it is replaced here before it starts.
"""
# ruff: noqa: SLF001, ANN401 - to break the product one has to reach into its untyped inside

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.structs import ConsumerGroupMetadata

from connectors import __main__ as program
from connectors.brokers import kafka as product
from connectors.brokers import kafka_clients as clients
from connectors.errors import Rewound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Ask = Callable[[Any], Any]

broken = cast("Any", product)


class Member:
    """A source that answers otherwise when it is asked for its membership."""

    def __init__(self, source: Any, ask: Ask) -> None:
        self._source = source
        self._ask = ask

    @property
    def membership(self) -> Any:
        """What the transaction is told about the group."""
        return self._ask(self._source._consumer)

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)


def _with_membership(ask: Ask) -> None:
    deliver = broken._ExactlyOnce.deliver

    def delivered(self: Any, parcels: Sequence[Any], source: Any) -> None:
        deliver(self, parcels, Member(source, ask))

    broken._ExactlyOnce.deliver = delivered


def late_generation() -> None:
    """The group's generation is that of the commit; that of the read is not remembered."""
    broken._Source._is_current = lambda _: True
    _with_membership(lambda consumer: consumer.group_metadata())


def no_generation() -> None:
    """The transaction names the group, and not the generation."""
    _with_membership(lambda consumer: ConsumerGroupMetadata(consumer.group_metadata().group_id))


def offsets_first() -> None:
    """Offsets are committed as soon as records are read, and results later, without them."""
    poll = broken._Source.poll

    def polled(self: Any, limit: int, timeout: float) -> Any:
        found = poll(self, limit, timeout)
        offsets = {
            TopicPartition(one.topic, one.partition): OffsetAndMetadata(one.offset + 1, "", -1)
            for one in found
        }
        if offsets:
            self._consumer.commit(offsets)
        return found

    broken._Source.poll = polled
    cast("Any", KafkaProducer).send_offsets_to_transaction = lambda *_: None


def letters_outside() -> None:
    """Dead letters are published at once, by a producer without transactions."""
    send = broken._ExactlyOnce._send

    def sent(self: Any, parcels: Sequence[Any]) -> Any:
        dead = self._settings.dead_letter_topic
        letters = [one for one in parcels if one.message and one.message.topic == dead]
        if not hasattr(self, "plain"):
            self.plain = KafkaProducer(bootstrap_servers=self._settings.bootstrap_servers)
        for letter in letters:
            self.plain.send(**letter.message._asdict())
        self.plain.flush(timeout=10)
        return send(self, [one for one in parcels if one not in letters])

    broken._ExactlyOnce._send = sent


def abort_ignored() -> None:
    """After a commit that failed it goes on, as if it had succeeded."""
    commit = broken.KafkaBroker.commit

    def committed(self: Any, settled: Sequence[Any]) -> None:
        membership = self._source.membership
        try:
            commit(self, settled)
        except Rewound:
            self._source.membership = membership

    broken.KafkaBroker.commit = committed


def cut_off_ignored() -> None:
    """What a broken connection cut off, and the library sent again, is not noticed."""
    cast("Any", clients.Wire)._count = lambda *_: None


def offsets_believed() -> None:
    """What the coordinator says is true, even when it knew better before."""
    broken._Source._believe = lambda *_: None


BUGS: Mapping[str, Callable[[], None]] = {
    "late-generation": late_generation,
    "no-generation": no_generation,
    "offsets-first": offsets_first,
    "letters-outside": letters_outside,
    "abort-ignored": abort_ignored,
    "cut-off-ignored": cut_off_ignored,
    "offsets-believed": offsets_believed,
}


def main(bug: str, *arguments: str) -> int:
    """Patch, then run the connectors as ever; return their exit code."""
    BUGS[bug]()
    return program.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
