"""How a program of this package ends: a table for people, JSON below run/, an exit code."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


class Shown(Protocol):
    """What a run has shown."""

    @property
    def passed(self) -> bool:
        """Say whether it is as promised."""
        ...

    def figures(self) -> dict[str, Any]:
        """Everything, for JSON."""
        ...

    def table(self) -> str:
        """Everything, for people."""
        ...


class Verdict(NamedTuple):
    """Figures by name, and what was not as promised: a sentence each."""

    found: Mapping[str, Any]
    broken: Sequence[str]

    @property
    def passed(self) -> bool:
        """See `Shown`."""
        return not self.broken

    def figures(self) -> dict[str, Any]:
        """See `Shown`."""
        return {"passed": self.passed, "broken": list(self.broken), **self.found}

    def table(self) -> str:
        """See `Shown`; lists of samples are for the JSON only."""
        rows = {k: v for k, v in self.found.items() if not isinstance(v, list)}
        lines = [f"{name.replace('_', ' '):<44}{value!s:>14}" for name, value in rows.items()]
        return "\n".join([*lines, *self.broken, f"passed: {'yes' if self.passed else 'NO'}"])


def concluded(run: Callable[[], Shown], output: Path, say: Callable[[str], None]) -> int:
    """Run it, print the table, write the JSON; return the exit code. SIGTERM ends it as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        shown = run()
    except StackError as error:
        say(str(error))
        return 69
    except KeyboardInterrupt:
        say("stopped; nothing is left running")
        return 130
    output.write_text(json.dumps(shown.figures(), indent=2) + "\n")
    print(shown.table())
    return 0 if shown.passed else 1


def logs_of(output: Path) -> Path:
    """Return a folder for logs beside the JSON, without those of an earlier run."""
    folder = output.parent / f"{output.stem}-logs"
    folder.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        log.unlink()
    return folder
