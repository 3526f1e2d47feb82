"""The Open Inference Protocol through the real TorchServe."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import requests

from connectors.images import encode_png
from tests.bench import packed
from tools.exported import classes, first_images
from tools.servers.process import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system

BOOT = (ROOT / "tests" / "data" / "ankle-boot.png").read_bytes()
IMAGES = first_images(64)
FILES = [encode_png(28, 28, image.tobytes()) for image in IMAGES]
OCTETS = {"Content-Type": "application/octet-stream"}


def infer(server: TorchServe, body: bytes, **headers: str) -> requests.Response:
    address = f"{server.address}/v2/models/{server.model}/infer"
    return requests.post(address, data=body, headers=headers, timeout=30)


def curl(*words: str) -> dict[str, Any]:
    command = ["curl", "--silent", "--show-error", "--max-time", "30", *words]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def outputs(answer: dict[str, Any]) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


@pytest.mark.parametrize("form", packed.FORMS)
def test_a_pack_of_every_form_gets_the_labels_of_the_exported_model(
    server: TorchServe, form: str
) -> None:
    pack = packed.FORMS[form](FILES)
    address = server.address + pack.path.format(model=server.model)
    answer = requests.post(address, data=pack.body, headers=pack.headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert packed.read_classes(answer.json()) == classes(IMAGES).tolist()


def test_curl_sends_files_in_base64(server: TorchServe, tmp_path: Path) -> None:
    data = [base64.b64encode(BOOT).decode()]
    tensor = {"name": "images", "datatype": "BYTES", "shape": [1], "data": data}
    (tmp_path / "body.json").write_text(json.dumps({"id": "7", "inputs": [tensor]}))
    answer = curl(
        *("-H", "Content-Type: application/json", "-d", f"@{tmp_path}/body.json"),
        f"{server.address}/v2/models/{server.model}/infer",
    )
    assert (answer["id"], answer["model_name"]) == ("7", "fmnist")
    assert outputs(answer)["label"] == ["Ankle boot"]


def test_curl_sends_one_file_without_json(server: TorchServe) -> None:
    answer = curl(
        *("-H", "Inference-Header-Content-Length: 0", "-T", "tests/data/ankle-boot.png"),
        *("-X", "POST", f"{server.address}/v2/models/{server.model}/infer"),
    )
    assert outputs(answer)["label"] == ["Ankle boot"]


def test_pixels_behind_the_json_are_the_models_own(server: TorchServe) -> None:
    parameters = {"binary_data_size": IMAGES.nbytes}
    tensor = {"name": "x", "datatype": "UINT8", "shape": [64, 28, 28], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = infer(
        server,
        head + IMAGES.tobytes(),
        **OCTETS,
        **{"Inference-Header-Content-Length": str(len(head))},
    )
    assert outputs(answer.json())["class"] == classes(IMAGES).tolist()


def test_pixels_alone_are_answered_with_one_object(server: TorchServe) -> None:
    body = IMAGES[0].tobytes()
    answer = requests.post(server.url, data=body, headers=OCTETS, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["class"] == classes(IMAGES[:1])[0]


def test_binary_outputs_come_back_with_the_length_of_the_json(server: TorchServe) -> None:
    pack = packed.pack_v2_binary(FILES[:2])
    length = int(pack.headers["Inference-Header-Content-Length"])
    head = json.loads(pack.body[:length])
    head["outputs"] = [{"name": "class", "parameters": {"binary_data": True}}]
    raw = json.dumps(head).encode()
    answer = infer(
        server,
        raw + pack.body[length:],
        **OCTETS,
        **{"Inference-Header-Content-Length": str(len(raw))},
    )
    assert answer.headers["content-type"] == "application/octet-stream"
    json_bytes = int(answer.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(answer.content[:json_bytes])["outputs"]
    assert (output["shape"], output["parameters"]) == ([2, 3], {"binary_data_size": 48})
    found = struct.unpack("<6q", answer.content[json_bytes:])
    assert list(found[::3]) == classes(IMAGES[:2]).tolist()


def test_a_bad_image_is_an_error_of_the_protocol_or_has_a_place(server: TorchServe) -> None:
    data = [base64.b64encode(one).decode() for one in (BOOT, b"no image")]
    tensor = {"name": "images", "datatype": "BYTES", "shape": [2], "data": data}
    json_type = {"Content-Type": "application/json"}
    refused = infer(server, json.dumps({"inputs": [tensor]}).encode(), **json_type)
    assert (refused.status_code, list(refused.json())) == (400, ["error"])
    assert refused.json()["error"].startswith("not_an_image: Image 1, counted from 0: ")
    asked = [{"name": "label"}, {"name": "error"}]
    answer = infer(server, json.dumps({"inputs": [tensor], "outputs": asked}).encode(), **json_type)
    assert answer.status_code == 200
    assert outputs(answer.json())["label"] == ["Ankle boot", ""]
    assert outputs(answer.json())["error"][0] == ""


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/health/ready", "/v2/models/fmnist", "/v2/models/fmnist/ready"]
)
def test_health_and_metadata_of_the_protocol_are_not_answered_by_torchserve(
    server: TorchServe, path: str
) -> None:
    """docs/messages.md says so, and what to ask instead."""
    assert requests.get(server.address + path, timeout=30).status_code == 404


def test_a_query_and_a_version_in_the_path_do_not_reach_the_handler(server: TorchServe) -> None:
    """So `top` is a parameter of the JSON (docs/messages.md)."""
    answer = requests.post(f"{server.url}?top=1", data=BOOT, timeout=30)
    assert len(answer.json()["top"]) == 3
    address = f"{server.address}/v2/models/fmnist/versions/1.0/infer"
    assert requests.post(address, data=BOOT, timeout=30).status_code == 404


def test_the_description_holds_the_metadata_of_the_protocol(server: TorchServe) -> None:
    described = requests.get(server.description_url, timeout=30).json()[0]["customizedMetadata"]
    assert described["v2"]["name"] == "fmnist"
    assert described["v2"]["platform"] == "pytorch_torchscript"


def test_the_forms_of_a_pack_are_compared(server: TorchServe) -> None:
    """A benchmark so short that its figures mean nothing: it reaches the end."""
    table = packed.measure(server, rounds=1, packs=4, say=lambda _: None)
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == list(packed.FORMS)
