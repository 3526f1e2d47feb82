"""The figures of a benchmark. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def compute_rate(moments: Sequence[float]) -> float:
    """Return the records a second, from the moments at which their results came, in seconds.

    The first moment only starts the clock: what came in it was made before.
    """
    first, last = min(moments), max(moments)
    return sum(moment > first for moment in moments) / (last - first) if last > first else inf


@dataclass(frozen=True, kw_only=True)
class Round:
    """Records a second of both, one after the other."""

    ours: float
    plain: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.ours / self.plain


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`ceilings`: what the broker itself can do, records a second. `wanted`: the least ratio."""

    broker: str
    records: int
    rounds: Sequence[Round]
    ceilings: dict[str, float]
    wanted: float

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return median(each.ratio for each in self.rounds)

    @property
    def passed(self) -> bool:
        """Whether ours is as fast as it should be."""
        return self.ratio >= self.wanted

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        ratios = [each.ratio for each in self.rounds]
        return {
            "broker": self.broker,
            "records": self.records,
            "ours": [round(each.ours, 1) for each in self.rounds],
            "plain": [round(each.plain, 1) for each in self.rounds],
            "ratio": round(self.ratio, 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "wanted": self.wanted,
            "ceilings": {name: round(value, 1) for name, value in self.ceilings.items()},
            "passed": self.passed,
        }

    def render(self) -> str:
        """Return everything as a table, for people; records a second."""
        lines = [f"{'':<28}{'ours':>10}{'plain':>10}{'ratio':>8}"]
        lines += [
            _render_line(f"round {number}", each.ours, each.plain, each.ratio)
            for number, each in enumerate(self.rounds, 1)
        ]
        ours, plain = (median(getattr(r, who) for r in self.rounds) for who in ("ours", "plain"))
        lines.append(_render_line("median", ours, plain, self.ratio))
        lines += [f"{name:<28}{value:>10,.0f}" for name, value in self.ceilings.items()]
        verdict = "yes" if self.passed else "NO"
        return "\n".join([*lines, f"{f'at least {self.wanted:g} times as fast':<28}{verdict:>10}"])


def _render_line(name: str, ours: float, plain: float, ratio: float) -> str:
    return f"{name:<28}{ours:>10,.0f}{plain:>10,.0f}{ratio:>8.2f}"
