"""Dead letters: list them, show them, send them back."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections import Counter
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..errors import Exit, Rewound, Stop
from ..headers import REPLAY, is_ours
from ..records import Message, Prediction, Record, Rejection, Settled, Skipped
from ..text import decode_text, parse_count, render_time, replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..verbs import DeadLetters, Replay, ShowDead

POLL_TIMEOUT = 0.25
"""Seconds that one look at the topic waits for the first dead letter."""

MAX_BATCH = 500
"""Most dead letters in one transaction of a replay."""

_log = logging.getLogger(__name__)


class DeadLetterReader(Protocol):
    """All dead letters that were there when it was opened."""

    def read(self, timeout: float) -> Sequence[Record]:
        """Return the next ones, waiting at most `timeout` seconds for the first."""
        ...

    def exhausted(self) -> bool:
        """Say whether all have been read."""
        ...

    def close(self) -> None:
        """Return in bounded time."""
        ...


class ReplayBroker(Protocol):
    """The way of the dead letters that were there when it was opened back to the input topic."""

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        """See `Broker.poll`."""
        ...

    def commit(self, settled: Sequence[Settled]) -> None:
        """See `Broker.commit`."""
        ...

    def close(self) -> None:
        """See `Broker.close`."""
        ...

    def exhausted(self) -> bool:
        """Say whether all have been handed out and nothing of it is owed again."""
        ...


# What a dead letter says


def to_dict(dead_letter: Record) -> dict[str, Any]:
    """A dead letter as JSON, without its value and what it brought along itself.

    `id` is the source record's, `record` where the dead letter lies; `time` in ms since the epoch.
    """
    return {
        "id": find_source(dead_letter),
        "record": dead_letter.id,
        "time": dead_letter.time,
        "key": decode_text(dead_letter.key),
        "reason": decode_text(last_header(dead_letter, "connector.reason")),
        "detail": decode_text(last_header(dead_letter, "connector.detail")),
        "status": parse_count(last_header(dead_letter, "connector.status")),
        "attempts": parse_count(last_header(dead_letter, "connector.attempts")),
        "bytes": None if dead_letter.value is None else len(dead_letter.value),
    }


def find_source(dead_letter: Record) -> str:
    """The id of the record that the dead letter was; its own, when the headers do not tell."""
    source_id = last_header(dead_letter, "connector.id")
    if source_id:
        return decode_text(source_id)
    names = ("topic", "partition", "offset")
    found = [last_header(dead_letter, f"__connect.errors.{name}") for name in names]
    return "/".join(str(decode_text(part)) for part in found) if all(found) else dead_letter.id


def last_header(dead_letter: Record, name: str) -> bytes | None:
    """The last value of a header; ours come last."""
    return dict(dead_letter.headers).get(name)


def holds_condition(condition: str, dead_letter: Record) -> bool:
    """Say whether `field=value` holds; `field`: id, reason, key or header.<name>."""
    field, _, text = condition.partition("=")
    value = text.encode("utf-8", "surrogateescape")
    match field:
        case "id":
            return text in {find_source(dead_letter), dead_letter.id}
        case "key":
            return dead_letter.key == value
        case "reason":
            return last_header(dead_letter, "connector.reason") == value
    return (field.removeprefix("header."), value) in dead_letter.headers


def matches(dead_letter: Record, conditions: Sequence[str]) -> bool:
    """Say whether all conditions hold."""
    return all(holds_condition(condition, dead_letter) for condition in conditions)


def select(reader: DeadLetterReader, settings: DeadLetters) -> Iterator[Record]:
    """The dead letters that are asked for, in the order of their partitions."""

    def dead_letters() -> Iterator[Record]:
        while not reader.exhausted():
            yield from reader.read(POLL_TIMEOUT)

    found = (dead_letter for dead_letter in dead_letters() if matches(dead_letter, settings.where))
    return islice(found, settings.limit)


# list


def list_(settings: DeadLetters, reader: DeadLetterReader) -> Iterator[str]:
    """A line for each dead letter, and at the end how many there are of each reason."""
    reasons: Counter[str] = Counter()
    with closing(reader):
        for dead_letter in select(reader, settings):
            fields = to_dict(dead_letter)
            reasons[fields["reason"] or "unknown"] += 1
            yield json.dumps(fields) if settings.json_lines else _render_line(fields)
    counts = {"dead_letters": reasons.total(), "reasons": dict(reasons)}
    yield json.dumps(counts) if settings.json_lines else _render_counts(reasons)


def _render_line(fields: dict[str, Any]) -> str:
    rest = (str(fields[name]) for name in ("id", "key", "reason", "detail"))
    return "  ".join([render_time(fields["time"]), *map(replace_control_characters, rest)])


def _render_counts(reasons: Counter[str]) -> str:
    each = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{reasons.total()} dead letters" + (
        f": {replace_control_characters(each)}" if each else ""
    )


# show


def show(settings: ShowDead, reader: DeadLetterReader) -> Iterator[str]:
    """Whole dead letters, or none when the value of the only one is written to a file."""
    with closing(reader):
        if settings.output:
            settings.output.write_bytes(
                _require_one_value(list(islice(select(reader, settings), 2)))
            )
            return
        for dead_letter in select(reader, settings):
            yield (
                json.dumps(_to_dict_with_value(dead_letter))
                if settings.json_lines
                else _render_page(dead_letter)
            )


def _require_one_value(dead_letters: Sequence[Record]) -> bytes:
    """The value of the only dead letter; raises Stop(2) when there are more, or it has none."""
    match dead_letters:
        case [dead_letter]:
            if dead_letter.value is None:
                raise Stop(
                    f"{find_source(dead_letter)} has no value that could be written", Exit.USAGE
                )
            return dead_letter.value
        case []:
            raise Stop("no dead letter is like that; correct --where", Exit.USAGE)
    raise Stop("several dead letters are like that; name one by --where id=", Exit.USAGE)


def _to_dict_with_value(dead_letter: Record) -> dict[str, Any]:
    """A dead letter as JSON, the value in base64."""
    value = (
        None if dead_letter.value is None else base64.b64encode(dead_letter.value).decode("ascii")
    )
    return {**to_dict(dead_letter), "headers": _list_headers(dead_letter), "value": value}


def _list_headers(dead_letter: Record) -> list[tuple[str, str | None]]:
    return [(name, decode_text(value)) for name, value in dead_letter.headers]


def _render_page(dead_letter: Record) -> str:
    digest = hashlib.sha256(dead_letter.value or b"").hexdigest()
    lines = [f"{name}: {value}" for name, value in to_dict(dead_letter).items()]
    lines += [f"header {name}: {value}" for name, value in _list_headers(dead_letter)]
    return "\n".join(map(replace_control_characters, [*lines, f"sha256: {digest}"])) + "\n"


# replay


Disposition = Literal["sent", "others", "incomplete", "returned"]
"""The conditions leave `others` out; of the `incomplete` the value is gone: it did not fit.

The `returned` have gone under this name before, and came back dead.
"""


def replay(settings: Replay, broker: ReplayBroker) -> Iterator[str]:
    """Replay, then say in one line what was done."""
    done = send_back(settings, broker)
    went = "would go" if settings.dry_run else "went"
    yield (
        f"{done['sent']} dead letters {went} back to {settings.input_topic} as {settings.name}; "
        f"left out: {done['others']} by --where, {done['incomplete']} whose value is not there"
        + (f", {done['returned']} that came back dead from it" if done["returned"] else "")
    )


def send_back(settings: Replay, broker: ReplayBroker) -> Counter[Disposition]:
    """Send back what is asked for, in transactions; return what became of all dead letters met.

    Each dead letter once under one name, whatever dies. The counts, and so `limit`, go by what is
    known to be committed: after a commit whose answer was lost it may be more.
    """
    done: Counter[Disposition] = Counter()
    with closing(broker):
        while not broker.exhausted() and done["sent"] != settings.limit:
            left = MAX_BATCH if settings.limit is None else settings.limit - done["sent"]
            try:
                dead_letters = take_until_limit(
                    left, broker.poll(MAX_BATCH, POLL_TIMEOUT), settings
                )
                if dead_letters and not settings.dry_run:
                    broker.commit([settle(dead_letter, settings) for dead_letter in dead_letters])
                done += Counter(
                    decide_disposition(dead_letter, settings) for dead_letter in dead_letters
                )
            except Rewound as why:
                _log.warning("Beginning again from the last commit: %s", why)
                done = Counter() if settings.dry_run else done
    return done


def take_until_limit(left: int, dead_letters: Sequence[Record], settings: Replay) -> list[Record]:
    """The first dead letters, up to the one after which none is `left` to be sent."""
    first: list[Record] = []
    for dead_letter in dead_letters:
        if not left:
            break
        first.append(dead_letter)
        left -= decide_disposition(dead_letter, settings) == "sent"
    return first


def decide_disposition(dead_letter: Record, settings: Replay) -> Disposition:
    """What becomes of a dead letter."""
    if not matches(dead_letter, settings.where):
        return "others"
    if last_header(dead_letter, REPLAY) == settings.name.encode():
        return "returned"
    return "incomplete" if last_header(dead_letter, "connector.value-bytes") else "sent"


def settle(dead_letter: Record, settings: Replay) -> Settled:
    """The same, as the broker takes it."""
    if decide_disposition(dead_letter, settings) == "sent":
        return Settled(dead_letter, Prediction({"replay": settings.name}))
    return Settled(dead_letter, Skipped())


def encode(settled: Settled) -> Message | None:
    """The record that a dead letter was; None when it is left out.

    A rejection is the broker's: its topic does not take the record. Raises Stop then.
    """
    match settled.outcome:
        case Prediction(body):
            return restore_record(settled.record, body["replay"])
        case Rejection(_, detail):
            raise Stop(
                f"{settled.record.id} cannot go back ({detail}): let that topic take larger "
                "messages, or leave it out by --where",
                Exit.GIVEN_UP,
            )
    return None


def restore_record(dead_letter: Record, name: str) -> Message:
    """Value, key and headers as they came, and which replay brought them back."""
    nulls = (
        (last_header(dead_letter, "connector.nulls") or b"").decode("utf-8", "replace").split(",")
    )
    headers = [
        (title, None if f"headers[{place}]" in nulls else value)
        for place, (title, value) in enumerate(dead_letter.headers)
        if not is_ours(title)
    ]
    value = None if "value" in nulls else dead_letter.value
    return Message(value, dead_letter.key, (*headers, (REPLAY, name.encode())), dead=False)
