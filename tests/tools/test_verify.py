"""What `make verify` says of an archive that is right, and of those that are not."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tools import verify as program
from tools.archive import CONFIG, DECLARED, MANIFEST, REQUIREMENTS, ArchiveError, pack, publish
from tools.servers.process import StackError
from tools.servers.torchserve import checksum_file
from tools.verify import (
    TOLERANCES,
    Answer,
    Comparison,
    Reference,
    UnavailableError,
    VerifyError,
    ask,
    compare,
    verify,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DATA = "5" * 64
BAG, BOOT = Answer("bag", 0.75), Answer("boot", 0.75)
REFERENCE = Reference([b"0", b"1", b"1"], [BAG, BOOT, BOOT], DATA)


def refer() -> Reference:
    return REFERENCE


def load(folder: Path, images: Sequence[bytes]) -> list[Answer]:
    """As TorchServe does: an import may fail, and the archive's file names the classes."""
    lines = (folder / REQUIREMENTS).read_text().splitlines()
    missing = set(DECLARED) - {line.partition("==")[0] for line in lines}
    if missing:
        raise VerifyError(f"No module named {missing}")
    names = json.loads((folder / "index_to_name.json").read_text())
    return [Answer(names[image.decode()], 0.75) for image in images]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.pt").write_text("not read here")
    (folder / "model.json").write_text(json.dumps({"version": "7.3", "data": DATA}))
    (folder / "index_to_name.json").write_text(json.dumps({"0": "bag", "1": "boot"}))
    return pack(folder, folder / "store")


@pytest.fixture
def archive(shipped: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copy(checksum_file(shipped), tmp_path)
    return Path(shutil.copy(shipped, tmp_path))


def replace(archive: Path, entry: str, change: Callable[[str], str | None]) -> None:
    """Write an entry anew, or leave it out, and the checksum so that it fits."""
    with zipfile.ZipFile(archive) as opened:
        contents = {name: opened.read(name).decode() for name in opened.namelist()}
    changed = contents | {entry: change(contents[entry])}
    new = archive.with_name("new") / archive.name
    new.parent.mkdir()
    with zipfile.ZipFile(new, "w") as opened:
        for name, content in changed.items():
            if content is not None:
                opened.writestr(name, content)
    publish(new, archive.parent)


def test_the_archive_that_was_built_is_right(archive: Path) -> None:
    assert verify(archive, refer, load) == (3, 0, 0.0)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_one_changed_byte_is_noticed(archive: Path, place: float) -> None:
    content = bytearray(archive.read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    archive.write_bytes(content)
    with pytest.raises(StackError, match=r"is damaged|is not the file that"):
        verify(archive, refer, load)


def test_an_archive_without_a_checksum_is_not_right(archive: Path) -> None:
    checksum_file(archive).unlink()
    with pytest.raises(VerifyError, match=r"fmnist\.mar\.sha256 is not there: run `make archive`"):
        verify(archive, refer, load)


@pytest.mark.parametrize("package", DECLARED)
def test_a_requirement_that_is_missing_is_missed(archive: Path, package: str) -> None:
    replace(
        archive,
        REQUIREMENTS,
        lambda text: "".join(
            line for line in text.splitlines(keepends=True) if not line.startswith(package)
        ),
    )
    with pytest.raises(VerifyError, match=f"No module named .*{package}"):
        verify(archive, refer, load)


def test_swapped_labels_are_noticed(archive: Path) -> None:
    replace(archive, "index_to_name.json", lambda _: json.dumps({"0": "boot", "1": "bag"}))
    with pytest.raises(VerifyError, match="3 of 3 labels are not the run's; image 0 is 'boot' to"):
        verify(archive, refer, load)


def test_an_archive_of_other_data_than_the_run_is_told_so(archive: Path) -> None:
    with pytest.raises(VerifyError, match="other data: name its run by --run"):
        verify(archive, lambda: REFERENCE._replace(data="6" * 64), load)


@pytest.mark.parametrize(
    ("entry", "change", "sentence"),
    [
        (MANIFEST, lambda text: text.replace("7.3", "7.4"), r"version 7\.4, and model.json 7\.3"),
        (MANIFEST, lambda text: text.replace("{", '{"createdOn": "today",', 1), "createdOn"),
        (MANIFEST, lambda text: text.replace("model.pt", "../model.pt"), "serializedFile"),
        (MANIFEST, lambda _: None, "no archive of this project"),
        (CONFIG, lambda text: text.replace("batchSize:", "batchsize:"), "batchSize"),
        (CONFIG, lambda text: text.replace("maxBatchDelay: 2", "maxBatchDelay: 0"), "minimum 1"),
        (CONFIG, lambda _: "a: [", "no archive of this project"),
        ("model.json", lambda _: "{}", "no archive of this project"),
    ],
)
def test_a_manifest_or_configuration_that_is_not_as_its_schema_says_is_refused(
    archive: Path, entry: str, change: Callable[[str], str | None], sentence: str
) -> None:
    replace(archive, entry, change)
    with pytest.raises(ArchiveError, match=sentence):
        verify(archive, refer, load)


@pytest.mark.parametrize("score", [0.7502, 0.7498, float("nan")])
def test_a_score_that_is_off_is_noticed(score: float) -> None:
    with pytest.raises(VerifyError, match="a score is"):
        compare([BAG, BOOT], [BAG, Answer("boot", score)])


def test_a_score_may_be_off_by_as_much_as_the_proof_of_an_export_allows() -> None:
    assert compare([BAG], [Answer("bag", 0.75005)]).off == pytest.approx(0.00005)


def test_the_precision_of_the_archive_says_how_far_its_answers_may_be_off(archive: Path) -> None:
    def load_moved(folder: Path, images: Sequence[bytes]) -> list[Answer]:
        return [answer._replace(score=0.8) for answer in load(folder, images)]

    with pytest.raises(VerifyError, match=r"a score is 0\.05"):
        verify(archive, refer, load_moved)
    replace(archive, CONFIG, lambda text: text.replace("precision: float32", "precision: bfloat16"))
    assert verify(archive, refer, load_moved).off == pytest.approx(0.05)


@pytest.mark.parametrize(("others", "right"), [(5, True), (6, False)])
def test_few_labels_may_be_others_in_bfloat16(others: int, *, right: bool) -> None:
    expected, found = [BAG] * 1000, [BOOT] * others + [BAG] * (1000 - others)
    with nullcontext() if right else pytest.raises(VerifyError, match="6 of 1,000 labels"):
        assert compare(expected, found, TOLERANCES["bfloat16"]).others == others


def test_labels_that_are_others_are_counted_in_the_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(8e9))
    monkeypatch.setattr(program, "verify", lambda *_: Comparison(1000, 5, 0.05))
    assert program.main(["--archive", "a.mar"]) == 0
    assert capsys.readouterr().out == (
        "verify: a.mar: 995 images have the labels of run latest, 5 have others, the scores within "
        "0.050000\n"
    )


def test_each_image_has_an_answer() -> None:
    with pytest.raises(VerifyError, match="1 answers came to 2 images"):
        compare([BAG, BOOT], [BAG])


def interpreter(folder: Path, line: str) -> Path:
    """A program in the place of the environment's Python: its sixth argument is the answers."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def test_the_last_line_of_a_worker_that_cannot_start_is_told(tmp_path: Path) -> None:
    python = interpreter(
        tmp_path, "echo \"ModuleNotFoundError: No module named 'PIL'\" >&2; exit 1"
    )
    with pytest.raises(
        VerifyError, match=r"cannot load the archive: ModuleNotFoundError: .* 'PIL'$"
    ):
        ask(python, tmp_path, [b"an image"], tmp_path)


def test_a_worker_that_dies_without_a_word_is_told_by_its_exit_code(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "kill -KILL $$")
    with pytest.raises(VerifyError, match="cannot load the archive: exit code -9"):
        ask(python, tmp_path, [b"an image"], tmp_path)


def test_the_answers_are_read_in_the_order_of_the_images(tmp_path: Path) -> None:
    answers = '[{"label": "bag", "score": 0.75}, {"label": "boot", "score": 0.75}]'
    python = interpreter(tmp_path, f"""ls "$4" >seen; echo '{answers}' >"$6" """)
    assert ask(python, tmp_path, [b"1", b"2"], tmp_path) == [BAG, BOOT]
    assert (tmp_path / "seen").read_text().split() == ["000000.png", "000001.png"]


def test_an_image_that_is_refused_is_no_answer(tmp_path: Path) -> None:
    python = interpreter(tmp_path, """echo '[{"error": {"code": "busy"}}]' >"$6" """)
    with pytest.raises(VerifyError, match=r'an image is answered \{"error": \{"code": "busy"\}\}'):
        ask(python, tmp_path, [b"1"], tmp_path)


def test_no_images_are_no_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(["--images", "0"])
    assert "one image at least is compared" in capsys.readouterr().err


class Usage(NamedTuple):
    """Of a disk, in bytes."""

    free: float


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("1", 1)])
def test_too_little_room_skips_with_the_reason_but_not_in_ci(
    ci: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(7.9e9))
    assert program.main([]) == code
    assert capsys.readouterr().out == (
        "verify: skipped: 7.9 GB are free here, and 8 may be needed\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (None, 0, "3 images have the labels of run latest, the scores within 0.000000"),
        (VerifyError("it is wrong"), 1, "it is wrong"),
        (ArchiveError("it has no manifest"), 1, "it has no manifest: run `make archive`"),
        (UnavailableError("uv pip failed"), 69, "nothing was verified: uv pip failed"),
    ],
)
def test_the_program_ends_with_a_sentence_and_its_exit_code(
    archive: Path,
    error: Exception | None,
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(folder: Path, images: Sequence[bytes]) -> list[Answer]:
        if error:
            raise error
        return load(folder, images)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(8e9))
    monkeypatch.setattr(program, "read_reference", lambda *_: REFERENCE)
    monkeypatch.setattr(program, "load_apart", answer)
    assert program.main(["--archive", str(archive)]) == code
    written = capsys.readouterr()
    assert sentence in (written.err if code else written.out)
    assert (written.out + written.err).count("\n") == 1


def test_the_environment_has_the_requirements_and_a_server_without_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = interpreter(tmp_path, 'echo "$@" >>"$(dirname "$0")/asked"').rename(tmp_path / "uv")
    monkeypatch.setattr(sys, "executable", str(uv.with_name("python3")))
    program.make_environment(tmp_path / "venv", tmp_path / REQUIREMENTS)
    _, requirements, server = (tmp_path / "asked").read_text().splitlines()
    assert f"--requirements {tmp_path / REQUIREMENTS} --constraints" in requirements
    assert f"--no-deps --requirements {tmp_path / 'server.txt'}" in server
    pinned = (tmp_path / "server.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in pinned] == ["psutil", "pyyaml", "torchserve"]


def test_an_environment_that_cannot_be_made_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = interpreter(tmp_path, "echo no network >&2; exit 2").rename(tmp_path / "uv")
    monkeypatch.setattr(sys, "executable", str(uv.with_name("python3")))
    with pytest.raises(UnavailableError, match="uv venv failed: no network"):
        program.make_environment(tmp_path / "venv", tmp_path / REQUIREMENTS)
