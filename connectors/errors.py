"""The errors that cross the rooms: each one is an instruction.

    ConnectorError
    ├── Rewound   begin again: what was handed out is void and will come again
    └── Stop      time will not cure it: end with this exit code

Anything else is unexpected and is not caught: the process ends with 70, its supervisor
starts it again, and the transaction protects the data.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What the process says when it leaves (69 to 78 after BSD's sysexits.h)."""

    OK = 0
    USAGE = 2
    UNAVAILABLE = 69
    UNEXPECTED = 70
    FENCED = 75
    GIVEN_UP = 78


class ConnectorError(Exception):
    """Whatever this package raises on purpose."""


class Rewound(ConnectorError):
    """All that was handed out and not acknowledged is void and will be delivered again."""


class Stop(ConnectorError):
    """The daemon ends with `code`; the message is one sentence with the fix."""

    def __init__(self, why: str, code: Exit) -> None:
        super().__init__(why)
        self.code = code
