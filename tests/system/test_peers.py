"""A relay in front of a foreign server, from PyPI, in an environment of its own."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from connectors.brokers.kafka.settings import RunKafka
from connectors.commands.doctor import run_all
from connectors.inference import open_client
from connectors.records import Image, Prediction, Rejection, Request
from tests.conftest import missing
from tests.peers.run import Size, find_complaints, run
from tests.peers.servers import make_environment
from tests.system.daemons import BOOT
from tools.servers.process import StackError

if TYPE_CHECKING:
    from pathlib import Path

    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system


def test_mlserver_killed_under_load_costs_time_and_the_poison_is_the_dead_letters(
    tmp_path: Path,
) -> None:
    """The short form of `make peers`: 300 images, two of them no images, one kill."""
    try:
        make_environment("mlserver")
    except StackError as error:
        missing(f"the environment of MLServer cannot be made: {error}")
    size = Size(images=300, kills=1, flags=("--max-batch", "16", "--tries", "2"))
    verdict = run("mlserver", size, tmp_path, print)
    assert verdict.passed, verdict.render()
    assert verdict.found["dead_letters"] == verdict.found["poison"] == 2
    assert verdict.found["server_kills"] == 1


def test_torchserve_answers_v1_as_the_archives_own_form(server: TorchServe) -> None:
    url = f"{server.address}/v1/models/{server.model}:predict"
    images = (Image(BOOT), Image(b"no image"))
    answers = []
    for more in ({}, {"protocol": "v1", "url": url}):
        asked = RunKafka(input_topic="a", output_topic="b", **{"url": server.url, **more})  # type: ignore[arg-type]
        with closing(open_client(asked, timeout=20.0, in_flight=1)) as client:
            client.send(Request(images))
            ((_, answer),) = client.collect(20.0)
            answers.append(answer)
    own, v1 = answers
    assert own == v1
    assert isinstance(own, list)
    assert [type(one) for one in own] == [Prediction, Rejection]


@pytest.mark.parametrize(
    "flags",
    [
        {"protocol": "v1", "url": "/v1/models/{}:predict"},
        {"protocol": "v2", "url": "/v2/models/{}/infer", "tensor_input": "images"},
    ],
    ids=["v1", "v2"],
)
def test_check_finds_no_fault_in_the_archive_behind_another_protocol(
    server: TorchServe, flags: dict[str, str]
) -> None:
    url = server.address + flags["url"].format(server.model)
    settings = RunKafka(input_topic="a", output_topic="b", **{**flags, "url": url})  # type: ignore[arg-type]
    found = {finding.text: finding.result for finding in run_all(settings, (), thorough=False)}
    assert found
    assert {text for text, result in found.items() if result not in {"ok", "advice"}} == set()


def test_a_run_with_other_dead_letters_than_the_poison_fails() -> None:
    figures = {"dead_letters": 2, "poison": 1, "exit_code": 78}
    assert find_complaints(figures, {"lost": 1, "doubled": 0}) == [
        "the dead letters are not the poison",
        "the relay left with 78",
        "1 lost",
    ]
