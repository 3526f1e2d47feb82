from __future__ import annotations

import os
import time
from random import Random
from typing import TYPE_CHECKING, Any

import fmnist_gate as gate
import pytest

from tests import formats
from tests.fuzz import __main__ as program
from tests.fuzz import workers
from tests.fuzz.judge import Judge, Verdict, find_excess, read_input, write_input
from tests.fuzz.mutations import BOMBS, FORMATS, JSON_HEADERS, Seeds, make_request, mutate_file
from tests.fuzz.structure import join, split
from tests.fuzz.workers import Finding, Plan, Report, Tally

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

LIMITS = gate.Limits(6_000_000, 25_000_000, 12_000_000)
SEEDS = Seeds()
FILES = [path for path in sorted(formats.FOLDER.iterdir()) if path != formats.MANIFEST]
DRAWS = 200
"""Inputs of a generator within which it must meet a bound."""

BOUNDS = {
    "chunks of a PNG": ("png", {"MAX_PARTS"}),
    "segments and scans of a JPEG": ("jpeg", {"MAX_PARTS"}),
    "cost of the scans of a JPEG": ("jpeg", {"MAX_DECODING_S"}),
    "extensions of a GIF": ("gif", {"MAX_PARTS"}),
    "blocks of a frame": ("gif", {"MAX_SUB_BLOCKS"}),
    "run lengths": ("bmp", {"MAX_RLE_PIXELS", "MAX_DECODING_S", "MAX_SIDE"}),
    "rows": ("tiff", {"MAX_SIDE"}),
    "tiles": ("tiff", {"MAX_STRIPS", "MAX_DECODING_S"}),
    "tags": ("tiff", {"MAX_TAGS"}),
    "samples": ("tiff", {"MAX_SAMPLES"}),
}
"""By what is bounded: the generator, and the constants of the gate that must fall together."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_taken_apart_and_put_together_is_the_same(path: Path) -> None:
    data = path.read_bytes()
    assert join(split(data), repair=False) == data


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_numbers_make_the_same_input(name: str) -> None:
    first, second = (make_request(name, SEEDS, Random(7)) for _ in range(2))
    assert first == second
    assert make_request(name, SEEDS, Random(8)) != first


@pytest.mark.parametrize("name", [name for name in FORMATS if name in BOMBS])
def test_half_of_the_changed_parts_are_repaired_so_that_files_pass_the_gate(name: str) -> None:
    random, passed = Random(0), 0
    for _ in range(DRAWS):
        passed += passes(mutate_file(name, SEEDS, random))
    assert passed > program.MIN_PASSED * DRAWS


def passes(data: bytes) -> bool:
    try:
        gate.inspect(data, LIMITS)
    except (gate.Refused, OverflowError):
        return False
    return True


@pytest.mark.parametrize("what", BOUNDS)
def test_each_bound_of_the_gate_is_met_by_a_generator(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, constants = BOUNDS[what]
    random = Random(0)
    bombs = [random.choice(BOMBS[name])(random) for _ in range(DRAWS // 4)]
    refused = [data for data in bombs if not passes(data)]
    for constant in constants:
        assert hasattr(gate, constant)
        monkeypatch.setattr(gate, constant, 2**40)
    assert any(map(passes, refused)), f"no generator meets the bound of {what}"


def test_an_input_is_written_and_read_again(tmp_path: Path) -> None:
    for name in ("png", "json", "multipart"):
        request = make_request(name, SEEDS, Random(3))
        assert read_input(write_input(tmp_path, name, request)) == request
    body = ({"body": b"{}"}, JSON_HEADERS)
    assert read_input(write_input(tmp_path, "empty", body)) == body


def test_what_leaves_unpack_and_what_costs_too_much_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge = Judge()
    assert not judge.judge(judge.make("png", 1, 1)).fault

    def fail(*_: object) -> tuple[bool, bool, str]:
        raise RecursionError("deep")

    monkeypatch.setattr(judge, "try_request", fail)
    assert judge.judge(judge.make("png", 1, 1)).fault == "RecursionError left unpack: deep"
    assert find_excess(3.1, 3.2, 0) == "it cost 3.1 s of CPU"
    assert find_excess(0.1, 60.5, 0) == "it took 60.5 s"
    assert find_excess(0.1, 0.2, 301) == "it took 301 MB"
    assert not find_excess(2.9, 59.0, 299)


def test_shares_that_are_too_low_are_named() -> None:
    tallies = {"png": Tally(1000, 299, 99), "gif": Tally(1000, 300, 100), "bmp": Tally(10)}
    assert program.find_low_shares(tallies) == [
        "png: 30% pass the gate, less than 30%",
        "png: 10% are decoded, less than 10%",
    ]


def work_badly(plan: Plan, first: int, board: Any, pipe: Connection) -> None:  # noqa: ANN401
    """Die at the third input, hang at the fourth, and count the others."""
    for index in range(first, plan.inputs, workers.WORKERS):
        board[0], board[1] = index, int(time.monotonic() * 1000)
        if index == 2:
            os._exit(9)
        if index == 3:
            time.sleep(60)
        report = Report()
        report.add(plan.format_of(index), index, Verdict(True, True, 0, 0, ""))
        pipe.send(report)
    pipe.send(None)


def test_a_worker_that_dies_or_hangs_is_noticed_and_another_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "HANGS_AFTER_S", 3.0)
    total = Report()
    for report in workers.run(Plan(("png",), 1, 10, 100.0), work_badly):
        total.merge(report)
    assert total.inputs == 8
    assert sorted(total.findings) == [
        Finding("png", 2, "the worker died with 9"),
        Finding("png", 3, "the worker hung for 3 s"),
    ]


@pytest.mark.system
def test_a_minute_of_inputs_finds_nothing(tmp_path: Path) -> None:
    asked = ["--seconds", "60", "--seed", "1", "--findings", str(tmp_path)]
    assert program.main(asked) == 0
