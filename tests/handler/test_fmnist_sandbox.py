"""Decoding in a process that may die: its limits, its deaths, and what is answered then."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import fmnist_images
import numpy as np
import pytest
from fmnist_gate import Refused, inspect
from fmnist_sandbox import Sandbox, explain
from PIL import Image

from tests.handler.torchserve import encode
from tests.handler.unpacking import COLOURS, GREY, PIXELS, RGB, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fmnist_images import Model

LIMITS = (2.0, 256)
WAIT_S = 30.0


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox()
    yield box
    box.close()


def code(result: object) -> str:
    assert isinstance(result, Refused), result
    return result.code


@pytest.mark.parametrize(
    ("image", "model"),
    [(Image.fromarray(PIXELS), GREY), (Image.fromarray(COLOURS), RGB)],
    ids=["grey", "colour"],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_child_makes_the_same_pixels(
    sandbox: Sandbox, image: Image.Image, model: Model, kind: str
) -> None:
    file = inspect(encode(image, kind), SETTINGS.limits)
    result, seconds = sandbox.decode(file, model, LIMITS, WAIT_S)
    assert not isinstance(result, Refused)
    assert np.array_equal(result, fmnist_images.to_pixels(file, model))
    assert 0 <= seconds < LIMITS[0]  # the clock of the CPU may be coarse


def test_what_the_decoder_says_comes_back(sandbox: Sandbox) -> None:
    file = inspect(encode(Image.fromarray(PIXELS), "TIFF"), SETTINGS.limits)
    cut = file._replace(data=file.data[:60])
    result, _ = sandbox.decode(cut, GREY, LIMITS, WAIT_S)
    assert code(result) == "not_an_image"
    assert "damaged" in str(result)


LARGE = inspect(encode(Image.new("RGB", (3000, 3000), (1, 2, 3))), SETTINGS.limits)


@pytest.mark.parametrize(
    ("limits", "wait_s", "word"),
    [
        ((0.005, 256), WAIT_S, "too_large"),  # of CPU
        ((LIMITS[0], 1), WAIT_S, "too_large"),  # of memory
        (LIMITS, 0.0, "busy"),  # of patience
    ],
)
def test_a_limit_that_is_met_costs_the_file_and_not_the_next(
    sandbox: Sandbox, limits: tuple[float, int], wait_s: float, word: str
) -> None:
    result, seconds = sandbox.decode(LARGE, GREY, limits, wait_s)
    assert (code(result), seconds) == (word, limits[0])
    assert not isinstance(sandbox.decode(LARGE, GREY, LIMITS, WAIT_S).result, Refused)


def test_a_child_that_was_killed_is_started_again(sandbox: Sandbox) -> None:
    sandbox.decode(LARGE, GREY, LIMITS, WAIT_S)
    child = sandbox._child
    assert child is not None
    child.kill()
    child.wait()
    assert not isinstance(sandbox.decode(LARGE, GREY, LIMITS, WAIT_S).result, Refused)


def test_a_child_that_dies_at_its_work_refuses_the_file(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.decode(LARGE, GREY, LIMITS, WAIT_S)
    child = sandbox._child
    assert child is not None
    monkeypatch.setattr(child, "poll", lambda: None)
    os.kill(child.pid, signal.SIGSEGV)
    assert code(sandbox.decode(LARGE, GREY, LIMITS, WAIT_S).result) == "not_an_image"


@pytest.mark.parametrize(
    ("ended", "word"),
    [
        (-signal.SIGPROF, "too_large"),
        (os.EX_OSERR, "too_large"),
        (-signal.SIGKILL, "busy"),
        (-signal.SIGSEGV, "not_an_image"),
        (1, "not_an_image"),
    ],
)
def test_each_end_of_a_child_has_its_own_answer(ended: int, word: str) -> None:
    assert explain(ended).code == word


def test_the_child_knows_neither_torch_nor_the_server(sandbox: Sandbox) -> None:
    sandbox.decode(LARGE, GREY, LIMITS, WAIT_S)
    assert sandbox._child is not None
    with open(f"/proc/{sandbox._child.pid}/maps") as maps:  # noqa: PTH123 - no file of ours
        assert "libtorch" not in maps.read()


def test_a_closed_sandbox_leaves_no_child() -> None:
    box = Sandbox()
    box.close()
    box.decode(LARGE, GREY, LIMITS, WAIT_S)
    child = box._child
    box.close()
    assert child is not None
    assert child.poll() == -signal.SIGKILL
