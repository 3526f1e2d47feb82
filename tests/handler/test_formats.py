"""Every file of the corpus through the handler, and through readers that are not Pillow's."""

from __future__ import annotations

import hashlib
import resource
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import fmnist_wire as wire
import numpy as np
import pytest
import torch
from fmnist_gate import Refused
from torchvision.io import ImageReadMode, decode_image

from tests import formats
from tests.encoders import png, png_chunk, png_header
from tests.handler.unpacking import GREY, SETTINGS

if TYPE_CHECKING:
    from tests.encoders import Grid

MODELS = {"grey": GREY, "rgb": replace(GREY, mode="RGB", background=(0, 0, 0))}
LINES = formats.read_manifest()
PICTURES = [line for line in LINES if "picture" in line]
REFUSALS = [line for line in LINES if "refused" in line]

MAX_CPU_S = 3.0
MAX_GROWTH_KB = 300 * 1024

ELSEWHERE = (".png", ".jpg", ".gif", ".webp")
"""What torchvision reads, by libpng, libjpeg, giflib and libwebp."""
READ_OTHERWISE = {
    "exif-undefined": "torchvision takes an orientation of any type",
    "exif-two-values": "torchvision takes the first of several orientations",
    "exif.webp": "torchvision passes over EXIF in WebP",
    "exif-jpeg-style.webp": "torchvision passes over EXIF in WebP",
    "animated.webp": "torchvision reads no animation",
    "control-empty.gif": "giflib refuses the whole file",
    "second-broken.gif": "giflib reads all frames",
    "no-trailer.gif": "giflib wants the trailer",
    "extensions-many.gif": "giflib refuses empty comments",
}
"""Why the second opinion differs, by the file's name or its beginning."""
WANTS_RGB = ("palette", "cmyk", "ycck")
"""torchvision leaves these as indices or inks unless asked for colours."""
OTHER_TOLERANCE = {".png": 1, ".jpg": 6, ".gif": 0, ".webp": 0}
"""Levels: libpng may round 16 bits otherwise, and JPEG's transform is not exact to a level."""


def name(line: dict[str, Any]) -> str:
    return str(line["file"])


def read(line: dict[str, Any]) -> bytes:
    return (formats.FOLDER / name(line)).read_bytes()


def ask(line: dict[str, Any], model: str = "grey") -> Grid | Refused:
    question = wire.unpack({"body": read(line)}, {}, MODELS[model], SETTINGS)
    item = question if isinstance(question, Refused) else question.items[0]
    return item if isinstance(item, Refused) else item.transpose(1, 2, 0)


def expected(line: dict[str, Any]) -> Grid:
    picture = formats.PICTURES[line["picture"]].astype(np.uint8)
    assert hashlib.sha256(picture.tobytes()).hexdigest().startswith(line["sha256"])
    return picture.reshape(28, 28, -1)


def distance(found: Grid, wanted: Grid) -> int:
    return int(np.abs(found.astype(int) - wanted.astype(int)).max())


@pytest.mark.parametrize("line", PICTURES, ids=name)
def test_each_good_file_becomes_the_picture_that_was_drawn(line: dict[str, Any]) -> None:
    found = ask(line, line["model"])
    assert not isinstance(found, Refused), f"{found.code}: {found}"
    assert distance(found, expected(line)) <= line.get("tolerance", 0), found[..., 0]


@pytest.mark.parametrize("line", REFUSALS, ids=name)
def test_each_bad_file_is_refused_with_its_code(line: dict[str, Any]) -> None:
    found = ask(line)
    assert isinstance(found, Refused), found[..., 0]
    assert found.code in line["refused"], f"{found.code}: {found}"


@pytest.mark.parametrize("line", LINES, ids=name)
def test_no_refusal_shows_the_inside_of_the_program(line: dict[str, Any]) -> None:
    found = ask(line)
    if isinstance(found, Refused):
        assert "object at 0x" not in str(found)


@pytest.mark.parametrize("line", LINES, ids=name)
def test_no_file_costs_more_than_its_bound_or_is_our_failure(line: dict[str, Any]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    for model in MODELS:
        found = ask(line, model)
        assert not isinstance(found, Refused) or found.code not in {"internal", "busy"}, found
    assert time.process_time() - started < MAX_CPU_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KB


@pytest.mark.parametrize("line", LINES, ids=name)
def test_a_file_gets_the_same_answer_in_a_request_of_several(line: dict[str, Any]) -> None:
    alone = ask(line)
    row = {"a": read(line), "b": read(line)}
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    question = wire.unpack(row, headers, GREY, SETTINGS)
    if isinstance(question, Refused):
        assert question.code == "too_large", question
        return
    for item in question.items:
        if isinstance(alone, Refused) or isinstance(item, Refused):
            assert isinstance(alone, Refused)
            assert isinstance(item, Refused)
            assert alone.code == item.code
        else:
            assert np.array_equal(item.transpose(1, 2, 0), alone)


def ask_torchvision(data: bytes, mode: ImageReadMode) -> Grid | str:
    """Return what torchvision's own readers make of the bytes, [H, W, C] of 8 bits."""
    body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            tensor = decode_image(body, mode, apply_exif_orientation=True)
    except RuntimeError as reason:
        return str(reason)
    values = tensor if tensor.ndim == 3 else tensor[0]
    grid: Grid = values.to(torch.int64).numpy().transpose(1, 2, 0)
    return (grid * 255 + 32767) // 65535 if tensor.dtype == torch.uint16 else grid


def to_channels(grid: Grid, channels: int) -> Grid:
    """Drop an alpha channel; grey in three equal channels counts as one."""
    opaque = grid[..., :-1] if grid.shape[-1] in (2, 4) else grid
    return opaque[..., :1] if channels == 1 else opaque


def is_comparable(line: dict[str, Any]) -> bool:
    known = name(line).startswith(tuple(READ_OTHERWISE))
    return name(line).endswith(ELSEWHERE) and line.get("raw", True) and not known


COMPARABLE = [line for line in PICTURES if is_comparable(line)]


@pytest.mark.parametrize("line", COMPARABLE, ids=name)
def test_other_libraries_read_the_same_picture(line: dict[str, Any]) -> None:
    rgb = name(line).startswith(WANTS_RGB)
    mode = ImageReadMode.RGB if rgb else ImageReadMode.UNCHANGED
    found = ask_torchvision(read(line), mode)
    assert not isinstance(found, str), found
    wanted = expected(line)
    ending = name(line)[name(line).rindex(".") :]
    tolerance = max(line.get("tolerance", 0), OTHER_TOLERANCE[ending])
    assert distance(to_channels(found, wanted.shape[-1]), wanted) <= tolerance


def test_the_manifest_and_the_folder_are_what_the_script_writes() -> None:
    cases = formats.make_cases()
    assert [formats.describe(case) for case in cases] == LINES
    files = sorted(path.name for path in formats.FOLDER.iterdir())
    assert files == sorted(["manifest.json", *(case.name for case in cases)])
    assert sum(map(len, map(read, LINES))) < 300_000
    assert formats.MANIFEST.stat().st_size < 100_000


BLANK = np.zeros((28, 28), int)
FOUND: dict[str, tuple[bytes, set[str]]] = {
    "a key of more bits than the pixels": (
        png(BLANK, 2, before=png_chunk(b"tRNS", b"\xff\xff")),
        {""},
    ),
    "a palette behind the pixels": (
        png(BLANK, 8, 3, after=png_chunk(b"PLTE", bytes(6))),
        {"not_an_image"},
    ),
    "a second head that makes a palette": (
        png(BLANK, before=png_header(28, 28, 8, 3)[8:]),
        {"not_an_image"},
    ),
    "a second head of 100 megapixels": (
        png(BLANK, before=png_header(10_000, 10_000, 8, 6)[8:]),
        {"not_an_image", "too_large"},
    ),
    "a BigTIFF whose directory lies beyond any file": (
        b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(60),
        {"not_an_image"},
    ),
}
"""What the fuzzer found, made small, and the codes it may be answered with."""


@pytest.mark.parametrize("what", FOUND)
def test_what_the_fuzzer_found_is_answered(what: str) -> None:
    body, codes = FOUND[what]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    question = wire.unpack({"body": body}, {}, GREY, SETTINGS)
    item = question if isinstance(question, Refused) else question.items[0]
    assert (item.code if isinstance(item, Refused) else "") in codes, item
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KB // 3
