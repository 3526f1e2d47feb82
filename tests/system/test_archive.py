"""The archive, served by the real TorchServe with the shipped settings."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
import requests
from PIL import Image

from tools.exported import classes, first_images
from tools.schemas import find_faults, load_schema
from tools.servers.process import ROOT
from tools.servers.torchserve import ARCHIVE

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system

BOOT = (ROOT / "tests" / "data" / "ankle-boot.png").read_bytes()


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 100 megapixels, in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def post(server: TorchServe, body: bytes, **headers: str) -> requests.Response:
    return requests.post(server.url, data=body, headers=headers, timeout=30)


def description(server: TorchServe) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(server.description_url, timeout=30).json()[0]
    return found


def workers(server: TorchServe) -> list[int]:
    return [worker["pid"] for worker in description(server)["workers"]]


def counted(server: TorchServe, metric: str) -> float:
    """Return the sum of one metric over all its labels."""
    page = requests.get(f"{server.settings['metrics_address']}/metrics", timeout=30).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(metric))


def test_a_thousand_images_by_curl_get_the_labels_of_the_exported_model(
    server: TorchServe, tmp_path: Path
) -> None:
    images = first_images(1000)
    stanzas = []
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(png(image))
        parts = f'upload-file="{tmp_path}/{i}.png"\noutput="{tmp_path}/{i}.json"\n'
        stanzas.append(f'url="{server.url}"\n{parts}')
    (tmp_path / "curl.conf").write_text("next\n".join(stanzas))
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--parallel",
        "--config",
        str(tmp_path / "curl.conf"),
    ]
    subprocess.run(command, check=True, timeout=300)
    served = [json.loads((tmp_path / f"{i}.json").read_text())["class"] for i in range(1000)]
    assert served == classes(images).tolist()


def test_the_description_shows_all_of_model_json(server: TorchServe) -> None:
    with zipfile.ZipFile(ARCHIVE) as opened:
        card = json.loads(opened.read("model.json"))
    assert description(server)["customizedMetadata"]["model"] == card
    assert find_faults(card, load_schema("model")) == []


def at_once(server: TorchServe, bodies: list[bytes]) -> list[dict[str, Any]]:
    """Ask all questions before reading any answer, each on a connection of its own."""
    host, path = server.url.removeprefix("http://").split("/", 1)
    with ExitStack() as stack:
        lines = [stack.enter_context(closing(HTTPConnection(host, timeout=30))) for _ in bodies]
        for line in lines:
            line.connect()
        for line, body in zip(lines, bodies, strict=True):
            line.request("POST", f"/{path}", body, {"Content-Type": "image/png"})
        answers = [line.getresponse() for line in lines]
        assert {answer.status for answer in answers} == {200}
        return [json.load(answer) for answer in answers]


def test_concurrent_single_images_reach_the_handler_in_few_batches(server: TorchServe) -> None:
    images = first_images(64)
    bodies = [png(image) for image in images]
    before = counted(server, "FmnistBatches")
    answers = at_once(server, bodies)
    assert 1 <= counted(server, "FmnistBatches") - before < 20
    assert [answer["class"] for answer in answers] == classes(images).tolist()


BAD = {
    "empty": (b"", 400, "bad_request"),
    "truncated": (BOOT[:150], 400, "not_an_image"),
    "text": (b"I am a boot, trust me", 400, "not_an_image"),
    "huge": (bomb(), 413, "too_large"),
}


def check_mixed_batch(server: TorchServe) -> None:
    """Ask for good and bad images at once; each is answered for itself."""
    bodies = [(BOOT, 200, None), *BAD.values()] * 8
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: post(server, body[0]), bodies))
    for answer, (_, status, code) in zip(answers, bodies, strict=True):
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert (body["label"] == "Ankle boot") if code is None else (body["error"]["code"] == code)


def test_a_mixed_batch_answers_each_for_itself_and_restarts_nobody(server: TorchServe) -> None:
    alive = workers(server)
    check_mixed_batch(server)
    assert workers(server) == alive


def test_a_bad_part_among_good_ones_costs_only_itself(server: TorchServe) -> None:
    parts = {"000": BOOT, "001": b"not an image", "002": png(first_images(2)[1])}
    answer = requests.post(server.url, files=parts, timeout=30)
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert (first["label"], third["label"]) == ("Ankle boot", "Pullover")
    assert second["error"]["code"] == "not_an_image"


def test_many_parts_come_back_in_their_order(server: TorchServe) -> None:
    images = first_images(256)
    parts = {f"{i:03}": png(image) for i, image in enumerate(images)}
    packed = requests.post(server.url, files=parts, timeout=30).json()["predictions"]
    singles = [post(server, png(image)).json() for image in images[::16]]
    assert len(packed) == 256
    assert [one["class"] for one in packed[::16]] == [one["class"] for one in singles]


def test_json_of_pixels_and_of_files_give_what_the_file_gives(server: TorchServe) -> None:
    image = first_images(1)[0]
    instances = [image.tolist(), {"b64": base64.b64encode(png(image)).decode()}, [[1, 2], [3]]]
    answer = requests.post(server.url, json={"instances": instances}, timeout=30).json()
    nested, encoded, ragged = answer["predictions"]
    assert nested == encoded
    assert nested["label"] == "Ankle boot"
    assert ragged["error"]["code"] == "wrong_shape"
    assert answer["model"]["name"] == "fmnist"


def test_json_that_is_not_json_is_a_bad_request(server: TorchServe) -> None:
    answer = post(server, b'{"instances": [', **{"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "bad_request"


def test_a_picture_of_another_size_and_mode_is_served(server: TorchServe) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(BOOT)).convert("RGB").resize((120, 90)).save(buffer, "JPEG")
    answer = post(server, buffer.getvalue(), **{"Content-Type": "image/jpeg"})
    assert answer.status_code == 200
    assert answer.json()["class"] in range(10)


def test_the_metrics_page_counts_images_and_batches(server: TorchServe) -> None:
    before = counted(server, "FmnistImages")
    assert post(server, BOOT).ok
    assert counted(server, "FmnistImages") == before + 1
    assert counted(server, "ts_inference_requests_total") >= 1


def test_the_description_names_the_model_its_labels_and_its_accuracy(server: TorchServe) -> None:
    described = json.dumps(description(server))
    assert "Ankle boot" in described
    assert "accuracy" in described


@pytest.mark.parametrize("path", ["models", "workflows"])
def test_nobody_can_bring_a_model_from_elsewhere(server: TorchServe, path: str) -> None:
    address = f"{server.settings['management_address']}/{path}"
    foreign = {"url": "https://127.0.0.1:1/evil.mar"}
    answer = requests.post(address, params=foreign, timeout=30)
    assert answer.status_code in {403, 404, 405}
    assert "evil" not in requests.get(f"{address.rsplit('/', 1)[0]}/models", timeout=30).text
