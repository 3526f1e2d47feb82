"""The command `watch`: its rounds, and a server that no viewer can hold up or read from afar."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from connectors import page_server, registry
from connectors.__main__ import main
from connectors.brokers.kafka.settings import WatchKafka
from connectors.commands import watch
from connectors.commands.live_view import LiveView, StoredImage
from connectors.commands.watch import Feed, Rounds, announce, make_handler
from connectors.errors import Exit, Stop
from connectors.images import CANARY
from connectors.page_server import PageHandler, run_server
from connectors.records import Progress, Sighting
from tests.connectors.test_live_view import NOW, dead_letter, result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PAGES = Path(watch.__file__).parent.parent / "live_page"
FLAGS = ["watch", "kafka", "--input-topic", "images", "--output-topic", "out", "--page-port", "0"]


class ScriptedWatcher:
    """Shows what it is given, one batch a look."""

    def __init__(self, *batches: Sequence[Sighting]) -> None:
        self.batches = list(batches)
        self.looks = self.measured = self.closed = 0
        self.asked: list[Sequence[str]] = []

    def read(self, _: float) -> Sequence[Sighting]:
        self.looks += 1
        return self.batches.pop(0) if self.batches else ()

    def measure(self) -> Progress | None:
        self.measured += 1
        return Progress({"images/0": 5}, 1)

    def fetch(self, ids: Sequence[str]) -> Mapping[str, bytes]:
        self.asked.append(ids)
        return dict.fromkeys(ids, CANARY.data)

    def trouble(self) -> str:
        return "it is away" if self.looks > 1 else ""

    def close(self) -> None:
        self.closed += 1


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_rounds(watcher: ScriptedWatcher) -> tuple[Rounds, Feed, Clock]:
    feed, clock = Feed(), Clock()
    return Rounds(LiveView({}, NOW), watcher, feed, clock, lambda: NOW + clock()), feed, clock


# rounds


def test_a_round_reads_fetches_the_images_and_publishes() -> None:
    watcher = ScriptedWatcher([Sighting(result(7))], [Sighting(dead_letter(), dead=True)])
    rounds, feed, _ = make_rounds(watcher)
    assert rounds.run() == watch.ROUND
    found = json.loads(feed.latest.document)
    assert (found["lag"], found["counts"]["results"], found["counts"]["dead_letters"]) == (5, 1, 1)
    assert watcher.asked == [["images/0/7"]]
    assert [image.data for image in feed.latest.images.values()] == [CANARY.data]
    assert found["trouble"] == "it is away"


def test_a_round_ends_though_there_is_always_more() -> None:
    watcher = ScriptedWatcher(*[[Sighting(result(n))] for n in range(1000)])
    rounds, feed, _ = make_rounds(watcher)
    rounds.run()
    assert watcher.looks == watch.MAX_READS
    assert json.loads(feed.latest.document)["counts"]["results"] == watch.MAX_READS


def test_the_group_is_asked_after_every_other_second() -> None:
    watcher = ScriptedWatcher()
    rounds, _, clock = make_rounds(watcher)
    for second in range(6):
        clock.now = second
        rounds.run()
    assert watcher.measured == 3


def test_without_new_results_no_record_is_fetched() -> None:
    watcher = ScriptedWatcher()
    make_rounds(watcher)[0].run()
    assert watcher.asked == []


# the server


@contextmanager
def serving(feed: Feed, address: str = "127.0.0.1") -> Iterator[tuple[str, type[PageHandler]]]:
    handler = make_handler(feed, address)
    with run_server("127.0.0.1", 0, handler, "page") as port, ExitStack() as stack:
        stack.callback(feed.close)
        yield f"http://127.0.0.1:{port}", handler


def make_feed() -> Feed:
    feed = Feed()
    feed.publish(b'{"round":1}', {7: StoredImage("image/png", CANARY.data)})
    return feed


def get(url: str, **options: Any) -> requests.Response:  # noqa: ANN401 - those of the library
    return requests.get(url, timeout=5, **options)


def read_events(answer: requests.Response) -> Iterator[str]:
    lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
    return (line.removeprefix("data: ") for line in lines if line.startswith("data: "))


@pytest.mark.parametrize("path", [*watch.FILES, "/image/7", "/image/8", "/nowhere", "/../verbs.py"])
def test_every_answer_keeps_the_browser_to_what_is_ours(path: str) -> None:
    with serving(make_feed()) as (url, _):
        answer = get(url + path)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Server"].strip() == "connectors"
    assert answer.status_code == (404 if path in {"/image/8", "/nowhere", "/../verbs.py"} else 200)


def test_an_image_comes_as_it_is_in_a_sandbox() -> None:
    with serving(make_feed()) as (url, _):
        answer = get(f"{url}/image/7")
    assert (answer.content, answer.headers["Content-Type"]) == (CANARY.data, "image/png")
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"


def test_the_page_has_no_script_or_style_of_its_own_and_asks_nobody_else() -> None:
    html = (PAGES / "page.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|javascript:", html)
    for file in PAGES.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|[\"'(]//", text), file
    assert {f"/{file.name}" for file in PAGES.iterdir()} - {"/page.html"} == set(watch.FILES) - {
        "/"
    }


def test_no_text_becomes_markup() -> None:
    script = (PAGES / "page.js").read_text()
    ways = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(")
    assert not [way for way in ways if way in script]


def test_the_stream_sends_each_snapshot() -> None:
    feed = make_feed()
    with serving(feed) as (url, _), get(f"{url}/events", stream=True) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        events = read_events(answer)
        assert next(events) == '{"round":1}'
        feed.publish(b'{"round":2}', {})
        assert next(events) == '{"round":2}'
        feed.close()
        assert list(events) == []


def test_a_stream_without_news_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "KEEP_ALIVE", 0.01)
    with serving(make_feed()) as (url, _), get(f"{url}/events", stream=True) as answer:
        lines = answer.iter_lines(chunk_size=1)
        assert any(line == b": wait" for line in lines)


def test_who_waits_long_gets_the_latest_alone() -> None:
    feed = make_feed()
    for number in range(2, 100):
        feed.publish(b'{"round":%d}' % number, {})
    latest = feed.wait(1, 0)
    assert latest is not None
    assert latest.document == b'{"round":99}'


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8050", "localhost.evil.example", ""]
)
@pytest.mark.parametrize("path", ["/", "/events", "/image/7"])
def test_a_foreign_name_for_our_address_is_refused(host: str, path: str) -> None:
    with serving(make_feed()) as (url, _):
        answer = get(url + path, headers={"Host": host})
    assert answer.status_code == 421
    assert "--page-address" in answer.text


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:1", "[::1]:8050", "[::1]"])
def test_this_machines_names_are_served(host: str) -> None:
    with serving(make_feed()) as (url, _):
        assert get(url, headers={"Host": host}).status_code == 200


def test_bound_to_another_address_any_name_is_served() -> None:
    with serving(make_feed(), "0.0.0.0") as (url, _):  # noqa: S104 - the name alone
        assert get(url, headers={"Host": "relay-7.example"}).status_code == 200


def test_a_viewer_too_many_is_refused_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "STREAM_TIMEOUT", 0.01)
    feed = make_feed()
    with serving(feed) as (url, _), ExitStack() as viewers:
        streams = [
            viewers.enter_context(get(f"{url}/events", stream=True))
            for _ in range(watch.MAX_STREAMS)
        ]
        events = [read_events(stream) for stream in streams]
        assert [next(each) for each in events] == ['{"round":1}'] * watch.MAX_STREAMS
        refused = get(f"{url}/events")
        assert (refused.status_code, refused.text) == (503, "8 are looking already\n")
        assert get(f"{url}/image/7").status_code == 200
        feed.publish(b'{"round":2}', {})
        assert [next(each) for each in events] == ['{"round":2}'] * watch.MAX_STREAMS


def test_who_loads_the_page_again_and_again_is_served() -> None:
    feed = make_feed()
    with serving(feed) as (url, handler):
        streams: Any = vars(handler)["streams"]
        for _ in range(watch.MAX_STREAMS):
            assert streams.acquire()  # of those who have gone
        threading.Timer(0.1, streams.release).start()  # the next snapshot notices one
        with get(f"{url}/events", stream=True) as answer:
            assert next(read_events(answer)) == '{"round":1}'


def test_a_viewer_who_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = make_feed()
    monkeypatch.setattr(watch.LivePageHandler, "timeout", 0.1)
    with serving(feed) as (url, handler):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as client:
            client.sendall(b"GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.0 200"
            feed.publish(b"x" * (64 << 20), {})  # more than the buffers between us hold
            streams: Any = vars(handler)["streams"]
            assert all(streams.acquire(timeout=5) for _ in range(watch.MAX_STREAMS))


def test_a_stream_outlasts_other_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "CONNECTION_TIMEOUT", 0.05)
    feed = make_feed()
    with serving(feed) as (url, _), get(f"{url}/events", stream=True) as answer:
        events = read_events(answer)
        next(events)
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as idle:
            idle.settimeout(5)
            assert idle.recv(1) == b""  # its time is over, and that of any other but the stream
        feed.publish(b'{"round":2}', {})
        assert next(events) == '{"round":2}'


def test_a_stream_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STREAM_SECONDS", 0.05)
    with serving(make_feed()) as (url, _), get(f"{url}/events", stream=True) as answer:
        assert list(read_events(answer)) == ['{"round":1}']


def test_a_port_that_is_taken_names_the_flag() -> None:
    with serving(make_feed()) as (url, handler), pytest.raises(Stop) as stop:
        run_server("127.0.0.1", int(url.rpartition(":")[2]), handler, "page").__enter__()
    assert stop.value.code == Exit.USAGE
    assert "correct --page-port or --page-address" in str(stop.value)


# the verb


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_0(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ScriptedWatcher):
        def read(self, timeout: float) -> Sequence[Sighting]:
            os.kill(os.getpid(), number)
            return super().read(timeout)

    watcher = Interrupted()
    monkeypatch.setattr(registry, "open_watcher", lambda *_: watcher)
    monkeypatch.setattr(watch, "ROUND", 0.01)
    assert main(FLAGS) == 0
    assert watcher.closed == 1
    assert re.fullmatch(
        r"live page: http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("address", "shown", "warns"),
    [("127.0.0.1", "127.0.0.1", False), ("::1", "[::1]", False), ("0.0.0.0", "0.0.0.0", True)],  # noqa: S104
)
def test_who_may_see_it_is_told(
    address: str,
    shown: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    *,
    warns: bool,
) -> None:
    with caplog.at_level(logging.WARNING):
        announce(address, 8050)
    assert f"http://{shown}:8050/" in capsys.readouterr().out
    assert ("without a password" in caplog.text) == warns


def test_the_head_of_the_page_names_topics_and_group() -> None:
    settings = WatchKafka(input_topic="images", output_topic="out", group="mine")
    assert settings.describe_page() == {
        "broker": "Kafka at 127.0.0.1:9092",
        "group": "mine",
        "images": "images",
        "predictions": "out",
        "dead letters": "images.dead",
    }


@pytest.mark.parametrize("flag", ["--delivery", "--from", "--pack", "--metrics-port", "--json"])
def test_it_has_no_flag_without_effect(flag: str, caplog: pytest.LogCaptureFixture) -> None:
    assert main([*FLAGS, f"{flag}=1"]) == Exit.USAGE
    assert flag in caplog.text


@pytest.mark.parametrize("broker", registry.BROKERS)
def test_the_page_is_on_loopback_unless_somebody_says_so(broker: str) -> None:
    fields = registry.KINDS["watch", broker].model_fields
    assert (fields["page_address"].default, fields["page_port"].default) == ("127.0.0.1", 8050)
