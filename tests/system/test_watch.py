"""The live page on real Kafka and TorchServe; in Chromium, where that is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PubsubMessage
from kafka import KafkaAdminClient, KafkaProducer

from tests.conftest import missing
from tests.system.daemons import BOOT, drain, wait_until
from tests.system.test_pubsub import Site as PubSubSite
from tests.system.test_pubsub import make_site as make_pubsub_site
from tests.system.test_relay import PARTITIONS, Headers, Site
from tools.servers.process import ROOT, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.servers.kafka import Cluster
    from tools.servers.pubsub import Emulation
    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system

BROWSER = Path(os.environ.get("BROWSER_VENV", ROOT / "build" / "browser-venv")) / "bin" / "python"
HOSTILE = "<img src=x onerror=\"window.hacked='label'\">"
HOSTILE_REASON = "<script>window.hacked='reason'</script>"


@pytest.fixture
def site(kafka: Cluster, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(kafka=kafka, folder=tmp_path, stack=stack)
        made.create()
        yield made


@pytest.fixture
def pubsub_site(emulation: Emulation, tmp_path: Path) -> Iterator[PubSubSite]:
    with make_pubsub_site(emulation, tmp_path) as made:
        yield made


class Watching:
    """A `watch` that runs, and what its page says."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.url = ""
        self.lines: Iterator[bytes] = iter(())

    def start(self) -> None:
        def find_url() -> bool:
            found = re.search(r"live page: (\S+) ", self.process.tail())
            self.url = found[1] if found else ""
            return bool(found)

        wait_until(find_url)
        answer = requests.get(f"{self.url}events", stream=True, timeout=20)
        self.lines = answer.iter_lines(chunk_size=1)

    def read(self) -> dict[str, Any]:
        """Return the next snapshot."""
        line = next(line for line in self.lines if line.startswith(b"data: "))
        found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
        return found


@contextmanager
def watching(site: Site | PubSubSite, *flags: str) -> Iterator[Watching]:
    command = [sys.executable, "-m", "connectors", "watch", *(flags or site.flags())]
    command += ["--page-port", "0"]
    process = Process(command, site.folder / "watch.log", site.environment, ROOT).start()
    site.stack.callback(process.kill)
    found = Watching(process)
    found.start()
    yield found
    assert drain(process) == 0, process.tail()


def list_subscriptions(site: PubSubSite) -> set[str]:
    client = SubscriberClient(transport=SubscriberGrpcTransport(channel=site.channel))
    project = f"projects/{site.emulation.project}"
    return {one.name for one in client.list_subscriptions(project=project, timeout=30)}


def list_groups(site: Site) -> set[str]:
    admin = KafkaAdminClient(bootstrap_servers=site.kafka.bootstrap_servers)
    try:
        return {group["group_id"] for group in admin.list_groups()}
    finally:
        admin.close()


def send(site: Site, count: int) -> None:
    """Send ankle boots, and last a text."""
    records: list[tuple[int, bytes | None, bytes | None, Headers]] = [
        (n % PARTITIONS, b"boot %d" % n, BOOT, []) for n in range(count - 1)
    ]
    site.produce([*records, (0, b"a text", b"no image at all", [])])


def forge(site: Site) -> None:
    """Write a result and a dead letter as a stranger would who may."""
    producer = KafkaProducer(bootstrap_servers=site.kafka.bootstrap_servers)
    headers = [("label", HOSTILE.encode()), ("connector.reason", HOSTILE_REASON.encode())]
    forged = {"id": f"{site.name}/0/0", "class": HOSTILE, "label": HOSTILE, "top": [HOSTILE]}
    value = json.dumps(forged).encode()
    producer.send(site.topics[1], value, HOSTILE.encode(), headers, 0)
    producer.send(site.topics[2], HOSTILE.encode(), HOSTILE.encode(), headers, 0)
    producer.flush(20)
    producer.close(10)


def test_the_live_page_shows_lag_images_and_dead_letters_and_leaves_no_trace(
    site: Site, server: TorchServe
) -> None:
    send(site, 30)
    before = list_groups(site)
    with watching(site) as page:
        # A new broker first has to choose who keeps its groups.
        wait_until(lambda: page.read()["lag"] is not None)
        waiting = page.read()
        assert (waiting["lag"], waiting["members"]) == (30, 0)
        assert [one["lag"] for one in waiting["partitions"]] == [11, 10, 9]
        assert list_groups(site) == before
        daemon = site.daemon(server.url)
        wait_until(lambda: page.read()["counts"]["results"] == 29)
        wait_until(lambda: page.read()["lag"] == 0)
        done = page.read()
        assert {entry["label"] for entry in done["results"]} == {"Ankle boot"}
        image = requests.get(f"{page.url}image/{done['results'][0]['number']}", timeout=20)
        assert (image.content, image.headers["Content-Type"]) == (BOOT, "image/png")
        [dead] = done["dead_letters"]
        assert (dead["reason"], dead["name"], dead["id"]) == (
            "not_an_image",
            "a text",
            f"{site.name}/0/10",
        )
        assert done["latency"]["median"] > 0
        assert done["members"] == 1
        assert drain(daemon) == 0
    assert list_groups(site) == before | {site.name}
    with watching(site) as again:  # what was there before is shown, and not counted
        wait_until(lambda: again.read()["results"] and again.read()["dead_letters"])
        assert again.read()["counts"]["results"] == 0


def test_of_pubsub_the_live_page_shows_predictions_and_takes_none_away(
    pubsub_site: PubSubSite, server: TorchServe
) -> None:
    site = pubsub_site
    site.create()
    before = list_subscriptions(site)
    with watching(site, *site.flags()[:3], "--output-topic", site.topics[1]) as page:
        page.read()
        assert len(list_subscriptions(site)) == len(before) + 1
        site.publish([PubsubMessage(data=BOOT)] * 5)
        daemon = site.daemon(server.url)
        wait_until(lambda: page.read()["counts"]["results"] == 5)
        found = page.read()
        assert {entry["label"] for entry in found["results"]} == {"Ankle boot"}
        assert (found["lag"], found["members"]) == (None, None)
        assert drain(daemon) == 0
    assert len(site.read(site.topics[1], 5)) == 5
    assert list_subscriptions(site) == before


def test_a_person_sees_the_live_page_in_a_browser(
    site: Site, server: TorchServe, tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if not (chromium and BROWSER.exists()):
        missing("Chromium or its driver is missing: run `make programs browser-venv`")
    send(site, 30)
    with watching(site) as page:
        command: list[str | Path] = [
            BROWSER,
            ROOT / "tests" / "browser" / "look.py",
            chromium,
            page.url,
            tmp_path,
        ]
        errors = (tmp_path / "look.log").open("w")
        site.stack.callback(errors.close)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as look:
            site.stack.callback(look.kill)

            def show(name: str, change: Callable[[], object]) -> None:
                """Wait until the step is next, change what it is to see, and let it look."""
                assert look.stdin
                assert look.stdout
                said = look.stdout.readline().strip()
                assert said == name, (tmp_path / "look.log").read_text()
                change()
                look.stdin.write("\n")
                look.stdin.flush()

            show("backlog", lambda: None)
            show("results", lambda: site.daemon(server.url))
            show("hostile", lambda: forge(site))
            assert look.stdout
            said = look.stdout.read().strip()
            assert (look.wait(60), said) == (0, "seen"), (tmp_path / "look.log").read_text()
    assert len(list(tmp_path.glob("*-*.png"))) == 4
