"""What `make images` built, in containers: `python -m tests.images --help`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from tests.chaos.verdict import conclude
from tests.images.cases import CASES, Images
from tools.servers.process import ROOT


def main(argv: list[str] | None = None) -> int:
    """Run one case after the other; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.images", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[], metavar="CASE")
    parser.add_argument("--output", type=Path, default=ROOT / "run", metavar="FOLDER")
    parser.add_argument("--server", default=Images().server, metavar="IMAGE")
    parser.add_argument("--connector", default=Images().connector, metavar="IMAGE")
    asked = parser.parse_args(argv)
    images = Images(asked.server, asked.connector)
    asked.output.mkdir(parents=True, exist_ok=True)
    code = 0
    for name in asked.cases or CASES:
        _say(name)
        output = asked.output / f"images-{name}.json"
        code = conclude(partial(CASES[name], images), output, _say) or code
    return code


def _say(text: str) -> None:
    sys.stderr.write(f"images: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
