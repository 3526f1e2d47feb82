"""The table of costs: each bomb against the handler in a child process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.handler.bomb import MAX_BODY_BYTES
from tests.handler.costs import Cost, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.handler.bomb import Bomb

MAX_COPIES = 1024
"""Images of one request, the handler's own limit."""
STEP = 0.8

HEAD = f"{'row':<3} {'bytes':>9} {'CPU s':>6} {'MB':>6}  {'bomb':<64} answer"


def measure_all(bombs: Iterable[Bomb], mode: str, times: int = 1) -> Iterator[tuple[Bomb, Cost]]:
    """Yield each bomb with its cost, or that of a batch of so many."""
    with Target(mode) as target:
        for bomb in bombs:
            yield bomb, target.measure(bomb, times)


def measure_most(bombs: Iterable[Bomb], mode: str, times: int = 1) -> Iterator[tuple[Bomb, Cost]]:
    """Yield each file that is accepted alone, as often in one request as is not refused."""
    with Target(mode) as target:
        for bomb in bombs:
            if bomb.copies == 1 and bomb.is_file and target.measure(bomb).answer == "accepted":
                size = len(bomb.make()) + 200
                yield find_most(target, bomb, min(MAX_COPIES, MAX_BODY_BYTES // size), times)


def find_most(target: Target, bomb: Bomb, copies: int, times: int) -> tuple[Bomb, Cost]:
    """Return the largest request of the file that is not refused, and its cost."""
    while True:
        name = f"{copies} parts, each {bomb.name}"
        request = replace(bomb, key=f"{bomb.key}-x{copies}", name=name, copies=copies)
        cost = target.measure(request, times)
        if "accepted" in cost.answer or cost.find_excess() or copies <= 2:
            return request, cost
        copies = max(2, int(copies * STEP))


def render(bomb: Bomb, cost: Cost, *, broken: bool) -> str:
    """Return a row of the table; `!` marks what exceeds a bound."""
    mark = "!" if broken else " "
    figures = f"{len(bomb.body()):>9,} {cost.cpu_s:>6.2f} {cost.memory_mb:>6.0f}"
    return f"{bomb.row:<3} {figures} {mark}{bomb.name[:64]:<64} {cost.answer[:70]}"
