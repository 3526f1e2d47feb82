"""Google's emulator of Pub/Sub: what --create makes, dead letters and their way back, checks."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import pytest
from google.cloud.pubsub_v1 import SubscriberClient
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.types import DeadLetterPolicy, ExpirationPolicy, PubsubMessage, PushConfig

from connectors import codec
from connectors.brokers.pubsub import admin as operations
from connectors.brokers.pubsub.broker import PubSubBroker
from connectors.brokers.pubsub.settings import (
    CheckPubSub,
    ListDeadPubSub,
    ReplayPubSub,
    ShowDeadPubSub,
)
from connectors.commands import dlq, doctor
from connectors.errors import Exit, Stop
from connectors.records import Advice, Ok, Prediction, Rejection, Settled, Skipped
from tests.conftest import missing
from tools.servers.process import StackError, free_ports
from tools.servers.pubsub import HOST, Emulation, pubsub

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from connectors.records import Record

pytestmark = pytest.mark.system

NUMBERS = count()
Reason = Literal["failed", "empty"]


@pytest.fixture(scope="module")
def emulation() -> Iterator[Emulation]:
    with pytest.MonkeyPatch.context() as variables:
        try:
            with pubsub() as found:
                variables.setenv(HOST, found.host)
                variables.setattr(operations, "PULL_TIMEOUT", 1.5)  # nothing is far here
                yield found
        except StackError as error:
            missing(str(error))


@pytest.fixture
def asked(emulation: Emulation) -> dict[str, Any]:
    """What is asked for; none of it is there yet."""
    name = f"images-{next(NUMBERS)}"
    return {
        "project": emulation.project,
        "subscription": name,
        "input_topic": name,
        "output_topic": f"{name}-out",
        "output_subscription": f"{name}-out",
        "ack_deadline": 10,
    }


@pytest.fixture
def site(asked: dict[str, Any]) -> dict[str, Any]:
    """What is asked for; all of it is there."""
    operations.create(CheckPubSub(**asked))
    return asked


@pytest.fixture
def service(emulation: Emulation) -> Iterator[SubscriberClient]:
    assert emulation
    with SubscriberClient() as client:
        yield client


def send(emulation: Emulation, topic: str, *messages: PubsubMessage) -> None:
    client = PublisherClient()
    for message in messages:
        client.publish(topic=emulation.topic(topic), messages=[message], timeout=10)
    client.transport.close()  # type: ignore[no-untyped-call]


def bury(emulation: Emulation, site: dict[str, Any], *reasons: Reason) -> None:
    """One dead letter for each reason, of one key, by way of the daemon's broker."""
    for number, _ in enumerate(reasons):
        own = {"own": str(number), "timeout": "a name that clients of Pub/Sub trip over"}
        message = PubsubMessage(data=b"image %d" % number, attributes=own, ordering_key="key")
        send(emulation, site["input_topic"], message)
    broker = PubSubBroker(CheckPubSub(**site), codec.encode)
    for reason in reasons:  # of one key, one at a time
        (record,) = taken(broker)
        broker.commit([Settled(record, Rejection(reason, "why", 503, 3))])
    broker.close()


def taken(broker: PubSubBroker) -> Sequence[Record]:
    found: Sequence[Record] = []
    while not found:
        found = broker.poll(10, 10.0)
    return found


def dead_letters(site: dict[str, Any], **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - any field
    """What `dlq list --json` says."""
    settings = ListDeadPubSub(**site, json_lines=True, **more)
    return [
        json.loads(line) for line in dlq.list_(settings, operations.open_dead_letters(settings))
    ]


def count_replayed(site: dict[str, Any], name: str, **more: Any) -> dict[str, int]:  # noqa: ANN401 - any field
    settings = ReplayPubSub(**site, name=name, **more)
    replay = operations.open_replay(settings, dlq.encode)
    return {
        str(disposition): number for disposition, number in dlq.send_back(settings, replay).items()
    }


def waiting(emulation: Emulation, service: SubscriberClient, name: str) -> list[PubsubMessage]:
    """What comes from a subscription until nothing more does; of a key all of it."""
    found: list[PubsubMessage] = []
    while True:
        pulled = service.pull(
            subscription=emulation.subscription(name), max_messages=100, timeout=2.0
        ).received_messages
        if not pulled:
            return found
        found += [one.message for one in pulled]
        ids = [one.ack_id for one in pulled]
        service.acknowledge(subscription=emulation.subscription(name), ack_ids=ids)


# What is missing


def test_what_is_missing_is_made_once(
    emulation: Emulation, asked: dict[str, Any], service: SubscriberClient
) -> None:
    name = asked["subscription"]
    for _ in range(2):
        operations.ensure_resources(CheckPubSub(**asked, create=True))
    assert {name, f"{name}-out", f"{name}-dead"} <= set(emulation.topics())
    made = {
        each: service.get_subscription(subscription=emulation.subscription(each))
        for each in (name, f"{name}-out", f"{name}-dead")
    }
    assert {each: one.topic for each, one in made.items()} == {
        each: emulation.topic(each) for each in made
    }
    assert [one.enable_message_ordering for one in made.values()] == [True, True, False]
    assert {one.ack_deadline_seconds for one in made.values()} == {10}
    assert not any(one.expiration_policy.ttl for one in made.values())


def test_without_being_asked_nothing_is_made(emulation: Emulation, asked: dict[str, Any]) -> None:
    before = set(emulation.topics())
    with pytest.raises(Stop, match=r"topic images-\d+ is not there: .* --create") as stop:
        operations.ensure_resources(CheckPubSub(**asked))
    assert stop.value.code is Exit.UNAVAILABLE
    assert set(emulation.topics()) == before


@pytest.mark.parametrize("lost", ["", "-out", "-dead"])
def test_a_missing_subscription_is_told(
    emulation: Emulation, site: dict[str, Any], service: SubscriberClient, lost: str
) -> None:
    name = f"{site['subscription']}{lost}"
    service.delete_subscription(subscription=emulation.subscription(name))
    with pytest.raises(Stop, match=f"subscription {name} is not there") as stop:
        operations.ensure_resources(CheckPubSub(**site))
    assert stop.value.code is Exit.UNAVAILABLE


def test_a_sender_is_asked_for_its_topic_only(emulation: Emulation, asked: dict[str, Any]) -> None:
    names = ("project", "input_topic")
    operations.create(
        ListDeadPubSub(**{n: asked[n] for n in names}, dead_letter_subscription="abc")
    )
    assert asked["input_topic"] in emulation.topics()


# What a subscription must be


def untold(site: dict[str, Any]) -> dict[str, Any]:
    """The same, but for the topic of the subscription, which need not be said."""
    return {name: value for name, value in site.items() if name != "input_topic"}


def test_a_subscription_of_another_topic_is_refused(
    emulation: Emulation, site: dict[str, Any]
) -> None:
    other = site | {"input_topic": f"{site['input_topic']}-other"}
    emulation.create_topic(other["input_topic"])
    with pytest.raises(Stop, match=r"is one of .*, not of .*-other") as stop:
        operations.ensure_resources(CheckPubSub(**other))
    assert stop.value.code is Exit.USAGE
    operations.ensure_resources(CheckPubSub(**untold(other)))


def test_a_subscription_whose_topic_is_gone_is_refused(
    emulation: Emulation, site: dict[str, Any]
) -> None:
    client = PublisherClient()
    client.delete_topic(topic=emulation.topic(site["input_topic"]))
    client.transport.close()  # type: ignore[no-untyped-call]
    with pytest.raises(Stop, match="was deleted"):
        operations.ensure_resources(CheckPubSub(**untold(site)))


def test_a_subscription_that_pushes_is_refused(
    emulation: Emulation, site: dict[str, Any], service: SubscriberClient
) -> None:
    push = PushConfig(push_endpoint="https://example.com/push")
    path = emulation.subscription(site["subscription"])
    service.modify_push_config(subscription=path, push_config=push)
    with pytest.raises(Stop, match="cannot be pulled from") as stop:
        operations.ensure_resources(CheckPubSub(**site))
    assert stop.value.code is Exit.USAGE


# Dead letters


def test_each_letter_is_listed_with_the_id_of_its_source(
    emulation: Emulation, site: dict[str, Any]
) -> None:
    bury(emulation, site, "failed", "empty")
    *found, counts = dead_letters(site)
    assert counts == {"dead_letters": 2, "reasons": {"failed": 1, "empty": 1}}
    name = site["subscription"]
    assert all(one["id"].startswith(f"{name}/") for one in found)
    assert all(one["record"].startswith(f"{name}-dead/") for one in found)
    assert {one["key"] for one in found} == {"key"}


def test_looking_takes_nothing_away(emulation: Emulation, site: dict[str, Any]) -> None:
    bury(emulation, site, "failed", "failed", "failed")
    assert [dead_letters(site)[-1]["dead_letters"] for _ in range(2)] == [3, 3]
    assert dead_letters(site, limit=1)[-1]["dead_letters"] == 1
    assert dead_letters(site)[-1]["dead_letters"] == 3


def test_nobody_else_sees_what_is_looked_at(emulation: Emulation, site: dict[str, Any]) -> None:
    bury(emulation, site, "failed")
    settings = ListDeadPubSub(**site)
    mine, others = operations.open_dead_letters(settings), operations.open_dead_letters(settings)
    assert len(mine.read(0)) == 1
    assert (list(others.read(0)), others.exhausted()) == ([], True)
    mine.close()
    assert len(others.read(0)) == 1
    others.close()


def test_a_letter_is_held_for_the_longest_that_pubsub_gives(
    emulation: Emulation, site: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert operations.LEASE == 600
    bury(emulation, site, "failed")
    settings = ListDeadPubSub(**site)
    mine, others = operations.open_dead_letters(settings), operations.open_dead_letters(settings)
    monkeypatch.setattr(operations, "LEASE", 0)  # over at once, if it is what was asked for
    assert [len(one.read(0)) for one in (mine, others)] == [1, 1]
    mine.close()
    others.close()


def test_the_value_of_one_letter_is_written_to_a_file(
    emulation: Emulation,
    site: dict[str, Any],
    tmp_path: Any,  # noqa: ANN401
) -> None:
    bury(emulation, site, "failed", "failed")
    file = tmp_path / "image"
    settings = ShowDeadPubSub(**site, where=["header.own=1"], output=file)
    assert list(dlq.show(settings, operations.open_dead_letters(settings))) == []
    assert file.read_bytes() == b"image 1"


def test_more_letters_than_can_be_held_are_refused(
    emulation: Emulation, site: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(emulation, site, "failed", "failed")
    monkeypatch.setattr(operations, "MAX_HELD", 1)
    with pytest.raises(Stop, match="more than 1 dead letters"):
        dead_letters(site)


def test_letters_that_are_nowhere_are_told(site: dict[str, Any]) -> None:
    settings = ListDeadPubSub(**site | {"dead_letter_subscription": "nowhere"})
    with pytest.raises(Stop, match="subscription nowhere is not there") as stop:
        operations.open_dead_letters(settings)
    assert stop.value.code is Exit.UNAVAILABLE


# Replay


def test_a_replay_brings_back_what_came_and_takes_it_out(
    emulation: Emulation, site: dict[str, Any], service: SubscriberClient
) -> None:
    bury(emulation, site, "failed", "empty", "failed")
    assert count_replayed(site, "fix", where=["reason=failed"]) == {"sent": 2, "others": 1}
    back = waiting(emulation, service, site["subscription"])
    assert [one.data for one in back] == [b"image 0", b"image 2"]
    assert {one.ordering_key for one in back} == {"key"}
    assert dict(back[0].attributes) == {
        "own": "0",
        "timeout": "a name that clients of Pub/Sub trip over",
        "connector.replay": "fix",
    }
    assert dead_letters(site)[-1] == {"dead_letters": 1, "reasons": {"empty": 1}}


def test_a_dry_run_sends_nothing_and_takes_nothing(
    emulation: Emulation, site: dict[str, Any], service: SubscriberClient
) -> None:
    bury(emulation, site, "failed")
    assert count_replayed(site, "fix", dry_run=True) == {"sent": 1}
    assert waiting(emulation, service, site["subscription"]) == []
    assert dead_letters(site)[-1]["dead_letters"] == 1


def test_a_replay_ends_at_its_limit(emulation: Emulation, site: dict[str, Any]) -> None:
    bury(emulation, site, "failed", "failed", "failed")
    assert count_replayed(site, "fix", limit=2) == {"sent": 2}
    assert dead_letters(site)[-1]["dead_letters"] == 1


def test_what_comes_back_dead_is_not_sent_again_under_the_same_name(
    emulation: Emulation, site: dict[str, Any]
) -> None:
    dead_letter = PubsubMessage(data=b"image", attributes={"connector.replay": "fix"})
    send(emulation, f"{site['subscription']}-dead", dead_letter)
    assert count_replayed(site, "fix") == {}
    assert count_replayed(site, "again") == {"sent": 1}


def test_what_cannot_be_sent_stays(emulation: Emulation, site: dict[str, Any]) -> None:
    bury(emulation, site, "failed")
    settings = ReplayPubSub(**site, name="fix")
    replay = operations.open_replay(settings, dlq.encode)
    (dead_letter,) = replay.poll(10, 0)
    client = PublisherClient()
    client.delete_topic(topic=emulation.topic(site["input_topic"]))
    client.transport.close()  # type: ignore[no-untyped-call]
    with pytest.raises(Stop, match="something is missing") as stop:
        replay.commit([Settled(dead_letter, Prediction({"replay": "fix"}))])
    assert stop.value.code is Exit.UNAVAILABLE
    replay.close()
    assert dead_letters(site)[-1]["dead_letters"] == 1


def test_what_is_skipped_is_held_until_the_end(emulation: Emulation, site: dict[str, Any]) -> None:
    bury(emulation, site, "failed")
    settings = ReplayPubSub(**site, name="fix")
    replay = operations.open_replay(settings, dlq.encode)
    (dead_letter,) = replay.poll(10, 0)
    replay.commit([Settled(dead_letter, Skipped())])
    assert (list(replay.poll(10, 0)), replay.exhausted()) == ([], True)
    replay.close()
    assert dead_letters(site)[-1]["dead_letters"] == 1


# Checks


def run_all_checks(site: dict[str, Any], **more: Any) -> dict[str, Ok | Advice]:  # noqa: ANN401 - any field
    """What each check says."""
    settings = CheckPubSub(**site, **more)
    return {name: ask() for name, ask in operations.list_all_checks(settings)}


def test_a_site_that_create_made_needs_no_advice(site: dict[str, Any]) -> None:
    found = run_all_checks(site)
    assert not any(isinstance(one, Advice) for one in found.values())
    assert found["broker"].text.startswith("the emulator at ")
    assert found["topics"].text.startswith(site["input_topic"])
    assert "at least once" in found["delivery"].text
    assert "within 10 s" in found["delivery"].text
    assert found["policy"].text.startswith("none")
    assert found["letters"].text == "kept for 7 days"


def test_what_create_would_make_is_told(emulation: Emulation, asked: dict[str, Any]) -> None:
    found = run_all_checks(asked, create=True)
    name = asked["subscription"]
    assert found["topics"].text.endswith(f"--create would make {name}, {name}-out, {name}-dead")
    assert found["subscriptions"].text.endswith(
        f"--create would make {name}, {name}-dead, {name}-out"
    )
    assert not {name, f"{name}-out", f"{name}-dead"} & set(emulation.topics())


def test_what_is_missing_fails_and_the_rest_waits(asked: dict[str, Any]) -> None:
    found = doctor.run_checks(operations.list_checks(CheckPubSub(**asked)))
    assert [one.result for one in found] == ["ok", "failed", "skipped"]


def anew(
    emulation: Emulation,
    service: SubscriberClient,
    site: dict[str, Any],
    **fields: Any,  # noqa: ANN401 - any field
) -> None:
    """The subscription with the images, made otherwise."""
    name = site["subscription"]
    service.delete_subscription(subscription=emulation.subscription(name))
    emulation.create_subscription(name, site["input_topic"], **fields)


def test_a_subscription_without_ordering_is_advised_against(
    emulation: Emulation, site: dict[str, Any], service: SubscriberClient
) -> None:
    anew(emulation, service, site, ordering=False)
    assert isinstance(run_all_checks(site)["ordering"], Advice)


def test_confirmed_acknowledgements_are_told(
    emulation: Emulation, site: dict[str, Any], service: SubscriberClient
) -> None:
    anew(emulation, service, site, enable_exactly_once_delivery=True)
    assert "acknowledgements are confirmed" in run_all_checks(site)["delivery"].text


@pytest.mark.parametrize(("attempts", "advised"), [(5, True), (20, False)])
def test_a_policy_with_few_attempts_is_advised_against(
    emulation: Emulation,
    site: dict[str, Any],
    service: SubscriberClient,
    attempts: int,
    advised: bool,  # noqa: FBT001 - a case
) -> None:
    letters_go = emulation.topic(f"{site['subscription']}-dead")
    policy = DeadLetterPolicy(dead_letter_topic=letters_go, max_delivery_attempts=attempts)
    anew(emulation, service, site, dead_letter_policy=policy)
    found = run_all_checks(site)["policy"]
    assert isinstance(found, Advice) is advised
    assert str(attempts) in found.text


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"ordering": True}, "may miss later dead letters of a key"),
        (
            {
                "ordering": False,
                "expiration_policy": ExpirationPolicy(ttl={"seconds": 31 * 86_400}),
            },
            "31 days",
        ),
    ],
)
def test_letters_that_could_be_hidden_or_lost_are_told(
    emulation: Emulation,
    site: dict[str, Any],
    service: SubscriberClient,
    fields: dict[str, Any],
    advice: str,
) -> None:
    name = f"{site['subscription']}-dead"
    service.delete_subscription(subscription=emulation.subscription(name))
    emulation.create_subscription(name, name, **fields)
    found = run_all_checks(site)["letters"]
    assert isinstance(found, Advice)
    assert advice in found.text


def test_a_service_that_is_not_there_is_one_sentence(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOST, f"127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setattr(operations, "RETRY", None)
    with pytest.raises(Stop, match="does not answer") as stop:
        dict(operations.list_checks(CheckPubSub(**asked)))["broker"]()
    assert stop.value.code is Exit.UNAVAILABLE
    assert "\n" not in str(stop.value)
