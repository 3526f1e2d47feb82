"""Honest clients beside one attacker, at a real TorchServe: one row of the report at a time."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import requests

from tests.attack.clients import Attacker, Client, Honest, make_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.attack.clients import Sample
    from tests.handler.bomb import Bomb
    from tools.servers.torchserve import TorchServe

HONEST_CLIENTS = 8
RECOVERY_S = 60.0
TICK_S = 0.5


class Row(NamedTuple):
    """What happened in one row; `key` is "" for the time without an attacker.

    `honest`, `attacks`: answers by status. `p50_ms`, `p99_ms`: of the honest. `workers`: the
    processes before and after.
    """

    key: str
    name: str
    honest: dict[str, int]
    attacks: dict[str, int]
    p50_ms: float
    p99_ms: float
    workers: tuple[list[int], list[int]]

    def find_broken(self) -> list[str]:
        """Return a sentence for each promise that was not kept."""
        wrong = {word: count for word, count in self.honest.items() if word != "200"}
        broken = [f"{count} honest answers were {word}" for word, count in wrong.items()]
        if not self.honest.get("200"):
            broken.append("no honest client was answered")
        if self.workers[0] != self.workers[1]:
            broken.append(f"the worker was restarted: {self.workers[0]}, then {self.workers[1]}")
        return broken

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {**self._asdict(), "broken": self.find_broken()}

    def render(self, baseline_ms: float) -> str:
        """Return the line for people."""
        figures = f"p50 {self.p50_ms:.0f}, p99 {self.p99_ms:.0f} ms ({baseline_ms:.0f} without)"
        answers = f"honest {render_counts(self.honest)}; attacker {render_counts(self.attacks)}"
        word = "HELD  " if not self.find_broken() else "BROKEN"
        return f"{word} {self.key:<22} {answers}; {figures}"


def render_counts(counts: dict[str, int]) -> str:
    """Return the statuses and how often each came."""
    return ", ".join(f"{count} x {word}" for word, count in sorted(counts.items())) or "none"


class Siege:
    """A server, the samples of the honest, how long a row takes, and how many attack.

    `tick` is called with the seconds that passed, twice a second.
    """

    def __init__(
        self,
        server: TorchServe,
        seconds: float,
        attackers: int = 1,
        tick: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.server = server
        self.seconds = seconds
        self.attackers = attackers
        self.tick = tick
        self.samples = make_samples(server.archive)

    def run(self, bombs: Sequence[Bomb]) -> Iterator[Row]:
        """Yield the row without an attacker, then one for each bomb."""
        yield self.run_row(None)
        for bomb in bombs:
            self.await_service()
            yield self.run_row(bomb)

    def run_row(self, bomb: Bomb | None) -> Row:
        """Let the honest ask, beside an attacker if there is a bomb."""
        before = self.list_workers()
        honest = [Honest(self.server.url, part) for part in self.deal()]
        many = self.attackers if bomb else 0
        attackers = [Attacker(self.server.url, bomb) for _ in range(many) if bomb]
        self.let_run([*honest, *attackers])
        latencies = sorted(seconds for client in honest for seconds in client.latencies)
        return Row(
            key=bomb.key if bomb else "",
            name=bomb.name if bomb else "no attacker",
            honest=add_counts(honest),
            attacks=add_counts(attackers),
            p50_ms=1000 * find_percentile(latencies, 0.5),
            p99_ms=1000 * find_percentile(latencies, 0.99),
            workers=(before, self.list_workers()),
        )

    def deal(self) -> list[list[Sample]]:
        """Return the samples of each honest client."""
        return [self.samples[number::HONEST_CLIENTS] for number in range(HONEST_CLIENTS)]

    def let_run(self, clients: Sequence[Client]) -> None:
        """Let the clients ask for the time of a row; each ends with its answer."""
        for client in clients:
            client.start()
        end = time.monotonic() + self.seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(TICK_S, left))
            self.tick(min(TICK_S, left))
        for client in clients:
            client.stopped.set()
        for client in clients:
            client.join(client.timeout_s + 1)

    def list_workers(self) -> list[int]:
        """Return the process ids of the workers."""
        address = f"{self.server.settings['management_address']}/models/{self.server.model}"
        (found,) = requests.get(address, timeout=30).json()
        return [worker["pid"] for worker in found["workers"]]

    def await_service(self) -> None:
        """Return when the server predicts, or after a time; a row begins with a whole service."""
        end = time.monotonic() + RECOVERY_S
        while not self.server.predicts() and time.monotonic() < end:
            time.sleep(TICK_S)


def add_counts(clients: Sequence[Client]) -> dict[str, int]:
    """Return the answers of all clients together, by status."""
    return dict(sum((client.counts for client in clients), Counter()))


def find_percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which a share of the ordered values lies; 0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
