from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import pytest
import requests

from connectors import codec, daemon, logs, metrics, registry
from connectors import watchdog as watchdog_module
from connectors.__main__ import main, parse_command
from connectors.brokers.kafka.settings import ListenKafka, RunKafka, SendKafka
from connectors.brokers.pubsub.endpoints import Unordered
from connectors.brokers.pubsub.settings import RunPubSub
from connectors.daemon import handle_signals, run
from connectors.errors import Exit, Stop
from connectors.images import CANARY
from connectors.records import Advice, Ok
from connectors.relay import Relay, Stats
from connectors.status import Line, Report
from connectors.watchdog import Watchdog, run_watchdog
from tests.brokers.memory import Memory, MemoryBroker, Subscription
from tests.connectors.policies import policy as make_policy
from tests.connectors.test_client import Script, Service, predictions, unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from connectors.records import Record, Settled

RUN = ["kafka", "--input-topic", "images", "--output-topic", "predictions"]


class Left(BaseException):
    """The process would be gone."""


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes the process would have left with, at once."""
    codes: list[int] = []

    def leave(code: int) -> NoReturn:
        codes.append(code)
        raise Left

    monkeypatch.setattr(os, "_exit", leave)
    return codes


def settings(**given: Any) -> RunKafka:  # noqa: ANN401 - any field
    return RunKafka(input_topic="images", output_topic="predictions", **given)


# the grammar


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["run", "kafka", "--pack", "1"], ("run", "kafka", ["--pack", "1"])),
        (["kafka", "--pack", "1"], ("run", "kafka", ["--pack", "1"])),
        (["send", "kafka"], ("send", "kafka", [])),
        (["listen", "kafka"], ("listen", "kafka", [])),
        (["watch", "kafka"], ("watch", "kafka", [])),
        (["dlq", "list", "kafka", "--limit", "1"], ("dlq list", "kafka", ["--limit", "1"])),
        (["pubsub", "--pack", "1"], ("run", "pubsub", ["--pack", "1"])),
        (["dlq", "list", "pubsub"], ("dlq list", "pubsub", [])),
    ],
)
def test_a_command_is_a_verb_and_a_broker(
    arguments: list[str], command: tuple[str, str, list[str]]
) -> None:
    assert parse_command(arguments) == command


@pytest.mark.parametrize(
    "arguments", [[], ["send"], ["kafka2"], ["send", "carrier-pigeon"], ["dlq", "kafka"]]
)
def test_any_other_command_is_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(Stop, match="these commands: run kafka, send kafka") as stop:
        parse_command(arguments)
    assert stop.value.code == Exit.USAGE


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("snd kafka", "send kafka"),
        ("send kafak", "send kafka"),
        ("kafak --input-topic images", "kafka"),
        ("lisen pubsub", "listen pubsub"),
        ("dlq lst kafka", "dlq list kafka"),
        ("dlq replya pubsub --name a", "dlq replay pubsub"),
        ("doctr kafka", "doctor kafka"),
        ("print_config kafka", "print-config kafka"),
        ("pub-sub", "pubsub"),
        ("snd", "send"),
    ],
)
def test_a_mistyped_command_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(Stop, match=rf"^did you mean {meant}\? ") as stop:
        parse_command(typed.split())
    assert stop.value.code == Exit.USAGE


@pytest.mark.parametrize("typed", ["carrier-pigeon", "send", "dlq", "xyz kafka", "--kafka"])
def test_a_far_off_command_has_no_nearest(typed: str) -> None:
    with pytest.raises(Stop, match=r"^name one of these commands"):
        parse_command(typed.split())


@pytest.mark.parametrize(
    "verb",
    ["send", "listen", "watch", "dlq", "dlq list", "dlq replay", "check", "print-config", "run"],
)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_verb_has_help_without_a_broker(
    verb: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*verb.split(), flag])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"python -m connectors {verb}" in shown
    assert "kafka: " in shown
    assert "pubsub: " in shown


def test_help_shows_commands_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for part in ("listen kafka", "pubsub", "Examples:", "78 do not start again"):
        assert part in shown


# the exit code


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def open_broker(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(registry, "open_broker", open_broker)
    return main(RUN)


def test_wrong_settings_end_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers.clear()
    assert main(["kafka"]) == 2
    assert capsys.readouterr().err == "connectors: --input-topic is required\n"


def test_stop_ends_with_its_code_and_its_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(Stop("create the topic images", Exit.UNAVAILABLE), monkeypatch) == 69
    shown = capsys.readouterr().err
    assert shown.endswith("ERROR create the topic images\n")
    assert "Traceback" not in shown


def test_the_unexpected_ends_with_70_and_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(ZeroDivisionError("oops"), monkeypatch) == 70
    assert "ZeroDivisionError: oops" in capsys.readouterr().err


def test_control_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fail_with(KeyboardInterrupt(), monkeypatch) == 130


def test_each_verb_goes_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, object, object]] = []
    monkeypatch.setattr(registry, "open_publisher", lambda *_: "publisher")
    monkeypatch.setattr(registry, "open_reader", lambda *_: "reader")
    monkeypatch.setattr("connectors.commands.send.send", lambda *a: taken.append(("send", *a)))
    monkeypatch.setattr(
        "connectors.commands.listen.listen", lambda *a: taken.append(("listen", *a))
    )
    assert main(["send", "kafka", "--input-topic", "images", "--test-set"]) == 0
    assert main(["listen", "kafka", "--output-topic", "predictions"]) == 0
    (_, sent, publisher), (_, listened, reader) = taken
    assert isinstance(sent, SendKafka)
    assert isinstance(listened, ListenKafka)
    assert (publisher, reader) == ("publisher", "reader")


DLQ = ["kafka", "--input-topic", "images"]


def test_the_verbs_for_dead_letters_go_their_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "open_dead_letters", lambda *_: "letters")
    monkeypatch.setattr(registry, "open_replay", lambda _, settings, __: settings.name)
    for verb in ("list_", "show", "replay"):
        monkeypatch.setattr(f"connectors.commands.dlq.{verb}", lambda *a, v=verb: [v, a[1]])
    assert main(["dlq", "list", *DLQ]) == 0
    assert main(["dlq", "show", *DLQ]) == 0
    assert main(["dlq", "replay", *DLQ, "--name", "fix"]) == 0
    assert capsys.readouterr().out.split() == [
        *("list_", "letters"),
        *("show", "letters"),
        *("replay", "fix"),
    ]


def checked(verb: str, url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Check, with a Kafka that is well and of which there is advice."""
    kafka = "connectors.brokers.kafka.admin"
    monkeypatch.setattr(f"{kafka}.list_checks", lambda _: [("broker", lambda: Ok("1 at home"))])
    monkeypatch.setattr(
        f"{kafka}.list_all_checks", lambda _: [("group", lambda: Advice("start one"))]
    )
    return main([verb, *RUN, "--url", url])


def test_a_check_tells_of_settings_broker_and_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Service(Script(body=predictions(1))).serving() as url:
        assert checked("check", url, monkeypatch) == 0
    words = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert words == [["ok", "settings"], ["ok", "broker"], ["ok", "service"]]


def test_a_check_that_fails_ends_with_the_exit_code_of_the_daemon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger().handlers.clear()
    assert checked("doctor", f"http://127.0.0.1:{unused_port()}/", monkeypatch) == 69
    shown = capsys.readouterr()
    words = [line.split()[:2] for line in shown.out.splitlines()]
    assert words[2:] == [["advice", "group"], ["failed", "service"], ["skipped", "request"]]
    assert shown.err == "connectors: not all is well: service\n"


def test_the_settings_are_printed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["print-config", *RUN, "--pack", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "pack = 3  # flag" in shown
    assert "tries = 3  # default" in shown


# Pub/Sub: the same verbs

PUBSUB = ["--project", "mine", "--subscription", "images"]
OUT = ["--output-topic", "predictions"]
IN = ["--input-topic", "images"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For which subscriptions `--create` was obeyed."""
    names: list[str] = []
    create = "connectors.brokers.pubsub.admin.create"
    monkeypatch.setattr(create, lambda settings: names.append(settings.subscription))
    return names


@pytest.mark.parametrize("flags", [[], ["--create"]])
def test_the_two_ends_of_pubsub_go_their_way(
    flags: list[str], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    pubsub = "connectors.brokers.pubsub.endpoints"
    monkeypatch.setattr(f"{pubsub}.TopicPublisher", lambda _: "publisher")
    monkeypatch.setattr(
        f"{pubsub}.TopicReader", lambda settings, topic: (topic, settings.from_beginning)
    )
    monkeypatch.setattr("connectors.commands.send.send", lambda _, way: taken.append(way))
    monkeypatch.setattr("connectors.commands.listen.listen", lambda _, way: taken.append(way))
    assert main(["send", "pubsub", *PUBSUB, *IN, "--test-set", *flags]) == 0
    kept = ["--from-beginning", "--output-subscription", "predictions"]
    assert main(["listen", "pubsub", *PUBSUB, *OUT, *kept, *flags]) == 0
    unordered, reader = taken
    assert isinstance(unordered, Unordered)
    assert reader == ("predictions", True)
    assert made == ["images"] * 2 * len(flags)
    assert main(["send", "pubsub", *PUBSUB, *IN, "--test-set", "--ordering-keys"]) == 0
    assert taken[2:] == ["publisher"]


@pytest.mark.parametrize("flags", [[], ["--create"]])
def test_the_dead_letters_of_pubsub_go_their_way(
    flags: list[str],
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    operations = "connectors.brokers.pubsub.admin"
    monkeypatch.setattr(f"{operations}.DeadLetterReader", lambda _: "letters")
    monkeypatch.setattr(f"{operations}.ReplayBroker", lambda _, name, __: name)
    for verb in ("list_", "show", "replay"):
        monkeypatch.setattr(f"connectors.commands.dlq.{verb}", lambda _, way: [way])
    assert main(["dlq", "list", "pubsub", *PUBSUB, *flags]) == 0
    assert main(["dlq", "show", "pubsub", *PUBSUB, *flags]) == 0
    assert main(["dlq", "replay", "pubsub", *PUBSUB, *IN, "--name", "fix", *flags]) == 0
    assert capsys.readouterr().out.split() == ["letters", "letters", "fix"]
    assert made == ["images"] * 3 * len(flags)


def test_the_daemon_starts_when_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before: its broker is opened afterwards."""

    def complete(settings: object) -> NoReturn:
        assert isinstance(settings, RunPubSub)
        raise Stop("topic images-dead is not there", Exit.UNAVAILABLE)

    monkeypatch.setattr("connectors.brokers.pubsub.admin.ensure_resources", complete)
    monkeypatch.setattr(
        "connectors.brokers.pubsub.broker.PubSubBroker", lambda *_: pytest.fail("opened")
    )
    assert main(["pubsub", *PUBSUB, *OUT]) == 69


@pytest.mark.parametrize(
    ("verb", "asked"), [("check", "list_checks"), ("doctor", "list_all_checks")]
)
def test_pubsub_is_checked_and_nothing_is_made(
    verb: str,
    asked: str,
    made: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = [("broker", lambda: Ok("it is there"))]
    monkeypatch.setattr(f"connectors.brokers.pubsub.admin.{asked}", lambda _: told)
    with Service(Script(body=predictions(1))).serving() as url:
        assert main([verb, "pubsub", *PUBSUB, *IN, *OUT, "--create", "--url", url]) == 0
    assert "ok      broker        it is there" in capsys.readouterr().out
    assert made == []


def test_without_credentials_it_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logging.getLogger().handlers.clear()
    for name in ("PUBSUB_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))  # where a login would be
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert main(["send", "pubsub", *PUBSUB, *IN, "--test-set"]) == 69
    shown = capsys.readouterr().err
    assert "credentials" in shown
    assert shown.count("\n") == 1


def test_a_reader_who_has_enough_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "connectors", "print-config", *RUN, "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


# the daemon


class LastCommit(MemoryBroker):
    """Asks the process to stop once so many records are committed."""

    left = 0

    def commit(self, settled: Sequence[Settled]) -> None:
        super().commit(settled)
        self.left -= len(settled)
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)


def broker_with(memory: Memory, records: int, kind: type[LastCommit] = LastCommit) -> LastCommit:
    topics = Subscription(input="images", output="predictions", dead="images.dead")
    for topic in ("images", "predictions", "images.dead"):
        memory.create(topic)
    for number in range(records):
        memory.produce("images", b"png %d" % number if number else None, key=b"%d" % number)
    broker = kind(memory, topics, codec.encode)
    broker.left = records
    return broker


def relayed(url: str, records: int, **given: Any) -> Memory:  # noqa: ANN401 - any field
    memory = Memory(time.monotonic, time.sleep)
    broker = broker_with(memory, records)
    run(settings(url=url, pack=1, in_flight=1, **given), lambda _: broker)
    return memory


def test_records_become_results_and_dead_letters_until_sigterm() -> None:
    with Service(Script(body=predictions(1))).serving() as url:
        memory = relayed(url, 3)
    assert [entry.key for entry in memory.read("predictions")] == [b"1", b"2"]
    assert [entry.key for entry in memory.read("images.dead")] == [b"0"]
    assert memory.offsets("connector") == {("images", 0): 3}


def test_tombstones_are_skipped_when_the_operator_says_so() -> None:
    with Service(Script(body=predictions(1))).serving() as url:
        memory = relayed(url, 2, tombstones="skip")
    assert memory.read("images.dead") == []
    assert len(memory.read("predictions")) == 1


def test_what_is_not_answered_at_the_drain_limit_stays_uncommitted() -> None:
    memory = Memory(time.monotonic, time.sleep)
    broker = broker_with(memory, 3)
    broker.left = 1  # the tombstone alone: nobody answers for the others
    url = f"http://127.0.0.1:{unused_port()}/"
    run(settings(url=url, drain_limit=0.01), lambda _: broker)
    assert memory.offsets("connector") == {("images", 0): 1}


def test_a_running_daemon_can_be_asked_how_it_is() -> None:
    told: dict[str, requests.Response] = {}
    port = unused_port()

    class Curious(LastCommit):
        def commit(self, settled: Sequence[Settled]) -> None:
            for page in ("metrics", "livez", "readyz"):
                told[page] = requests.get(f"http://127.0.0.1:{port}/{page}", timeout=5)
            super().commit(settled)

    memory = Memory(time.monotonic, time.sleep)
    with Service(Script(body=predictions(1))).serving() as url:
        broker = broker_with(memory, 3, Curious)
        run(settings(url=url, pack=1, in_flight=1, metrics_port=port), lambda _: broker)
    assert {page: answer.status_code for page, answer in told.items()} == dict.fromkeys(told, 200)
    labels = 'lane="images/0",partition="0",topic="images"'
    assert f"connector_lag_records{{{labels}}}" in told["metrics"].text
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/livez", timeout=5)


def test_the_garbage_collector_leaves_alone_what_was_there_before_the_first_record() -> None:
    frozen: list[int] = []

    class Counting(LastCommit):
        def commit(self, settled: Sequence[Settled]) -> None:
            frozen.append(gc.get_freeze_count())
            super().commit(settled)

    memory = Memory(time.monotonic, time.sleep)
    with Service(Script(body=predictions(1))).serving() as url:
        run(settings(url=url, pack=1, in_flight=1), lambda _: broker_with(memory, 1, Counting))
    modules = len(sys.modules)
    assert frozen[0] > modules
    assert gc.get_freeze_count() < modules


class Unusable(LastCommit):
    """Finds in a call that only a person can help, or that a restart can."""

    at = "poll"
    code = Exit.GIVEN_UP

    def poll(self, limit: int, timeout: float) -> Sequence[Record]:
        self.fail_at("poll")
        return super().poll(limit, timeout)

    def commit(self, settled: Sequence[Settled]) -> None:
        self.fail_at("commit")
        super().commit(settled)

    def fail_at(self, call: str) -> None:
        if self.at == call:
            raise Stop("mend it by hand", self.code)


class Look(NamedTuple):
    """What a parked daemon shows: its pages, and what is going on meanwhile."""

    pages: dict[str, tuple[int, str]]
    members: int
    iterations: int


class Parking:
    """Runs daemons with a port, looks at each three times while it is parked, and asks it to stop.

    Its first record is a tombstone.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.memory = Memory(time.monotonic, time.sleep)
        self.looks: list[Look] = []
        self._port = unused_port()
        self._iterations = 0
        note_iteration, note_parked = Watchdog.note_iteration, metrics.Health.note_parked

        def count_iteration(watchdog: Watchdog) -> None:
            self._iterations += 1
            note_iteration(watchdog)

        def look(health: metrics.Health, why: str) -> None:
            note_parked(health, why)
            self._look()

        monkeypatch.setattr(Watchdog, "note_iteration", count_iteration)
        monkeypatch.setattr(metrics.Health, "note_parked", look)
        monkeypatch.setattr(daemon, "PARK_INTERVAL", 0.0)

    def run(self, at: str, code: Exit = Exit.GIVEN_UP, **given: Any) -> None:  # noqa: ANN401 - any field
        """Let a daemon give up at the limit of dead letters, or in a call of its broker."""
        broker = broker_with(self.memory, 1, Unusable)
        assert isinstance(broker, Unusable)
        broker.at, broker.code = at, code
        limit = 1 if at == "limit" else 100
        given |= {"metrics_port": self._port, "max_consecutive_dead_letters": limit}
        run(settings(**given), lambda _: broker)

    def _look(self) -> None:
        pages = {}
        for page in ("metrics", "livez", "readyz"):
            answer = requests.get(f"http://127.0.0.1:{self._port}/{page}", timeout=5)
            pages[page] = answer.status_code, answer.text
        members = len(self.memory.group("connector")._members)
        self.looks.append(Look(pages, members, self._iterations))
        if len(self.looks) == 3:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def parking(monkeypatch: pytest.MonkeyPatch) -> Parking:
    return Parking(monkeypatch)


@pytest.mark.parametrize("at", ["limit", "poll", "commit"])
def test_who_gives_up_and_parks_leaves_the_group_and_waits_for_sigterm(
    at: str, parking: Parking, capsys: pytest.CaptureFixture[str]
) -> None:
    parking.run(at, when_given_up="park")
    reason = "1 records in a row were rejected" if at == "limit" else "mend it by hand"
    assert len(parking.looks) == 3
    for look in parking.looks:
        assert look.members == 0
        assert look.pages["livez"] == (200, "ok\n")
        assert look.pages["readyz"][0] == 503
        assert reason in look.pages["readyz"][1]
        assert "connector_given_up 1.0" in look.pages["metrics"][1]
        assert "connector_held_records 0.0" in look.pages["metrics"][1]
    assert parking.memory.read("images.dead") == []
    assert parking.memory.offsets("connector") == {}
    assert reason in capsys.readouterr().err


def test_the_watchdog_lets_a_parked_daemon_be(parking: Parking) -> None:
    parking.run("poll", when_given_up="park")
    first, *_ = counts = [look.iterations for look in parking.looks]
    assert [count - first for count in counts] == [0, 1, 2]


@pytest.mark.parametrize(
    ("code", "when"),
    [
        (Exit.UNAVAILABLE, "park"),
        (Exit.FENCED, "park"),
        (Exit.USAGE, "park"),
        (Exit.GIVEN_UP, "exit"),
    ],
)
def test_what_a_restart_may_mend_is_not_parked_and_nobody_is_who_was_not_told_to(
    code: Exit, when: str, parking: Parking
) -> None:
    with pytest.raises(Stop) as stop:
        parking.run("poll", code, when_given_up=when)
    assert (stop.value.code, parking.looks) == (code, [])


def test_without_being_told_a_daemon_that_gives_up_ends_with_78() -> None:
    assert settings().when_given_up == "exit"


def test_a_service_that_is_away_is_trouble_in_one_sentence() -> None:
    url = f"http://127.0.0.1:{unused_port()}/"
    assert "does not predict a blank image" in str(daemon.describe_trouble(settings(url=url)))
    with Service(Script(body=predictions(1))).serving() as there:
        assert daemon.describe_trouble(settings(url=there)) is None


def test_the_handlers_of_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handle_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_asks_and_the_second_leaves(
    number: signal.Signals, code: int, exits: list[int]
) -> None:
    asked: list[str] = []
    with handle_signals(lambda: asked.append("drain")):
        signal.raise_signal(signal.SIGTERM)
        assert (asked, exits) == (["drain"], [])
        with pytest.raises(Left):
            signal.raise_signal(number)
    assert (asked, exits) == (["drain"], [code])


# the watchdog


def test_a_loop_without_laps_is_stuck_after_so_many_ticks() -> None:
    watchdog = Watchdog(3.0)
    assert [watchdog.tick() for _ in range(3)] == [False, False, True]


def test_a_lap_starts_the_count_again() -> None:
    watchdog = Watchdog(2.0)
    found = []
    for iterated in (False, True, False, False):
        if iterated:
            watchdog.note_iteration()
        found.append(watchdog.tick())
    assert found == [False, False, False, True]


def test_in_a_hurry_laps_do_not_help() -> None:
    watchdog = Watchdog(100.0)
    watchdog.set_deadline(2.0)
    found = []
    for _ in range(3):
        watchdog.note_iteration()
        found.append(watchdog.tick())
    assert found == [False, False, True]


def report(stats: Stats | None = None, **given: Any) -> Report:  # noqa: ANN401 - any field
    relay = Relay(make_policy(), lambda upper: upper, CANARY)
    relay.stats = stats or Stats()
    made = Report(relay, settings(**given), 0.0)
    made.relaying = True
    return made


def test_a_stuck_process_shows_its_stacks_and_leaves_with_70(
    monkeypatch: pytest.MonkeyPatch, exits: list[int]
) -> None:
    monkeypatch.setattr(watchdog_module, "TICK", 0.001)
    shown: list[bool] = []
    monkeypatch.setattr(
        "faulthandler.dump_traceback", lambda *, all_threads: shown.append(all_threads)
    )
    left = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: left.set())
    with run_watchdog(Watchdog(0.001), report()):
        assert left.wait(10)
    assert (shown, exits) == ([True], [70])


def test_reports_are_logged_by_the_watching_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "TICK", 0.001)
    logged = threading.Event()
    monkeypatch.setattr(watchdog_module._log, "log", lambda *_, **__: logged.set())
    with run_watchdog(Watchdog(1000.0), report(status_every=0.001)):
        assert logged.wait(10)


# what the operator is told


def test_a_status_line_tells_how_things_stand() -> None:
    stats = Stats(
        predicted=500,
        rejected=Counter({"empty": 2}),
        skipped=3,
        retries=Counter({"busy": 4, "failed": 1}),
        held=120,
        out=4,
        oldest_since=9.5,
    )
    told = report(stats)
    told.lag = {"images/0": 1000, "images/1": 42}
    [line] = told.lines(10.0)
    assert line.text == (
        "50.5 records/s, 120 held, 4 out, oldest unanswered 0.5 s, lag 1042, "
        "retries: 4 busy 1 failed, dead letters: 2 empty"
    )
    assert line.fields == {
        "records_per_second": 50.5,
        "held": 120,
        "out": 4,
        "oldest_unanswered": 0.5,
        "lag": 1042,
        "retries": {"busy": 4, "failed": 1},
        "dead_letters": {"empty": 2},
    }


def test_before_it_relays_there_is_no_status_line() -> None:
    told = report(status_every=10.0)
    told.relaying = False
    assert list(told.lines(11.0)) == []


def test_status_lines_come_at_their_interval_and_count_from_the_last() -> None:
    told = report(Stats(predicted=100))
    assert [len(list(told.lines(now))) for now in (9.9, 10.0, 19.9)] == [0, 1, 0]
    [line] = told.lines(20.0)
    assert line.text.startswith("0.0 records/s, 0 held")
    assert line.text.endswith("lag unknown, retries: none, dead letters: none")


def test_an_outage_is_told_after_10_s_then_every_30_s_and_its_end_too() -> None:
    told = report(Stats(busy_since=0.0, busy_detail="503: full"), status_every=1000.0)
    times = [now for now in range(75) if list(told.lines(float(now)))]
    assert times == [10, 40, 70]
    told._relay.stats = Stats()
    assert [line.text for line in told.lines(75.0)] == [f"{told._url} serves again."]
    assert list(told.lines(76.0)) == []


def test_an_outage_is_told_with_url_and_cause() -> None:
    told = report(Stats(busy_since=0.0, busy_detail="503: full"), status_every=1000.0)
    url = "http://127.0.0.1:8080/predictions/fmnist"
    text = f"{url} has served nobody for 12 s: 503: full"
    assert list(told.lines(12.0)) == [Line(logging.WARNING, text, {"url": url, "seconds": 12})]


def test_a_short_outage_is_not_told() -> None:
    told = report(Stats(busy_since=0.0), status_every=1000.0)
    assert list(told.lines(9.0)) == []
    told._relay.stats = Stats()
    assert list(told.lines(11.0)) == []


def test_json_logs_are_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure_logging("json")
    logging.getLogger("connectors").info("two\nlines", extra={"fields": {"held": 3}})
    logging.getLogger("connectors").error("oops", exc_info=ZeroDivisionError("why"))
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["message"], first["held"]) == ("INFO", "two\nlines", 3)
    assert second["traceback"].endswith("ZeroDivisionError: why")


def test_a_library_complains_of_the_same_thing_once_in_a_while() -> None:
    seldom = logs.RateLimitFilter()

    def passes(name: str, line: int, second: float) -> bool:
        record = logging.LogRecord(name, logging.ERROR, "manager.py", line, "lost", (), None)
        record.created = second
        return seldom.filter(record)

    for library in ("kafka.net", "google.cloud.pubsub_v1", "grpc"):
        times = (0.0, 29.0, 31.0)
        seldom = logs.RateLimitFilter()
        assert [passes(library, 1, second) for second in times] == [True, False, True]
        assert passes(library, 2, 31.0)
    assert [passes("connectors", 1, 31.0) for _ in range(2)] == [True, True]


def test_a_drain_is_told_once() -> None:
    told = report(drain_limit=7.0)
    told.draining = True
    assert [line.text for line in told.lines(1.0)] == ["Draining, for 7 s at the longest."]
    assert list(told.lines(2.0)) == []


def test_the_settings_reach_the_relay() -> None:
    same = {"pack": 1, "in_flight": 2, "window": 3, "window_bytes": 4, "tries": 5}
    given = settings(
        commit_interval=0.5, max_consecutive_dead_letters=6, max_dead_letter_ratio=0.25, **same
    )
    policy = make_policy(
        commit_interval=0.5, max_consecutive_rejections=6, max_rejection_ratio=0.25, **same
    )
    assert daemon.make_policy(given) == policy


def test_the_defaults_are_those_of_the_relay() -> None:
    assert daemon.make_policy(settings()) == make_policy()


def test_jitter_is_within_its_bound() -> None:
    assert all(0.0 <= daemon.draw_jitter(2.0) <= 2.0 for _ in range(100))


def test_the_module_is_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["connectors", "nonsense"])
    assert main() == 2


@pytest.mark.parametrize("library", ["pydantic", "pydantic_settings", "requests", "rich"])
@pytest.mark.parametrize("arguments", [["--help"], ["kafka"], ["send", "pubsub"]])
def test_without_any_extra_it_ends_with_one_sentence(library: str, arguments: list[str]) -> None:
    block = f"import runpy, sys; sys.modules[{library!r}] = None; sys.argv[1:] = {arguments!r}; "
    program = f"{block}runpy.run_module('connectors', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.UNAVAILABLE
    assert done.stderr.startswith(f"connectors: {library} is not installed")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("by", [["--log", "json"], ["--log=json"], None])
def test_a_former_name_is_told_in_json_when_lines_are_json(
    by: list[str] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger().handlers.clear()
    if by is None:
        monkeypatch.setenv("CONNECTOR_LOG", "json")
    monkeypatch.setattr(daemon, "run", lambda *_: None)
    assert main([*RUN, "--dead-letter-row", "7", *(by or [])]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert "former name" in json.loads(line)["message"]


def test_a_former_name_beside_a_mistake_is_told_as_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger().handlers.clear()
    assert main([*RUN, "--dead-letter-row", "7", "--pack", "0"]) == Exit.USAGE
    former, mistake = capsys.readouterr().err.splitlines()
    assert former.startswith("connectors: --dead-letter-row is now called")
    assert mistake.startswith("connectors: --pack: ")
