"""What `make images` built, in containers: `python -m tests.images --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.chaos.verdict import conclude
from tests.images.cases import CASES
from tools.servers.process import ROOT


def main(argv: list[str] | None = None) -> int:
    """Run one case after the other; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.images", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[], metavar="CASE")
    parser.add_argument("--output", type=Path, default=ROOT / "run", metavar="FOLDER")
    asked = parser.parse_args(argv)
    asked.output.mkdir(parents=True, exist_ok=True)
    code = 0
    for name in asked.cases or CASES:
        _say(name)
        output = asked.output / f"images-{name}.json"
        code = conclude(CASES[name], output, _say) or code
    return code


def _say(text: str) -> None:
    sys.stderr.write(f"images: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
