from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from connectors import codec
from connectors.brokers.kafka.admin import describe_conditions
from connectors.brokers.kafka.settings import ListDeadKafka, ReplayKafka, ShowDeadKafka
from connectors.commands import dlq
from connectors.commands.dlq import (
    encode,
    find_source,
    holds_condition,
    list_,
    restore_record,
    show,
    take_until_limit,
)
from connectors.errors import Exit, Rewound, Stop
from connectors.headers import is_ours
from connectors.records import Prediction, Record, Rejection, Settled, Skipped

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from connectors.records import Headers

ORIGIN: Headers = (
    ("__connect.errors.topic", b"images"),
    ("__connect.errors.partition", b"3"),
    ("__connect.errors.offset", b"1042"),
)


def record(*headers: tuple[str, bytes | None], value: bytes | None = b"image") -> Record:
    return Record("images/3/1042", value, b"key", headers, 1_700_000_000_000, "images/3", None)


def buried(
    *own: tuple[str, bytes | None],
    place: int = 0,
    reason: Any = "failed",  # noqa: ANN401 - also one that is none
    value: bytes | None = b"image",
) -> Record:
    """A dead letter, as codec and broker make it; what is ours in `own` is the broker's."""
    brought = [header for header in own if not is_ours(header[0])]
    message = codec.encode(
        Settled(record(*brought, value=value), Rejection(reason, "why \x1b[31m", 503, 3))
    )
    assert message
    added = [header for header in own if is_ours(header[0])]
    headers = (*message.headers, *ORIGIN, *added)
    lane = "images.dead/0"
    return Record(f"{lane}/{place}", value, b"key", headers, 1_700_000_000_000, lane, place)


class DeadLetterShelf:
    """An Archive and a Backlog in memory."""

    def __init__(self, *dead_letters: Record) -> None:
        self.left = list(dead_letters)
        self.settled: list[Settled] = []
        self.faults: list[str] = []
        self.closed = False

    def exhausted(self) -> bool:
        return not self.left

    def read(self, _: float) -> Sequence[Record]:
        return [self.left.pop(0)]

    def poll(self, limit: int, _: float) -> Sequence[Record]:
        polled, self.left = self.left[:limit], self.left[limit:]
        return polled

    def commit(self, settled: Sequence[Settled]) -> None:
        if self.faults:
            self.left = [one.record for one in settled] + self.left
            raise Rewound(self.faults.pop())
        self.settled += settled

    def close(self) -> None:
        self.closed = True


def sent(shelf: DeadLetterShelf) -> list[str]:
    return [one.record.id for one in shelf.settled if isinstance(one.outcome, Prediction)]


def asked(**more: Any) -> ReplayKafka:  # noqa: ANN401 - any field
    return ReplayKafka(input_topic="images", **{"name": "one", **more})


# what is asked for


def test_the_source_is_named_by_the_headers_or_it_is_the_letter_itself() -> None:
    assert find_source(buried()) == "images/3/1042"
    assert find_source(record()) == "images/3/1042"
    assert find_source(record(("connector.id", b"images/17"))) == "images/17"
    foreign = Record("images.dead/0/7", b"", None, ORIGIN[:2], 0, None, None)
    assert find_source(foreign) == "images.dead/0/7"


@pytest.mark.parametrize(
    "condition",
    [
        "id=images/3/1042",
        "id=images.dead/0/0",
        "reason=failed",
        "key=key",
        "header.own=a=b",
        "header.connector.status=503",
    ],
)
def test_a_condition_holds(condition: str) -> None:
    assert holds_condition(condition, buried(("own", b"a=b")))


@pytest.mark.parametrize(
    "condition",
    ["id=images/3/104", "reason=fail", "key=", "key=other", "header.own=", "header.missing=1"],
)
def test_a_condition_does_not_hold(condition: str) -> None:
    assert not holds_condition(condition, buried(("own", b"x")))


def test_all_conditions_must_hold() -> None:
    dead_letter = buried()
    assert dlq.matches(dead_letter, [])
    assert dlq.matches(dead_letter, ["reason=failed", "key=key"])
    assert not dlq.matches(dead_letter, ["reason=failed", "key=other"])


def test_a_note_forgets_the_order_and_what_was_repeated() -> None:
    assert describe_conditions(["reason=failed", "key=a", "key=a"]) == describe_conditions(
        ["key=a", "reason=failed"]
    )
    assert describe_conditions([]) != describe_conditions(["key=a"])


# list


def test_a_list_has_a_line_for_each_and_counts_the_reasons() -> None:
    shelf = DeadLetterShelf(buried(), buried(reason="empty"), buried())
    *lines, counts = list_(ListDeadKafka(input_topic="images"), shelf)
    assert counts == "3 dead letters: 2 failed, 1 empty"
    assert lines[0].startswith("2023-11-14T22:13:20+00:00  images/3/1042  key  failed  why ")
    assert len(lines) == 3
    assert shelf.closed


def test_a_list_as_json_can_be_read_line_by_line() -> None:
    settings = ListDeadKafka(input_topic="images", json_lines=True)
    line, counts = map(json.loads, list_(settings, DeadLetterShelf(buried())))
    assert line == {
        "id": "images/3/1042",
        "record": "images.dead/0/0",
        "time": 1_700_000_000_000,
        "key": "key",
        "reason": "failed",
        "detail": "why \x1b[31m",
        "status": 503,
        "attempts": 3,
        "bytes": 5,
    }
    assert counts == {"dead_letters": 1, "reasons": {"failed": 1}}


def test_a_letter_of_somebody_else_is_listed_too() -> None:
    foreign = Record("images.dead/0/7", None, None, (), 0, None, None)
    settings = ListDeadKafka(input_topic="images", json_lines=True)
    line, counts = map(json.loads, list_(settings, DeadLetterShelf(foreign)))
    assert (line["id"], line["key"], line["status"]) == ("images.dead/0/7", None, None)
    assert counts["reasons"] == {"unknown": 1}


def test_a_list_ends_at_its_limit() -> None:
    shelf = DeadLetterShelf(*[buried()] * 5)
    settings = ListDeadKafka(input_topic="images", limit=2)
    assert list(list_(settings, shelf))[-1] == "2 dead letters: 2 failed"


def test_what_a_stranger_wrote_does_not_command_the_terminal() -> None:
    shelf = DeadLetterShelf(buried(("own", b"\x1b[2J")))
    assert "\x1b" not in "".join(list_(ListDeadKafka(input_topic="images"), shelf))
    shelf = DeadLetterShelf(buried(("own", b"\x1b[2J")))
    assert "\x1b" not in "".join(show(ShowDeadKafka(input_topic="images"), shelf))


# show


def test_a_letter_is_shown_whole() -> None:
    settings = ShowDeadKafka(input_topic="images", json_lines=True)
    (line,) = map(json.loads, show(settings, DeadLetterShelf(buried(("own", b"1"), ("own", None)))))
    assert base64.b64decode(line["value"]) == b"image"
    assert line["headers"][:2] == [["own", "1"], ["own", None]]


def test_the_value_of_the_only_letter_is_written_to_a_file(tmp_path: Path) -> None:
    shelf = DeadLetterShelf(buried(reason="empty", value=b"other"), buried())
    settings = ShowDeadKafka(
        input_topic="images", where=["reason=failed"], output=tmp_path / "value"
    )
    assert list(show(settings, shelf)) == []
    assert (tmp_path / "value").read_bytes() == b"image"


@pytest.mark.parametrize(
    ("dead_letters", "sentence"),
    [
        ([], "no dead letter is like that"),
        ([buried(), buried()], "several dead letters are like that"),
        ([buried(value=None)], "has no value"),
    ],
)
def test_a_file_takes_one_value(dead_letters: list[Record], sentence: str, tmp_path: Path) -> None:
    settings = ShowDeadKafka(input_topic="images", output=tmp_path / "value")
    with pytest.raises(Stop, match=sentence) as stop:
        list(show(settings, DeadLetterShelf(*dead_letters)))
    assert stop.value.code == Exit.USAGE
    assert not (tmp_path / "value").exists()


# replay


def test_a_letter_goes_back_as_it_came() -> None:
    own = (("own", b"1"), ("traceparent", b"00-1-2-01"), ("own", b"2"))
    message = restore_record(buried(*own), "one")
    assert (message.value, message.key, message.dead) == (b"image", b"key", False)
    assert message.headers == (*own, ("connector.replay", b"one"))


def test_the_name_of_an_earlier_replay_is_replaced() -> None:
    message = restore_record(buried(("connector.replay", b"zero")), "one")
    assert message.headers == (("connector.replay", b"one"),)


def test_nulls_that_had_to_be_filled_are_nulls_again() -> None:
    dead_letter = buried(("own", b""), ("own", b"x"), ("connector.nulls", b"headers[0],value"))
    message = restore_record(dead_letter, "one")
    assert message.headers[:2] == (("own", None), ("own", b"x"))
    assert message.value is None


def test_all_go_back_unless_something_else_is_asked() -> None:
    shelf = DeadLetterShelf(buried(place=0), buried(place=1, reason="empty"))
    assert dlq.send_back(asked(), shelf) == {"sent": 2}
    assert sent(shelf) == ["images.dead/0/0", "images.dead/0/1"]
    assert shelf.closed


def test_what_is_left_out_is_acknowledged_too() -> None:
    shelf = DeadLetterShelf(buried(place=0), buried(place=1, reason="empty"))
    assert dlq.send_back(asked(where=["reason=empty"]), shelf) == {"sent": 1, "others": 1}
    assert sent(shelf) == ["images.dead/0/1"]
    assert isinstance(shelf.settled[0].outcome, Skipped)


def test_a_letter_whose_value_is_gone_stays() -> None:
    shelf = DeadLetterShelf(buried(("connector.value-bytes", b"9000000")))
    assert dlq.send_back(asked(), shelf) == {"incomplete": 1}
    assert sent(shelf) == []


def test_a_limit_counts_what_is_sent_and_leaves_the_rest_for_the_next_time() -> None:
    dead_letters = [buried(place=n, reason=("empty", "failed")[n % 2]) for n in range(6)]
    shelf = DeadLetterShelf(*dead_letters)
    done = dlq.send_back(asked(where=["reason=failed"], limit=2), shelf)
    assert done == {"sent": 2, "others": 2}
    assert [one.record.position for one in shelf.settled] == [0, 1, 2, 3]


def test_the_first_ones_end_with_the_last_that_is_sent() -> None:
    dead_letters = [buried(place=n) for n in range(3)]
    assert take_until_limit(2, dead_letters, asked()) == dead_letters[:2]
    assert take_until_limit(9, dead_letters, asked()) == dead_letters


def test_a_dry_run_only_counts() -> None:
    shelf = DeadLetterShelf(buried(), buried())
    (line,) = dlq.replay(asked(dry_run=True), shelf)
    assert line.startswith("2 dead letters would go back to images as one; left out: 0 by --where")
    assert shelf.settled == []


def test_after_a_rewind_it_goes_on_and_counts_what_was_committed() -> None:
    shelf = DeadLetterShelf(buried(place=0), buried(place=1))
    shelf.faults = ["the group has shared out its partitions anew"]
    assert dlq.send_back(asked(), shelf) == {"sent": 2}
    assert sent(shelf) == ["images.dead/0/0", "images.dead/0/1"]


def test_a_dry_run_counts_anew_after_a_rewind() -> None:
    class Moody(DeadLetterShelf):
        def poll(self, limit: int, timeout: float) -> Sequence[Record]:
            if len(self.left) == 1 and self.faults:
                self.left = [buried(), buried()]
                raise Rewound(self.faults.pop())
            return super().poll(min(limit, 1), timeout)

    shelf = Moody(buried(), buried())
    shelf.faults = ["moved"]
    assert dlq.send_back(asked(dry_run=True), shelf) == {"sent": 2}


def test_what_its_topic_does_not_take_stops_the_replay() -> None:
    refused = Settled(buried(), Rejection("result_too_large", "images takes no 9 bytes"))
    with pytest.raises(Stop, match=r"cannot go back .*takes no 9 bytes") as stop:
        encode(refused)
    assert stop.value.code == Exit.GIVEN_UP


def test_what_is_left_out_is_not_published() -> None:
    assert encode(Settled(buried(), Skipped())) is None
    message = encode(dlq.settle(buried(), asked()))
    assert message
    assert message.headers[-1] == ("connector.replay", b"one")


@pytest.mark.parametrize("returned", [1, 3, 600])
@pytest.mark.parametrize("reason", ["failed", "not_an_image", "tombstone"])
def test_what_came_back_dead_from_a_replay_does_not_go_again_under_its_name(
    returned: int, reason: str
) -> None:
    back = [buried(("connector.replay", b"one"), place=1, reason=reason)] * returned
    other = buried(("connector.replay", b"two"), place=2)
    shelf = DeadLetterShelf(buried(), *back, other)
    [line] = dlq.replay(asked(name="one"), shelf)
    assert line.startswith("2 dead letters went back to images as one; left out: 0 by --where")
    assert line.endswith(f", {returned} that came back dead from it")
    assert len(shelf.settled) == returned + 2  # acknowledged, or the next replay would meet them
    assert sum(isinstance(one.outcome, Prediction) for one in shelf.settled) == 2


@pytest.mark.parametrize("name", ["one", "after-fix", "A_1"])
def test_a_cron_job_sends_a_hopeless_record_once(name: str) -> None:
    dead = buried()
    for run in range(4):
        shelf = DeadLetterShelf(dead)
        assert dlq.send_back(asked(name=name), shelf)["sent"] == (1 if run == 0 else 0)
        if run == 0:
            message = encode(shelf.settled[0])
            assert message
            again = Record("images/3/7", message.value, b"key", message.headers, 0, None, None)
            died = codec.encode(Settled(again, Rejection("failed", "again")))
            assert died
            dead = Record("images.dead/0/9", died.value, b"key", died.headers, 0, None, None)
