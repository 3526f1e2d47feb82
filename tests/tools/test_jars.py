"""Jars are those of the list, or are not used."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

import pytest

from tools.servers.jars import check_jars, fetch_jars
from tools.servers.process import ROOT, StackError

if TYPE_CHECKING:
    from pathlib import Path

MAVEN = """#!{python}
import pathlib, sys
pathlib.Path({log!r}).write_text(" ".join(sys.argv[1:]))
(folder,) = [word.split("=", 1)[1] for word in sys.argv if word.startswith("-DoutputDirectory=")]
pathlib.Path(folder).mkdir(parents=True)
(pathlib.Path(folder) / "one.jar").write_bytes(b"one")
"""


def write_list(folder: Path, **contents: bytes) -> Path:
    lines = [f"{hashlib.sha256(v).hexdigest()}  {k}.jar\n" for k, v in contents.items()]
    (folder / "jars.sha256").write_text("".join(lines))
    return folder / "jars.sha256"


@pytest.fixture
def pom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pom.xml, and a Maven that brings one jar for it and writes down its arguments."""
    program = tmp_path / "bin" / "mvn"
    program.parent.mkdir()
    program.write_text(MAVEN.format(python=sys.executable, log=str(tmp_path / "arguments")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    (tmp_path / "pom.xml").write_text("<project/>")
    return tmp_path / "pom.xml"


def test_maven_is_told_to_fail_on_a_wrong_checksum(pom: Path) -> None:
    write_list(pom.parent, one=b"one")
    libs = fetch_jars(pom, pom.parent / "build")
    assert [jar.name for jar in libs.iterdir()] == ["one.jar"]
    assert "--strict-checksums" in (pom.parent / "arguments").read_text().split()


@pytest.mark.parametrize("listed", [{"one": b"other"}, {}, {"one": b"one", "two": b"two"}])
def test_jars_that_are_not_those_of_the_list_are_not_used(
    pom: Path, listed: dict[str, bytes]
) -> None:
    write_list(pom.parent, **listed)
    with pytest.raises(StackError, match=r"\.jar: not as .*jars\.sha256 says"):
        fetch_jars(pom, pom.parent / "build")
    assert not (pom.parent / "build" / "libs").exists()


@pytest.mark.parametrize("server", ["kafka", "pubsub"])
def test_the_list_is_that_of_the_jars_that_were_fetched(server: str) -> None:
    folder = ROOT / "build" / server / "libs"
    if not folder.exists():
        pytest.skip(f"build/{server}/libs was not fetched yet")
    check_jars(folder, ROOT / "tools" / server / "jars.sha256")
