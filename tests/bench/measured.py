"""The figures of relays that ran in turns: medians, spread, a table and JSON. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf
from statistics import median
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.latency import Latency

PARTS = ("relay", "worker", "jvm", "kafka", "service")
CPU_HEAD = "".join(f"{part:>9}" for part in PARTS) + f"{'all':>9}{'cores':>7}{'busy':>6}"
"""The head of what `Measured.render_cpu` returns."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: records a second; CPU µs a record and resident MB by process.

    `cores`: in use by these processes; `machine_cores`: by all, others' work included. `start_s`:
    seconds from the start of the relay to its first result.
    """

    records_s: float
    cpu_us: Mapping[str, float]
    rss_mb: Mapping[str, float]
    cores: float
    machine_cores: float = 0.0
    start_s: float = 0.0

    @property
    def total_cpu_us(self) -> float:
        """CPU µs a record of all processes together."""
        return sum(self.cpu_us.values())

    def render_cpu(self) -> str:
        """Return the columns of CPU_HEAD: CPU µs a record by process, and the cores in use."""
        parts = "".join(f"{self.cpu_us.get(part, 0):>9.0f}" for part in PARTS)
        return f"{parts}{self.total_cpu_us:>9.0f}{self.cores:>7.2f}{self.machine_cores:>6.2f}"


@dataclass(frozen=True)
class Target:
    """A figure and the bound that is wanted of it."""

    what: str
    value: float
    least: float = -inf
    most: float = inf

    @property
    def met(self) -> bool:
        """Whether the figure is within its bounds."""
        return self.least <= self.value <= self.most

    def render(self) -> str:
        """Return a line, for people."""
        bound = f"at least {self.least:g}" if self.least > -inf else f"at most {self.most:g}"
        return f"{self.what:<40}{self.value:>10.2f}  {bound:<16}{'yes' if self.met else 'NO'}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """All runs by contestant; the latency of ours at `rate` records a second.

    `ceiling`: images a second of decoding and predicting alone, on all cores.
    """

    records: int
    cores: int
    runs: Mapping[str, Sequence[Measured]]
    rate: float = 0.0
    latency: Latency | None = None
    ceiling: float | None = None

    def add_latency(self, rate: float, latency: Latency) -> Self:
        """Return the same with a latency."""
        return replace(self, rate=rate, latency=latency)

    def find_median(self, name: str) -> Measured:
        """Return the run of the median rate (the lower of two)."""
        ordered = sorted(self.runs[name], key=lambda run: run.records_s)
        return ordered[(len(ordered) - 1) // 2]

    def compute_ratio(self, name: str, base: str) -> float:
        """Return the median of the rounds' ratios."""
        pairs = zip(self.runs[name], self.runs[base], strict=True)
        return median(one.records_s / other.records_s for one, other in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "records": self.records,
            "cores": self.cores,
            "runs": {name: [asdict(run) for run in found] for name, found in self.runs.items()},
            "rate": self.rate,
            "latency": self.latency and self.latency._asdict(),
            "ceiling": self.ceiling,
        }

    def render(self) -> str:
        """Return a line for each contestant, for people."""
        lines = [
            f"{'CPU µs a record of':>60}",
            f"{'':<16}{'records/s':>10}{'spread':>16}{CPU_HEAD}{'start':>7}",
        ]
        lines += [self._render_run(name) for name in self.runs]
        if self.latency:
            p50, p95, p99, early = self.latency
            line = f"at {self.rate:,.0f}/s: p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f} ms"
            lines.append(f"{line}; p99 of the first seconds, left out: {early:.0f} ms")
        if self.ceiling:
            lines.append(f"decoding and predicting alone: {self.ceiling:,.0f}/s")
        return "\n".join(lines)

    def _render_run(self, name: str) -> str:
        middle = self.find_median(name)
        rates = [run.records_s for run in self.runs[name]]
        spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
        line = f"{name:<16}{middle.records_s:>10,.0f}{spread:>16}{middle.render_cpu()}"
        return f"{line}{middle.start_s:>7.1f}"
