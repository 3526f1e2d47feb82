"""What a group is believed to have published, on a consumer in memory."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from kafka import TopicPartition
from kafka import errors as kafka_errors

from connectors.brokers.kafka import published_offsets
from connectors.brokers.kafka.clients import CALL_TIMEOUT
from connectors.brokers.kafka.published_offsets import SOURCE, PublishedOffsets, SourceRecord
from connectors.brokers.kafka.settings import RunKafka

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

INPUT = [TopicPartition("images", 0), TopicPartition("images", 1)]


class Topics:
    """A consumer of kafka-python over topics in memory; `grow`: what the input gets meanwhile."""

    def __init__(self, ends: dict[TopicPartition, int], grow: int = 0) -> None:
        self.records: defaultdict[TopicPartition, list[bytes]] = defaultdict(list)
        self._ends, self._grow = ends, grow
        self._subscription = SimpleNamespace(assignment={})
        self._cluster = SimpleNamespace(request_update=self._learn_leaders)
        self.moved = False  # another broker leads, and the library does not know

    def _learn_leaders(self) -> None:
        self.moved = False

    def partitions_for_topic(self, _: str) -> set[int]:
        return {0, 1}

    def beginning_offsets(self, places: Iterable[TopicPartition], **_: object) -> object:
        if self.moved:
            raise kafka_errors.KafkaTimeoutError("Failed to get offsets by timestamps")
        return dict.fromkeys(places, 0)

    def end_offsets(self, places: Collection[TopicPartition], **_: object) -> object:
        found = {one: self._ends.get(one, self.highwater(one)) for one in places}
        if all(one in self._ends for one in places):
            self._ends = {one: end + self._grow for one, end in self._ends.items()}
        return found

    def highwater(self, place: TopicPartition) -> int:
        return len(self.records[place])

    def assign(self, places: Iterable[TopicPartition]) -> None:
        states = {one: SimpleNamespace(position=SimpleNamespace(offset=0)) for one in places}
        self._subscription.assignment = states

    def seek(self, place: TopicPartition, offset: int) -> None:
        self._subscription.assignment[place].position.offset = offset

    def poll(self, _: int) -> dict[TopicPartition, list[object]]:
        found: dict[TopicPartition, list[object]] = {}
        for place, state in self._subscription.assignment.items():
            start, end = state.position.offset, self.highwater(place)
            found[place] = [
                SimpleNamespace(
                    topic=place.topic,
                    partition=place.partition,
                    offset=offset,
                    headers=[(SOURCE, self.records[place][offset])],
                )
                for offset in range(start, end)
            ]
            state.position.offset = end
        return found


def published(topics: Topics) -> PublishedOffsets:
    settings = RunKafka(input_topic="images", output_topic="predictions", group="ours")
    found = PublishedOffsets(settings, set())
    found._topics, found._consumer = {"predictions"}, topics
    return found


def source(partition: int, offset: int) -> bytes:
    return SourceRecord("images", partition, offset, "ours").encoded()


def test_a_leader_that_is_silent_is_given_up_while_its_successor_can_still_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: dict[str, float] = {}

    def open_client(_: object, __: object, ours: dict[str, float]) -> tuple[None, None]:
        opened.update(ours)
        return None, None

    monkeypatch.setattr(published_offsets, "open_client", open_client)
    settings = RunKafka(input_topic="images", output_topic="predictions", group="ours")
    PublishedOffsets(settings, {"predictions"})
    assert opened["request_timeout_ms"] * 2 <= CALL_TIMEOUT * 1000


def test_who_leads_now_is_learned_before_offsets_are_asked_for() -> None:
    topics = Topics(dict.fromkeys(INPUT, 100))
    topics.records[TopicPartition("predictions", 0)] = [source(0, 7)]
    offsets = published(topics)
    for _ in range(2):
        topics.moved = True
        assert offsets.find_ends(INPUT) == {INPUT[0]: 8}


@pytest.mark.parametrize("forged", [100, 101, 999_999, 10**18, 10**19 - 1])
@pytest.mark.parametrize("copies", [1, 3, 500])
def test_a_source_beyond_the_end_hides_none_that_is_true(
    forged: int, copies: int, caplog: pytest.LogCaptureFixture
) -> None:
    topics = Topics(dict.fromkeys(INPUT, 100))
    place = TopicPartition("predictions", 0)
    topics.records[place] = [source(0, 6), source(0, 7), *[source(0, forged)] * copies]
    offsets = published(topics)
    assert offsets.find_ends(INPUT) == {INPUT[0]: 8}
    assert f"says in connector.source that images/0/{forged} is done" in caplog.text
    assert ("predictions/0/2 says" in caplog.text) == (copies < 10)
    assert len(caplog.records) <= 10
    count = len(caplog.records)
    offsets.find_ends(INPUT)
    assert len(caplog.records) == count  # named once


@pytest.mark.parametrize("elsewhere", [1, 5, 10**9])
def test_a_source_in_the_wrong_partition_is_not_believed(
    elsewhere: int, caplog: pytest.LogCaptureFixture
) -> None:
    topics = Topics(dict.fromkeys(INPUT, 100))
    topics.records[TopicPartition("predictions", 0)] = [source(0, 7), source(elsewhere, 50)]
    assert published(topics).find_ends(INPUT) == {INPUT[0]: 8}
    assert "predictions/0/1 says" in caplog.text


@pytest.mark.parametrize("grow", [1, 10, 1000])
def test_a_record_that_came_while_outcomes_were_read_is_believed(
    grow: int, caplog: pytest.LogCaptureFixture
) -> None:
    topics = Topics(dict.fromkeys(INPUT, 100), grow)
    topics.records[TopicPartition("predictions", 1)] = [source(1, 99 + grow)]
    assert published(topics).find_ends(INPUT) == {INPUT[1]: 100 + grow}
    assert caplog.records == []
