"""How a broker is found, and what is imported before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from connectors import registry
from connectors.__main__ import main
from connectors.errors import Exit, Stop
from connectors.registry import BROKERS

HEAVY = ("torch", "kafka", "google.cloud", "google.pubsub_v1", "grpc", "PIL", "numpy")

SAYS_WHAT_WAS_IMPORTED = """
import sys
from typing import Any
from connectors.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("imported:", *[name for name in {heavy} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([verb, broker, "--help"] for broker in BROKERS for verb in ("run", "send", "doctor")),
        ["print-config", "kafka", "--input-topic", "images", "--output-topic", "predictions"],
    ],
)
def test_help_imports_no_library_of_a_broker(arguments: list[str]) -> None:
    program = SAYS_WHAT_WAS_IMPORTED.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "imported:"


ASKED: dict[str, dict[str, Any]] = {
    "kafka": {"input_topic": "images", "output_topic": "predictions"},
    "pubsub": {"project": "mine", "subscription": "images", "output_topic": "predictions"},
}


@pytest.mark.parametrize(
    ("broker", "library"), [("kafka", "kafka"), ("pubsub", "google.cloud"), ("pubsub", "grpc")]
)
def test_a_missing_library_is_one_sentence_that_names_the_extra(
    broker: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = (f"connectors.brokers.{broker}.", f"{library}.")
    for name in [name for name in sys.modules if name.startswith(loaded)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # what importing one that is not there does
    settings = BROKERS[broker]["check"](**ASKED[broker])
    with pytest.raises(Stop, match=rf"not installed.*pip install '\.\[{broker}\]'") as stop:
        registry.list_checks(broker, settings, thorough=False)
    assert stop.value.code is Exit.UNAVAILABLE
    assert "\n" not in str(stop.value)


def test_the_brokers_offer_the_same_verbs() -> None:
    assert len({tuple(verbs) for verbs in BROKERS.values()}) == 1


def test_the_help_names_each_broker(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert f"BROKER is one of: {', '.join(BROKERS)}." in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("fmnist ")
