"""Output of the commands: the result on stdout, as a sentence or JSON; the rest on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse


def print_result(options: argparse.Namespace, result: dict[str, Any], sentence: str) -> None:
    """Print the result as JSON if that was asked for, else the sentence."""
    sys.stdout.write((json.dumps(result, indent=2) if options.json else sentence) + "\n")


def say(sentence: str) -> None:
    """Tell people what happens, beside the result."""
    sys.stderr.write(sentence + "\n")
