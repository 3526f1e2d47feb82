"""The daemon beside other relays, in the same run: `python -m tests.bench BROKER`.

On Pub/Sub the daemon and the plain subscriber relay the same backlog of test images in turns; exit
code 0 only when the daemon is, in the median of the rounds, so many times as fast. On Kafka relays
of several kinds do, an older tree with --base, and Bento where BENTO_BIN names its program; what is
wanted is printed beside what was found.

`python -m tests.bench packed` compares the forms in which images can be packed into a request, by
the CPU that they cost TorchServe. `python -m tests.bench single` asks for one image a request and
compares our settings of TorchServe with its own. `python -m tests.bench relays` measures one, two
and four relays of a group, and what it costs that one joins, leaves or dies. `python -m tests.bench
sweep` changes one setting after the other. These two also draw a picture beside their JSON.
`python -m tests.bench imports` tells how long programs import before they begin.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench import ceiling, imports, packed, relays, single, sweep
from tests.bench.base import checked_out
from tests.bench.benchmark import compare
from tests.bench.kafka import BENTOS, CONTESTANTS, KafkaBenchmark, list_contestants, serve_base
from tests.bench.networks import SHIPPED, pack_resnet
from tests.bench.pubsub import PubSubBenchmark
from tests.bench.turns import list_targets, measure_in_turns
from tools.servers.kafka import Kafka
from tools.servers.process import ROOT, StackError
from tools.servers.torchserve import ARCHIVE, TorchServe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CEILING = "ceiling"
LEAST_RATIO = 2.0
RECORDS = {
    "kafka": 30_000,
    "pubsub": 5_000,
    "packed": 5_000,
    "single": 2_000,
    "relays": 96_000,
    "sweep": 12_000,
    "imports": 0,
}
ROUNDS = {
    "kafka": 3,
    "pubsub": 5,
    "packed": 5,
    "single": 3,
    "relays": 1,
    "sweep": 1,
    "imports": 5,
}


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"bench: {text}", flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    made.add_argument("broker", help=", ".join(RUNS))
    made.add_argument("--records", type=int, help=f"of each run; default: {RECORDS}")
    made.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    made.add_argument(
        "--only",
        help=f"kafka: some of {', '.join([*CONTESTANTS, *BENTOS])}, {CEILING}, base; by commas",
    )
    made.add_argument("--base", metavar="COMMIT", help="kafka: an older tree beside this one")
    made.add_argument("--output", type=Path, help="default: run/bench-BROKER.json")
    return made


class Report(NamedTuple):
    """What a benchmark found, for programs and for people."""

    figures: dict[str, Any]
    text: str
    passed: bool


def run_pubsub(asked: argparse.Namespace, scratch: Path, stack: ExitStack) -> Report:
    """Compare the daemon with the plain subscriber."""
    server = stack.enter_context(TorchServe())
    benchmark = stack.enter_context(PubSubBenchmark(server.url, scratch))
    found = compare(benchmark, asked.rounds, asked.records, LEAST_RATIO, say)
    return Report(found.to_dict(), found.render(), found.passed)


def run_kafka(asked: argparse.Namespace, scratch: Path, stack: ExitStack) -> Report:
    """Compare relays of several kinds."""
    tree = stack.enter_context(checked_out(asked.base, scratch)) if asked.base else None
    contestants = list_contestants(tree)
    names = asked.only.split(",") if asked.only else [*contestants, CEILING]
    if unknown := set(names) - {*contestants, CEILING}:
        raise StackError(f"there is no contestant {min(unknown)!r}: {', '.join(contestants)}")
    alone = ceiling.measure(asked.records, os.cpu_count() or 1) if CEILING in names else None
    began = time.monotonic()
    servers = {ROOT: stack.enter_context(TorchServe())}
    say(f"TorchServe predicted {time.monotonic() - began:.1f} s after its start")
    if tree:
        servers[tree] = stack.enter_context(serve_base(tree))
    kafka = stack.enter_context(Kafka())
    benchmark = stack.enter_context(KafkaBenchmark(kafka, servers, scratch, asked.records))
    chosen = {name: contestants[name] for name in names if name != CEILING}
    found = replace(measure_in_turns(benchmark, chosen, asked.rounds, say), ceiling=alone)
    targets = list_targets(found)
    text = "\n".join([found.render(), "", *(target.render() for target in targets)])
    return Report(found.to_dict(), text, all(target.met for target in targets))


def run_packed(asked: argparse.Namespace, _: Path, stack: ExitStack) -> Report:
    """Compare the forms of a packed request."""
    server = stack.enter_context(TorchServe())
    packs = max(asked.records // packed.PACK, 1)
    text = packed.measure(server, asked.rounds, packs, say)
    return Report({"text": text}, text, passed=True)


def run_single(asked: argparse.Namespace, scratch: Path, stack: ExitStack) -> Report:
    """Compare our settings of TorchServe with its own, by requests of one image."""
    ours = stack.enter_context(TorchServe())
    stock = stack.enter_context(single.serve_stock(scratch))
    found = single.compare_settings(ours.url, stock.url, asked.rounds, asked.records, say)
    return Report(found.to_dict(), found.render(), found.passed)


def run_relays(asked: argparse.Namespace, scratch: Path, stack: ExitStack) -> Report:
    """Compare groups of several sizes, and disturb one."""
    kafka = stack.enter_context(Kafka())
    group = KafkaBenchmark(kafka, {}, scratch, asked.records, partitions=relays.PARTITIONS)
    found = relays.measure(stack.enter_context(group), say)
    found.draw(asked.output.with_suffix(".svg"))
    return Report(found.to_dict(), found.render(), passed=True)


def run_sweep(asked: argparse.Namespace, scratch: Path, stack: ExitStack) -> Report:
    """Change one setting after the other."""
    kafka = stack.enter_context(Kafka())

    @cache
    def serve(network: str) -> TorchServe:
        archive = ARCHIVE if network == SHIPPED else pack_resnet(network, scratch)
        return stack.enter_context(TorchServe(archive))

    def make(records: int, *, network: str, **named: int) -> KafkaBenchmark:
        return KafkaBenchmark(kafka, {ROOT: serve(network)}, scratch, records, **named)

    found = sweep.measure(make, asked.records, asked.only, say)
    found.draw(asked.output.with_suffix(".svg"))
    return Report(found.to_dict(), found.render(), passed=True)


def run_imports(asked: argparse.Namespace, _: Path, __: ExitStack) -> Report:
    """Time the imports of programs."""
    found = imports.measure_imports(imports.MODULES, asked.rounds)
    return Report(dict(found), imports.render_imports(found), passed=True)


RUNS: Mapping[str, Callable[[argparse.Namespace, Path, ExitStack], Report]] = {
    "kafka": run_kafka,
    "pubsub": run_pubsub,
    "packed": run_packed,
    "single": run_single,
    "relays": run_relays,
    "sweep": run_sweep,
    "imports": run_imports,
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    asked = parser().parse_args(argv)
    if asked.broker not in RUNS:
        say(f"there is no benchmark on {asked.broker}; name {' or '.join(RUNS)}")
        return 2
    asked.records = asked.records or RECORDS[asked.broker]
    asked.rounds = asked.rounds or ROUNDS[asked.broker]
    asked.output = asked.output or ROOT / "run" / f"bench-{asked.broker}.json"
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fmnist-bench-") as scratch:
        try:
            with ExitStack() as stack:
                found = RUNS[asked.broker](asked, Path(scratch), stack)
        except StackError as error:
            say(str(error))
            for log in sorted(Path(scratch).glob("*.log")):
                say(f"the log of {log.stem}:\n{log.read_text()[-2000:]}")
            return 69
        except KeyboardInterrupt:
            say("stopped; nothing is left running")
            return 130
    asked.output.write_text(json.dumps(found.figures, indent=2) + "\n")
    print(found.text)
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
