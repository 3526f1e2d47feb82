"""The model's description, read from its server: what drift is held against."""

from __future__ import annotations

import logging
from http import HTTPStatus
from math import inf
from threading import Thread
from typing import TYPE_CHECKING

from .drift import parse_baseline
from .inference.http import Certificates, fetch
from .text import parse_json, replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .drift import Baseline

TIMEOUT = 5.0
"""Seconds to wait for a whole answer."""

MAX_BYTES = 1 << 20

INTERVAL = 60.0
"""Seconds between two questions while the baseline of the model that answers is not known."""

_log = logging.getLogger(__name__)


class BaselineReader:
    """Knows the baseline of one model, and asks for another one in a thread of its own.

    `clock`: monotonic seconds. `get` is called by one thread at a time, and never waits.
    """

    def __init__(self, url: str, cafile: Path | None, clock: Callable[[], float]) -> None:
        self._url = url
        self._cafile = cafile
        self._clock = clock
        self._asked_at = -inf
        self._thread: Thread | None = None
        self._baseline: Baseline | None = None
        self._trouble = ""

    def get(self, model: str) -> Baseline | None:
        """Return the baseline of this model; None: not known, and asked for now and then."""
        if self._baseline is not None and self._baseline.model == model:
            return self._baseline
        due = self._clock() - self._asked_at >= INTERVAL
        if model and due and not (self._thread and self._thread.is_alive()):
            self._asked_at = self._clock()
            self._thread = Thread(target=self._ask, args=(model,), name="baseline", daemon=True)
            self._thread.start()
        return None

    def _ask(self, model: str) -> None:
        try:
            self._baseline = fetch_baseline(self._url, self._cafile)
            other = self._baseline.model != model
            trouble = f"it describes {self._baseline.model}, not {model}" if other else ""
        except (OSError, ValueError) as error:
            trouble = str(error)
        if trouble and trouble != self._trouble:
            what = replace_control_characters(trouble[:500])
            _log.warning("Drift is not known (%s): correct the model, or --baseline-url.", what)
        self._trouble = trouble


def make_baseline_finder(
    url: str | None, cafile: Path | None, clock: Callable[[], float]
) -> Callable[[str], Baseline | None]:
    """Return what finds the baseline of a model: nothing, unless the operator says where."""
    return (lambda _: None) if url is None else BaselineReader(url, cafile, clock).get


def fetch_baseline(url: str, cafile: Path | None) -> Baseline:
    """Ask for the baseline; raises OSError or ValueError when there is none to be had."""
    status, content = fetch(url, {}, TIMEOUT, Certificates(cafile), MAX_BYTES)
    if status >= HTTPStatus.BAD_REQUEST:
        whose = "Client" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "Server"
        raise ValueError(f"{status} {whose} Error")
    return parse_baseline(parse_json(content))
