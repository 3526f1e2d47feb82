"""Bento as a relay to the same service: one image a request, many threads, at least once.

So the comparison is one of packing above all. Bento can pack, too, by components that a user has to
put together; that was not tried.

Bento is a stream processor (https://github.com/warpstreamlabs/bento); its program is named by
BENTO_BIN. It needs a build with the components io, kafka and pure. This process turns into it, so
that a benchmark watches one process as it does for every relay.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

VARIABLE = "BENTO_BIN"
CONFIGURATION = Path(__file__).with_suffix(".yaml")
FLAGS = ("--bootstrap-servers", "--input-topic", "--output-topic", "--group", "--url")


def build_environment(asked: argparse.Namespace) -> dict[str, str]:
    """Return what the configuration reads: each flag in capital letters."""
    return {name.upper(): value for name, value in vars(asked).items()}


def main() -> None:
    """Become Bento."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bento", description=__doc__)
    for flag in FLAGS:
        parser.add_argument(flag, required=True)
    program = os.environ[VARIABLE]
    environment = {**os.environ, **build_environment(parser.parse_args())}
    os.execve(program, [program, "-c", str(CONFIGURATION)], environment)  # noqa: S606 - who runs the benchmark names the program


if __name__ == "__main__":
    main()
