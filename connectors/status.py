"""Status lines for an operator, made from the counts of the relay."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from .relay import Relay, Stats
    from .verbs import Daemon


OUTAGE_DELAY, OUTAGE_INTERVAL = 10.0, 30.0
"""Seconds after which an outage is logged, and between two mentions of it."""


class Line(NamedTuple):
    """What is to be logged; `fields` are for `--log json`."""

    level: int
    text: str
    fields: Mapping[str, Any] = {}


class Report:
    """Makes the lines for an operator from the relay's counts. `now`: monotonic seconds."""

    def __init__(self, relay: Relay, settings: Daemon, now: float) -> None:
        self.lag: Mapping[Hashable, int] | None = None
        self.relaying = False  # not yet: there is nothing to tell of
        self.draining = False
        self._relay = relay
        self._url = settings.shown_url
        self._every = settings.status_every
        self._last = now
        self._settled = 0
        self._outage_logged_at: float | None = None
        self._drain_limit = settings.drain_limit
        self._drain_logged = False

    def lines(self, now: float) -> Iterator[Line]:
        """Give the lines that are due now."""
        stats = self._relay.stats
        if self.draining and not self._drain_logged:
            self._drain_logged = True
            yield Line(logging.INFO, f"Draining, for {self._drain_limit:g} s at the longest.")
        yield from self._outage(stats, now)
        if self.relaying and now - self._last >= self._every:
            yield self._status(stats, now)

    def _outage(self, stats: Stats, now: float) -> Iterator[Line]:
        if stats.busy_since is None:
            if self._outage_logged_at is not None:
                yield Line(logging.INFO, f"{self._url} serves again.")
            self._outage_logged_at = None
            return
        seconds = now - stats.busy_since
        again = self._outage_logged_at is None or now - self._outage_logged_at >= OUTAGE_INTERVAL
        if seconds >= OUTAGE_DELAY and again:
            self._outage_logged_at = now
            text = f"{self._url} has served nobody for {seconds:.0f} s: {stats.busy_detail}"
            yield Line(logging.WARNING, text, {"url": self._url, "seconds": round(seconds)})

    def _status(self, stats: Stats, now: float) -> Line:
        settled = stats.predicted + stats.rejected.total() + stats.skipped
        fields = {
            "records_per_second": round((settled - self._settled) / (now - self._last), 1),
            "held": stats.held,
            "out": stats.out,
            "oldest_unanswered": _seconds_since(stats.oldest_since, now),
            "lag": None if self.lag is None else sum(self.lag.values()),
            "retries": dict(stats.retries),
            "dead_letters": dict(stats.rejected),
        }
        self._last, self._settled = now, settled
        return Line(logging.INFO, _render_status(fields), fields)


def _seconds_since(since: float | None, now: float) -> float:
    return 0.0 if since is None else round(now - since, 1)


def _render_status(status: Mapping[str, Any]) -> str:
    lag = "unknown" if status["lag"] is None else status["lag"]
    return (
        f"{status['records_per_second']} records/s, {status['held']} held, {status['out']} out, "
        f"oldest unanswered {status['oldest_unanswered']} s, lag {lag}, "
        f"retries: {_render_counts(status['retries'])}, "
        f"dead letters: {_render_counts(status['dead_letters'])}"
    )


def _render_counts(counts: Mapping[str, int]) -> str:
    return " ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
