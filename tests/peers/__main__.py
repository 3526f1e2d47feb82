"""Kafka, a relay, an inference server and Kafka again: `python -m tests.peers --help`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from tests.chaos.verdict import conclude, make_log_folder
from tests.peers.run import Size, run
from tests.peers.servers import ENVIRONMENTS, SERVERS
from tools.servers.process import ROOT


def main(argv: list[str] | None = None) -> int:
    """Run one server after the other; return the first exit code that is not 0."""
    size = Size()
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("servers", nargs="*", choices=[[], *SERVERS], default=[], metavar="SERVER")
    parser.add_argument("--images", type=int, default=size.images)
    parser.add_argument("--poison", type=float, default=size.poison, help="a share of them")
    parser.add_argument("--kills", type=int, default=size.kills, help="of the server")
    parser.add_argument("--rate", type=float, default=size.rate, help="images a second")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="FOLDER")
    parser.add_argument(
        "--relay", default="", metavar="FLAGS", help="further flags of the relay, in one word"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "run", metavar="FOLDER")
    asked = parser.parse_args(argv)
    size = Size(asked.images, asked.poison, asked.kills, asked.rate, tuple(asked.relay.split()))
    code = 0
    for name in asked.servers or SERVERS:
        output = asked.output / f"peers-{name}.json"
        folder = make_log_folder(output)
        start = partial(run, name, size, folder, _say, asked.environments)
        code = code or conclude(start, output, _say)
    return code


def _say(text: str) -> None:
    sys.stderr.write(f"peers: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
