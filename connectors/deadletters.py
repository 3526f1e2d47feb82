"""Dead letters: list them, show them, send them back."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .errors import Exit, Rewound, Stop
from .records import Broker, Message, Prediction, Record, Rejection, Settled, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .settings import Letters, Replay, ShowDead

GLANCE = 0.25
"""Seconds that one look at the topic waits for the first letter."""

BATCH = 500
"""Most letters in one transaction of a replay."""

OURS = ("connector.", "__connect.errors.")
"""What the names of our headers begin with; a replay leaves these out."""

_log = logging.getLogger(__name__)


class Archive(Protocol):
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


class Backlog(Broker, Protocol):
    """A Broker from the dead letters that were there when it was opened to where they came from."""

    def exhausted(self) -> bool:
        """Say whether all have been handed out and nothing of it is owed again."""
        ...


# What a letter says


def described(letter: Record) -> dict[str, Any]:
    """A letter as JSON, without its value and what it brought along itself.

    `id` is the source record's, `record` where the letter lies; `time` in ms since the epoch.
    """
    return {
        "id": source(letter),
        "record": letter.id,
        "time": letter.time,
        "key": _text(letter.key),
        "reason": _text(header(letter, "connector.reason")),
        "detail": _text(header(letter, "connector.detail")),
        "status": _number(header(letter, "connector.status")),
        "attempts": _number(header(letter, "connector.attempts")),
        "bytes": None if letter.value is None else len(letter.value),
    }


def source(letter: Record) -> str:
    """The id of the record that the letter was; its own, when the headers do not tell."""
    told = header(letter, "connector.id")
    if told:
        return told.decode("utf-8", "replace")
    names = ("topic", "partition", "offset")
    found = [header(letter, f"__connect.errors.{name}") for name in names]
    return "/".join(str(_text(part)) for part in found) if all(found) else letter.id


def header(letter: Record, name: str) -> bytes | None:
    """The last value of a header; ours come last."""
    return dict(letter.headers).get(name)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def _number(value: bytes | None) -> int | None:
    return int(value) if value and value.isdigit() else None


def holds(condition: str, letter: Record) -> bool:
    """Say whether `field=value` holds; `field`: id, reason, key or header.<name>."""
    field, _, text = condition.partition("=")
    value = text.encode("utf-8", "surrogateescape")
    match field:
        case "id":
            return text in {source(letter), letter.id}
        case "key":
            return letter.key == value
        case "reason":
            return header(letter, "connector.reason") == value
    return (field.removeprefix("header."), value) in letter.headers


def is_chosen(letter: Record, conditions: Sequence[str]) -> bool:
    """Say whether all conditions hold."""
    return all(holds(condition, letter) for condition in conditions)


def chosen(archive: Archive, settings: Letters) -> Iterator[Record]:
    """The letters that are asked for, in the order of their partitions."""

    def letters() -> Iterator[Record]:
        while not archive.exhausted():
            yield from archive.read(GLANCE)

    found = (letter for letter in letters() if is_chosen(letter, settings.where))
    return islice(found, settings.limit)


# list


def listed(settings: Letters, archive: Archive) -> Iterator[str]:
    """A line for each letter, and at the end how many there are of each reason."""
    reasons: Counter[str] = Counter()
    with closing(archive):
        for letter in chosen(archive, settings):
            told = described(letter)
            reasons[told["reason"] or "unknown"] += 1
            yield json.dumps(told) if settings.json_lines else _line(told)
    counts = {"dead_letters": reasons.total(), "reasons": dict(reasons)}
    yield json.dumps(counts) if settings.json_lines else _counts(reasons)


def _line(told: dict[str, Any]) -> str:
    time = datetime.fromtimestamp(told["time"] / 1000, UTC).isoformat(timespec="seconds")
    rest = (str(told[name]) for name in ("id", "key", "reason", "detail"))
    return "  ".join([time, *map(_plain, rest)])


def _plain(text: str) -> str:
    """Without what a terminal would obey: it came from strangers."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _counts(reasons: Counter[str]) -> str:
    each = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{reasons.total()} dead letters" + (f": {_plain(each)}" if each else "")


# show


def shown(settings: ShowDead, archive: Archive) -> Iterator[str]:
    """Whole letters, or none when the value of the only one is written to a file."""
    with closing(archive):
        if settings.output:
            settings.output.write_bytes(_only(list(islice(chosen(archive, settings), 2))))
            return
        for letter in chosen(archive, settings):
            yield json.dumps(_whole(letter)) if settings.json_lines else _page(letter)


def _only(letters: Sequence[Record]) -> bytes:
    """The value of the only letter; raises Stop(2) when it is not the only one, or has none."""
    match letters:
        case [letter]:
            if letter.value is None:
                raise Stop(f"{source(letter)} has no value that could be written", Exit.USAGE)
            return letter.value
        case []:
            raise Stop("no dead letter is like that; correct --where", Exit.USAGE)
    raise Stop("several dead letters are like that; name one by --where id=", Exit.USAGE)


def _whole(letter: Record) -> dict[str, Any]:
    """A letter as JSON, the value in base64."""
    value = None if letter.value is None else base64.b64encode(letter.value).decode("ascii")
    return {**described(letter), "headers": _headers(letter), "value": value}


def _headers(letter: Record) -> list[tuple[str, str | None]]:
    return [(name, _text(value)) for name, value in letter.headers]


def _page(letter: Record) -> str:
    digest = hashlib.sha256(letter.value or b"").hexdigest()
    lines = [f"{name}: {told}" for name, told in described(letter).items()]
    lines += [f"header {name}: {value}" for name, value in _headers(letter)]
    return "\n".join(map(_plain, [*lines, f"sha256: {digest}"])) + "\n"


# replay


Fate = Literal["sent", "others", "incomplete"]
"""The conditions leave `others` out; of the `incomplete` the value is gone: it did not fit."""


def note(conditions: Sequence[str]) -> str:
    """What a replay's group remembers: the conditions, in any order, however often repeated."""
    return f"replay of {' and '.join(sorted(set(conditions))) or 'everything'}"


def replayed(settings: Replay, backlog: Backlog) -> Iterator[str]:
    """Replay, then say in one line what was done."""
    done = replay(settings, backlog)
    went = "would go" if settings.dry_run else "went"
    yield (
        f"{done['sent']} dead letters {went} back to {settings.input_topic} as {settings.name}; "
        f"left out: {done['others']} by --where, {done['incomplete']} whose value is not there"
    )


def replay(settings: Replay, backlog: Backlog) -> Counter[Fate]:
    """Send back what is asked for, in transactions; return what became of all letters met.

    Each letter once under one name, whatever dies. The counts, and so `limit`, go by what is
    known to be committed: after a commit whose answer was lost it may be more.
    """
    done: Counter[Fate] = Counter()
    with closing(backlog):
        while not backlog.exhausted() and done["sent"] != settings.limit:
            left = BATCH if settings.limit is None else settings.limit - done["sent"]
            try:
                letters = up_to(left, backlog.poll(BATCH, GLANCE), settings)
                if letters and not settings.dry_run:
                    backlog.commit([settled(letter, settings) for letter in letters])
                done += Counter(fate(letter, settings) for letter in letters)
            except Rewound as why:
                _log.warning("Beginning again from the last commit: %s", why)
                done = Counter() if settings.dry_run else done
    return done


def up_to(left: int, letters: Sequence[Record], settings: Replay) -> list[Record]:
    """The first letters, up to the one after which none is `left` to be sent."""
    first: list[Record] = []
    for letter in letters:
        if not left:
            break
        first.append(letter)
        left -= fate(letter, settings) == "sent"
    return first


def fate(letter: Record, settings: Replay) -> Fate:
    """What becomes of a letter."""
    if not is_chosen(letter, settings.where):
        return "others"
    return "incomplete" if header(letter, "connector.value-bytes") else "sent"


def settled(letter: Record, settings: Replay) -> Settled:
    """The same, as the broker takes it."""
    if fate(letter, settings) == "sent":
        return Settled(letter, Prediction({"replay": settings.name}))
    return Settled(letter, Skipped())


def encode(settled: Settled) -> Message | None:
    """The record that a letter was; None when it is left out.

    A rejection is the broker's: its topic does not take the record. Raises Stop then.
    """
    match settled.outcome:
        case Prediction(body):
            return restored(settled.record, body["replay"])
        case Rejection(_, detail):
            raise Stop(
                f"{settled.record.id} cannot go back ({detail}): let that topic take larger "
                "messages, or leave it out by --where",
                Exit.GIVEN_UP,
            )
    return None


def restored(letter: Record, name: str) -> Message:
    """Value, key and headers as they came, and which replay brought them back."""
    nulls = (header(letter, "connector.nulls") or b"").decode("utf-8", "replace").split(",")
    headers = [
        (title, None if f"headers[{place}]" in nulls else value)
        for place, (title, value) in enumerate(letter.headers)
        if not title.startswith(OURS)
    ]
    value = None if "value" in nulls else letter.value
    return Message(value, letter.key, (*headers, ("connector.replay", name.encode())), dead=False)
