"""The owner's own lines and every curl line of the README, as typed, on the usual ports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing
from tests.test_docs import COMMANDS, ROOT
from tools.stack import ARCHIVE, PORTS, StackError, check_free, java, properties

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
    settings = properties(ROOT / "config.properties")
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


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("curl ")])
def test_a_curl_line_of_the_readme_works_as_typed(line: str, typed: Path) -> None:
    done = shell(line.replace("curl ", "curl --silent --show-error --fail ", 1), typed)
    assert done.returncode == 0, done.stdout
    (expected,) = {words for part, words in EXPECTED.items() if part in line}
    assert expected in done.stdout
