"""Files of every format go out as they lie in their folder."""

from __future__ import annotations

from connectors.commands.send import send
from connectors.verbs import Send
from tests import formats
from tests.connectors.test_clients import Topic

FILES = [formats.FOLDER / line["file"] for line in formats.read_manifest()]


def test_each_file_of_a_folder_is_sent_byte_for_byte() -> None:
    topic = Topic()
    send(Send(paths=[formats.FOLDER]), topic)
    assert sorted(value for _, value, _ in topic.records) == sorted(
        path.read_bytes() for path in FILES
    )


def test_each_file_that_is_named_is_sent_byte_for_byte_and_in_order() -> None:
    topic = Topic()
    send(Send(paths=FILES), topic)
    assert [value for _, value, _ in topic.records] == [path.read_bytes() for path in FILES]
