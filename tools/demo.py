"""The main job, end to end, on real services: `python -m tools.demo`, or `make demo`.

A broker, TorchServe with the archive, the connector; test images are sent, predictions received and
held against what the exported model says without a server. Nothing is left running.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from tools.connector import (
    BROKERS,
    EXACTLY_ONCE,
    ConnectorCommand,
    start_broker,
    wait_for_daemon,
)
from tools.servers.process import ROOT, StackError
from tools.servers.torchserve import TorchServe

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

IDLE_TIMEOUT_S = 60.0  # without a result, after which the demo gives up


class Received(NamedTuple):
    """One result, and when it was seen, in seconds since the epoch."""

    result: dict[str, Any]
    image: int
    at: float


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"demo: {text}", flush=True)


def run_verb(command: ConnectorCommand, verb: str, *flags: str) -> Generator[dict[str, Any]]:
    """Yield what one verb prints, a JSON object for each line, as it comes."""
    with subprocess.Popen(
        command.argv(verb, "--json", *flags),
        cwd=ROOT,
        env=command.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None  # noqa: S101 - Popen was asked for it
        try:
            yield from map(json.loads, process.stdout)
        finally:
            process.terminate()  # whoever has enough does not wait for more


def exchange(command: ConnectorCommand, count: int, log: Path) -> Iterator[Received]:
    """Send `count` test images; yield what comes back, until all did or nothing more comes."""
    data = ["--data", os.environ.get("DATA_DIR", "data")]
    flags = ["--test-set", "--limit", str(count), *data]
    sender = command.process("send", *flags, log=log).start()
    results = run_verb(command, "listen", "--from-beginning", "--idle-timeout", str(IDLE_TIMEOUT_S))
    left = set(range(count))
    try:
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("Images", total=count)
            for line in results:
                found = Received(line["result"], int(line["headers"]["index"]), time.time())
                left.discard(found.image)
                bar.update(task, completed=count - len(left))
                yield found
                if not left:
                    return
    finally:
        results.close()
        sender.stop()


def count_dead_letters(command: ConnectorCommand) -> int:
    """Return how many there are."""
    *_, counted = run_verb(command, "dlq list")
    found: int = counted["dead_letters"]
    return found


def compute_figures(received: list[Received], count: int, dead: int) -> dict[str, Any]:
    """Return what `run/demo.json` says; a latency is from a record's time to its receipt."""
    import numpy as np  # noqa: PLC0415 - as the next one, which brings it

    from tools.exported import classes, first_images, first_labels  # noqa: PLC0415 - imports torch

    predicted, labels = classes(first_images(count)), first_labels(count)
    wire = {each.image: each.result["class"] for each in received}
    latency = [1000 * each.at - each.result["time"] for each in received] or [float("nan")]
    seconds = max((each.at for each in received), default=0) - min(
        (each.result["time"] / 1000 for each in received), default=0
    )
    p50, p99 = (float(each) for each in np.percentile(latency, (50, 99)))
    return {
        "sent": count,
        "received": len(wire),
        "doubled": len(received) - len(wire),
        "accuracy": sum(wire.get(i) == label for i, label in enumerate(labels.tolist())) / count,
        "model_accuracy": float((predicted == labels).mean()),
        "same_class_as_model": sum(
            wire.get(i) == each for i, each in enumerate(predicted.tolist())
        ),
        "dead_letters": dead,
        "images_per_second": round(len(received) / seconds, 1) if seconds else 0.0,
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
    }


def run(broker: str, count: int, folder: Path) -> dict[str, Any]:
    """Do the main job once; raises StackError when a server does not start."""
    with ExitStack() as stack:
        say(f"starting {broker} …")
        command = stack.enter_context(start_broker(broker, prefix=f"demo-{os.getpid()}-"))
        say("starting TorchServe with model_store/fmnist.mar …")
        server = stack.enter_context(TorchServe())
        say("starting the connector …")
        daemon = command.daemon(server.url, log=folder / "connector.log").start()
        stack.callback(daemon.stop, timeout=30)
        wait_for_daemon(daemon)
        say(f"sending {count} test images …")
        received = list(exchange(command, count, folder / "send.log"))
        return compute_figures(received, count, count_dead_letters(command))


def print_report(found: dict[str, Any]) -> None:
    """Print the figures for people."""
    wire, model = found["accuracy"], found["model_accuracy"]
    say(f"sent {found['sent']}, received {found['received']}, dead letters {found['dead_letters']}")
    if found["doubled"]:
        say(f"{found['doubled']} results came again")
    say(f"accuracy over the wire {wire:.2%}, of the exported model {model:.2%} on the same images")
    say(f"{found['images_per_second']} images/s from the first record to the last result")
    say(f"latency, sending included: p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms")


def is_right(found: dict[str, Any], broker: str) -> bool:
    """Say whether all came back with the model's own classes, and as often as is promised."""
    wanted = found["sent"]
    got = {found["received"], found["same_class_as_model"]}
    doubled = broker in EXACTLY_ONCE and found["doubled"]
    return got == {wanted} and not found["dead_letters"] and not doubled


def main(argv: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--broker", choices=BROKERS, default="kafka")
    parser.add_argument("--limit", type=int, default=1000, help="test images (default: 1000)")
    parser.add_argument("--output", type=Path, default=ROOT / "run" / "demo.json")
    asked = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the way out of Ctrl-C
    with tempfile.TemporaryDirectory(prefix="fmnist-demo-") as scratch:
        try:
            found = run(asked.broker, asked.limit, Path(scratch))
        except StackError as error:
            say(str(error))
            return 69
        except KeyboardInterrupt:
            say("stopped; nothing is left running")
            return 130
        if not is_right(found, asked.broker):
            for log in sorted(Path(scratch).glob("*.log")):
                say(f"the log of {log.stem}:\n{log.read_text()}")
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=2) + "\n")
    print_report(found)
    return 0 if is_right(found, asked.broker) else 1


if __name__ == "__main__":
    sys.exit(main())
