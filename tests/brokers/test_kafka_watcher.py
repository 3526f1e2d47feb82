"""How `watch` finds source records by ids that strangers may have chosen; no server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kafka.errors import KafkaConnectionError, OffsetOutOfRangeError

from connectors.brokers.kafka import watcher
from connectors.brokers.kafka.settings import WatchKafka
from connectors.brokers.kafka.watcher import KafkaWatcher, SourceReader
from connectors.errors import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka import TopicPartition

SETTINGS = WatchKafka(input_topic="images", output_topic="out")


class HeldRecords:
    """A consumer of one topic; hands out the first record at or behind the place it is put to."""

    def __init__(self, records: Mapping[tuple[int, int], bytes]) -> None:
        self.records = records
        self.asked: list[tuple[int, int]] = []

    def assign(self, partitions: list[TopicPartition]) -> None:
        [self.partition] = partitions

    def seek(self, partition: TopicPartition, offset: int) -> None:
        assert partition == self.partition
        self.offset = offset

    def poll(self, _: int) -> dict[TopicPartition, list[Any]]:
        number = self.partition.partition
        self.asked.append((number, self.offset))
        left = sorted(at for at in self.records if at[0] == number and at[1] >= self.offset)
        if not left:
            raise OffsetOutOfRangeError
        found = SimpleNamespace(offset=left[0][1], value=self.records[left[0]])
        return {self.partition: [found]}


def open_reader(
    monkeypatch: pytest.MonkeyPatch, records: Mapping[tuple[int, int], bytes]
) -> tuple[SourceReader, HeldRecords]:
    held = HeldRecords(records)
    monkeypatch.setattr(watcher, "open_client", lambda *_: (held, None))
    return SourceReader(SETTINGS), held


def test_a_record_is_found_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, _ = open_reader(monkeypatch, {(0, 7): b"seven", (1, 9): b"nine"})
    found = dict(reader.find(["images/1/9", "images/0/7"], 2))
    assert found == {"images/1/9": b"nine", "images/0/7": b"seven"}


def test_a_record_that_is_gone_is_not_replaced_by_its_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, held = open_reader(monkeypatch, {(0, 7): b"seven"})
    assert dict(reader.find(["images/0/3", "images/0/8", "images/0/7"], 1)) == {
        "images/0/7": b"seven"
    }
    assert held.asked == [(0, 3), (0, 8), (0, 7)]


@pytest.mark.parametrize(
    "forged",
    [
        *("", "images/0", "secrets/0/7", "images/2/7", "images/-1/7", "images/0/7/0"),
        *("images/0/0x7", "images/0/7\n", "images/0/\N{ARABIC-INDIC DIGIT SEVEN}"),
        "images/0/" + "9" * 99,
    ],
)
def test_an_id_that_cannot_be_is_never_asked_for(
    forged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, held = open_reader(monkeypatch, {(0, 7): b"seven"})
    assert dict(reader.find([forged], 2)) == {}
    assert held.asked == []


def test_what_does_not_come_in_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, held = open_reader(monkeypatch, {(0, 7): b"seven"})
    monkeypatch.setattr(watcher, "FETCH_TIMEOUT", 0)
    assert dict(reader.find(["images/0/7"], 1)) == {}
    assert held.asked == []


@pytest.mark.parametrize("name", ["group_id", "enable_auto_commit"])
def test_no_table_makes_it_a_member_of_a_group(name: str) -> None:
    settings = SETTINGS.model_copy(update={"kafka": {name: "mine"}})
    with pytest.raises(Stop, match=f"sets {name}, which this program must decide") as stop:
        SourceReader(settings)
    assert stop.value.code == Exit.USAGE


def test_a_broker_that_is_away_is_trouble_until_it_answers_the_same_question() -> None:
    page = KafkaWatcher.__new__(KafkaWatcher)
    page._settings, page._troubles = SETTINGS, {}
    with page._asking("measure"):
        raise KafkaConnectionError("gone")
    with page._asking("read"):
        pass
    assert page.trouble().startswith("Kafka does not answer (KafkaConnectionError: ")
    with page._asking("measure"):
        pass
    assert page.trouble() == ""
