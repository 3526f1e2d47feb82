"""The owner's own lines and every curl line of the pages, as typed, on the usual ports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing
from tests.test_docs import COMMANDS, PAGES, README, ROOT, commands_in
from tools.servers.process import StackError, check_free, java
from tools.servers.torchserve import ARCHIVE, PORTS, read_properties

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

ACTIVATE = f". {Path(sys.executable).parent / 'activate'}"
SESSION = ("export TS_CONFIG_FILE=config.properties", "torchserve --start --models fmnist.mar")


def shell(lines: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run lines in bash from the repository's root, as a user would type them."""
    environment = os.environ | {
        "TMPDIR": str(tmp_path),
        "TEMP": str(tmp_path),
        "PATH": f"{Path(java()).parent}:{os.environ['PATH']}",
    }
    with (tmp_path / "out").open("w+") as out:  # not a pipe: the server would hold it open
        done = subprocess.run(
            ["bash", "-euc", lines],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        out.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, out.read())


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server started as the README says, in a temporary folder of its own."""
    settings = read_properties(ROOT / "config.properties")
    try:
        for key in PORTS:
            check_free(int(settings[key].rsplit(":", 1)[-1]))
    except StackError as error:
        missing(str(error))
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    folder = tmp_path_factory.mktemp("typed")
    assert set(SESSION) <= set(COMMANDS)
    try:
        started = shell("\n".join([ACTIVATE, *SESSION]), folder)
        assert started.returncode == 0, started.stdout
        answered("curl -sfT tests/data/ankle-boot.png localhost:8080/predictions/fmnist", folder)
        yield folder
    finally:
        shell(f"{ACTIVATE}\ntorchserve --stop --foreground", folder)


def answered(line: str, folder: Path) -> None:
    """Repeat `line` until it succeeds; a server that was just started refuses at first."""
    deadline = time.monotonic() + 60
    while shell(line, folder).returncode:
        assert time.monotonic() < deadline


EXPECTED = {
    "-T ": "Ankle boot",
    "-F ": "Trouser",
    "b64": "Trouser",
    "/models/": "Ankle boot",
    "/metrics": "ts_inference_requests_total",
}


QUESTIONS = sorted(
    {
        line
        for page in PAGES.values()
        for line in commands_in(page)
        if line.startswith("curl ") and any(port in line for port in (":8080", ":8081", ":8082"))
    }
    - {
        "curl --retry 9 --retry-all-errors --fail -T rose.jpg localhost:8080/predictions/flowers"
    }  # a model of one's own
)


def test_the_pages_show_each_kind_of_question() -> None:
    assert all(any(part in line for line in QUESTIONS) for part in EXPECTED)


@pytest.mark.parametrize("line", QUESTIONS)
def test_a_curl_line_of_the_readme_works_as_typed(line: str, typed: Path) -> None:
    done = shell(line.replace("curl ", "curl --silent --show-error --fail ", 1), typed)
    assert done.returncode == 0, done.stdout
    (expected,) = {words for part, words in EXPECTED.items() if part in line}
    assert expected in done.stdout


def test_the_answer_that_the_readme_shows_is_of_the_form_that_comes(typed: Path) -> None:
    (line,) = [line for line in COMMANDS if line.startswith("curl -T tests/")]
    (shown,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    done = shell(line.replace("curl ", "curl --silent ", 1), typed)
    came, promised = json.loads(done.stdout), json.loads(shown)
    assert (came["class"], came["label"]) == (promised["class"], promised["label"])
    assert list(came) == list(promised)
    assert [list(one) for one in came["top"]] == [list(one) for one in promised["top"]]
