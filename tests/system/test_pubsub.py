"""The daemon as an operator runs it: Pub/Sub's emulator, real TorchServe, signals, exit codes."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.api_core.exceptions import DeadlineExceeded
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PubsubMessage

from tests.chaos.answers import AnswerProxy, serve
from tests.chaos.brokers.pubsub.testbed import PubSubCase as Case
from tests.chaos.brokers.pubsub.testbed import PubSubTestbed
from tests.chaos.runner import run_case
from tests.chaos.testbed import Service, ask_classes
from tests.system.daemons import BOOT, Daemons, drain, png, wait_for_exit
from tests.test_asyncapi import find_message, find_record_faults
from tools.exported import classes, first_images, first_labels
from tools.schemas import find_faults, load_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tools.servers.pubsub import Emulation
    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system

AT_ONCE = 500  # messages of one request
LOOK = 1.0  # seconds that one pull waits


class Seen(NamedTuple):
    """One message, as a subscriber finds it."""

    id: str
    key: str
    value: bytes
    attributes: Mapping[str, str]

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.value)
        return found


@dataclass(kw_only=True)
class Site(Daemons):
    """Three new topics, each with a subscription of its name, and the daemons between them."""

    emulation: Emulation
    channel: grpc.Channel

    @property
    def topics(self) -> tuple[str, str, str]:
        return self.name, f"{self.name}-out", f"{self.name}-dead"

    def create(self, **of_subscription: Any) -> None:  # noqa: ANN401 - see `create_subscription`
        for topic in self.topics:
            self.emulation.create_topic(topic)
            self.emulation.create_subscription(topic, topic, **of_subscription)

    def flags(self) -> Sequence[str]:
        images, predictions, dead = self.topics
        topics = ["--output-topic", predictions, "--dead-letter-topic", dead]
        return ["pubsub", "--project", self.emulation.project, "--subscription", images, *topics]

    def publish(self, messages: Sequence[PubsubMessage]) -> list[str]:
        """Return the ids that they got."""
        client = PublisherClient(transport=PublisherGrpcTransport(channel=self.channel))
        topic = self.emulation.topic(self.name)
        ids: list[str] = []
        for begin in range(0, len(messages), AT_ONCE):
            ids += client.publish(
                topic=topic, messages=list(messages[begin : begin + AT_ONCE]), timeout=30
            ).message_ids
        return ids

    def read(self, subscription: str, want: int, within: float = 60.0) -> list[Seen]:
        """Take messages away: `want` of them, and what comes too much."""
        client = SubscriberClient(transport=SubscriberGrpcTransport(channel=self.channel))
        path, deadline = self.emulation.subscription(subscription), time.monotonic() + within
        found: list[Seen] = []
        while True:
            batch = pulled(client, path)
            found += batch
            if not batch and len(found) >= want:
                return found
            assert time.monotonic() < deadline, f"{len(found)} of {want} in time\n{self.words()}"


def pulled(client: SubscriberClient, path: str) -> list[Seen]:
    with suppress(DeadlineExceeded):
        found = client.pull(
            subscription=path, max_messages=AT_ONCE, retry=None, timeout=LOOK
        ).received_messages
        if found:
            acknowledged = [one.ack_id for one in found]
            client.acknowledge(subscription=path, ack_ids=acknowledged, timeout=30)
        messages = (one.message for one in found)
        return [Seen(m.message_id, m.ordering_key, m.data, dict(m.attributes)) for m in messages]
    return []


@contextmanager
def make_site(emulation: Emulation, folder: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(emulation.host))
        environment = {**os.environ, **emulation.environment}
        yield Site(
            emulation=emulation,
            channel=channel,
            folder=folder,
            stack=stack,
            environment=environment,
        )


@pytest.fixture
def site(emulation: Emulation, tmp_path: Path) -> Iterator[Site]:
    with make_site(emulation, tmp_path) as made:
        yield made


def test_all_test_images_go_through_with_keys_and_attributes_and_as_the_model_says(
    site: Site, server: TorchServe
) -> None:
    site.create()
    images = [png(image) for image in first_images(1_000)]
    ids = site.publish(
        [PubsubMessage(data=image, attributes={"index": str(i)}) for i, image in enumerate(images)]
    )
    daemon = site.daemon(server.url)
    seen = site.read(site.topics[1], 1_000)
    assert sorted(one.result["id"] for one in seen) == sorted(f"{site.name}/{one}" for one in ids)
    served = {int(one.attributes["index"]): one.result["class"] for one in seen}
    offline = classes(first_images(1_000))
    assert [served[i] for i in range(1_000)] == offline.tolist()
    accuracy = np.mean([served[i] == label for i, label in enumerate(first_labels(1_000))])
    assert accuracy == np.mean(offline == first_labels(1_000))
    assert drain(daemon) == 0
    assert site.read(site.topics[2], 0) == []


def test_one_unreadable_image_in_a_pack_is_the_only_dead_letter(
    site: Site, server: TorchServe
) -> None:
    site.create()
    bad = PubsubMessage(
        data=b"\x89PNG but not really",
        ordering_key="the bad one",
        attributes={"content-type": "image/png", "mine": "ü"},
    )
    boots = [PubsubMessage(data=BOOT) for _ in range(63)]
    (identity,) = (site.publish(boots[:30]), site.publish([bad]), site.publish(boots[30:]))[1]
    site.daemon(server.url, "--pack", "64")
    results = site.read(site.topics[1], 63)
    assert [one.result["label"] for one in results] == ["Ankle boot"] * 63
    (letter,) = site.read(site.topics[2], 1)
    assert [find_faults(one.result, load_schema("result")) for one in results] == [[]] * 63
    assert find_faults(dict(letter.attributes), load_schema("dead-letter-headers")) == []
    assert (letter.value, letter.key) == (bad.data, bad.ordering_key)
    assert letter.attributes.items() >= dict(bad.attributes).items()
    assert letter.attributes["connector.reason"] == "not_an_image"
    assert letter.attributes["connector.id"] == f"{site.name}/{identity}"
    assert letter.attributes["__connect.errors.topic"] == site.name
    assert letter.attributes["__connect.errors.offset"] == identity


def test_events_come_out_as_events_and_a_dead_one_stays_the_one_that_it_was(
    site: Site, server: TorchServe
) -> None:
    site.create()
    event = {
        "ce-specversion": "1.0",
        "ce-type": "com.example.photo",
        "ce-source": "/camera/7",
        "ce-id": "photo-1",
        "ce-datacontenttype": "image/png",
    }
    site.publish([PubsubMessage(data=BOOT, attributes=event)])
    site.publish([PubsubMessage(data=b"no image", attributes=event)])
    site.daemon(server.url, "--format", "cloudevents")
    (result,) = site.read(site.topics[1], 1)
    message = find_message("sendResultEvents", 1)
    assert find_record_faults(message, dict(result.attributes), result.result) == []
    assert result.attributes["ce-source"] == f"/fmnist/{site.name}"
    assert result.attributes["ce-causationid"] == "photo-1"
    (dead,) = site.read(site.topics[2], 1)
    assert dead.attributes.items() >= event.items()
    assert dead.attributes["connector.reason"] == "not_an_image"


def test_who_is_asked_to_stop_publishes_what_it_can_and_gives_back_the_rest(
    site: Site, server: TorchServe
) -> None:
    site.create(ack_deadline=600, ordering=False)
    with serve(AnswerProxy(server.url, delay=0.3)) as slow:
        site.publish([PubsubMessage(data=BOOT) for _ in range(1_000)])
        narrow = ["--pack", "20", "--in-flight", "2", "--drain-limit", "1"]
        daemon = site.daemon(slow.url, *narrow, "--ack-deadline", "600")
        first = site.read(site.topics[1], 1)
        assert drain(daemon) == 0
    first += site.read(site.topics[1], 0)
    assert 0 < len(first) < 1_000
    site.daemon(server.url)  # at once, not when the leases of ten minutes are over
    rest = site.read(site.topics[1], 1_000 - len(first))
    assert len({one.result["id"] for one in first + rest}) == len(first + rest) == 1_000


def test_a_service_without_workers_costs_time_and_nothing_else(
    site: Site, server: TorchServe
) -> None:
    site.create()
    with serve(AnswerProxy(server.url)) as proxy:
        proxy.order("503", 30)
        site.publish([PubsubMessage(data=BOOT) for _ in range(300)])
        site.daemon(proxy.url)
        assert len(site.read(site.topics[1], 300)) == 300
        assert proxy.given == {"503": 30}
    assert site.read(site.topics[2], 0) == []


def test_what_is_missing_is_named_and_not_created(site: Site, server: TorchServe) -> None:
    site.create()
    flags = ("--subscription", "--output-topic", "--dead-letter-topic")
    daemons = [site.daemon(server.url, flag, f"no{flag}") for flag in flags]
    for flag, daemon in zip(flags, daemons, strict=True):
        assert wait_for_exit(daemon, 60) == 69
        assert f"no{flag}" in daemon.tail()
        assert len(daemon.tail().splitlines()) == 1
    assert not {f"no{flag}" for flag in flags} & set(site.emulation.topics())


SEED = 6  # strikes in the middle of the load
CASES = [
    Case(name="kills", duration=8.0, rate=300.0, counts={"relay killed": 3}, seed=SEED),
    Case(name="keys", duration=8.0, rate=50.0, keys=25, counts={"relay killed": 2}, seed=SEED),
    Case(name="cuts", duration=6.0, rate=200.0, relays=1, counts={"stream cut": 2}, seed=SEED),
    # Each message is held for 20 s, some for 40, with leases of 10 s.
    Case(
        name="slow",
        duration=0.2,
        rate=500.0,
        relays=1,
        delay=20.0,
        flags=("--in-flight", "16", "--timeout", "60"),
        once=True,
        counts={},
    ),
]


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_lost_and_doubles_have_equal_ids_through(
    case: Case, server: TorchServe, tmp_path: Path
) -> None:
    service = Service(server, ask_classes(server))
    report = run_case(partial(PubSubTestbed.open, case, service, tmp_path), print)
    assert report.passed, report.render()
