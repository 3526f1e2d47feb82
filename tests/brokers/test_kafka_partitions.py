"""Partitions that a topic gets while an operator's command reads it; without Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kafka import TopicPartition
from kafka.consumer.subscription_state import SubscriptionState

from connectors.brokers.kafka.admin import EndOffsets
from connectors.brokers.kafka.consumer import Position
from connectors.brokers.kafka.endpoints import TopicReader
from connectors.brokers.kafka.settings import ListenKafka
from connectors.records import Record

if TYPE_CHECKING:
    from collections.abc import Sequence


class GrowingConsumer:
    """A consumer of kafka-python, with the library's own book of positions; nothing comes."""

    def __init__(self, topic: str, partitions: int) -> None:
        self.topic, self.partitions = topic, partitions
        self.state = SubscriptionState()
        self.assign([TopicPartition(topic, number) for number in range(partitions)])

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.state.assign_from_user(partitions)

    def assignment(self) -> set[TopicPartition]:
        return set(self.state.assigned_partitions())

    def partitions_for_topic(self, topic: str) -> set[int]:
        assert topic == self.topic
        return set(range(self.partitions))

    def poll(self, _: int) -> dict[TopicPartition, list[object]]:
        return {}

    def end_offsets(self, places: Sequence[TopicPartition], **_: object) -> dict[object, int]:
        return dict.fromkeys(places, 5)


def reader_of(consumer: GrowingConsumer) -> TopicReader:
    reader = TopicReader.__new__(TopicReader)
    reader._consumer = consumer
    reader._topic = consumer.topic
    reader._settings = ListenKafka(output_topic=consumer.topic)
    return reader


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 7), (3, 4), (2, 64)])
def test_a_reader_sees_partitions_that_are_added_while_it_reads(before: int, after: int) -> None:
    consumer = GrowingConsumer("predictions", before)
    reader = reader_of(consumer)
    for number in range(before):
        consumer.state.seek(TopicPartition("predictions", number), 40 + number)
    reader.read(0)
    consumer.partitions = after
    reader.read(0)

    assert {one.partition for one in consumer.assignment()} == set(range(after))
    places = consumer.state.assignment
    for number in range(before):  # the others go on where they are
        assert places[TopicPartition("predictions", number)].position.offset == 40 + number
    assert all(
        places[TopicPartition("predictions", n)].position is None for n in range(before, after)
    )


@pytest.mark.parametrize("partition", [2, 3, 63])
def test_a_dead_letter_in_a_partition_that_was_added_meanwhile_came_later(partition: int) -> None:
    ends = EndOffsets(GrowingConsumer("images.dead", 2), "images.dead", 2)
    there, later, elsewhere = (
        Record("x", b"", None, (), 0, "lane", Position("images.dead", number, offset, -1))
        for number, offset in ((1, 4), (1, 5), (partition, 0))
    )
    assert ends.within([there, later, elsewhere]) == [there]
