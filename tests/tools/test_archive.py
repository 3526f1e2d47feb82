"""The archive's bytes follow from its files alone, and its checksum lies beside it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.test_rooms import imported
from tools.archive import DECLARED, FIXED_TIME, FORMATS, MANIFEST, REQUIREMENTS, pack
from tools.schemas import find_faults, load_schema
from tools.servers.process import ROOT
from tools.servers.torchserve import check_archive, checksum_file

if TYPE_CHECKING:
    from pathlib import Path


def make_model(folder: Path, modified_s: float) -> Path:
    """Write what an export writes, changed at `modified_s` seconds since 1970."""
    folder.mkdir(parents=True)
    contents = {
        "model.pt": "not read here",
        "model.json": json.dumps({"version": "7.3"}),
        "index_to_name.json": "{}",
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
        os.utime(folder / name, (modified_s, modified_s))
    return folder


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two archives of the same files, in two folders, of two days."""
    first, second = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("another")
    old = pack(make_model(first / "model", 1_000_000_000.0), first / "store")
    new = pack(make_model(second / "deeper" / "model", 1_700_000_000.0), second / "store")
    return old, new


def test_two_builds_in_two_folders_at_two_times_have_the_same_bytes(
    archives: tuple[Path, Path],
) -> None:
    one, another = archives
    assert one.read_bytes() == another.read_bytes()
    assert checksum_file(one).read_text() == checksum_file(another).read_text()


def test_nothing_in_an_archive_says_when_it_was_made(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as opened:
        entries = opened.infolist()
        manifest = json.loads(opened.read(MANIFEST))
    names = [entry.filename for entry in entries]
    assert names == sorted(names)
    assert {entry.date_time for entry in entries} == {FIXED_TIME}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert "createdOn" not in manifest
    assert manifest["model"]["modelVersion"] == "7.3"
    assert manifest["model"]["handler"] == "fmnist_handler.py"


def test_sha256sum_accepts_the_checksum_and_so_do_we(archives: tuple[Path, Path]) -> None:
    archive = archives[0]
    command = ["sha256sum", "--check", "--strict", checksum_file(archive).name]
    subprocess.run(command, cwd=archive.parent, check=True, timeout=60, capture_output=True)
    check_archive(archive)
    assert sorted(file.name for file in archive.parent.iterdir()) == [
        archive.name,
        checksum_file(archive).name,
    ]


def test_another_model_gives_another_checksum(archives: tuple[Path, Path], tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", 1_000_000_000.0)
    (model / "model.pt").write_text("another model")
    other = pack(model, tmp_path / "store")
    assert hashlib.sha256(other.read_bytes()).hexdigest() in checksum_file(other).read_text()
    assert checksum_file(other).read_text() != checksum_file(archives[0]).read_text()


def test_the_manifest_has_the_form_of_its_schema(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[0]) as opened:
        manifest = json.loads(opened.read(MANIFEST))
    schema = load_schema("manifest")
    assert find_faults(manifest, schema) == []
    model = schema["properties"]["model"]["properties"]
    assert manifest["model"].keys() == set(model)
    assert set(model["serializedFile"]["enum"]) == set(FORMATS.values())


def test_an_archive_declares_what_its_handler_imports_as_the_lock_file_pins_it(
    archives: tuple[Path, Path],
) -> None:
    with zipfile.ZipFile(archives[0]) as opened:
        lines = opened.read(REQUIREMENTS).decode().splitlines()
        sources = [opened.read(name).decode() for name in opened.namelist() if name[-3:] == ".py"]
    lock = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(f"{line} \\" in lock for line in lines)
    names = {name.partition(".")[0] for source in sources for name in imported(source, "a.py")}
    libraries = {name for name in names - sys.stdlib_module_names if name[:7] != "fmnist_"}
    declared = {line.partition("==")[0] for line in lines}
    assert {name.replace("PIL", "pillow") for name in libraries} == declared == set(DECLARED)
