"""The tests of the wire, and the pages' curl lines, against the handler on LitServe.

Outside `make test`, since its environment is another one: `make test-litserve`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import requests

# The tests themselves: they take the `server` of this file.
from tests.system.test_archive import (  # noqa: F401
    BOOT,
    check_mixed_batch,
    post,
    test_a_bad_part_among_good_ones_costs_only_itself,
    test_a_picture_of_another_size_and_mode_is_served,
    test_a_thousand_images_by_curl_get_the_labels_of_the_exported_model,
    test_json_of_pixels_and_of_files_give_what_the_file_gives,
    test_json_that_is_not_json_is_a_bad_request,
    test_many_parts_come_back_in_their_order,
)
from tests.system.test_open_inference import (  # noqa: F401
    test_a_bad_image_is_an_error_of_the_protocol_or_has_a_place,
    test_a_pack_of_every_form_gets_the_labels_of_the_exported_model,
    test_binary_outputs_come_back_with_the_length_of_the_json,
    test_curl_sends_files_in_base64,
    test_curl_sends_one_file_without_json,
    test_pixels_alone_are_answered_with_one_object,
    test_pixels_behind_the_json_are_the_models_own,
)
from tests.system.test_readme import EXPECTED, QUESTIONS, shell
from tools.servers.process import ROOT, Process, free_ports
from tools.servers.torchserve import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system

PYTHON = ROOT / "build" / "litserve-venv" / "bin" / "python"
LIMIT = 6_553_500
LINES = [line for line in QUESTIONS if ":8080" in line]


@dataclass(frozen=True)
class LitServe:
    """Where it answers."""

    address: str
    process: Process
    model: str = "fmnist"

    @property
    def url(self) -> str:
        return f"{self.address}/predictions/{self.model}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LitServe]:
    """The shipped archive, as `make serve SERVER=litserve` serves it."""
    if not PYTHON.exists() or not ARCHIVE.exists():
        pytest.skip("LitServe or the archive is not there: run `make test-litserve`")
    (port,) = free_ports(1)
    command = [str(PYTHON), "-m", "tools.servers.litserve", "--port", str(port)]
    log = tmp_path_factory.mktemp("litserve") / "log"
    running = LitServe(f"http://127.0.0.1:{port}", Process(command, log, cwd=ROOT).start())
    try:
        wait_until_ready(running)
        yield running
    finally:
        running.process.stop()


def wait_until_ready(server: LitServe) -> None:
    """Return when it predicts."""
    connecting = requests.adapters.HTTPAdapter(
        max_retries=requests.adapters.Retry(connect=9, backoff_factor=0.2)
    )
    with requests.Session() as session:
        session.mount("http://", connecting)
        assert session.post(server.url, data=BOOT, timeout=60).ok, server.process.tail()


def test_a_mixed_batch_answers_each_for_itself(server: TorchServe) -> None:
    check_mixed_batch(server)


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("version", ["", "/1.0"])
def test_the_routes_of_torchserve_are_there(server: TorchServe, method: str, version: str) -> None:
    answer = requests.request(method, server.url + version, data=BOOT, timeout=30)
    assert (answer.status_code, answer.json()["label"]) == (200, "Ankle boot")
    assert requests.get(f"{server.address}/ping", timeout=30).ok
    assert requests.post(f"{server.url}/9.9", data=BOOT, timeout=30).status_code == 404


def test_a_request_of_more_than_the_limit_is_413(server: TorchServe) -> None:
    read, unread = (post(server, bytes(size)) for size in (LIMIT, LIMIT + 1))
    assert read.json()["error"]["code"] == "too_large"  # of the handler, for one image
    assert (unread.status_code, "error" in unread.text) == (413, False)


@pytest.mark.parametrize("line", LINES)
def test_a_curl_line_of_the_pages_works(line: str, server: TorchServe, tmp_path: Path) -> None:
    here = line.replace("localhost:8080", server.address.removeprefix("http://"))
    done = shell(here.replace("curl ", "curl --silent --show-error --fail ", 1), tmp_path)
    assert done.returncode == 0, done.stdout
    expected = {words for part, words in EXPECTED.items() if part in line} or {"Ankle boot"}
    assert expected <= {word for word in expected if word in done.stdout}
    assert json.loads(done.stdout)
