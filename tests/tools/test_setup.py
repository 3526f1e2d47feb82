"""`tools/setup.sh` on machines that lack something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def setup(step: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one step with `env` on top of the environment."""
    command = ["bash", str(ROOT / "tools" / "setup.sh"), step]
    return subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, timeout=300, check=False
    )


def program(path: Path, says: str) -> Path:
    """Make an executable that prints `says` to stderr, as `java -version` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    path.chmod(0o755)
    return path


def test_a_wrong_python_gets_one_sentence(tmp_path: Path) -> None:
    old = program(tmp_path / "python2", "I am Python 2")
    done = setup("environment", PYTHON=str(old), VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "venv").exists()


def test_an_environment_with_a_wrong_python_is_named(tmp_path: Path) -> None:
    program(tmp_path / "venv" / "bin" / "python", "I am Python 2")
    done = setup("environment", VENV=str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "rm -r" in done.stderr


def test_an_old_java_is_replaced_by_the_wheel(tmp_path: Path) -> None:
    program(tmp_path / "old" / "java", 'openjdk version "11.0.2" 2019-01-15')
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    (venv / "bin" / "uv").symlink_to(Path(sys.executable).parent / "uv")
    done = setup("java", VENV=str(venv), PATH=f"{tmp_path / 'old'}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    java = [str(venv / "bin" / "java"), "-version"]
    shown = subprocess.run(java, capture_output=True, text=True, timeout=60, check=True)
    assert 'version "17' in shown.stderr


def test_what_tests_need_is_brought_once_and_by_root_alone(tmp_path: Path) -> None:
    folder, log = tmp_path / "bin", tmp_path / "log"
    for name in ("bash", "dirname"):
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(f"/bin/{name}" if name == "bash" else "/usr/bin/dirname")
    for name, does in {"apt-get": f'echo "$@" >>{log}', "openssl": ":"}.items():
        program(folder / name, "").write_text(f"#!/bin/bash\n{does}\n")
    user = program(folder / "id", "")
    user.write_text("#!/bin/bash\necho 1000\n")
    peers = {"PATH": str(folder), "PEERS": "unheard-of:unheard-of openssl:openssl"}
    done = setup("peers", **peers)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "apt-get install -y unheard-of" in done.stdout
    assert not log.exists()
    user.write_text("#!/bin/bash\necho 0\n")
    assert setup("peers", **peers).returncode == 0
    assert "install -y --no-install-recommends unheard-of" in log.read_text()
    log.unlink()
    program(folder / "unheard-of", "")
    assert setup("peers", **peers).stdout == ""
    assert not log.exists()


def test_an_unknown_step_is_refused() -> None:
    done = setup("everything")
    assert done.returncode == 1
    assert "there is no step 'everything'" in done.stderr
