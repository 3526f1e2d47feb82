"""`python -m tools.chaos`: exit code 0 only when the promise was kept through all faults."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from tools.chaos import controls
from tools.chaos.run import run
from tools.chaos.scene import Settings
from tools.chaos.verdict import concluded, logs_of
from tools.stack import ROOT


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"chaos: {text}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.chaos", description=__doc__)
    made.add_argument("--duration", type=float, default=1200.0, help="seconds of load and faults")
    made.add_argument("--seed", type=int, default=None, help="of the faults; default: a random one")
    made.add_argument("--rate", type=float, default=180.0, help="records a second")
    made.add_argument("--partitions", type=int, default=9)
    made.add_argument("--relays", type=int, default=3)
    made.add_argument("--control", metavar="BUG", help="a known bug instead, which must be noticed")
    made.add_argument("--output", type=Path, default=ROOT / "run" / "chaos.json")
    return made


def main(argv: list[str] | None = None) -> int:
    """Do one run; return the exit code."""
    asked = parser().parse_args(argv)
    if asked.control:
        return controls.main([asked.control])
    settings = Settings(
        duration=asked.duration,
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        rate=asked.rate,
        partitions=asked.partitions,
        relays=asked.relays,
    )
    folder = logs_of(asked.output)
    return concluded(lambda: run(settings, folder, say), asked.output, say)


if __name__ == "__main__":
    sys.exit(main())
