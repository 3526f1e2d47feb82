"""Logging: text or JSON lines on stderr; what a library repeats is held back."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from io import TextIOWrapper
from math import inf
from typing import TYPE_CHECKING

from .text import replace_control_characters

if TYPE_CHECKING:
    from collections.abc import Iterator

REPEAT_INTERVAL = 30.0
"""Seconds in which a library says the same thing once: it retries, and complains, for ever."""

LIBRARIES = ("kafka", "google", "grpc")
"""The loggers of the brokers' libraries, by the first part of their names."""


def set_library_log_level(level: int) -> None:
    """Let the brokers' libraries log nothing below this level."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(level)


def configure_console() -> None:
    """Log one sentence at a time on stderr, until `configure_logging` is called.

    Characters that the terminal's encoding lacks are escaped, in what is printed as well.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter("connectors: %(message)s"))
    logging.basicConfig(handlers=[handler])


def configure_logging(form: str) -> None:
    """Log lines of text or of JSON on stderr, from now on."""
    handler = logging.StreamHandler()
    text = TextFormatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    handler.addFilter(RateLimitFilter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


class _Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)


@contextmanager
def hold_back() -> Iterator[list[str]]:
    """Log at the end what is logged inside: in the form that was put into the list, if one was."""
    root, keeper, form = logging.getLogger(), _Keeper(), list[str]()
    before, root.handlers = root.handlers, [keeper]
    try:
        yield form
    finally:
        root.handlers = before
        if "json" in form:
            configure_logging("json")
        for record in keeper.kept:
            root.handle(record)


class RateLimitFilter(logging.Filter):
    """Lets pass whatever is ours, and a library's line once in REPEAT_INTERVAL seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Judge by the line of its source, since the text may hold a count or an address."""
        line = (record.pathname, record.lineno)
        if record.name.partition(".")[0] not in LIBRARIES:
            return True
        if record.created - self._passed.get(line, -inf) < REPEAT_INTERVAL:
            return False
        self._passed[line] = record.created
        return True


class TextFormatter(logging.Formatter):
    """Formats a record as text that no terminal obeys, whoever wrote what is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Give a line, and below it the lines of a traceback."""
        return "\n".join(map(replace_control_characters, super().format(record).splitlines()))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Keep what a record says on one line, or a stranger could write lines of his own."""
        record.message = replace_control_characters(record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Give time (seconds since the epoch), level, message, and what else there is to say."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
