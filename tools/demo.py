"""The main job, end to end, on real services: `python -m tools.demo`, or `make demo`.

Kafka, TorchServe with the archive, the connector; test images are sent, predictions received and
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

import numpy as np
from tqdm import tqdm

from tools.exported import classes, first_images, first_labels
from tools.stack import ROOT, Process, StackError, TorchServe
from tools.stack_kafka import Cluster, kafka

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTITIONS = 3
PATIENCE = 60.0  # seconds without a result after which the demo gives up


class Received(NamedTuple):
    """One result, and when it was seen, in seconds since the epoch."""

    result: dict[str, Any]
    image: int
    at: float


class Topics(NamedTuple):
    """The three topics of one connector."""

    images: str = "images"
    predictions: str = "predictions"
    dead: str = "images.dead"

    def create(self, cluster: Cluster) -> None:
        """Create those that are missing."""
        for topic in set(self) - set(cluster.topics()):
            cluster.create_topic(topic, partitions=PARTITIONS)


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"demo: {text}", flush=True)


def connectors(cluster: Cluster, *arguments: str) -> list[str]:
    """Return the command of one verb of the connectors."""
    command = [sys.executable, "-m", "connectors", *arguments]
    return [*command, "--bootstrap-servers", cluster.bootstrap_servers]


def daemon(cluster: Cluster, topics: Topics, server: TorchServe, log: Path) -> Process:
    """Return the connector between the two, not started yet; SIGTERM drains it."""
    flags = ["--input-topic", topics.images, "--output-topic", topics.predictions]
    flags += ["--dead-letter-topic", topics.dead, "--url", server.url]
    return Process(connectors(cluster, "kafka", *flags), log, cwd=ROOT)


def await_relaying(relay: Process, timeout: float = 60.0) -> None:
    """Return when the connector has joined its group; raises StackError when it does not."""
    deadline = time.monotonic() + timeout
    while "Relaying" not in relay.tail():
        if not relay.alive() or time.monotonic() > deadline:
            raise StackError(f"the connector does not relay; its last words:\n{relay.tail()}")
        time.sleep(0.1)


def listen(cluster: Cluster, topic: str, limit: int, silence: float) -> Iterator[dict[str, Any]]:
    """Yield what is in a topic from its beginning, until `limit` or so many silent seconds."""
    ends = ["--from-beginning", "--limit", str(limit), "--idle-timeout", str(silence)]
    argv = connectors(cluster, "listen", "kafka", "--output-topic", topic, "--json", *ends)
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None  # noqa: S101 - Popen was asked for it
        yield from map(json.loads, listener.stdout)


def exchange(cluster: Cluster, topics: Topics, count: int, log: Path) -> Iterator[Received]:
    """Send `count` test images, and yield their results as they come."""
    flags = ["--input-topic", topics.images, "--test-set", "--limit", str(count)]
    flags += ["--data", os.environ.get("DATA_DIR", "data")]
    sender = Process(connectors(cluster, "send", "kafka", *flags), log, cwd=ROOT).start()
    lines = listen(cluster, topics.predictions, count, PATIENCE)
    try:
        for line in tqdm(lines, total=count, unit="img"):
            yield Received(line["result"], int(line["headers"]["index"]), time.time())
    finally:
        sender.stop()


def figures(received: list[Received], count: int, dead: int) -> dict[str, Any]:
    """Return what `run/demo.json` says; latencies are from the record's time to its sight."""
    said, labels = classes(first_images(count)), first_labels(count)
    wire = {each.image: each.result["class"] for each in received}
    latency = [1000 * each.at - each.result["time"] for each in received] or [float("nan")]
    seconds = max((each.at for each in received), default=0) - min(
        (each.result["time"] / 1000 for each in received), default=0
    )
    p50, p99 = np.percentile(latency, [50, 99])
    return {
        "sent": count,
        "received": len(received),
        "distinct": len({each.result["id"] for each in received}),
        "accuracy": sum(wire.get(i) == label for i, label in enumerate(labels.tolist())) / count,
        "model_accuracy": float((said == labels).mean()),
        "same_class_as_model": sum(wire.get(i) == each for i, each in enumerate(said.tolist())),
        "dead_letters": dead,
        "images_per_second": round(len(received) / seconds, 1) if seconds else 0.0,
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
    }


def run(count: int, folder: Path) -> dict[str, Any]:
    """Do the main job once; raises StackError when a server does not start."""
    with ExitStack() as stack:
        say("starting Kafka …")
        cluster = stack.enter_context(kafka())
        topics = Topics(*(f"demo-{os.getpid()}-{name}" for name in Topics()))
        topics.create(cluster)
        say("starting TorchServe with model_store/fmnist.mar …")
        server = stack.enter_context(TorchServe())
        say("starting the connector …")
        relay = daemon(cluster, topics, server, folder / "connector.log").start()
        stack.callback(relay.stop, timeout=30)
        await_relaying(relay)
        say(f"sending {count} test images …")
        received = list(exchange(cluster, topics, count, folder / "send.log"))
        dead = sum(1 for _ in listen(cluster, topics.dead, count, silence=2))
        return figures(received, count, dead)


def report(found: dict[str, Any]) -> None:
    """Print the figures for people."""
    wire, model = found["accuracy"], found["model_accuracy"]
    say(f"sent {found['sent']}, received {found['received']}, dead letters {found['dead_letters']}")
    say(f"accuracy over the wire {wire:.2%}, of the exported model {model:.2%} on the same images")
    say(f"{found['images_per_second']} images/s from the first record to the last result")
    say(f"latency, sending included: p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms")


def right(found: dict[str, Any]) -> bool:
    """Say whether all came back, once each, with the model's own classes."""
    wanted = found["sent"]
    got = {found["received"], found["distinct"], found["same_class_as_model"]}
    return got == {wanted} and not found["dead_letters"]


def main(argv: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--limit", type=int, default=1000, help="test images (default: 1000)")
    parser.add_argument("--output", type=Path, default=ROOT / "run" / "demo.json")
    asked = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the way out of Ctrl-C
    with tempfile.TemporaryDirectory(prefix="fmnist-demo-") as scratch:
        try:
            found = run(asked.limit, Path(scratch))
        except StackError as error:
            say(str(error))
            return 69
        except KeyboardInterrupt:
            say("stopped; nothing is left running")
            return 130
        if not right(found):
            for log in sorted(Path(scratch).glob("*.log")):
                say(f"the last words of {log.stem}:\n{log.read_text()}")
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=2) + "\n")
    report(found)
    return 0 if right(found) else 1


if __name__ == "__main__":
    sys.exit(main())
