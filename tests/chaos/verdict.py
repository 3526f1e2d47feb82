"""The end of each scenario: a table for people, JSON below run/, an exit code."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path


class Result(Protocol):
    """What a scenario has shown."""

    @property
    def passed(self) -> bool:
        """Whether it is as promised."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        ...

    def render(self) -> str:
        """Return everything as a table, for people."""
        ...


class Verdict(NamedTuple):
    """Figures by name, and what was not as promised: a sentence each."""

    found: Mapping[str, Any]
    broken: Sequence[str]

    @property
    def passed(self) -> bool:
        """See `Result.passed`."""
        return not self.broken

    def to_dict(self) -> dict[str, Any]:
        """See `Result.to_dict`."""
        return {"passed": self.passed, "broken": list(self.broken), **self.found}

    def render(self) -> str:
        """See `Result.render`; lists of samples are for the JSON only."""
        rows = {k: v for k, v in self.found.items() if not isinstance(v, list)}
        lines = [f"{name.replace('_', ' '):<44}{value!s:>14}" for name, value in rows.items()]
        return "\n".join([*lines, *self.broken, f"passed: {'yes' if self.passed else 'NO'}"])


def list_violations(counts: Mapping[str, int]) -> list[str]:
    """Return a sentence for each way to break the promise; `counts`: records, by way."""
    return [f"{count} {kind}" for kind, count in counts.items() if count]


def conclude(run: Callable[[], Result], output: Path, say: Callable[[str], None]) -> int:
    """Run a scenario, print its table, write its JSON; return the exit code.

    SIGTERM ends it as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = run()
    except StackError as error:
        say(str(error))
        return 69
    except KeyboardInterrupt:
        say("stopped; nothing is left running")
        return 130
    output.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    print(result.render())
    return 0 if result.passed else 1


def make_log_folder(output: Path) -> Path:
    """Return a folder for logs beside the JSON, without those of an earlier run."""
    folder = output.parent / f"{output.stem}-logs"
    folder.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        log.unlink()
    return folder
