"""`make demo`, on each broker, with few images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing
from tools.servers import kafka as stack_kafka
from tools.servers import pubsub as stack_pubsub
from tools.servers.process import ROOT, StackError
from tools.servers.torchserve import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.system

NEEDED: dict[str, tuple[str, Callable[[], object]]] = {
    "kafka": ("KAFKA_BOOTSTRAP_SERVERS", stack_kafka.fetch_libraries),
    "pubsub": (stack_pubsub.HOST, stack_pubsub.program),
}


@pytest.mark.parametrize("broker", NEEDED)
def test_the_demo_brings_every_image_back_with_the_class_of_the_model(
    broker: str, tmp_path: Path
) -> None:
    variable, find = NEEDED[broker]
    try:
        _ = os.environ.get(variable) or find()
    except StackError as error:
        missing(str(error))
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    output = tmp_path / "demo.json"
    command = [sys.executable, "-m", "tools.demo", "--broker", broker, "--limit", "100"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(output.read_text())
    wanted = {"sent": 100, "received": 100, "same_class_as_model": 100, "dead_letters": 0}
    assert {name: found[name] for name in wanted} == wanted
    assert found["accuracy"] == found["model_accuracy"]
