"""A broker, TorchServe and the connector in the background: `python -m tools.up start|stop|status`.

For those who want to play: on the usual ports, below run/, until they are stopped. Kafka's topics
and what is in them survive a stop; `rm -r run` forgets them. The emulator of Pub/Sub keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from tools.demo import await_relaying, daemon
from tools.serve import shipped
from tools.site import BROKERS, Site, on_kafka, on_pubsub
from tools.stack import ROOT, Process, StackError, end_session
from tools.stack_kafka import Kafka
from tools.stack_pubsub import Emulator

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = ROOT / "run"
STATE = RUN / "up.json"
KAFKA_PORTS = (9093, 9092, 9094)
PUBSUB_PORT = 8085
PATIENCE = 35.0  # seconds for one of them to end; the connector drains for 25 at most


def say(text: str) -> None:
    """Print one line for people."""
    print(text, flush=True)


def noted(process: Process, address: str) -> dict[str, Any]:
    """Return what the state file keeps of a server: enough to know it again."""
    pid = process.child.pid
    log = str(process.log.relative_to(ROOT))
    return {"pid": pid, "born": psutil.Process(pid).create_time(), "address": address, "log": log}


def alive(server: dict[str, Any]) -> bool:
    """Say whether it still runs, and is not another program with its number."""
    try:
        found = psutil.Process(server["pid"])
        same: bool = found.create_time() == server["born"]
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def known() -> dict[str, dict[str, Any]]:
    """Return the servers that were started, in that order."""
    found: dict[str, dict[str, Any]] = json.loads(STATE.read_text()) if STATE.exists() else {}
    return found


def start(broker: str) -> int:
    """Start what is not there; all of it or nothing."""
    if known():
        say("up: something was started before; `make status` shows it, `make down` ends it")
        return status()
    RUN.mkdir(exist_ok=True)
    with ExitStack() as undo:
        servers, site = launch(broker, undo)
        STATE.write_text(json.dumps(servers, indent=2) + "\n")
        undo.pop_all()
    say(f"up: send some:     {site.example('send', '--test-set', '--limit', '1000')}")
    say(f"up: watch them:    {site.example('listen', '--from-beginning')}")
    return status()


def launch(broker: str, undo: ExitStack) -> tuple[dict[str, dict[str, Any]], Site]:
    """Start the three; return their notes, and how the broker is reached."""
    say(f"up: starting {broker} …")
    note, site = launch_broker(broker, undo)
    say("up: starting TorchServe …")
    server = undo.enter_context(shipped())
    say("up: starting the connector …")
    relay = daemon(site, server, RUN / "connector.log").start()
    undo.callback(relay.stop)
    await_relaying(relay)
    servers = {
        broker: note,
        "torchserve": noted(server.process, server.url),
        "connector": noted(relay, f"{site.images} → {site.predictions}"),
    }
    return servers, site


def launch_broker(broker: str, undo: ExitStack) -> tuple[dict[str, Any], Site]:
    """Start one of BROKERS on its usual port."""
    if broker == "pubsub":
        emulator = undo.enter_context(Emulator(RUN / "pubsub", PUBSUB_PORT))
        return noted(emulator.process, emulator.host), on_pubsub(emulator)
    kafka = undo.enter_context(Kafka(RUN / "kafka", ports=KAFKA_PORTS))
    return noted(kafka.process, kafka.bootstrap_servers), on_kafka(kafka)


def stop() -> int:
    """End what was started, the last one first."""
    for name, server in reversed(known().items()):
        if alive(server):
            say(f"down: {name}")
            end_session(server["pid"], PATIENCE)
    STATE.unlink(missing_ok=True)
    say("down: nothing is left running")
    return 0


def status() -> int:
    """Show what runs; the exit code is 1 when something that was started does not."""
    if not known():
        say("status: nothing was started; `make up` does")
        return 1
    for name, server in known().items():
        state = "runs" if alive(server) else "ENDED"
        say(f"{name:<10} {state} as {server['pid']} at {server['address']}; log {server['log']}")
    return 0 if all(map(alive, known().values())) else 1


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.up", description=__doc__)
    parser.add_argument("verb", choices=("start", "stop", "status"))
    parser.add_argument("--broker", choices=BROKERS, default="kafka", help="which one to start")
    asked = parser.parse_args(argv)
    verbs: dict[str, Callable[[], int]]
    verbs = {"start": partial(start, asked.broker), "stop": stop, "status": status}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the way out of Ctrl-C
    try:
        return verbs[asked.verb]()
    except StackError as error:
        say(f"up: {error}")
        return 69
    except KeyboardInterrupt:
        say("up: stopped; what was started by this call is ended")
        return 130


if __name__ == "__main__":
    sys.exit(main())
