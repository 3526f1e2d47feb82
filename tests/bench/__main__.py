"""The daemon against the plain subscriber, in the same run: `python -m tests.bench BROKER`.

Both relay the same backlog of test images between the same servers, in turns. Exit code 0 only when
the daemon is, in the median of the rounds, so many times as fast.

`python -m tests.bench packed` compares the forms in which images can be packed into a request, by
the CPU that they cost TorchServe.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.bench import packed
from tests.bench.benchmark import compare
from tests.bench.pubsub import PubSubBenchmark
from tools.servers.process import ROOT, StackError
from tools.servers.torchserve import TorchServe

BROKERS = ("pubsub",)
LEAST_RATIO = 2.0
PACKED = "packed"


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"bench: {text}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    made.add_argument("broker", help=", ".join((*BROKERS, PACKED)))
    made.add_argument("--records", type=int, default=5000, help="of each run; 10,000 at most")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--output", type=Path, help="default: run/bench-BROKER.json")
    return made


def compare_packs(rounds: int, records: int) -> int:
    """Print what packs of each form cost; return the exit code."""
    try:
        with TorchServe() as server:
            print(packed.measure(server, rounds, max(records // packed.PACK, 1), say))
    except StackError as error:
        say(str(error))
        return 69
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    asked = parser().parse_args(argv)
    if asked.broker == PACKED:
        return compare_packs(asked.rounds, asked.records)
    if asked.broker not in BROKERS:
        say(f"there is no benchmark on {asked.broker}; name {' or '.join((*BROKERS, PACKED))}")
        return 2
    output = asked.output or ROOT / "run" / f"bench-{asked.broker}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fmnist-bench-") as scratch:
        try:
            with (
                TorchServe() as server,
                PubSubBenchmark(server.url, Path(scratch)) as benchmark,
            ):
                found = compare(benchmark, asked.rounds, asked.records, LEAST_RATIO, say)
        except StackError as error:
            say(str(error))
            for log in sorted(Path(scratch).glob("*.log")):
                say(f"the log of {log.stem}:\n{log.read_text()[-2000:]}")
            return 69
        except KeyboardInterrupt:
            say("stopped; nothing is left running")
            return 130
    output.write_text(json.dumps(found.to_dict(), indent=2) + "\n")
    print(found.render())
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
