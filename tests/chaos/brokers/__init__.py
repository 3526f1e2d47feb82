"""What differs between the brokers: one package for each, with the same file names (choose one).

cases       what `kills` runs, the controls, and the testbed of a case
testbed     broker, proxies, observer, load and relays
observer    reads the topics
producer    the way in
bugs        known bugs, each by what it replaces in the product
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from tests.chaos.testbed import Case, Service, Testbed

    Bugs = Mapping[str, Callable[[], None]]
    """What puts a bug into this process, by the bug's name."""

BROKERS = ("kafka", "pubsub")


class Cases(Protocol):
    """The module `cases` of a broker's package."""

    CONTROLS: Mapping[str, Case]
    """The run in which each bug must be noticed."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags of `kills` that only this broker has."""
        ...

    def select_cases(self, asked: argparse.Namespace, seed: int) -> Sequence[Case]:
        """Return what the flags ask for."""
        ...

    def open_testbed(self, case: Case, service: Service, folder: Path, stack: ExitStack) -> Testbed:
        """Start the broker, and make the rest ready; all of it ends with `stack`."""
        ...


def load_cases(broker: str) -> Cases:
    """Return the cases of one of BROKERS; imports its library."""
    return cast("Cases", import_module(f"{__name__}.{broker}.cases"))


def load_bugs(broker: str) -> Bugs:
    """Return the known bugs of one of BROKERS; imports its library."""
    bugs: Bugs = import_module(f"{__name__}.{broker}.bugs").BUGS
    return bugs
