"""The attack: what it counts, and what it calls broken."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.attack.__main__ import choose_bombs, conclude, main
from tests.attack.clients import NO_ANSWER, WRONG, Attacker, Honest, Sample
from tests.attack.siege import Row, find_percentile
from tests.handler.bombs import ROWS, find_bomb
from tools.servers import torchserve
from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROW = Row("bomb", "a bomb", {"200": 9}, {"413": 3}, 4.0, 8.0, ([1], [1]))


class Service(BaseHTTPRequestHandler):
    """Calls each image by its first byte; 0 is answered 503, 9 not at all."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body[0] == 9:
            self.close_connection = True
            return
        answer = json.dumps({"class": body[0]}).encode()
        self.send_response(200 if body[0] else 503)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of such a service."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/predictions/fmnist"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("body", "label", "word"),
    [(b"\3", 3, "200"), (b"\3", 4, WRONG), (b"\0", 0, "503"), (b"\x09", 9, NO_ANSWER)],
)
def test_an_honest_client_counts_each_answer(url: str, body: bytes, label: int, word: str) -> None:
    client = Honest(url, [Sample(body, label)])
    assert client.ask() == word
    client.connection.close()


def test_an_attacker_posts_its_bomb_until_it_is_stopped(url: str) -> None:
    client = Attacker(url, find_bomb("png-no-plte"))
    client.start()
    while len(client.latencies) < 3:
        client.stopped.wait(0.01)
    client.stopped.set()
    client.join()
    assert client.counts == {"200": len(client.latencies)}


def test_a_row_holds_when_all_honest_answers_are_right() -> None:
    assert ROW.find_broken() == []
    assert "HELD" in ROW.render(3.0)


@pytest.mark.parametrize(
    "broken",
    [
        ROW._replace(honest={"200": 9, "503": 1}),
        ROW._replace(honest={"200": 9, WRONG: 1}),
        ROW._replace(honest={}),
        ROW._replace(workers=([1], [2])),
    ],
    ids=["busy", "wrong", "nothing", "restarted"],
)
def test_a_row_is_broken_by(broken: Row) -> None:
    assert broken.find_broken() != []
    assert "BROKEN" in broken.render(3.0)


def test_the_percentile_is_of_the_ordered_values() -> None:
    assert find_percentile([float(value) for value in range(100)], 0.99) == 99.0
    assert find_percentile([], 0.99) == 0.0


def test_bombs_are_chosen_by_name_and_by_row() -> None:
    assert choose_bombs(None, ROWS) == list(ROWS)
    assert [bomb.key for bomb in choose_bombs(["png-iccp"], ROWS)] == ["png-iccp"]
    assert {bomb.row for bomb in choose_bombs(["H3", "C1"], ROWS)} == {"H3", "C1"}
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "nothing"])


def test_the_exit_code_and_the_file_say_what_was_broken(tmp_path: Path) -> None:
    output = tmp_path / "attack.json"
    assert conclude([ROW.to_dict()], [], output) == 0
    assert json.loads(output.read_text())["passed"]
    assert conclude([ROW.to_dict()], ["bomb: broken"], output) == 1
    assert not json.loads(output.read_text())["passed"]


def test_a_server_that_cannot_start_is_no_broken_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise StackError("no server")

    monkeypatch.setattr(torchserve.TorchServe, "start", refuse)
    assert main(["--only", "H3", "--seconds", "1"]) == 69
