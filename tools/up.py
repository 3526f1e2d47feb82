"""A broker, TorchServe and the connector in the background: `python -m tools.up start|stop|status`.

They listen on the usual ports and write below run/, until they are stopped. Kafka's topics and what
is in them survive a stop; `rm -r run` removes them. The emulator of Pub/Sub keeps nothing.

Only `start` imports what the servers need: `status` and `stop` read the state file.
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

from tools.connector import (
    BROKERS,
    ConnectorCommand,
    prepare_kafka,
    prepare_pubsub,
    wait_for_daemon,
)
from tools.servers.process import ROOT, Process, StackError, end_session

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = ROOT / "run"
STATE = RUN / "up.json"
KAFKA_PORTS = (9093, 9092, 9094)
PUBSUB_PORT = 8085
METRICS_PORT = 9100
STOP_TIMEOUT_S = 35.0  # for one of them; the connector drains for 25 s at most


def say(text: str) -> None:
    """Print one line for people."""
    print(text, flush=True)


def describe_process(process: Process, address: str) -> dict[str, Any]:
    """Return what the state file keeps of a server: enough to recognise it."""
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


def read_state() -> dict[str, dict[str, Any]]:
    """Return the servers that were started, in that order."""
    found: dict[str, dict[str, Any]] = json.loads(STATE.read_text()) if STATE.exists() else {}
    return found


def start(broker: str) -> int:
    """Start what is not there; all of it or nothing."""
    if read_state():
        say("up: something was started before; `make status` shows it, `make down` ends it")
        return status()
    RUN.mkdir(exist_ok=True)
    with ExitStack() as undo:
        servers, command = launch(broker, undo)
        STATE.write_text(json.dumps(servers, indent=2) + "\n")
        undo.pop_all()
    say(f"up: send some:     {command.example('send', '--test-set', '--limit', '1000')}")
    say(f"up: watch them:    {command.example('listen', '--from-beginning')}")
    say(f"up: its metrics:   curl localhost:{METRICS_PORT}/metrics")
    return status()


def launch(broker: str, undo: ExitStack) -> tuple[dict[str, dict[str, Any]], ConnectorCommand]:
    """Start the three; return their descriptions, and the connectors' commands."""
    from tools.serve import configured_server  # noqa: PLC0415 - only `start` needs it

    say(f"up: starting {broker} …")
    description, command = launch_broker(broker, undo)
    say("up: starting TorchServe …")
    server = undo.enter_context(configured_server())
    say("up: starting the connector …")
    flags = ["--metrics-port", str(METRICS_PORT), "--baseline-url", server.description_url]
    daemon = command.daemon(server.url, *flags, log=RUN / "connector.log").start()
    undo.callback(daemon.stop)
    wait_for_daemon(daemon)
    servers = {
        broker: description,
        "torchserve": describe_process(server.process, server.url),
        "connector": describe_process(daemon, f"{command.images} → {command.predictions}"),
    }
    return servers, command


def launch_broker(broker: str, undo: ExitStack) -> tuple[dict[str, Any], ConnectorCommand]:
    """Start one of BROKERS on its usual port."""
    if broker == "pubsub":
        from tools.servers.pubsub import Emulator  # noqa: PLC0415 - the library, only when needed

        emulator = undo.enter_context(Emulator(RUN / "pubsub", PUBSUB_PORT))
        return describe_process(emulator.process, emulator.host), prepare_pubsub(emulator)
    from tools.servers.kafka import Kafka  # noqa: PLC0415 - the library, only when needed

    kafka = undo.enter_context(Kafka(RUN / "kafka", ports=KAFKA_PORTS))
    return describe_process(kafka.process, kafka.bootstrap_servers), prepare_kafka(kafka)


def stop() -> int:
    """End what was started, the last one first."""
    for name, server in reversed(read_state().items()):
        if alive(server):
            say(f"down: {name}")
            end_session(server["pid"], STOP_TIMEOUT_S)
    STATE.unlink(missing_ok=True)
    say("down: nothing is left running")
    return 0


def status() -> int:
    """Show what runs; the exit code is 1 when something that was started does not."""
    if not read_state():
        say("status: nothing was started; `make up` does")
        return 1
    for name, server in read_state().items():
        state = "runs" if alive(server) else "ENDED"
        say(f"{name:<10} {state} as {server['pid']} at {server['address']}; log {server['log']}")
    return 0 if all(map(alive, read_state().values())) else 1


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
