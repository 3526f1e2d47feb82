"""Bento as a relay to the same service: one image a request, many threads, at least once.

So the comparison is one of packing above all. With --packed it packs, too, by components that a
user has to put together.

Bento is a stream processor (https://github.com/warpstreamlabs/bento); its program is named by
BENTO_BIN. It needs a build with the components io, kafka and pure. This process turns into it, so
that a benchmark watches one process as it does for every relay.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

VARIABLE = "BENTO_BIN"
FOLDER = Path(__file__).parent
CONFIGURATIONS = {False: FOLDER / "bento.yaml", True: FOLDER / "bento_packed.yaml"}
"""By whether it packs."""
FLAGS = ("--bootstrap-servers", "--input-topic", "--output-topic", "--group", "--url")


def build_environment(asked: argparse.Namespace) -> dict[str, str]:
    """Return what the configurations read: each of FLAGS, in capital letters."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in FLAGS]
    return {name.upper(): getattr(asked, name) for name in names}


def main() -> None:
    """Become Bento."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bento", description=__doc__)
    for flag in FLAGS:
        parser.add_argument(flag, required=True)
    parser.add_argument("--packed", action="store_true", help="256 images a request")
    asked = parser.parse_args()
    argv = [os.environ[VARIABLE], "-c", str(CONFIGURATIONS[asked.packed])]
    os.execve(argv[0], argv, {**os.environ, **build_environment(asked)})  # noqa: S606 - who runs the benchmark names the program


if __name__ == "__main__":
    main()
