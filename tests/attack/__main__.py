"""Small requests that are dear to answer, against a real TorchServe or the handler alone.

`python -m tests.attack` lets eight honest clients ask beside one attacker, who posts one bomb back
to back, for each row of the report. `python -m tests.attack costs` measures all bombs against the
handler in a child process. Exit code 0 only when all bounds held, 1 when one did not, 2 for a wrong
command, 69 when TorchServe cannot start, 130 when it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from tests.attack.costs import HEAD, measure_all, measure_most, render
from tests.attack.siege import Siege
from tests.handler.bombs import BOMBS, ROWS
from tests.handler.costs import MAX_BATCH_CPU_S, MAX_CPU_S
from tools.servers.process import StackError
from tools.servers.torchserve import TorchServe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.handler.bomb import Bomb
    from tests.handler.costs import Cost


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.attack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", nargs="?", choices=["attack", "costs"], default="attack")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each row (default: 60)")
    parser.add_argument(
        "--attackers", type=int, default=1, help="who post at the same time (default: 1)"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="of a bomb or a row; can be repeated"
    )
    parser.add_argument(
        "--mode",
        choices=["unpack", "handle"],
        default="unpack",
        help="costs: the wire alone, or the whole handler with the archive (default: unpack)",
    )
    parser.add_argument(
        "--times", type=int, default=1, help="costs: so many of the request in one batch"
    )
    parser.add_argument(
        "--most",
        action="store_true",
        help="costs: each file that is accepted, as often in one request as is not refused",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where everything is written")
    return parser


def choose_bombs(names: Sequence[str] | None, default: Sequence[Bomb]) -> list[Bomb]:
    """Return the bombs with these names or of these rows. Raises ValueError for an unknown one."""
    if not names:
        return list(default)
    known = {word for bomb in BOMBS for word in (bomb.key, bomb.row) if word}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no bomb {', '.join(unknown)}: the names are in tests/handler")
    return [bomb for bomb in BOMBS if bomb.key in names or bomb.row in names]


def run_attack(
    bombs: Sequence[Bomb], seconds: float, attackers: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Attack a TorchServe; return the rows and what was broken. Raises StackError."""
    found, broken, baseline_ms = [], [], 0.0
    with Progress(console=Console(stderr=True), transient=True) as progress, TorchServe() as server:
        task = progress.add_task("attack", total=seconds * (len(bombs) + 1))
        siege = Siege(server, seconds, attackers, lambda passed: progress.advance(task, passed))
        for row in siege.run(bombs):
            baseline_ms = baseline_ms if row.key else row.p99_ms
            say(row.render(baseline_ms))
            found.append(row.to_dict())
            broken += [f"{row.key or 'without attacker'}: {each}" for each in row.find_broken()]
    return found, broken


def run_costs(
    costs: Iterable[tuple[Bomb, Cost]], times: int = 1
) -> tuple[list[dict[str, Any]], list[str]]:
    """Print the table of costs; return the rows and what was broken."""
    found, broken = [], []
    say(HEAD)
    for bomb, cost in costs:
        excess = cost.find_excess(MAX_CPU_S if times == 1 else MAX_BATCH_CPU_S)
        say(render(bomb, cost, broken=bool(excess)))
        found.append({"key": bomb.key, "name": bomb.name, "row": bomb.row, **cost._asdict()})
        broken += [f"{bomb.key}: {each}" for each in excess]
    return found, broken


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201 - a program


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; return the exit code."""
    parser = make_parser()
    asked = parser.parse_args(argv)
    attacks = asked.what == "attack"
    try:
        bombs = choose_bombs(asked.only, ROWS if attacks else BOMBS)
        measure = measure_most if asked.most else measure_all
        found, broken = (
            run_attack(bombs, asked.seconds, asked.attackers)
            if attacks
            else run_costs(measure(bombs, asked.mode, asked.times), asked.times)
        )
    except ValueError as error:
        parser.error(str(error))
    except StackError as error:
        say(f"attack: {error}")
        return os.EX_UNAVAILABLE
    except KeyboardInterrupt:
        say("attack: stopped; nothing is left running")
        return 130
    return conclude(found, broken, asked.json)


def conclude(found: list[dict[str, Any]], broken: list[str], output: Path | None) -> int:
    """Say what was broken, write everything, return the exit code."""
    if output:
        output.write_text(json.dumps({"passed": not broken, "rows": found}, indent=2) + "\n")
    say("\n".join([*broken, f"passed: {'NO' if broken else 'yes'}"]))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
