"""Output of the commands: the result on stdout, as a sentence or JSON; the rest on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

MAX_NAMED = 10
"""Things that a message names; it counts the others."""


def print_result(options: argparse.Namespace, result: dict[str, Any], sentence: str) -> None:
    """Print the result as JSON if that was asked for, else the sentence."""
    sys.stdout.write((json.dumps(result, indent=2) if options.json else sentence) + "\n")


def say(sentence: str) -> None:
    """Tell people what happens, beside the result."""
    sys.stderr.write(sentence + "\n")


def list_names(names: Sequence[str]) -> str:
    """Return names for a message: the first ones, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
