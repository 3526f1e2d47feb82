"""Where Google's emulator of Pub/Sub is looked for, and what it leaves behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing
from tools.servers import pubsub as stack_pubsub
from tools.servers.process import StackError
from tools.servers.pubsub import HOST, PROGRAM, WITHIN_SDK, Emulation, Emulator, pubsub

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _machine_without_google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR", raising=False)
    monkeypatch.delenv(HOST, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(stack_pubsub, "PACKAGED", tmp_path / "packaged")


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return path


def test_the_emulator_that_is_named_goes_before_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = executable(tmp_path / "home" / "google-cloud-sdk" / WITHIN_SDK)
    assert stack_pubsub.program() == home
    packaged = executable(tmp_path / "packaged" / WITHIN_SDK)
    assert stack_pubsub.program() == packaged
    gcloud = executable(tmp_path / "sdk" / "bin" / "gcloud")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").symlink_to(gcloud)
    beside_gcloud = executable(tmp_path / "sdk" / WITHIN_SDK)
    assert stack_pubsub.program() == beside_gcloud
    on_path = executable(tmp_path / "bin" / PROGRAM)
    assert stack_pubsub.program() == on_path
    named = executable(tmp_path / "mine")
    monkeypatch.setenv("PUBSUB_EMULATOR", str(named))
    assert stack_pubsub.program() == named


def test_without_an_emulator_one_sentence_says_how_to_get_it() -> None:
    with pytest.raises(StackError) as error:
        stack_pubsub.program()
    for way in ("google-cloud-cli-pubsub-emulator", "gcloud components install", "PUBSUB_EMULATOR"):
        assert way in str(error.value)
    assert "\n" not in str(error.value)


def test_a_named_emulator_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR", "/nowhere")
    with pytest.raises(StackError, match="PUBSUB_EMULATOR=/nowhere is no program"):
        stack_pubsub.program()


def test_an_emulator_of_the_user_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOST, "localhost:1")
    with pubsub() as found:
        assert type(found) is Emulation
        assert (found.host, found.environment) == ("localhost:1", {HOST: "localhost:1"})


def test_an_emulator_that_ends_at_once_shows_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = executable(tmp_path / "mine")
    broken.write_text("#!/bin/sh\necho no luck today\n")
    monkeypatch.setenv("PUBSUB_EMULATOR", str(broken))
    monkeypatch.setattr(stack_pubsub, "java_environment", lambda: dict(os.environ))
    emulator = Emulator()
    with pytest.raises(StackError, match="no luck today"), emulator:
        pass
    assert not emulator.folder.exists()


@pytest.mark.system
def test_the_emulator_answers_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    try:
        with Emulator() as emulator:
            emulator.create_topic("images")
            emulator.create_subscription("images", "images", enable_exactly_once_delivery=True)
            assert emulator.topics() == ["images"]
    except StackError as error:
        missing(str(error))
    assert not emulator.process.alive()
    assert not emulator.folder.exists()
