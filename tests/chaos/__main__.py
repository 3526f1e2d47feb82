"""Fault injection against real servers, in scenarios.

Exit code 0 only when the scenario has shown what was promised, 1 when it has not, 2 for a wrong
command, 69 when a server fails, 130 when it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.scenarios import DEFAULT, SCENARIOS, load_scenario
from tests.chaos.verdict import conclude, make_log_folder
from tools.servers.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.scenarios import Scenario

PROGRAM = "python -m tests.chaos"


def list_scenarios() -> Iterator[str]:
    """Yield the lines of the help."""
    yield f"usage: {PROGRAM} [NAME] [--broker BROKER] [flags of NAME]\n"
    yield from (str(__doc__), "Scenarios:")
    for name, entry in SCENARIOS.items():
        default = " (when none is named)" if name == DEFAULT else ""
        yield f"  {name:<10}{entry.summary}{default}"
        yield f"{'':<12}needs {entry.needs}; takes {entry.takes}"
        yield f"{'':<12}--broker {', '.join(entry.brokers)}"
    yield f"\n{PROGRAM} NAME --help explains the flags of one."


def make_parser(name: str, scenario: Scenario, broker: str) -> argparse.ArgumentParser:
    """Return the command line of one scenario."""
    brokers = SCENARIOS[name].brokers
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}", description=scenario.__doc__, allow_abbrev=False
    )
    parser.add_argument("--broker", choices=brokers, default=broker, help="default: kafka")
    scenario.add_arguments(parser, broker)
    parser.add_argument("--output", type=Path, default=default_output(name, broker), help="JSON")
    return parser


def default_output(name: str, broker: str) -> Path:
    """Return the path of the JSON below run/."""
    stem = SCENARIOS[name].output or name
    return ROOT / "run" / (f"{stem}.json" if broker == "kafka" else f"{stem}-{broker}.json")


def parse_broker(flags: list[str]) -> str:
    """Return the broker that is asked for; the other flags depend on it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--broker", default="kafka")
    broker: str = parser.parse_known_args(flags)[0].broker
    return broker


def main(argv: list[str] | None = None) -> int:
    """Run one scenario; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print("\n".join(list_scenarios()))
        return 0
    name = DEFAULT if not words or words[0].startswith("-") else words.pop(0)
    if name not in SCENARIOS:
        print(f"chaos: there is no scenario {name}; name one of {', '.join(SCENARIOS)}")
        return 2
    broker = parse_broker(words)
    if broker not in SCENARIOS[name].brokers:
        print(f"{name}: not on {broker}; name one of {', '.join(SCENARIOS[name].brokers)}")
        return 2
    return run_scenario(name, broker, words)


def run_scenario(name: str, broker: str, flags: list[str]) -> int:
    """Run one scenario with its own flags; return the exit code."""
    scenario = load_scenario(name)
    asked = make_parser(name, scenario, broker).parse_args(flags)
    folder = make_log_folder(asked.output)

    def say(text: str) -> None:
        print(f"{name}: {text}", flush=True)

    return conclude(lambda: scenario.run(asked, folder, say), asked.output, say)


if __name__ == "__main__":
    sys.exit(main())
