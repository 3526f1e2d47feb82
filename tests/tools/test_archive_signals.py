"""A signal during `python -m tools.archive`: one sentence, and nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tools import archive
from tools.servers.process import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CHILD = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
def stop(number, frame):
    time.sleep(1)  # longer than subprocess.run would wait
    (here / "kept").write_text("checkpoint")
    sys.exit(128 + number)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
(here / "begun").touch()
time.sleep(60)
"""

PARENT = """
import pathlib, sys
from tools import archive
here = pathlib.Path(sys.argv[1])
def run(*ignored, **options):
    archive.run_child([sys.executable, str(here / "child.py"), str(here)])
{patch}
sys.exit(archive.main(["--store", str(here / "store")]))
"""

PATCHES = {
    "training": "archive.run_training = run",
    "export": "archive.export = run",
    "packing": "archive.export = lambda *_: here; archive.pack = run",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", PATCHES)
def test_a_signal_during_the_archive_lets_the_stage_keep_its_work_and_is_one_sentence(
    tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    code = PARENT.format(patch=PATCHES[stage])
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(program.pid, number)
    _, said = program.communicate(timeout=60)

    assert program.returncode == 128 + number
    assert said == "archive: interrupted: no archive was made or changed; run it again\n"
    assert (tmp_path / "kept").read_text() == "checkpoint"
    assert not list(tmp_path.glob("store/*"))


@pytest.mark.parametrize("code", [1, 2, 69])
def test_a_stage_that_fails_is_named_with_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def fail(*_: object) -> None:
        archive.run_child([sys.executable, "-c", f"raise SystemExit({code})"])

    monkeypatch.setattr(archive, "export", fail)
    assert archive.main([]) == code
    assert "failed; nothing was changed" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_one_sentence_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(archive, "ROOT", tmp_path)
    for said in ("none yet", "second, first"):
        assert archive.main(["--run", "nowhere"]) == 1
        assert capsys.readouterr().err == (
            f"archive: there is no run nowhere: name one of runs/ ({said}), or leave out --run "
            "for the last; nothing was changed\n"
        )
        for name in ("first", "second"):
            (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "runs" / name / "checkpoint.pt").touch()
        (tmp_path / "runs" / "latest").unlink(missing_ok=True)
        (tmp_path / "runs" / "latest").symlink_to("second")
