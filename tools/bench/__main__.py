"""`python -m tools.bench BROKER`: the daemon against the plain subscriber, in the same run.

Both relay the same backlog of test images between the same servers, in turns. Exit code 0 only when
the daemon is, in the median of the rounds, so many times as fast.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tools.bench.contest import contest
from tools.bench.pubsub import PubSubCourse
from tools.stack import ROOT, StackError, TorchServe

COURSES = {"pubsub": PubSubCourse}
WANTED = 2.0


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"bench: {text}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    made.add_argument("broker", help=", ".join(COURSES))
    made.add_argument("--records", type=int, default=5000, help="of each heat; 10,000 at most")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--output", type=Path, help="default: run/bench-BROKER.json")
    return made


def main(argv: list[str] | None = None) -> int:
    """Do one contest; return the exit code."""
    asked = parser().parse_args(argv)
    if asked.broker not in COURSES:
        say(f"there is no race on {asked.broker}; name {' or '.join(COURSES)}")
        return 2
    output = asked.output or ROOT / "run" / f"bench-{asked.broker}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fmnist-bench-") as scratch:
        try:
            with (
                TorchServe() as server,
                COURSES[asked.broker](server.url, Path(scratch)) as course,
            ):
                found = contest(course, asked.rounds, asked.records, WANTED, say)
        except StackError as error:
            say(str(error))
            for log in sorted(Path(scratch).glob("*.log")):
                say(f"the last words of {log.stem}:\n{log.read_text()[-2000:]}")
            return 69
        except KeyboardInterrupt:
            say("stopped; nothing is left running")
            return 130
    output.write_text(json.dumps(found.figures(), indent=2) + "\n")
    print(found.table())
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
