"""Requests of one image are counted, failures among them; the settings are judged by figures."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.bench.single import CLIENTS, Load, Settings, compare_settings, measure

if TYPE_CHECKING:
    from collections.abc import Iterator


class Sometimes(BaseHTTPRequestHandler):
    """Answers every fourth request with 503, and closes the connection, at times without a word."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        assert self.rfile.read(int(self.headers["Content-Length"])).startswith(b"\x89PNG")
        type(self).asked += 1
        self.close_connection = self.asked % 4 == 0
        if self.asked % 8 == 0:
            return
        self.send_response(503 if self.close_connection else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[str]:
    Sometimes.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Sometimes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/predictions/any"
        server.shutdown()


def test_all_clients_together_ask_so_often_and_failures_are_counted() -> None:
    with serving() as url:
        found = measure(url, 1, 20)
    assert (Sometimes.asked, found.failed) == (20, 5)
    assert 0 < found.p50_ms <= found.p99_ms


def test_both_servers_are_asked_by_each_number_of_clients_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, int, int]] = []

    def note(url: str, clients: int, count: int) -> Load:
        asked.append((url, clients, count))
        return Load(len(asked), 1.0, 2.0, 0)

    monkeypatch.setattr("tests.bench.single.measure", note)
    lines: list[str] = []
    found = compare_settings("a", "b", 2, 100, lines.append)
    once = [(url, n, 25 if n == 1 else 100) for n in CLIENTS for url in "ab"]
    assert asked == once * 3
    assert [load.rate for load in found.ours[1]] == [9, 17]
    assert lines == ["warmed up", "round 1 of 2", "round 2 of 2"]


@pytest.mark.parametrize(
    ("rate", "failed", "passed"), [(18.0, 0, True), (17.9, 0, False), (18.0, 1, False)]
)
def test_ours_are_to_be_faster_and_to_fail_never(rate: float, failed: int, *, passed: bool) -> None:
    ours = {64: [Load(rate, 1.0, 2.0, 0)], 256: [Load(1.0, 1.0, 2.0, failed)]}
    stock = {clients: [Load(10.0, 3.0, 4.0, 0)] for clients in ours}
    found = Settings(ours, stock)
    assert found.passed is passed
    line = found.render().splitlines()[1].split()
    assert line == [
        "64",
        f"{rate:.0f}",
        "1.0",
        "2.0",
        "0",
        "10",
        "3.0",
        "4.0",
        "0",
        f"{rate / 10:.2f}",
    ]
