"""The one program of all scenarios: its command line, and which module may know which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos import __main__ as program
from tests.chaos.brokers import BROKERS
from tests.chaos.scenarios import DEFAULT, SCENARIOS, load_scenario
from tests.chaos.verdict import Verdict
from tests.test_rooms import imported

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LIBRARIES = {"kafka": {"kafka"}, "pubsub": {"google", "grpc"}}


class FakeScenario:
    """One that notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def add_arguments(self, parser: argparse.ArgumentParser, broker: str) -> None:
        parser.add_argument(f"--{broker}-only", type=int, default=0)

    def run(self, asked: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> Verdict:
        self.asked = vars(asked)
        say(f"logs in {folder.name}")
        return Verdict({"records": 7}, [])


@pytest.fixture
def scenarios(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeScenario]:
    fakes = {name: FakeScenario() for name in SCENARIOS}
    monkeypatch.setattr(program, "load_scenario", fakes.get)
    monkeypatch.setattr("tests.chaos.verdict.signal.signal", lambda *_: None)
    return fakes


def test_the_help_lists_each_scenario_and_what_it_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert program.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, entry in SCENARIOS.items():
        assert f"  {name} " in text
        assert all(what in text for what in (entry.summary, entry.needs, entry.takes))


@pytest.mark.parametrize("name", [[], ["kills"], ["soak"]])
def test_without_a_name_it_is_the_kills(
    name: list[str], scenarios: dict[str, FakeScenario], tmp_path: Path
) -> None:
    output = tmp_path / "one.json"
    assert program.main([*name, "--kafka-only", "3", "--output", str(output)]) == 0
    expected = name[0] if name else DEFAULT
    assert {each: fake.asked for each, fake in scenarios.items() if fake.asked} == {
        expected: {"broker": "kafka", "kafka_only": 3, "output": output}
    }
    assert '"records": 7' in output.read_text()


def test_each_broker_has_flags_of_its_own(
    scenarios: dict[str, FakeScenario], tmp_path: Path
) -> None:
    output = ["--output", str(tmp_path / "one.json")]
    assert program.main(["controls", "--broker", "pubsub", "--pubsub-only", "2", *output]) == 0
    assert scenarios["controls"].asked["pubsub_only"] == 2
    with pytest.raises(SystemExit, match="2"):
        program.main(["controls", "--broker", "pubsub", "--kafka-only", "2", *output])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "there is no scenario nothing; name one of kills"),
        (["link", "--broker", "pubsub"], "not on pubsub; name one of kafka"),
        (["kills", "--broker", "rabbit"], "not on rabbit; name one of kafka, pubsub"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(words) == 2
    assert sentence in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "broker"), [(name, broker) for name in SCENARIOS for broker in SCENARIOS[name].brokers]
)
def test_every_scenario_has_a_command_line(name: str, broker: str) -> None:
    parser = program.make_parser(name, load_scenario(name), broker)
    asked = parser.parse_args([])
    assert (asked.broker, asked.output.parent.name) == (broker, "run")
    outputs = {program.default_output(each, one) for each in SCENARIOS for one in BROKERS}
    assert len(outputs) == len(SCENARIOS) * len(BROKERS)


def list_forbidden(path: str, names: set[str]) -> set[str]:
    """Return which of the imported names the module at `path` must not import."""
    brokers = {f"tests.chaos.brokers.{broker}": LIBRARIES[broker] for broker in BROKERS}
    package = ".".join(Path(path).parts[:4])
    forbidden: set[str] = {"tests.chaos.__main__"}
    for broker, libraries in brokers.items():
        if path.startswith("tests/chaos/scenarios/") and Path(path).stem in SCENARIOS:
            forbidden |= {"tests.chaos.brokers.pubsub"}  # the scenarios that name one name Kafka
        elif package != broker:
            forbidden |= {broker, *libraries}
    return {
        name
        for name in names
        if any(name == one or name.startswith(f"{one}.") for one in forbidden)
    }


FILES = [
    str(file.relative_to(ROOT))
    for file in sorted(HERE.rglob("*.py"))
    if not file.name.startswith("test_")
]


@pytest.mark.parametrize("path", FILES)
def test_only_a_brokers_package_and_the_scenarios_know_a_broker(path: str) -> None:
    assert list_forbidden(path, set(imported((ROOT / path).read_text(), path))) == set()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("tests/chaos/load.py", "kafka"),
        ("tests/chaos/testbed.py", "tests.chaos.brokers.kafka.testbed"),
        ("tests/chaos/brokers/pubsub/testbed.py", "tests.chaos.brokers.kafka.testbed"),
        ("tests/chaos/brokers/kafka/observer.py", "google.cloud.pubsub_v1"),
        ("tests/chaos/scenarios/__init__.py", "tests.chaos.brokers.kafka"),
    ],
)
def test_a_module_that_knows_a_broker_and_should_not_is_noticed(path: str, name: str) -> None:
    assert list_forbidden(path, {name}) == {name}
