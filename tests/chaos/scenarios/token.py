"""Tokens are renewed under load, for three of their lives.

TorchServe runs as `make serve-production` starts it, but that a token lives only for a minute; the
program renews it at half of its life, and the old one is void at once. Relays with `--token-file`
work all the while. No record may be lost, doubled or blamed, no relay may leave, and each renewal
must be there.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from tests.chaos.brokers.kafka.testbed import KafkaCase, KafkaTestbed
from tests.chaos.runner import stop_relays
from tests.chaos.targets import require_alive
from tests.chaos.testbed import Service, ask_classes, find_steady_ports, wait_until
from tests.chaos.verdict import Verdict, list_violations
from tools import serve
from tools.servers.process import ROOT, Process, StackError
from tools.servers.torchserve import PORTS, on_ports

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tools.servers.torchserve import TorchServe

LIFE_S = 60.0
LIVES = 3
START_TIMEOUT_S = 120.0
POLL_INTERVAL_S = 0.05


def add_arguments(parser: argparse.ArgumentParser, broker: str) -> None:  # noqa: ARG001 - Kafka's
    """See `Scenario.add_arguments`."""
    length = LIVES * LIFE_S + LIFE_S * serve.RENEWAL_SHARE
    parser.add_argument("--duration", type=float, default=length, help="seconds of load")
    parser.add_argument("--rate", type=float, default=180.0, help="records a second")
    parser.add_argument("--relays", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=9)


def run(asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Verdict:
    """See `Scenario.run`."""
    say("starting Kafka and TorchServe")
    with ExitStack() as stack:
        program, service = stack.enter_context(start_production(folder))
        case = KafkaCase(
            duration=asked.duration,
            rate=asked.rate,
            relays=asked.relays,
            partitions=asked.partitions,
            poison=0.0,
            proxied=False,
            counts={},
            flags=("--token-file", str(service.server.key_file)),
        )
        testbed = KafkaTestbed.open(case, service, folder, stack)
        renewals = stack.enter_context(watch_renewals(service.server))
        testbed.begin()
        say(f"{case.relays} relays, {case.rate:g} records/s, a token lives {LIFE_S:g} s")
        wait_for_outcomes(testbed, program)
        stop_relays(testbed)
        broken = {kind: len(found) for kind, found in testbed.find_violations(ended=True).items()}
        figures = measure(testbed, renewals)
    if not any(broken.values()):
        testbed.discard()
    return Verdict(figures | broken, find_complaints(figures, broken))


@contextmanager
def start_production(folder: Path) -> Iterator[tuple[Process, Service]]:
    """Start what `make serve-production` starts, on steady ports, below `folder`."""
    settings = on_ports(find_steady_ports(len(PORTS))) | {"token_expiration_min": f"{LIFE_S / 60}"}
    del settings["management_address"]  # the profile's own socket
    flags = ["--profile", "production", "--folder", str(folder / "production")]
    for pair in settings.items():
        flags += ["--set", "=".join(pair)]
    command = [sys.executable, "-m", "tools.serve", *flags]
    server = serve.configured_server(serve.make_parser().parse_args(flags))
    program = Process(command, folder / "serve.log", cwd=ROOT).start()
    try:
        wait_until(
            lambda: "ready" in program.tail(),
            START_TIMEOUT_S,
            lambda: require_alive("tools.serve", program),
            program.tail,
            POLL_INTERVAL_S,
        )
        token = {"Authorization": f"Bearer {server.key('inference')}"}
        yield program, Service(server, ask_classes(server, token))
    finally:
        program.stop()


@contextmanager
def watch_renewals(server: TorchServe) -> Iterator[list[float]]:
    """Note, in monotonic seconds, when the inference token was another one."""
    noted: list[float] = []
    over = threading.Event()

    def watch() -> None:
        known = read_token(server)
        while not over.wait(POLL_INTERVAL_S):
            if (now := read_token(server)) not in (known, None):
                known = now
                noted.append(time.monotonic())

    watching = threading.Thread(target=watch, name="renewals", daemon=True)
    watching.start()
    try:
        yield noted
    finally:
        over.set()
        watching.join()


def read_token(server: TorchServe) -> str | None:
    """Return the inference token, None while the file is being written."""
    try:
        return server.key("inference")
    except (OSError, ValueError):
        return None


def wait_for_outcomes(testbed: KafkaTestbed, program: Process) -> None:
    """Return when the load is over and all outcomes are there, or none comes any more."""
    while not (testbed.has_ended_load() and testbed.is_complete()):
        testbed.observer.check()
        if not program.alive():
            raise StackError(f"tools.serve ended; its log ends with:\n{program.tail()}")
        if testbed.has_ended_load() and testbed.observer.idle() > testbed.case.outcome_timeout:
            return
        testbed.over.wait(POLL_INTERVAL_S)


def measure(testbed: KafkaTestbed, renewals: list[float]) -> dict[str, Any]:
    """Return what was measured, by name; seconds."""
    log, began = testbed.observer.log, testbed.started
    expected = int(testbed.case.duration / (LIFE_S * serve.RENEWAL_SHARE)) - 1
    return {
        "relays": testbed.case.relays,
        "records": testbed.load.sent,
        "records_per_second": testbed.case.rate,
        "token_life_seconds": LIFE_S,
        "lives": round(testbed.case.duration / LIFE_S, 2),
        "renewals": len(renewals),
        "renewals_wanted": expected,
        "results": log.results,
        "dead_letters": log.dead_letters,
        "longest_silence_seconds": round(testbed.observer.longest_silence(), 1),
        "relays_that_left": sum(testbed.exits.values()),
        "renewed_at": [round(at - began, 1) for at in renewals],
    }


def find_complaints(figures: Mapping[str, Any], broken: Mapping[str, int]) -> list[str]:
    """Return what was not as promised, a sentence each; `broken`: records, by way."""
    found = {
        f"{figures['dead_letters']} dead letters": figures["dead_letters"],
        "a renewal is missing": figures["renewals"] < figures["renewals_wanted"],
        f"{figures['relays_that_left']} relays left": figures["relays_that_left"],
        "results and records differ": figures["results"] != figures["records"],
    }
    return [*(sentence for sentence, wrong in found.items() if wrong), *list_violations(broken)]
