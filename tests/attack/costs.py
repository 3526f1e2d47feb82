"""The table of costs: each bomb against the handler in a child process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.handler.costs import Cost, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.handler.bomb import Bomb

HEAD = f"{'row':<3} {'bytes':>9} {'CPU s':>6} {'MB':>6}  {'bomb':<64} answer"


def measure_all(bombs: Iterable[Bomb], mode: str) -> Iterator[tuple[Bomb, Cost]]:
    """Yield each bomb with its cost."""
    with Target(mode) as target:
        for bomb in bombs:
            yield bomb, target.measure(bomb)


def render(bomb: Bomb, cost: Cost) -> str:
    """Return a row of the table; `!` marks what exceeds a bound."""
    mark = "!" if cost.find_excess() else " "
    figures = f"{len(bomb.body()):>9,} {cost.cpu_s:>6.2f} {cost.memory_mb:>6.0f}"
    return f"{bomb.row:<3} {figures} {mark}{bomb.name[:64]:<64} {cost.answer[:70]}"
