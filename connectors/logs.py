"""Logging: text or JSON lines on stderr; what a library repeats is held back."""

from __future__ import annotations

import json
import logging
from math import inf

REPEAT_INTERVAL = 30.0
"""Seconds in which a library says the same thing once: it retries, and complains, for ever."""

LIBRARIES = ("kafka", "google", "grpc")
"""The loggers of the brokers' libraries, by the first part of their names."""


def set_library_log_level(level: int) -> None:
    """Let the brokers' libraries log nothing below this level."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(level)


def configure_logging(form: str) -> None:
    """Log lines of text or of JSON on stderr, from now on."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    handler.addFilter(RateLimitFilter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


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
