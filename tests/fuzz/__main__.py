"""Tries inputs that nobody wrote on the handler: `python -m tests.fuzz`, or `make fuzz`.

Files of the six formats are taken apart and changed, requests of JSON, of parts and of tensors are
made of them. Two processes try them; the same seed gives the same inputs. It fails when something
leaves `unpack` or the answer to it, when the handler fails, when an input costs more than 3 s of
CPU or 300 MB, when a worker hangs or dies, and when too few inputs reach the gate's other side or
the decoders. Each failing input is written to a folder; `--replay FILE` tries one again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.fuzz.judge import Judge, read_input, write_input
from tests.fuzz.mutations import FORMATS
from tests.fuzz.workers import Plan, Report, Tally, run
from tools.servers.process import ROOT

MIN_PASSED = 0.3
MIN_DECODED = 0.1
MIN_JUDGED = 500
"""Inputs of a format from which its shares mean something."""
MAX_WRITTEN = 50
"""Failing inputs that are written; the first are enough."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--seed", type=int, default=1, help="of the inputs (default: 1)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--format", choices=FORMATS, help="only one (default: all in turn)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    folder = ROOT / "run" / "fuzz"
    parser.add_argument("--findings", type=Path, default=folder, help="folder of failing inputs")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try one input, and end")
    return parser.parse_args(argv)


def replay(path: Path) -> int:
    """Try one input and say what became of it; return the exit code."""
    verdict = Judge().judge(read_input(path))
    print(
        f"fuzz: passed {verdict.passed}, decoded {verdict.decoded}, {verdict.cpu_s:.3f} s of CPU, "
        f"{verdict.growth_mb:.0f} MB: {verdict.fault or 'good'}"
    )
    return int(bool(verdict.fault))


def gather(plan: Plan) -> Report:
    """Try the inputs and show how far it is; Ctrl-C ends it early, with what there is."""
    total = Report()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Trying", total=plan.inputs)
        try:
            for report in run(plan):
                total.merge(report)
                text = f"Trying, {len(total.findings)} findings"
                progress.update(task, completed=total.inputs, description=text)
        except KeyboardInterrupt:
            progress.console.print("fuzz: ended early")
    return total


def find_low_shares(tallies: dict[str, Tally]) -> list[str]:
    """Return a sentence for each format whose inputs do not get far enough."""
    lines = []
    for name, tally in tallies.items():
        if tally.inputs < MIN_JUDGED:
            continue
        passed, decoded = tally.passed / tally.inputs, tally.decoded / tally.inputs
        if passed < MIN_PASSED:
            lines.append(f"{name}: {passed:.0%} pass the gate, less than {MIN_PASSED:.0%}")
        if decoded < MIN_DECODED:
            lines.append(f"{name}: {decoded:.0%} are decoded, less than {MIN_DECODED:.0%}")
    return lines


def write_findings(total: Report, plan: Plan, folder: Path) -> None:
    """Write the failing inputs, made anew from their numbers, and say where they are."""
    judge = Judge()
    for name, index, fault in total.findings[:MAX_WRITTEN]:
        request = judge.make(name, plan.seed, index)
        path = write_input(folder, f"{name}-{plan.seed}-{index}", request)
        print(f"fuzz: {path}: {fault}")


def show(total: Report, seconds: float) -> None:
    """Print a line for each format."""
    for name, tally in sorted(total.tallies.items()):
        count = max(tally.inputs, 1)
        print(
            f"fuzz: {name:9} {tally.inputs:>9,} inputs, {tally.passed / count:4.0%} pass the gate, "
            f"{tally.decoded / count:4.0%} are decoded, slowest {tally.slowest_cpu_s:.2f} s of CPU "
            f"({tally.slowest_index}), largest {tally.largest_mb:.0f} MB"
        )
    rate = total.inputs / max(seconds, 1e-9)
    print(
        f"fuzz: {total.inputs:,} inputs in {seconds:.0f} s, {rate:.0f} a second, "
        f"{len(total.findings)} findings"
    )


def main(argv: list[str] | None = None) -> int:
    """Try, print and judge; return the exit code."""
    asked = parse(argv)
    if asked.replay:
        return replay(asked.replay)
    formats = (asked.format,) if asked.format else FORMATS
    plan = Plan(formats, asked.seed, asked.inputs, asked.seconds)
    started = time.monotonic()
    total = gather(plan)
    seconds = time.monotonic() - started
    show(total, seconds)
    low = find_low_shares(total.tallies)
    for line in low:
        print(f"fuzz: {line}")
    write_findings(total, plan, asked.findings)
    if asked.json:
        figures = {name: asdict(tally) for name, tally in total.tallies.items()}
        findings = [finding._asdict() for finding in total.findings]
        content = {"seed": plan.seed, "seconds": seconds, "formats": figures, "findings": findings}
        asked.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(bool(total.findings or low))


if __name__ == "__main__":
    sys.exit(main())
