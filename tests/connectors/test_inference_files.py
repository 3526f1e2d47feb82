"""Files of the operator's: headers, labels, the canary; and what they make of a request."""

from __future__ import annotations

import json
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from connectors.brokers.kafka.settings import RunKafka
from connectors.command_line import load
from connectors.daemon import make_policy
from connectors.errors import Exit, Stop
from connectors.images import CANARY, load_canary
from connectors.inference import make_dialect, open_client
from connectors.inference.files import MAX_HEADER_BYTES, HeaderFile, load_labels
from connectors.inference.torchserve import TorchServe
from connectors.inference.v1 import KServeV1
from connectors.inference.v2 import OpenInference
from connectors.records import Busy, Prediction
from tests.connectors.test_client import Script, Service, ask, write_key

if TYPE_CHECKING:
    from pathlib import Path

TOPICS = ["--input-topic", "images", "--output-topic", "predictions"]
V1 = "http://host:8501/v1/models/half:predict"
V2 = "http://host:8000/v2/models/resnet/versions/3/infer"
OUTPUT = {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}


def settings(**given: Any) -> RunKafka:  # noqa: ANN401 - any field
    return RunKafka(input_topic="images", output_topic="predictions", **given)


def refusal(*flags: str) -> str:
    with pytest.raises(Stop) as stop:
        load(RunKafka, [*TOPICS, *flags], "connectors")
    assert stop.value.code == Exit.USAGE
    return str(stop.value)


# Headers


def test_the_headers_of_a_file_go_along_and_are_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_bytes(b"# of the gateway\r\nAuthorization: Bearer old\r\n\r\nHost: model.example\n")
    os.utime(file, ns=(1, 1))
    service = Service(Script(body=json.dumps({"outputs": [OUTPUT]}).encode()))
    with service.serving() as url:
        asked = settings(
            protocol="v2",
            url=url.replace("predictions/fmnist", "v2/models/a/infer"),
            tensor_input="image",
            header_file=file,
        )
        with closing(open_client(asked, timeout=5.0, in_flight=1)) as client:
            assert not isinstance(ask(client), Busy)
            file.write_bytes(b"Authorization: Bearer renewed\n")
            ask(client)
    first, second = (one.headers for one in service.asked)
    assert (first["Authorization"], first["Host"]) == ("Bearer old", "model.example")
    assert second["Authorization"] == "Bearer renewed"
    assert first["Inference-Header-Content-Length"]


def test_a_header_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("X: 1")
    headers, before = HeaderFile(file), file.stat()
    first = headers.header()
    file.write_text("X: 2")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert headers.header() is first


@pytest.mark.parametrize(
    "content",
    [
        b"Authorization Bearer hunter2",
        b"X: hunter2\rX-Evil: 1",
        b"X: hunter2\0",
        "X: hunter2ä".encode(),
        b"X Y: hunter2",
        b" X: hunter2",
        b": hunter2",
        b"X: 1\nx: hunter2",
        b"Content-Length: 2",
        b"inference-header-content-length: 2",
        b"X: hunter2" + b"2" * MAX_HEADER_BYTES,
    ],
)
def test_a_header_that_is_none_is_refused_and_never_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "headers"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="headers") as error:
        HeaderFile(file).header()
    assert "hunter2" not in str(error.value)
    assert str(error.value).isprintable()


def test_a_header_file_that_is_refused_once_is_read_once_more(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_bytes(b"X")
    headers = HeaderFile(file)
    for _ in range(2):
        with pytest.raises(ValueError, match="line 1"):
            headers.header()
    file.write_bytes(b"X: 1")
    assert headers.header() == {"X": "1"}
    file.write_bytes(b"X: 2")
    os.utime(file, ns=(1, 1))
    headers.forget()
    assert headers.header() == {"X": "2"}


def test_without_its_headers_nothing_is_sent(tmp_path: Path) -> None:
    service = Service(Script())
    with service.serving() as url:
        asked = settings(url=url, header_file=tmp_path / "missing")
        with closing(open_client(asked, timeout=5.0, in_flight=1)) as client:
            answer = ask(client)
    assert isinstance(answer, Busy)
    assert "missing" in answer.detail
    assert service.asked == []


def test_a_header_that_comes_twice_is_refused(tmp_path: Path) -> None:
    key, file = tmp_path / "key_file.json", tmp_path / "headers"
    write_key(key, "abc")
    file.write_text("authorization: Bearer x\n")
    service = Service(Script())
    with service.serving() as url:
        asked = settings(url=url, header_file=file, token_file=key)
        with closing(open_client(asked, timeout=5.0, in_flight=1)) as client:
            answer = ask(client)
            assert isinstance(answer, Busy)
            assert "--header-file" in answer.detail
            file.write_text("X-Api-Key: x\n")
            assert not isinstance(ask(client), Busy)
    (asked_once,) = service.asked
    assert asked_once.headers["Authorization"] == "Bearer abc"
    assert asked_once.headers["X-Api-Key"] == "x"


# Labels


def test_labels_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffkatze\r\nhund, groß\n\n".encode())
    assert load_labels(file) == ("katze", "hund, groß")
    file.unlink()
    assert load_labels(file) == ("katze", "hund, groß")  # read once


@pytest.mark.parametrize("content", [None, b"", b"\n", b"a\n\nb", b"\xff", b"a\x1b[2J"])
def test_labels_that_are_none_are_wrong_usage(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Stop, match=r"--labels .*labels\.txt") as stop:
        make_dialect(settings(protocol="v2", url=V2, tensor_input="a", labels=file))
    assert stop.value.code == Exit.USAGE


def test_labels_make_the_scores_of_the_server_a_class(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("cat\ndog\n")
    dialect = make_dialect(settings(protocol="v2", url=V2, tensor_input="a", labels=file))
    (found,) = dialect.interpret(200, {}, json.dumps({"outputs": [OUTPUT]}).encode(), 1)  # type: ignore[misc]
    assert isinstance(found, Prediction)
    assert (found.body["label"], found.body["score"]) == ("dog", 0.75)
    assert found.body["model"] == {"name": "resnet", "version": "3"}


# The canary


def test_the_canary_is_the_operators_file_read_once(tmp_path: Path) -> None:
    file = tmp_path / "known.jpg"
    file.write_bytes(b"jpeg")
    assert load_canary(file).data == b"jpeg"
    file.unlink()
    assert load_canary(file).data == b"jpeg"
    assert load_canary(None) is CANARY


@pytest.mark.parametrize("size", [None, 0, 5_000_001])
def test_a_canary_that_is_none_is_wrong_usage(tmp_path: Path, size: int | None) -> None:
    file = tmp_path / "known.jpg"
    if size is not None:
        file.write_bytes(bytes(size))
    with pytest.raises(Stop, match=r"--canary .*known\.jpg") as stop:
        load_canary(file)
    assert stop.value.code == Exit.USAGE


# Settings


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ([], TorchServe),
        (["--protocol", "v1", "--url", V1], KServeV1),
        (["--protocol=v1", "--url=https://host/path/v1/models/a/versions/1:predict?x=1"], KServeV1),
        (["--protocol", "v2", "--url", V2, "--tensor-input", "image"], OpenInference),
    ],
)
def test_the_protocol_chooses_the_dialect(flags: list[str], kind: type) -> None:
    assert type(make_dialect(load(RunKafka, [*TOPICS, *flags], "connectors"))) is kind


@pytest.mark.parametrize(
    ("protocol", "url"),
    [
        ("v1", "http://host:8501"),
        ("v1", V2),
        ("v1", V1.removesuffix(":predict")),
        ("v2", "http://host:8000"),
        ("v2", V1),
        ("v2", V2.removesuffix("/infer")),
        ("v2", "http://host/v2/models//infer"),
        ("v2", "http://host?x=/v2/models/a/infer"),
    ],
)
def test_a_url_that_is_not_the_whole_address_is_refused_with_an_example(
    protocol: str, url: str
) -> None:
    sentence = refusal("--protocol", protocol, "--url", url)
    assert f"/{protocol}/models/NAME" in sentence


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--labels", "a.txt"], "--labels has no effect here: give --protocol v1 or v2"),
        (["--tensor-input", "image"], "--tensor-input has no effect here"),
        (["--tensor-output", "a"], "--tensor-output has no effect here"),
        (["--protocol", "v1", "--url", V1, "--scores", "logits"], "give --labels as well"),
    ],
)
def test_a_flag_without_effect_is_refused(flags: list[str], sentence: str) -> None:
    assert sentence in refusal(*flags)


def test_v2_without_the_name_of_its_input_is_wrong_usage() -> None:
    with pytest.raises(Stop, match="--tensor-input is required") as stop:
        open_client(settings(protocol="v2", url=V2), timeout=1.0, in_flight=1)
    assert stop.value.code == Exit.USAGE


@pytest.mark.parametrize(("most", "pack"), [(None, 256), (8, 8), (1000, 256)])
def test_no_pack_has_more_images_than_the_model_takes(most: int | None, pack: int) -> None:
    assert make_policy(settings(max_batch=most)).pack == pack
