"""What can be set for Pub/Sub, and what follows from what."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from connectors.brokers.pubsub.settings import (
    ListDeadPubSub,
    ListenPubSub,
    PubSubSettings,
    ReplayPubSub,
    RunPubSub,
    SendPubSub,
)
from connectors.command_line import load
from connectors.errors import Exit, Stop

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = ["--project", "mine"]
RUN = [*PROJECT, "--subscription", "images", "--output-topic", "predictions"]
TWO = "input_topic and dead_letter_topic must be different topics"
THREE = "input_topic, output_topic and dead_letter_topic must be different topics"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("CONNECTOR_", "GOOGLE_")):
            monkeypatch.delenv(name)


def loaded(*flags: str) -> RunPubSub:
    return load(RunPubSub, flags, "connectors")


def refusal(kind: type[PubSubSettings], *flags: str) -> str:
    with pytest.raises(Stop) as stop:
        load(kind, flags, "connectors")
    assert stop.value.code == Exit.USAGE
    assert "\n" not in str(stop.value)
    return str(stop.value)


def test_where_dead_letters_go_follows_from_the_subscription() -> None:
    settings = loaded(*RUN)
    assert settings.dead_letter_topic == "images-dead"
    assert settings.dead_letter_subscription == "images-dead"
    settings = loaded(*RUN, "--dead-letter-topic", "letters")
    assert settings.dead_letter_subscription == "letters"
    settings = loaded(*RUN, "--dead-letter-subscription", "shelf")
    assert (settings.dead_letter_topic, settings.dead_letter_subscription) == (
        "images-dead",
        "shelf",
    )


def test_nothing_is_made_unless_it_is_asked_for() -> None:
    settings = loaded(*RUN)
    assert (settings.create, settings.ack_deadline) == (False, 60)


def test_the_project_may_come_from_where_google_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "theirs")
    assert loaded(*RUN[2:]).project == "theirs"
    assert loaded(*RUN).project == "mine"
    monkeypatch.setenv("CONNECTOR_PROJECT", "ours")
    assert loaded(*RUN[2:]).project == "ours"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--subscription is required"),
        (RUN[:4], "--output-topic is required"),
        (RUN[2:], "project is required: give --project, or set GOOGLE_CLOUD_PROJECT"),
        ([*RUN, "--project", "projects/mine"], "--project: it is the project's id alone"),
        ([*RUN, "--subscription", "im"], "--subscription: an id begins with a letter"),
        ([*RUN, "--input-topic", "projects/p/topics/t"], "--input-topic: it is of the project p"),
        ([*RUN, "--ack-deadline", "9"], "--ack-deadline: input should be greater than or equal"),
        ([*RUN, "--ack-deadline", "601"], "--ack-deadline: input should be less than or equal"),
        ([*RUN, "--create"], "input_topic is needed by --create"),
        ([*RUN, "--input-topic", "predictions"], THREE),
        ([*RUN, "--dead-letter-topic", "predictions"], THREE),
        ([*RUN, "--group", "a"], "--group is unknown"),
    ],
)
def test_a_mistake_is_one_sentence(flags: list[str], sentence: str) -> None:
    assert sentence in refusal(RunPubSub, *flags)


def test_the_topic_of_the_subscription_need_not_be_told() -> None:
    assert loaded(*RUN).input_topic == ""
    assert loaded(*RUN, "--create", "--input-topic", "pictures").create


def test_each_verb_asks_for_what_it_needs_and_no_more() -> None:
    assert "--input-topic is required" in refusal(SendPubSub, *PROJECT, "--test-set")
    assert "--output-topic is required" in refusal(ListenPubSub, *PROJECT)
    assert "dead_letter_subscription is required" in refusal(ListDeadPubSub, *PROJECT)
    flags = [*PROJECT, "--dead-letter-subscription", "shelf"]
    dead_letters = load(ListDeadPubSub, flags, "connectors")
    assert (dead_letters.subscription, dead_letters.dead_letter_topic) == ("", "")


def test_a_replay_has_somewhere_to_go() -> None:
    flags = [*PROJECT, "--subscription", "images", "--name", "fix"]
    assert "--input-topic is required" in refusal(ReplayPubSub, *flags)
    back = ["--input-topic", "images-dead"]
    assert TWO in refusal(ReplayPubSub, *flags, *back)
    assert load(ReplayPubSub, [*flags, "--input-topic", "images"], "connectors").name == "fix"


def test_one_file_serves_both_brokers(tmp_path: Path) -> None:
    file = tmp_path / "connector.toml"
    file.write_text("group = 'readers'\npack = 5\nproject = 'ours'\n[kafka]\nclient_id = 'a'\n")
    settings = loaded(*RUN[2:], "--config", str(file))
    assert (settings.project, settings.pack) == ("ours", 5)


@pytest.mark.parametrize("name", ["images", "im-1.x~%", "projects", "subscriptions"])
@pytest.mark.parametrize("by", ["flag", "variable", "file"])
def test_a_whole_name_is_taken_as_its_id(
    name: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "subscription": f"projects/mine/subscriptions/{name}",
        "output_topic": "projects/mine/topics/predictions",
        "dead_letter_topic": f"projects/mine/topics/{name}-dead",
        "dead_letter_subscription": f"projects/mine/subscriptions/{name}-kept",
    }
    flags = [*PROJECT]
    if by == "flag":
        flags += [f"--{key.replace('_', '-')}={text}" for key, text in names.items()]
    elif by == "variable":
        for key, text in names.items():
            monkeypatch.setenv(f"CONNECTOR_{key.upper()}", text)
    else:
        file = tmp_path / "connector.toml"
        file.write_text("".join(f'{key} = "{text}"\n' for key, text in names.items()))
        flags += ["--config", str(file)]
    settings = loaded(*flags)
    assert (settings.subscription, settings.output_topic) == (name, "predictions")
    assert settings.dead_letter_topic == f"{name}-dead"
    assert settings.dead_letter_subscription == f"{name}-kept"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("projects/mine/topics/images", "it is one of the topics; one of the subscriptions"),
        ("projects/other/subscriptions/images", "it is of the project other, and --project is"),
        ("projects/mine/subscriptions/", "an id begins with a letter"),
        ("projects/mine/snapshots/images", "an id begins with a letter"),
        ("/projects/mine/subscriptions/images", "an id begins with a letter"),
        ("projects/mine/subscriptions/1x", "an id begins with a letter"),
    ],
)
def test_a_whole_name_of_something_else_is_a_sentence(name: str, sentence: str) -> None:
    refused = refusal(RunPubSub, *PROJECT, "--subscription", name, "--output-topic", "predictions")
    assert refused.startswith(f"--subscription: {sentence}")
