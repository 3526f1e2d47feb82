"""What the rate depends on: one setting is changed at a time, all others stay as they come.

The CPU by process says what limits a curve: a process that has a core for itself has 1,000,000 µs a
second, and the machine so many times its cores.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from connectors.verbs import Pace
from tests.bench.kafka import CONTESTANTS, PARTITIONS, SIZE
from tests.bench.measured import CPU_HEAD, PARTS, Target
from tests.bench.networks import RESNET_SIZE, SHIPPED
from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.bench.kafka import KafkaBenchmark
    from tests.bench.measured import Measured

OURS = CONTESTANTS["exactly once"]
LEAST_OF_BEST = 0.9
"""What the default of a setting must reach of the best value's rate."""

HEADROOM = 1.1
"""Of a picture's axis, above its highest value."""


class Point(NamedTuple):
    """One value of a setting, and what it means; `share`: of the records, as they are slower.

    `payload`: least bytes of a file. `network`: SHIPPED, or a ResNet of torchvision by its name.
    """

    value: int
    flags: Sequence[str] = ()
    partitions: int = PARTITIONS
    size: int = SIZE
    payload: int = 0
    network: str = SHIPPED
    relays: int = 1
    share: float = 1.0


CURVES: Mapping[str, Sequence[Point]] = {
    "pack": [Point(one, ("--pack", str(one))) for one in (8, 32, 64, 128, 256, 512)],
    "in flight": [Point(one, ("--in-flight", str(one))) for one in (1, 2, 4, 6, 8, 16)],
    "partitions": [Point(one, partitions=one) for one in (1, 2, 4, 8, 16)],
    "relays": [Point(one, relays=one) for one in (1, 2, 4)],
    "image size": [
        Point(one, size=one, share=share)
        for one, share in ((28, 1.0), (64, 0.5), (128, 0.5), (256, 0.25), (512, 0.125))
    ],
    "kB": [
        Point(one, payload=1000 * one, share=share)
        for one, share in ((0, 1.0), (5, 1.0), (50, 0.2), (500, 0.04))
    ],
    "resnet": [
        Point(0, size=RESNET_SIZE, share=0.25),
        Point(18, size=RESNET_SIZE, network="resnet18", share=0.03),
    ],
}
DEFAULTS = {"pack": "pack", "in flight": "in_flight"}
"""The curves of a setting of the daemon, and its name there."""


class MakeBenchmark(Protocol):
    """Returns a benchmark with a backlog of its own, to be entered."""

    def __call__(
        self, records: int, *, partitions: int, size: int, payload: int, network: str
    ) -> KafkaBenchmark:
        """Make it; of so many records."""
        ...


Curve = list[tuple[int, "Measured"]]


@dataclass(frozen=True)
class Sweep:
    """The runs of each curve, by value."""

    curves: Mapping[str, Curve]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            name: [{"value": value, **asdict(run)} for value, run in curve]
            for name, curve in self.curves.items()
        }

    def render(self) -> str:
        """Return a table for each curve, then what is wanted of the defaults, for people."""
        lines = [line for name, curve in self.curves.items() for line in _render_curve(name, curve)]
        return "\n".join([*lines, *(target.render() for target in self.list_targets())])

    def list_targets(self) -> list[Target]:
        """Return how each default stands beside the best value."""
        return [
            compare_default(name, curve, Pace.model_fields[DEFAULTS[name]].default)
            for name, curve in self.curves.items()
            if name in DEFAULTS
        ]

    def draw(self, path: Path) -> None:
        """Draw rate and CPU of each curve."""
        from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and for pictures alone

        figure = Figure(figsize=(3 * len(self.curves), 5), layout="constrained")
        rows = figure.subplots(2, len(self.curves), squeeze=False)
        for (name, curve), top, bottom in zip(self.curves.items(), *rows, strict=True):
            values, runs = [str(value) for value, _ in curve], [run for _, run in curve]
            top.plot(values, [run.records_s for run in runs], marker="o")
            top.set(title=name, ylim=(0, HEADROOM * max(run.records_s for run in runs)))
            floor = [0.0] * len(runs)
            for part in PARTS:
                heights = [run.cpu_us.get(part, 0.0) for run in runs]
                bottom.bar(values, heights, bottom=floor, label=part)
                floor = [low + height for low, height in zip(floor, heights, strict=True)]
            bottom.set(ylim=(0, HEADROOM * max(floor)))
        rows[0][0].set(ylabel="records a second")
        rows[1][0].set(ylabel="CPU µs a record")
        rows[1][0].legend()
        figure.savefig(path)


def compare_default(name: str, curve: Curve, default: int) -> Target:
    """Return the default's share of the best rate. Raises KeyError when it was not measured."""
    rates = {value: run.records_s for value, run in curve}
    share = rates[default] / max(rates.values())
    return Target(f"{name} {default} (default) ÷ the best", share, least=LEAST_OF_BEST)


def _render_curve(name: str, curve: Curve) -> Iterator[str]:
    yield f"{name:<12}{'records/s':>10}{CPU_HEAD}"
    for value, run in curve:
        yield f"{value:<12}{run.records_s:>10,.0f}{run.render_cpu()}"
    yield ""


def choose_curves(only: str | None) -> Mapping[str, Sequence[Point]]:
    """Return those that are named, comma separated, or all. Raises StackError."""
    names = only.split(",") if only else list(CURVES)
    if unknown := set(names) - set(CURVES):
        raise StackError(f"there is no curve {min(unknown)!r}: {', '.join(CURVES)}")
    return {name: CURVES[name] for name in names}


def measure(
    make: MakeBenchmark, records: int, only: str | None, say: Callable[[str], None]
) -> Sweep:
    """Run each point of each curve once; one run before warms the servers up."""
    chosen = choose_curves(only)
    measure_point(make, records, Point(0))
    curves: dict[str, Curve] = {name: [] for name in chosen}
    for name, points in chosen.items():
        for point in points:
            run = measure_point(make, records, point)
            curves[name].append((point.value, run))
            say(f"{name} {point.value}: {run.records_s:,.0f} records/s")
    return Sweep(curves)


def measure_point(make: MakeBenchmark, records: int, point: Point) -> Measured:
    """Run one point, with a backlog of its own."""
    with ExitStack() as stack:
        made = make(
            round(records * point.share),
            partitions=point.partitions,
            size=point.size,
            payload=point.payload,
            network=point.network,
        )
        contestant = OURS._replace(flags=point.flags)
        return stack.enter_context(made).run(contestant, point.relays)
