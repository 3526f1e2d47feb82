"""Show the predictions in a topic, as a live table or as JSON lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from contextlib import closing, suppress
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..text import decode_text, parse_json, replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ..records import Reader, Record
    from ..verbs import Listen

POLL_TIMEOUT = 0.25
"""Seconds between two looks at the topic; the table is drawn as often."""

RECENT_RECORDS = 1000
"""Records that rate and latency are taken of."""

SHOWN_RECORDS = 10
"""Records in the table."""

MAX_CELL = 200
"""Characters in a cell of the table."""

MAX_TIME_MS = 1 << 53
"""Milliseconds since the epoch; no result is from a later time."""


def listen(settings: Listen, reader: Reader) -> None:
    """Show what comes until the limit, the silence or Ctrl-C ends it."""
    with closing(reader), suppress(KeyboardInterrupt):
        batches = read_batches(reader, settings.limit, settings.idle_timeout, time.monotonic)
        if settings.json_lines:
            _until_closed(_print_lines, batches)
        elif sys.stdout.isatty():
            _show_table(batches)
        else:
            _until_closed(_print_rows, batches)


def read_batches(
    reader: Reader, limit: int | None, idle_timeout: float | None, clock: Callable[[], float]
) -> Iterator[Sequence[Record]]:
    """What was read at each look, nothing included; at most `limit` records altogether."""
    left, last = inf if limit is None else limit, clock()
    while left > 0 and (idle_timeout is None or clock() - last < idle_timeout):
        records = reader.read(POLL_TIMEOUT)
        records = records if len(records) <= left else records[: int(left)]
        left -= len(records)
        last = clock() if records else last
        yield records


def _print_lines(batches: Iterable[Sequence[Record]]) -> None:
    for records in batches:
        sys.stdout.writelines(json.dumps(to_dict(record)) + "\n" for record in records)
        sys.stdout.flush()


def _until_closed(
    write: Callable[[Iterable[Sequence[Record]]], None], batches: Iterable[Sequence[Record]]
) -> None:
    try:
        write(batches)
    except BrokenPipeError:  # the reader has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit flush fails


def to_dict(record: Record) -> dict[str, Any]:
    """A record as JSON: where it lies, whose it is, and the result (null if it is none)."""
    return {
        "record": record.id,
        "time": record.time,
        "key": decode_text(record.key),
        "headers": {name: decode_text(value) for name, value in record.headers},
        "result": parse_result(record),
    }


def parse_result(record: Record) -> dict[str, Any] | None:
    """The prediction in a record's value."""
    value = parse_json(record.value)
    return value if isinstance(value, dict) else None


def _show_table(batches: Iterable[Sequence[Record]]) -> None:
    live_table = LiveTable()
    with Live(live_table.table(), auto_refresh=False) as live:
        for records in batches:
            for record in records:
                live_table.add(record, time.time())
            live.update(live_table.table(), refresh=True)


def _print_rows(batches: Iterable[Sequence[Record]]) -> None:
    """What the table shows, a line for each record as it comes: nobody looks at a pipe's table."""
    live_table = LiveTable()
    with suppress(KeyboardInterrupt):
        for records in batches:
            for record in records:
                live_table.add(record, time.time())
                sys.stdout.write(f"{live_table.render_last()}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{live_table.summary()}\n")
    sys.stdout.flush()


class LiveTable:
    """What has come so far. `now`: seconds since the epoch."""

    def __init__(self) -> None:
        self.count = 0
        self.labelled = 0
        self.right = 0
        self._times: deque[float] = deque(maxlen=RECENT_RECORDS)
        self._latencies: deque[float] = deque(maxlen=RECENT_RECORDS)
        self._last: deque[tuple[str, str, str]] = deque(maxlen=SHOWN_RECORDS)

    def add(self, record: Record, now: float) -> None:
        """One more record; those without a result are counted too."""
        found = parse_result(record) or {}
        self.count += 1
        self._times.append(now)
        time_ms = found.get("time")
        if isinstance(time_ms, int) and 0 <= time_ms < MAX_TIME_MS:
            self._latencies.append(now - time_ms / 1000)
        headers = dict(record.headers)
        self._count_label(headers.get("label"), found.get("class"))
        score = found.get("score")
        score_text = f"{score:.3f}" if isinstance(score, float) else ""
        name = decode_text(record.key) or decode_text(headers.get("name")) or ""
        self._last.append((name, str(found.get("label", "?")), score_text))

    def _count_label(self, label: bytes | None, predicted: object) -> None:
        if label is not None and predicted is not None:
            self.labelled += 1
            self.right += decode_text(label) == str(predicted)

    def rate(self) -> float:
        """Images per second of late."""
        seconds = self._times[-1] - self._times[0] if self._times else 0.0
        return (len(self._times) - 1) / seconds if seconds else 0.0

    def summary(self) -> str:
        """Counts, rate, latency since the source record's time, accuracy where labels came."""
        parts = [f"{self.count} predictions", f"{self.rate():.0f}/s"]
        if self._latencies:
            parts.append(f"latency {median(self._latencies):.3f} s")
        if self.labelled:
            parts.append(f"{self.right / self.labelled:.2%} of {self.labelled} right")
        return ", ".join(parts)

    def render_last(self) -> str:
        """Give the last row as a line."""
        return "  ".join(map(_render_cell, self._last[-1]))

    def table(self) -> Group:
        """The summary above the last few."""
        table = Table("key", "label", "score")
        for row in self._last:
            table.add_row(*(Text(_render_cell(cell)) for cell in row))
        return Group(self.summary(), table)


def _render_cell(cell: str) -> str:
    return replace_control_characters(cell[:MAX_CELL])
