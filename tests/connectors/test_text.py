"""What strangers write: no record and no answer ends a command or commands a terminal."""

from __future__ import annotations

import io
import json
import logging
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.errors import CorruptRecordError
from rich.console import Console

from connectors import __main__ as program
from connectors import registry
from connectors.brokers.kafka.endpoints import TopicReader
from connectors.brokers.kafka.settings import ListenKafka
from connectors.commands.doctor import Finding, render_findings
from connectors.commands.listen import LiveTable, to_dict
from connectors.errors import Exit, Stop
from connectors.inference.torchserve import interpret_reply
from connectors.logs import JsonFormatter, TextFormatter
from connectors.metrics import _probe_page
from connectors.records import Busy, Failed, Record
from connectors.text import parse_count, parse_json, render_time
from tests.connectors.test_clients import Feed
from tests.connectors.test_deadletters import DeadLetterShelf

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS = [
    *(f"connector.{name}" for name in ("status", "attempts", "reason", "detail", "id", "nulls")),
    *("connector.replay", "connector.value-bytes", "connector.source", "connector.left-out"),
    *(f"__connect.errors.{name}" for name in ("topic", "partition", "offset")),
    *("label", "name", "content-type"),
]
STRANGE_BYTES = [
    b"9" * 5_000,
    "\N{SUPERSCRIPT TWO}".encode(),
    b"-1",
    b"\x1b]0;pwned\x07\x1b[2J",
    b"\xff\xfe",
    b"value,headers[0]",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{NEXT LINE}\N{LINE SEPARATOR}".encode(),
]
STRANGE_VALUES = [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5_000,
    b"NaN",
    b'{"score": NaN}',
    b'{"score": 1e999, "time": -1e400}',
    b'{"time": ' + b"9" * 4_000 + b"}",
    b'{"time": -9223372036854775808, "label": "\\ud800", "class": "\\ud800"}',
    b'{"label": "\\u001b[2J", "class": {"a": []}, "score": 1e308}',
    b"{" + b'"a":{' * 500 + b"}" * 500 + b"}",
    b"\xef\xbb\xbf{}",
]
CONTENT = st.one_of(st.none(), st.binary(max_size=40), st.sampled_from(STRANGE_BYTES))
HEADER = st.tuples(st.one_of(st.sampled_from(OURS), st.text(max_size=8)), CONTENT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
RESULT = st.dictionaries(st.sampled_from(["class", "label", "score", "time", "top"]), JSON)
DOCUMENT = RESULT.map(lambda result: json.dumps(result).encode())
VALUE = st.one_of(CONTENT, st.sampled_from(STRANGE_VALUES), DOCUMENT)
RECORD = st.builds(
    Record,
    st.just("topic/0/7"),
    VALUE,
    CONTENT,
    st.lists(HEADER, max_size=6).map(tuple),
    st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.just(-1)),
    st.just("topic/0"),
    st.just(7),
)
TOPICS = {
    "kafka": ["--input-topic", "images"],
    "pubsub": ["--project", "p-1", "--subscription", "images"],
}
COMMANDS = {
    ("dlq", "list"): [],
    ("dlq", "show"): [],
    ("dlq", "replay"): ["--name", "again"],
    ("listen",): ["--idle-timeout", "0.01"],
}


def read(*headers: tuple[str, bytes | None], value: bytes | None = b"", time: int = 1) -> Record:
    return Record("topic/0/7", value, None, headers, time, "topic/0", 7)


def run(command: Sequence[str], broker: str, record: Record) -> tuple[int, str]:
    """Run a command over one record; give its exit code and all that it wrote."""
    written, shelf = io.StringIO(), DeadLetterShelf(record)
    flags = [*COMMANDS[tuple(command)], *(TOPICS[broker] if command != ("listen",) else [])]
    if command == ("listen",):
        flags += ["--output-topic", "predictions"]
        flags += ["--project", "p-1"] if broker == "pubsub" else []
    if command == ("dlq", "replay") and broker == "pubsub":
        flags += ["--input-topic", "images"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", written)
        patch.setattr(sys, "stderr", written)
        patch.setattr(logging.getLogger(), "handlers", [])
        patch.setattr(registry, "open_dead_letters", lambda *_: shelf)
        patch.setattr(registry, "open_replay", lambda *_: shelf)
        patch.setattr(registry, "open_reader", lambda *_: Feed([record]))
        return program.main([*command, broker, *flags]), written.getvalue()


def is_plain(written: str) -> bool:
    return all(line.isprintable() for line in written.split("\n"))


@pytest.mark.parametrize("broker", TOPICS)
@pytest.mark.parametrize("command", COMMANDS)
@settings(deadline=None, max_examples=60)
@given(record=RECORD)
@example(record=read(("connector.status", b"9" * 5_000)))
@example(record=read(("connector.attempts", b"8" * 4_301)))
@example(record=read(("connector.reason", b"\x1b]0;pwned\x07"), ("\x1b[2J", b"\x9b2J")))
@example(record=read(time=-(1 << 63)))
@example(record=read(time=(1 << 63) - 1))
@example(record=read(value=b"[" * 100_000))
def test_no_record_of_a_stranger_ends_a_command_or_commands_the_terminal(
    command: Sequence[str], broker: str, record: Record
) -> None:
    code, written = run(command, broker, record)
    assert code == Exit.OK, written
    assert is_plain(written), ascii(written)


@pytest.mark.parametrize("value", STRANGE_VALUES)
def test_a_strange_value_is_no_result_and_its_record_is_counted(value: bytes) -> None:
    table = LiveTable()
    record = read(("label", b"\xff"), value=value)
    table.add(record, 1.0)
    console = Console(file=io.StringIO(), width=400)
    console.print(table.table())
    line = json.dumps(to_dict(record), allow_nan=False)
    assert json.loads(line)["record"] == record.id
    assert table.count == 1


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"503", 503),
        (b"0", 0),
        (b"9" * 18, 10**18 - 1),
        (b"9" * 19, None),
        (b"9" * 5_000, None),
        (b"-1", None),
        (b" 1", None),
        ("\N{SUPERSCRIPT TWO}".encode(), None),
        (b"", None),
        (None, None),
    ],
)
def test_a_number_of_a_stranger_is_read_or_not_known(value: bytes | None, number: object) -> None:
    assert parse_count(value) == number


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (0, "1970-01-01T00:00:00+00:00"),
        (1_700_000_000_000, "2023-11-14T22:13:20+00:00"),
        (-1, "not known"),
        (-(1 << 63), "not known"),
        ((1 << 63) - 1, "not known"),
        (253_402_300_800_000, "not known"),
    ],
)
def test_a_time_of_a_stranger_is_read_or_not_known(time: int, text: str) -> None:
    assert render_time(time) == text


@pytest.mark.parametrize("value", STRANGE_VALUES[:6])
def test_a_document_that_could_not_be_written_again_is_not_known(value: bytes) -> None:
    assert parse_json(value) is None


def test_a_document_of_64_levels_is_read() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64) is not None
    assert parse_json(b"[" * 66 + b"]" * 66) is None


ANSWERS = [
    b"\x1b]0;pwned\x07\x1b[2J oops",
    b"\x9b2J\xc2\x9b2J oops",
    "oops \N{RIGHT-TO-LEFT OVERRIDE}gnp.exe".encode(),
    b"\r\n\r\nINFO all is well\x00\x08 oops",
    b'{"type": "InternalServerException", "message": "\x7f\x1b[31m oops"}',
]


@pytest.mark.parametrize("status", [200, 400, 413, 500, 503])
@pytest.mark.parametrize("body", ANSWERS)
def test_the_words_of_a_service_command_no_terminal(status: int, body: bytes) -> None:
    answer = interpret_reply(status, body, 1)
    assert isinstance(answer, Busy | Failed)
    assert answer.detail.isprintable()
    assert "oops" in answer.detail or "exe" in answer.detail


def test_what_is_empty_when_made_plain_is_still_an_excerpt() -> None:
    answer = interpret_reply(500, b"\r\n", 1)
    assert isinstance(answer, Busy)
    assert answer.detail.startswith("500")


@pytest.mark.parametrize("text", [body.decode("utf-8", "replace") for body in ANSWERS])
def test_findings_logs_and_probes_are_plain_whoever_wrote_them(text: str) -> None:
    rendered = render_findings([Finding("service", "failed", text)], as_json=False)
    assert next(rendered).isprintable()
    record = logging.LogRecord("connectors", 40, __file__, 1, "said %s", (text,), None)
    assert TextFormatter("%(levelname)s %(message)s").format(record).isprintable()
    assert JsonFormatter().format(record).isascii()
    assert _probe_page(text).body.decode().rstrip("\n").isprintable()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_a_character_gets_it_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    shelf = DeadLetterShelf(read(("connector.reason", b"\x1b\xe2\x98\x83")))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(registry, "open_dead_letters", lambda *_: shelf)
    assert program.main(["dlq", "list", "kafka", "--input-topic", "images"]) == Exit.OK
    out.flush()
    assert b"\\ufffd\\u2603" in raw.getvalue()


class Unreadable:
    """A consumer of kafka-python whose first record cannot be taken apart."""

    def __init__(self, offset: int, cause: Exception | None) -> None:
        self.sought: list[tuple[TopicPartition, int]] = []
        self._place, self._cause = TopicPartition("predictions", 2), cause
        drained = SimpleNamespace(drain=lambda: None, topic_partition=self._place)
        state = SimpleNamespace(position=SimpleNamespace(offset=offset))
        self._fetcher = SimpleNamespace(_next_partition_records=drained)
        self._subscription = SimpleNamespace(assignment={self._place: state})

    def poll(self, _: int) -> dict[TopicPartition, list[object]]:
        if self.sought:
            return {}
        error = CorruptRecordError("bad")
        error.__context__ = self._cause
        raise error

    def assignment(self) -> set[TopicPartition]:
        return {self._place}

    def partitions_for_topic(self, _: str) -> set[int]:
        return {self._place.partition}

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.sought.append((place, offset))


def reader_of(consumer: Unreadable) -> TopicReader:
    reader = TopicReader.__new__(TopicReader)
    reader._consumer = consumer
    reader._topic = "predictions"
    reader._settings = ListenKafka(output_topic="predictions")
    return reader


@pytest.mark.parametrize(
    ("offset", "cause"),
    [
        (0, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")),
        (41, ValueError("negative length")),
        (999_999, IndexError("index out of range")),
    ],
)
def test_a_record_that_kafka_python_cannot_read_is_left_out_and_named(
    offset: int, cause: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = Unreadable(offset, cause)
    reader = reader_of(consumer)
    assert reader.read(0) == reader.read(0) == []
    assert consumer.sought == [(TopicPartition("predictions", 2), offset + 1)]
    assert f"predictions/2/{offset} cannot be read" in caplog.text


def test_a_broken_transmission_is_no_records_fault() -> None:
    consumer = Unreadable(0, None)
    with pytest.raises(Stop):
        reader_of(consumer).read(0)
    assert consumer.sought == []
