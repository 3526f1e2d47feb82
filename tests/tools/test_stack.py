"""What the stack says before TorchServe says it badly."""

from __future__ import annotations

import hashlib
import socket
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from tools.servers import process
from tools.servers import torchserve as stack
from tools.servers.process import Process, StackError
from tools.servers.torchserve import TorchServe, check_archive, on_free_ports

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "fmnist.mar"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("model.json", "{}" * 1000)
    return path


def test_a_missing_archive_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="run `make archive`"):
        check_archive(tmp_path / "fmnist.mar")


@pytest.mark.parametrize("keep", [0, 10, 100])
def test_a_truncated_archive_is_refused(archive: Path, keep: int) -> None:
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(StackError, match="damaged"):
        check_archive(archive)


def test_an_archive_with_any_one_bit_changed_is_taken_or_damaged(tmp_path: Path) -> None:
    archive = tmp_path / "fmnist.mar"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("model.json", b"{}" * 40 + bytes(range(60)))
    whole = archive.read_bytes()
    complaints = []
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        archive.write_bytes(content)
        try:
            check_archive(archive)
        except StackError as error:
            complaints.append(str(error))
    assert len(complaints) > len(whole)
    assert all("is damaged" in one for one in complaints)


def test_a_flipped_bit_in_the_archive_is_found(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[content.index(b"{}{}") + 100] ^= 1
    archive.write_bytes(content)
    with pytest.raises(StackError, match=r"damaged \(at model.json\)"):
        check_archive(archive)


def test_a_whole_archive_passes(archive: Path) -> None:
    check_archive(archive)
    assert archive.exists()


def write_checksum(archive: Path) -> None:
    line = f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive.name}\n"
    stack.checksum_file(archive).write_text(line)


def test_one_changed_byte_is_refused_by_the_checksum(archive: Path) -> None:
    write_checksum(archive)
    check_archive(archive)
    with zipfile.ZipFile(archive, "w") as opened:  # whole for zip, with its own right sums
        opened.writestr("model.json", "{}" * 999 + "[]")
    with pytest.raises(StackError, match=r"not the file .* run `make archive`"):
        check_archive(archive)


@pytest.mark.parametrize("text", ["", "a word", "0123  other.mar\n", "é"])
def test_a_checksum_file_of_another_form_is_refused(archive: Path, text: str) -> None:
    stack.checksum_file(archive).write_text(text, encoding="utf-8")
    with pytest.raises(StackError, match=r"is no checksum of fmnist\.mar"):
        check_archive(archive)


@pytest.mark.parametrize("key", stack.PORTS)
def test_a_taken_port_is_named_before_the_server_starts(archive: Path, key: str) -> None:
    ports = on_free_ports()
    port = int(ports[key].rsplit(":", 1)[-1])
    server = TorchServe(archive, overrides=ports)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(StackError, match=f"{port} is tak"),
    ):
        server.start()
    server.close()
    assert not server.folder.exists()


def test_no_java_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match="make setup"):
        process.java()


def test_a_server_that_ends_at_once_shows_its_last_words(archive: Path) -> None:
    server = TorchServe(archive)
    server.process.argv = ["sh", "-c", "echo no luck today; exit 1"]
    with pytest.raises(StackError, match="no luck today"), server:
        pass
    assert not server.folder.exists()


def test_stop_also_ends_what_ignores_it(tmp_path: Path) -> None:
    deaf = "import signal, sys; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\n"
    process = Process(
        [sys.executable, "-c", deaf + "import time; time.sleep(60)"], tmp_path / "log"
    )
    process.start()
    while "up" not in process.tail():
        assert process.alive()
    process.stop(timeout=0.1)
    assert not process.alive()


def test_ports_of_two_servers_differ() -> None:
    one = on_free_ports()
    assert len(set(one.values())) == len(stack.PORTS)


def test_the_end_of_a_log_is_that_of_this_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("first", "second"):
        process = Process(["echo", word], log).start()
        process.child.wait(10)
        assert process.tail() == word
    assert log.read_text().split() == ["first", "second"]
