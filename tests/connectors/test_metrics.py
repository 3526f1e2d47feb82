"""What a machine may ask: the metrics by name, and when a probe is red."""

from __future__ import annotations

import faulthandler
import re
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from prometheus_client import CollectorRegistry, generate_latest

from connectors import page_server
from connectors.drift import WINDOW, Answer, Baseline, Predicted
from connectors.errors import Exit, Rewound, Stop
from connectors.images import CANARY
from connectors.metrics import (
    Health,
    InstrumentedBroker,
    RelayCollector,
    make_pages,
)
from connectors.page_server import Page, serve_pages
from connectors.records import Prediction, Record, Rejection, Settled, Skipped
from connectors.relay import Relay, Stats
from tests.connectors.policies import policy as make_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from connectors.records import Outcome

GOLDEN = Path(__file__).parent / "metrics.txt"
LANE = "images/0"
PARTITION = {"lane": LANE, "topic": "images", "partition": "0"}
INFO = {"version": "1.2.3", "group": "fmnist", "topic": "images"}
BAG = {"label": "Bag", "model": {"name": "fmnist", "version": "1.0"}}


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Topic:
    """A Broker whose commits take time and may fail."""

    def lag(self) -> None:
        """Not known."""

    def joined(self) -> bool:
        return True

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.records: list[Record] = []
        self.rewound = False
        self.closed = False

    def poll(self, limit: int, _: float) -> Sequence[Record]:
        self._check()
        polled, self.records = self.records[:limit], self.records[limit:]
        return polled

    def commit(self, _: Sequence[Settled]) -> None:
        self.clock.now += 0.5
        self._check()

    def _check(self) -> None:
        if self.rewound:
            raise Rewound("on purpose")

    def close(self) -> None:
        self.closed = True


class Daemon:
    """Everything around a relay that is not there, at second 1,000 of both clocks."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.relay = Relay(make_policy(), lambda upper: upper, CANARY)
        self.broker = Topic(self.clock)
        self.instrumented = InstrumentedBroker(self.broker, self.clock, self.clock)
        self.asked = 0
        self.trouble: str | None = None
        self.baseline = Baseline("fmnist 1.0", (0.5, 0.5), 0.75, 0.5, 0.1)
        self.health = Health(
            self.relay, self.clock, self.ask, stuck_after=120.0, stalled_after=300.0
        )
        self.collector = RelayCollector(
            self.relay,
            self.health,
            self.instrumented,
            self.clock,
            self.clock,
            INFO,
            lambda model: self.baseline if self.baseline.model == model else None,
        )

    def ask(self) -> str | None:
        self.asked += 1
        return self.trouble

    def iterate(self, lag: int = 0, *, joined: bool = True, after: float = 0.0) -> None:
        self.clock.now += after
        self.health.note_iteration({LANE: lag}, self.instrumented.take_moved(), joined=joined)

    def take(self, count: int, age: float = 0.0) -> Sequence[Record]:
        """Read records, the first of them `age` seconds old, each a second younger."""
        self.broker.records = [record(n, self.clock.now - age + n) for n in range(count)]
        return self.instrumented.poll(count, 0.0)

    def commit(self, records: Sequence[Record], outcome: Outcome | None = None) -> None:
        found = outcome or Prediction(BAG)
        self.instrumented.commit([Settled(one, found) for one in records])

    def value(self, name: str, **labels: str) -> float | None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self.collector)
        return registry.get_sample_value(f"connector_{name}", labels)


def record(number: int, second: float, lane: str | None = LANE) -> Record:
    return Record(f"{LANE}/{number}", b"", None, (), round(second * 1000), lane, number)


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


# names


def names(daemon: Daemon) -> list[str]:
    """Help, type, and each sample without its value."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(daemon.collector)
    lines = generate_latest(registry).decode().splitlines()
    return [re.sub(r"^([^#].*) \S+$", r"\1", line) for line in lines if "_created" not in line]


def test_names_and_labels_are_those_that_dashboards_rely_on(daemon: Daemon) -> None:
    fill_window(daemon, Answer(0, 1.0, 1.0))
    daemon.iterate()
    assert names(daemon) == GOLDEN.read_text().splitlines()


def test_both_formats_have_the_same_samples(daemon: Daemon) -> None:
    daemon.commit(daemon.take(1))
    daemon.iterate()
    accepted = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5"
    page = make_pages(daemon.collector, daemon.health)["/metrics"]
    text, open_metrics = page("text/plain"), page(accepted)
    assert text.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert open_metrics.content_type.startswith("application/openmetrics-text; version=1.0.0;")
    assert open_metrics.body.endswith(b"# EOF\n")
    assert samples(text) == samples(open_metrics)


def samples(page: Page) -> set[str]:
    """Return the names and labels of a scrape."""
    lines = page.body.decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize(
    "accept",
    [
        *("", "*/*", ",;,;=", "text/html", "application/openmetrics-textual"),
        *("text/plain;version=x", "application/openmetrics-text;version=x;escaping=é"),
    ],
)
def test_no_accept_header_is_too_odd_for_a_scrape(daemon: Daemon, accept: str) -> None:
    page = make_pages(daemon.collector, daemon.health)["/metrics"](accept)
    assert page.status == 200
    assert b"connector_held_records 0.0" in page.body


# values


def test_a_scrape_shows_the_tally_of_the_moment(daemon: Daemon) -> None:
    daemon.relay.stats = Stats(
        received=9,
        predicted=5,
        rejected=Counter({"failed": 2}),
        skipped=1,
        packs=Counter({1: 3, 3: 1, 64: 2}),
        retries=Counter({"busy": 4}),
        stale=6,
        rewound=7,
        commits=8,
        held=10,
        held_bytes=11,
        waiting=12,
        quarantined=13,
        out=14,
        oldest_since=990.0,
        busy_since=980.0,
    )
    shown = {
        "received_records_total": 9,
        "predictions_total": 5,
        "skipped_records_total": 1,
        "stale_answers_total": 6,
        "rewinds_total": 7,
        "commits_total": 8,
        "held_records": 10,
        "held_bytes": 11,
        "waiting_records": 12,
        "suspects": 13,
        "out_requests": 14,
        "oldest_unanswered_seconds": 10,
        "service_busy_seconds": 20,
        "pack_size_count": 6,
        "pack_size_sum": 3 + 3 + 128,
    }
    assert {name: daemon.value(name) for name in shown} == shown
    assert daemon.value("dead_letters_total", reason="failed") == 2
    assert daemon.value("retries_total", **{"class": "busy"}) == 4
    bounds = ("1.0", "2.0", "4.0", "64.0", "+Inf")
    assert [daemon.value("pack_size_bucket", le=le) for le in bounds] == [3, 3, 4, 6, 6]


def test_what_did_not_happen_yet_is_zero(daemon: Daemon) -> None:
    assert daemon.value("dead_letters_total", reason="too_large") == 0
    assert daemon.value("retries_total", **{"class": "witness"}) == 0
    assert daemon.value("oldest_unanswered_seconds") == 0


def test_lag_is_told_in_records_and_in_seconds(daemon: Daemon) -> None:
    records = daemon.take(3, age=60.0)
    daemon.iterate(7)
    assert daemon.value("lag_records", **PARTITION) == 7
    assert daemon.value("lag_seconds", **PARTITION) == 60
    daemon.commit(records[:2])
    assert daemon.value("lag_seconds", **PARTITION) == 58.5
    daemon.commit(records[2:])
    assert daemon.value("lag_seconds", **PARTITION) == 0


def test_a_lane_that_is_no_partition_has_neither_topic_nor_number(daemon: Daemon) -> None:
    for lane in ("key 7", "a/b", "/7"):
        daemon.health.note_iteration({lane: 1}, (), joined=True)
        assert daemon.value("lag_records", lane=lane, topic="", partition="") == 1


def test_a_lane_shows_for_how_long_it_has_made_no_progress(daemon: Daemon) -> None:
    daemon.iterate(5)
    iterations(daemon, 100)
    assert daemon.value("stalled_seconds", **PARTITION) == 100
    daemon.commit(daemon.take(1))
    daemon.iterate(4)
    assert daemon.value("stalled_seconds", **PARTITION) == 0


def test_the_info_names_what_runs_and_the_model_that_answered_last(daemon: Daemon) -> None:
    assert daemon.value("info", **INFO, model="") == 1
    daemon.commit(daemon.take(1))
    assert daemon.value("info", **INFO, model="fmnist 1.0") == 1
    daemon.commit(daemon.take(1), Prediction({"label": "Bag"}))
    assert daemon.value("info", **INFO, model="fmnist 1.0") == 1


def test_predictions_are_counted_by_class_and_nothing_else_is(daemon: Daemon) -> None:
    daemon.commit(daemon.take(2))
    daemon.commit(daemon.take(1), Prediction({"label": "Coat"}))
    daemon.commit(daemon.take(1), Rejection("empty", ""))
    daemon.commit(daemon.take(1), Skipped())
    assert daemon.value("predicted_class_total", **{"class": "Bag"}) == 2
    assert daemon.value("predicted_class_total", **{"class": "Coat"}) == 1
    assert dict(daemon.instrumented.predicted.classes) == {"Bag": 2, "Coat": 1}


def fill_window(daemon: Daemon, answer: Answer, *, size: int = WINDOW) -> None:
    daemon.instrumented.predicted = Predicted({"Bag": size}, "fmnist 1.0", (answer,) * size)


def test_drift_is_told_of_a_full_window_of_the_model_that_is_known(daemon: Daemon) -> None:
    answer = Answer(0, 1.0, 1.0)
    fill_window(daemon, answer, size=WINDOW - 1)
    assert daemon.value("drift_confidence") is None
    fill_window(daemon, answer)
    assert daemon.value("drift_confidence") == 0.25
    assert daemon.value("drift_near_ties") == -0.5
    assert daemon.value("drift_class_mix") == pytest.approx(
        0.5 * log(2) + 0.5 * log(2000), rel=0.01
    )
    daemon.baseline = replace(daemon.baseline, model="fmnist 2.0")
    assert daemon.value("drift_confidence") is None


def test_without_margins_no_share_of_near_ties_is_told(daemon: Daemon) -> None:
    fill_window(daemon, Answer(0, 1.0, None))
    assert daemon.value("drift_confidence") == 0.25
    assert daemon.value("drift_near_ties") is None


def test_a_commit_that_failed_counts_no_class(daemon: Daemon) -> None:
    records = daemon.take(2)
    daemon.broker.rewound = True
    with pytest.raises(Rewound):
        daemon.commit(records)
    assert not daemon.instrumented.predicted.classes


def test_a_broker_that_knows_no_lag_shows_none(daemon: Daemon) -> None:
    daemon.health.note_iteration(None, (), joined=True)
    assert daemon.value("lag_records", **PARTITION) is None
    assert daemon.health.describe_stall() is None


def test_the_time_from_record_to_result_ends_with_the_commit(daemon: Daemon) -> None:
    daemon.commit(daemon.take(2, age=4.0))
    assert daemon.value("record_to_result_seconds_count") == 2
    assert daemon.value("record_to_result_seconds_sum") == 4.5 + 3.5
    assert daemon.value("transaction_seconds_sum") == 0.5


def test_a_dead_letter_is_a_result_and_a_skipped_record_is_none(daemon: Daemon) -> None:
    one, other = daemon.take(2)
    daemon.commit([one], Rejection("empty", ""))
    daemon.commit([other], Skipped())
    assert daemon.value("record_to_result_seconds_count") == 1


@pytest.mark.parametrize("lane", [LANE, None])
@pytest.mark.parametrize("commits", [[[0, 1]], [[0], [1]], [[1], [0]]])
def test_a_record_handed_out_twice_is_held_until_both_are_committed(
    daemon: Daemon, commits: Sequence[Sequence[int]], lane: str | None
) -> None:
    daemon.broker.records = [record(0, 990.0, lane), record(0, 990.0, lane)]
    held = daemon.instrumented.poll(2, 0.0)
    for commit in commits:
        assert daemon.instrumented.oldest == {lane: 990_000}
        daemon.commit([held[place] for place in commit])
    assert daemon.instrumented.oldest == {}
    assert daemon.value("record_to_result_seconds_count") == 2


def test_a_record_from_the_future_takes_no_negative_time(daemon: Daemon) -> None:
    daemon.commit(daemon.take(1, age=-60.0))
    assert daemon.value("record_to_result_seconds_sum") == 0


@pytest.mark.parametrize("at", ["poll", "commit"])
def test_a_rewind_makes_void_what_was_read_and_a_failed_commit_is_not_timed(
    daemon: Daemon, at: str
) -> None:
    records = daemon.take(2, age=60.0)
    daemon.iterate(2)
    daemon.broker.rewound = True
    with pytest.raises(Rewound):
        daemon.take(1) if at == "poll" else daemon.commit(records)
    assert daemon.value("lag_seconds", **PARTITION) == 0
    assert daemon.value("transaction_seconds_count") == 0
    daemon.broker.rewound = False
    daemon.commit(daemon.take(2))
    assert daemon.value("record_to_result_seconds_count") == 2


def test_lanes_that_are_done_with_are_forgotten(daemon: Daemon) -> None:
    daemon.broker.records = [record(n, 0.0, lane=f"key {n}") for n in range(100)]
    daemon.commit(daemon.instrumented.poll(100, 0.0))
    assert not daemon.instrumented._held
    assert len(daemon.instrumented.take_moved()) == 100
    assert not daemon.instrumented.take_moved()


def test_what_is_watched_is_closed(daemon: Daemon) -> None:
    daemon.instrumented.close()
    assert daemon.broker.closed


# the probes


def test_without_laps_it_is_stuck(daemon: Daemon) -> None:
    daemon.iterate()
    daemon.clock.now += 119.0
    assert daemon.health.describe_stall() is None
    daemon.clock.now += 1.0
    assert daemon.health.describe_stall() == "the main loop has not run for 120 s"


def iterations(daemon: Daemon, seconds: int, lag: int = 5, *, joined: bool = True) -> None:
    for _ in range(seconds):
        daemon.iterate(lag, joined=joined, after=1.0)


def test_a_partition_with_lag_and_no_progress_is_stuck(daemon: Daemon) -> None:
    daemon.iterate(5)
    iterations(daemon, 299)
    assert daemon.health.describe_stall() is None
    iterations(daemon, 1)
    assert daemon.health.describe_stall() == "no progress in images/0 in spite of its lag"


def test_a_commit_is_progress_however_the_lag_stands(daemon: Daemon) -> None:
    daemon.iterate(5)
    iterations(daemon, 200)
    daemon.commit(daemon.take(1))
    iterations(daemon, 200)
    assert daemon.health.describe_stall() is None


def test_a_partition_without_lag_need_not_move(daemon: Daemon) -> None:
    iterations(daemon, 1000, lag=0)
    assert daemon.health.describe_stall() is None


def test_an_outage_of_the_service_excuses(daemon: Daemon) -> None:
    daemon.relay.stats = Stats(busy_since=0.0)
    iterations(daemon, 1000)
    assert daemon.health.describe_stall() is None
    daemon.relay.stats = Stats()
    iterations(daemon, 301)
    assert daemon.health.describe_stall()


def test_a_group_that_shares_out_its_partitions_excuses(daemon: Daemon) -> None:
    iterations(daemon, 1000, joined=False)
    assert daemon.health.describe_stall() is None


def test_a_partition_that_was_taken_away_is_not_missed(daemon: Daemon) -> None:
    daemon.iterate(5)
    for _ in range(400):
        daemon.clock.now += 1.0
        daemon.health.note_iteration({}, (), joined=True)
    assert daemon.health.describe_stall() is None


def test_it_is_not_ready_before_it_has_joined(daemon: Daemon) -> None:
    assert "has not given out" in str(daemon.health.describe_unreadiness())
    daemon.iterate()
    assert daemon.health.describe_unreadiness() is None


def test_it_is_not_ready_while_nobody_is_served(daemon: Daemon) -> None:
    daemon.iterate()
    daemon.relay.stats = Stats(busy_since=0.0, busy_detail="503: full")
    assert daemon.health.describe_unreadiness() == "the service serves nobody: 503: full"


def test_the_traffic_tells_that_the_service_answers(daemon: Daemon) -> None:
    daemon.iterate()
    for predicted in range(1, 9):
        daemon.relay.stats = Stats(predicted=predicted)
        assert daemon.health.describe_unreadiness() is None
        daemon.clock.now += 29.0
    assert daemon.asked == 0


def test_without_traffic_the_service_is_asked_now_and_then(daemon: Daemon) -> None:
    daemon.iterate()
    for _ in range(60):
        assert daemon.health.describe_unreadiness() is None
        daemon.clock.now += 1.0
    assert daemon.asked == 2


def test_a_service_in_trouble_is_asked_more_often_until_it_answers(daemon: Daemon) -> None:
    daemon.iterate()
    daemon.trouble = "it is away"
    found = []
    for second in range(12):
        daemon.trouble = "it is away" if second < 7 else None
        found.append(daemon.health.describe_unreadiness())
        daemon.clock.now += 1.0
    assert found == ["it is away"] * 10 + [None] * 2
    assert daemon.asked == 3


def test_traffic_ends_the_trouble_at_once(daemon: Daemon) -> None:
    daemon.iterate()
    daemon.trouble = "it is away"
    assert daemon.health.describe_unreadiness() == "it is away"
    daemon.relay.stats = Stats(predicted=1)
    assert daemon.health.describe_unreadiness() is None


# the server


@contextmanager
def listening(daemon: Daemon) -> Iterator[str]:
    with serve_pages("127.0.0.1", 0, make_pages(daemon.collector, daemon.health)) as port:
        yield f"http://127.0.0.1:{port}"


def test_a_scrape_is_in_the_text_format_and_knows_the_process_too(daemon: Daemon) -> None:
    with listening(daemon) as url:
        answer = requests.get(f"{url}/metrics", timeout=5)
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "connector_held_records 0.0" in answer.text
    assert "process_resident_memory_bytes" in answer.text


def test_a_probe_is_200_or_503_and_says_why(daemon: Daemon) -> None:
    with listening(daemon) as url:
        ready = requests.get(f"{url}/readyz", timeout=5)
        alive = requests.get(f"{url}/livez?verbose", timeout=5)
    assert (ready.status_code, alive.status_code) == (503, 200)
    assert (ready.text, alive.text) == ("the group has not given out its partitions\n", "ok\n")


def test_anything_else_is_not_there(daemon: Daemon) -> None:
    with listening(daemon) as url:
        assert requests.get(f"{url}/", timeout=5).status_code == 404
        assert requests.post(f"{url}/metrics", timeout=5).status_code == 501


def test_the_stacks_are_dumped_once_when_it_turns_red(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps: list[bool] = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback", lambda *, all_threads: dumps.append(all_threads)
    )
    livez = make_pages(daemon.collector, daemon.health)["/livez"]
    daemon.clock.now += 200.0
    assert [livez("").status, livez("").status] == [503, 503]
    assert dumps == [True]
    daemon.iterate()
    assert livez("") == Page(200, "text/plain; charset=utf-8", b"ok\n")
    daemon.clock.now += 200.0
    livez("")
    assert len(dumps) == 2


def test_who_hangs_up_or_is_silent_harms_nobody(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page_server, "CONNECTION_TIMEOUT", 0.05)
    with listening(daemon) as url:
        port = int(url.rpartition(":")[2])
        silent = socket.create_connection(("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as rude:
            linger = b"\1\0\0\0\0\0\0\0"  # on, no time: the end is a reset
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            rude.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert requests.get(f"{url}/livez", timeout=5).status_code == 200
        silent.close()
    assert capsys.readouterr().err == ""


def test_a_mistake_of_ours_is_not_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    def broken(_: str) -> Page:
        raise ZeroDivisionError("oops")

    with (
        serve_pages("127.0.0.1", 0, {"/": broken}) as port,
        pytest.raises(requests.ConnectionError),
    ):
        requests.get(f"http://127.0.0.1:{port}/", timeout=5)
    assert "ZeroDivisionError: oops" in capfd.readouterr().err


def test_a_port_that_is_taken_stops_the_daemon_in_one_sentence() -> None:
    nothing: dict[str, Any] = {}
    with serve_pages("127.0.0.1", 0, nothing) as port, pytest.raises(Stop) as stop:
        serve_pages("127.0.0.1", port, nothing).__enter__()
    assert stop.value.code == Exit.USAGE
    assert "--metrics-port" in str(stop.value)
    assert "\n" not in str(stop.value)


@contextmanager
def held(port: int, count: int, first: bytes, again: bytes) -> Iterator[list[socket.socket]]:
    """So many connections, each of which sends its question a little at a time."""
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.05):
            for client in clients:
                with suppress(OSError):
                    client.sendall(again)

    for client in clients:
        client.sendall(first)
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield clients
    finally:
        over.set()
        thread.join()
        for client in clients:
            client.close()


HOLDS = [(b"GET /", b"a"), (b"", b"G"), (b"GET /livez HTTP/1.1\r\n", b"X: y\r\n"), (b"", b"")]


@pytest.mark.parametrize(("first", "again"), HOLDS)
@pytest.mark.parametrize("count", [1, page_server.MAX_CONNECTIONS, 3 * page_server.MAX_CONNECTIONS])
def test_who_holds_connections_open_holds_no_probe_up(
    daemon: Daemon, first: bytes, again: bytes, count: int
) -> None:
    with listening(daemon) as url:
        before = threading.active_count()
        with held(int(url.rpartition(":")[2]), count, first, again):
            for _ in range(4):
                assert requests.get(f"{url}/livez", timeout=3).status_code == 200
            assert threading.active_count() - before <= page_server.MAX_CONNECTIONS + 1


def is_ended(client: socket.socket) -> bool:
    """Read what comes; tell whether the other side ended the connection while we still waited."""
    try:
        while client.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


@pytest.mark.parametrize(("first", "again"), HOLDS)
def test_a_question_that_drips_is_ended_when_its_time_is_over(
    daemon: Daemon, first: bytes, again: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "CONNECTION_TIMEOUT", 0.3)
    with listening(daemon) as url, held(int(url.rpartition(":")[2]), 1, first, again) as clients:
        [client] = clients
        client.settimeout(3)
        assert is_ended(client)


def test_a_page_is_made_by_one_thread_at_a_time() -> None:
    inside, most = 0, 0

    def page(_: str) -> Page:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        inside -= 1
        return Page(200, "text/plain", b"")

    with serve_pages("127.0.0.1", 0, {"/": page}) as port:
        url = f"http://127.0.0.1:{port}/"
        with ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda _: requests.get(url, timeout=5), range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert most == 1
