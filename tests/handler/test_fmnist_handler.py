"""The handler as TorchServe calls it: batches, statuses, isolation, metrics."""

from __future__ import annotations

import ctypes
import json
import logging
import shutil
import struct
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fmnist_handler
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ts.model_loader import ModelLoaderFactory
from ts.utils.util import list_classes_from_module

from tests.handler.torchserve import (
    CONFIG,
    METRICS,
    Request,
    Served,
    body,
    encode,
    instances,
    multipart,
    pack,
    read_metrics,
    write_archive,
)

if TYPE_CHECKING:
    from pathlib import Path

FAILS, FORGETS = 255, 254
"""The second pixel after a white one: the network of these tests raises, or answers NaN."""


def picture(seed: int, mark: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 200, (28, 28), np.uint8)
    if mark:
        pixels[0, :2] = 255, mark
    return Image.fromarray(pixels)


def png(seed: int, mark: int = 0) -> bytes:
    return encode(picture(seed, mark))


def metric_lines(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [line for line in caplog.messages if line.startswith(f"[METRICS]{name}.")]


def test_the_module_has_the_one_class_that_torchserve_wants() -> None:
    assert list_classes_from_module(fmnist_handler) == [fmnist_handler.FmnistHandler]


def test_torchserve_loads_and_runs_the_archive(archive: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(archive, tmp_path / "model")
    shutil.copy(CONFIG, folder)
    (folder / "MAR-INF").mkdir()
    manifest = {"model": {"configFile": CONFIG.name}}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    service = ModelLoaderFactory.get_model_loader().load(
        "tiny", str(folder), "fmnist_handler.py", batch_size=32, metrics_cache=read_metrics()
    )
    service.set_cl_socket(None)
    message = bytes(service.predict([body(png(1)).encoded(0), body(b"?").encoded(1)]))
    assert struct.unpack("!i", message[:4]) == (200,)
    assert b'{"class":' in message
    assert b"Bad Request" in message
    assert b'{"error":{"code":"not_an_image"' in message


def test_an_image_body_is_answered_with_one_object(grey: Served) -> None:
    answer = grey.one(body(png(1), "image/png"))
    assert (answer.status, answer.phrase, answer.content_type) == (200, "OK", "application/json")
    assert set(answer.body) == {"class", "label", "score", "top", "model"}
    assert answer.body["model"] == {"name": "tiny", "version": "2.1"}
    assert answer.body["label"] == f"label {answer.body['class']}"
    assert len(answer.body["top"]) == 3
    assert answer.body["top"][0] == {k: answer.body[k] for k in ("class", "label", "score")}
    scores = [entry["score"] for entry in answer.body["top"]]
    assert scores == sorted(scores, reverse=True)


def test_the_answer_is_compact_json(grey: Served) -> None:
    grey.one(body(png(1)))
    rows: list[dict[str, Any]] = [{"body": png(1)}]
    (answer,) = grey.handler.handle(rows, grey.context)
    assert b" " not in answer.replace(b"label ", b"")


def test_the_class_is_the_one_that_the_module_gives(grey: Served) -> None:
    pixels = torch.from_numpy(np.array(picture(5)))[None, None]
    row = grey.handler.network(pixels)[0]
    answer = grey.one(body(png(5))).body
    assert answer["class"] == int(row.argmax())
    assert answer["score"] == pytest.approx(float(row.max()), abs=1e-6)


def test_a_multipart_body_of_one_is_answered_with_a_list(grey: Served) -> None:
    answer = grey.one(pack(png(1)))
    assert answer.status == 200
    assert [*answer.body] == ["predictions", "model"]
    assert len(answer.body["predictions"]) == 1
    assert answer.body["model"] == {"name": "tiny", "version": "2.1"}


def test_parts_are_answered_in_the_order_of_arrival(grey: Served) -> None:
    parts = [(name, "image/png", png(seed)) for seed, name in enumerate("cab")]
    served = grey.one(multipart(*parts)).body["predictions"]
    alone = [grey.one(pack(png(seed))).body["predictions"][0] for seed in range(3)]
    assert [one["class"] for one in served] == [one["class"] for one in alone]
    assert len({one["score"] for one in alone}) == 3


def test_passes_run_at_once_on_the_threads_of_the_settings(
    grey: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(grey.handler.passes)
    network, threads = grey.handler.network, list[int]()

    def meet(images: torch.Tensor) -> torch.Tensor:
        both.wait(20)  # it breaks where one pass waits for the other
        threads.append(ctypes.CDLL(None).omp_get_max_threads())  # asking torch would set it
        return network(images)

    files = [png(seed) for seed in range(4)]
    alone = [grey.one(body(file)).body["class"] for file in files]
    monkeypatch.setattr(grey.handler, "network", meet)
    monkeypatch.setattr(grey.handler, "pass_s", 1.0)  # worth a thread for each image
    predictions = grey.one(pack(*files)).body["predictions"]
    assert [one["class"] for one in predictions] == alone
    assert threads == [grey.handler.settings.threads] * grey.handler.passes


def test_the_next_batch_begins_when_all_passes_of_a_starved_one_have_ended(
    grey: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    starved, ended = threading.Event(), threading.Event()

    def starve(images: list[np.ndarray[Any, Any]]) -> Any:  # noqa: ANN401 - as the handler's
        if images[0].any():
            starved.set()
            raise MemoryError
        assert starved.wait(20)
        time.sleep(0.2)  # as long as the other one takes to be raised, and more
        ended.set()
        return np.ones((len(images), 10), np.float32)

    monkeypatch.setattr(grey.handler, "forward", starve)
    monkeypatch.setattr(grey.handler, "pass_s", 1.0)
    with pytest.raises(MemoryError):
        grey.handler.predict([np.ones((1, 28, 28), np.uint8), np.zeros((1, 28, 28), np.uint8)])
    assert ended.is_set()


def test_a_batch_without_images_is_not_cut(grey: Served) -> None:
    assert grey.handler.predict([]) == []


@pytest.mark.parametrize(
    ("images", "pass_s", "sizes"),
    [
        (1, 1.0, [1]),
        (2, 1.0, [1, 1]),
        (5, 1.0, [3, 2]),
        (127, 0.0001, [127]),  # less than 30 ms
        (127, 0.0003, [64, 63]),
        (161, 0.0001, [81, 80]),
        (200, 0.0001, [100, 100]),
        (256, 0.0001, [128, 128]),
        (300, 0.0001, [75, 75, 75, 75]),  # two at once are 256 at most
        (300, 0.0, [75, 75, 75, 75]),
    ],
)
def test_a_batch_is_cut_for_the_passes_that_run_at_once(
    grey: Served, monkeypatch: pytest.MonkeyPatch, images: int, pass_s: float, sizes: list[int]
) -> None:
    monkeypatch.setattr(grey.handler, "pass_s", pass_s)
    numbered = [np.full((1, 28, 28), number % 256, np.uint8) for number in range(images)]
    pieces = grey.handler.cut(numbered)
    assert [len(piece) for piece in pieces] == sizes
    assert [image for piece in pieces for image in piece] == numbered


def test_a_torch_that_says_nothing_of_the_processor_multiplies_in_float32(
    grey: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    settings = replace(grey.handler.settings, precision="bfloat16")
    assert not fmnist_handler.uses_bfloat16(torch.device("cpu"), settings)


@pytest.mark.parametrize(
    ("precision", "device", "processor", "narrow"),
    [
        ("float32", "cpu", {"amx_bf16": True}, False),
        ("bfloat16", "cpu", {"amx_bf16": True, "avx512_bf16": True}, True),
        ("bfloat16", "cpu", {"amx_bf16": False, "avx512_bf16": True}, True),
        ("bfloat16", "cpu", {"amx_bf16": False, "avx512_f": True}, False),
        ("bfloat16", "cpu", {}, False),
        ("bfloat16", "cuda", {}, True),
    ],
)
def test_a_processor_without_bfloat16_multiplies_in_float32_and_says_so(
    grey: Served,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    device: str,
    processor: dict[str, bool],
    *,
    narrow: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    settings = replace(grey.handler.settings, precision=precision)
    assert fmnist_handler.uses_bfloat16(torch.device(device), settings) is narrow
    assert (precision == "bfloat16" and not narrow) == ("float32 and not in" in caplog.text)


@pytest.mark.parametrize(("device", "passes"), [("cpu", 2), ("cuda", 1)])
def test_a_gpu_takes_one_pass_after_the_other(grey: Served, device: str, passes: int) -> None:
    settings = replace(grey.handler.settings, passes=2)
    assert fmnist_handler.count_passes(torch.device(device), settings) == passes


def test_a_bad_part_takes_its_own_place_and_no_other(grey: Served) -> None:
    answer = grey.one(pack(png(1), b"not an image", png(2)))
    first, second, third = answer.body["predictions"]
    assert answer.status == 200
    assert second["error"]["code"] == "not_an_image"
    assert (first, third) == tuple(grey.one(pack(png(1), png(2))).body["predictions"])


def test_a_batch_half_of_it_bad_is_right_and_each_bad_one_has_its_own_error(grey: Served) -> None:
    bad = [
        (body(b""), 400, "bad_request"),
        (body(png(1)[:200]), 400, "not_an_image"),
        (body(b"a letter", "text/plain"), 415, "unsupported_type"),
        (body(b'{"instances": [', "application/json"), 400, "bad_request"),
        (body(encode(Image.new("1", (10_000, 10_000)))), 413, "too_large"),
        (multipart(), 400, "bad_request"),
    ]
    batch = [request for seed, (one, _, _) in enumerate(bad) for request in (body(png(seed)), one)]
    answers = grey.ask(*batch)
    for answer, (_, status, code) in zip(answers[1::2], bad, strict=True):
        assert (answer.status, answer.code) == (status, code)
        assert answer.content_type == "application/json"
    for seed, answer in enumerate(answers[0::2]):
        assert answer.status == 200
        assert answer.body["label"] == grey.one(body(png(seed))).body["label"]


def test_a_batch_without_a_good_image_is_answered_too(grey: Served) -> None:
    answers = grey.ask(body(b"?"), pack(b"?", b""))
    assert [answer.status for answer in answers] == [400, 200]


def test_more_images_than_a_chunk_come_back_in_order(grey: Served) -> None:
    chunk = grey.handler.settings.chunk
    files = [png(seed) for seed in range(4)] * (chunk // 4) + [png(4), png(5)]
    predictions = grey.one(pack(*files)).body["predictions"]
    last = grey.one(pack(png(4), png(5))).body["predictions"]
    assert len(predictions) == chunk + 2
    assert [one["class"] for one in predictions[-2:]] == [one["class"] for one in last]
    assert [one["class"] for one in predictions[:4]] == [
        one["class"] for one in predictions[chunk - 4 : chunk]
    ]


@pytest.mark.parametrize("mark", [FAILS, FORGETS])
def test_an_image_that_the_model_fails_on_fails_its_request_and_no_other(
    grey: Served, mark: int
) -> None:
    answers = grey.ask(body(png(1)), pack(png(2), png(3, mark)), body(png(4)))
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert answers[1].phrase == "Internal Server Error"
    assert answers[1].code == "internal"
    assert answers[1].body["type"] == "InternalServerException"
    assert answers[2].body["class"] == grey.one(body(png(4))).body["class"]


@pytest.mark.parametrize("mark", [FAILS, 0], ids=["the model", "the handler"])
def test_a_failure_of_ours_is_seen_where_the_server_shows_warnings(
    grey: Served, mark: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("ours")

    if not mark:
        monkeypatch.setattr("fmnist_wire.to_pixels", fail)
    answers = grey.ask(body(png(1, mark)), body(png(2)))
    assert answers[0].status == 500
    assert "Traceback" in capsys.readouterr().err
    assert mark or answers[1].status == 500


def test_a_lack_of_memory_is_left_to_torchserve(
    grey: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starve(_images: object) -> object:
        raise MemoryError

    monkeypatch.setattr(grey.handler, "forward", starve)
    with pytest.raises(MemoryError):
        grey.one(body(png(1)))


def test_another_archive_is_served_by_the_same_handler(colour: Served) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    answer = colour.one(body(encode(Image.fromarray(pixels)))).body
    row = colour.handler.network(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    assert answer["class"] == int(row.argmax())
    assert answer["score"] == pytest.approx(float(row.max()), abs=1e-6)


def test_a_model_of_two_classes_names_two(tmp_path: Path) -> None:
    served = Served(write_archive(tmp_path, classes=2), measured=False)
    assert len(served.one(body(png(1))).body["top"]) == 2


def test_thirty_two_dear_requests_of_one_batch_end_before_the_worker_is_killed(
    grey: Served,
) -> None:
    """A photo of 25 million pixels costs the most among what is allowed and known."""
    photo = encode(Image.new("RGB", (5_000, 5_000), (90, 90, 90)))
    started = time.process_time()
    answers = grey.ask(*[body(photo)] * 31, body(png(1)))
    assert time.process_time() - started < 8  # of CPU, as responseTimeout of the clock
    assert {answer.status for answer in answers[:31]} == {200, 503}
    assert answers[31].status == 200
    late = [index for index, answer in enumerate(answers) if answer.status == 503]
    processor = grey.context.request_processor
    for index in late:
        assert answers[index].code == "busy"
        assert processor[index].get_response_header("Retry-After") == "1"


def test_describe_says_what_the_model_is_and_takes(grey: Served) -> None:
    answer = grey.one(Request([], {"describe": "True"}))
    assert answer.status == 200
    assert answer.body["model"]["input"] == {
        "channels": 1,
        "height": 28,
        "width": 28,
        "background": 0,
    }
    assert answer.body["labels"] == [f"label {index}" for index in range(10)]
    assert answer.body["limits"]["max_pixels"] == grey.handler.settings.max_pixels


def test_a_header_named_describe_does_not_turn_an_image_into_a_question(grey: Served) -> None:
    assert "class" in grey.one(body(png(1), describe="True")).body


def test_metrics_are_counted_once_a_batch(grey: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    grey.ask(pack(png(1), b"?"), body(b""), body(png(2)))
    (batches,) = metric_lines(caplog, "FmnistBatches")
    (images,) = metric_lines(caplog, "FmnistImages")
    (rejected,) = metric_lines(caplog, "FmnistRejected")
    assert "Count:1|" in batches
    assert "Count:2|" in images
    assert "Count:2|" in rejected
    assert "request-1" not in images


def test_every_metric_of_the_handler_is_one_that_the_server_declares(
    grey: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    grey.ask(body(png(1)), body(b"?"))
    declared = {
        metric["name"]: metric["dimensions"]
        for metric in yaml.safe_load(METRICS.read_text())["model_metrics"]["counter"]
    }
    emitted = {line.split(".")[0].removeprefix("[METRICS]") for line in caplog.messages}
    assert emitted == {"FmnistBatches", "FmnistImages", "FmnistRejected"}
    for name in emitted:
        assert declared[name] == ["ModelName", "Level"]


def test_a_request_says_nothing_in_the_log(
    colour: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    colour.ask(body(png(1), Authorization="secret"), body(b"?"), pack(b"?"))
    assert caplog.messages == []


def test_the_pass_of_the_model_is_measured_and_kept_free(
    grey: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < grey.handler.pass_s < 0.01
    monkeypatch.setattr(grey.handler, "pass_s", grey.handler.settings.batch_ms / 1000 / 3)
    answers = grey.ask(pack(png(1), png(2)), pack(png(3), png(4)), pack(*[png(5)] * 4))
    assert [answer.status for answer in answers] == [200, 503, 413]


def test_the_threads_are_those_of_the_settings(grey: Served) -> None:
    assert torch.get_num_threads() == grey.handler.settings.threads


def test_labels_that_the_model_does_not_know_stop_the_worker(archive: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(archive, tmp_path / "model")
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**card, "classes": 2}))
    (folder / "index_to_name.json").write_text(json.dumps({"0": "a", "1": "b"}))
    with pytest.raises(ValueError, match=r"knows 10 classes, model.json 2"):
        Served(folder)


def test_a_model_that_is_no_torchscript_stops_the_worker(archive: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(archive, tmp_path / "model")
    (folder / "model.pt").write_bytes(b"nothing")
    with pytest.raises(RuntimeError):
        Served(folder)


def test_torchserve_takes_the_numbers_of_the_config() -> None:
    config = yaml.safe_load(CONFIG.read_text())
    numbers = {name: value for name, value in config.items() if name != "handler"}
    assert all(type(value) is int and value > 0 for value in numbers.values())
    assert numbers["minWorkers"] <= numbers["maxWorkers"]
    connector_read_timeout, restart = 20, 10
    assert numbers["responseTimeout"] + restart < connector_read_timeout
    assert 20_000 < numbers["clientTimeoutInMills"] <= 25_000


entries = st.tuples(
    st.text(max_size=8),
    st.sampled_from(["", "image/png", "text/plain", "application/json", "x"]),
    st.binary(max_size=300) | st.sampled_from([png(1), png(2), png(1)[:99]]),
)
headers = st.dictionaries(
    st.sampled_from(["content-type", "Content-Type", "describe", "explain", "accept"]),
    st.sampled_from(["multipart/form-data; boundary=x", "image/png", "application/json", "True"]),
)
anything = st.builds(Request, st.lists(entries, max_size=4), headers) | st.builds(
    body, st.binary(max_size=300), st.sampled_from(["", "application/json", "image/png"])
)


@settings(deadline=None, max_examples=150)
@given(batch=st.lists(anything, min_size=1, max_size=5))
def test_whatever_comes_each_request_gets_one_answer(colour: Served, batch: list[Request]) -> None:
    for answer in colour.ask(*batch):
        assert answer.content_type == "application/json"
        assert answer.status in (200, 400, 413, 415)
        assert ("error" in answer.body) == (answer.status != 200)


@settings(deadline=None, max_examples=40)
@given(
    packs=st.lists(
        st.lists(st.integers(0, 30) | st.just(b"bad"), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_packed_images_are_answered_as_they_are_alone(
    colour: Served, packs: list[list[int | bytes]]
) -> None:
    files = [[png(one) if isinstance(one, int) else one for one in group] for group in packs]
    answers = colour.ask(*(pack(*group) for group in files))
    for answer, group in zip(answers, files, strict=True):
        alone = [colour.one(pack(file)).body["predictions"][0] for file in group]
        for got, wanted in zip(answer.body["predictions"], alone, strict=True):
            assert got.get("label") == wanted.get("label")
            assert got.get("error") == wanted.get("error")
            assert got.get("score") == pytest.approx(wanted.get("score"), abs=1e-5)


def test_the_three_forms_of_the_same_image_get_the_same_prediction(grey: Served) -> None:
    single = grey.one(body(png(9))).body
    packed = grey.one(pack(png(9))).body["predictions"][0]
    nested = grey.one(instances(np.array(picture(9)).tolist())).body["predictions"][0]
    single.pop("model")
    assert single == packed == nested
