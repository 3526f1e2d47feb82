"""A daemon that gives up under a supervisor that starts it again at once, on a real Kafka."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest
import requests
from kafka import KafkaAdminClient, TopicPartition

from tests.system.daemons import drain, wait_for_exit, wait_until
from tests.system.test_relay import Site
from tools.servers.process import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tools.servers.kafka import Cluster
    from tools.servers.process import Process

pytestmark = pytest.mark.system

HELD = 64
"""Records that are held at once: two such windows are beyond the limit of dead letters in a row."""


@pytest.fixture
def spoiled(kafka: Cluster, tmp_path: Path) -> Iterator[Site]:
    """A topic whose records are all empty."""
    with ExitStack() as stack:
        made = Site(kafka=kafka, folder=tmp_path, stack=stack)
        made.create(1)
        made.produce([(0, None, b"", [])] * 500)
        yield made


def start(site: Site, *flags: str) -> Process:
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}/"
    return site.daemon(nobody, "--window", str(HELD), *flags)


def look_at_group(site: Site) -> tuple[Sequence[object], int]:
    """Return the members of the daemons' group, and its offset."""
    with closing(KafkaAdminClient(bootstrap_servers=site.kafka.plain_servers)) as admin:
        members = admin.describe_groups([site.name])[site.name]["members"]
        offsets = admin.list_group_offsets([site.name])[site.name]
    return members, offsets[TopicPartition(site.name, 0)].offset


def test_a_supervisor_that_starts_it_again_at_once_gets_no_more_dead_letters_of_who_parks(
    spoiled: Site,
) -> None:
    for starts in (1, 2):  # who does not park makes more of them at each start
        assert wait_for_exit(start(spoiled)) == 78
        assert look_at_group(spoiled)[1] == starts * HELD
    (port,) = free_ports(1)
    daemon = start(spoiled, "--when-given-up", "park", "--metrics-port", str(port))

    def fetch(page: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{port}/{page}", timeout=10)

    wait_until(lambda: "Parked" in daemon.tail())
    wait_until(lambda: "given up" in fetch("readyz").text)
    assert (fetch("readyz").status_code, fetch("livez").status_code) == (503, 200)
    assert "connector_given_up 1.0" in fetch("metrics").text
    # Nobody is in the group, so nobody can commit, and what starts what has ended has no work.
    assert (look_at_group(spoiled), daemon.alive()) == (([], 3 * HELD), True)
    assert drain(daemon) == 0
    assert look_at_group(spoiled) == ([], 3 * HELD)
    assert len(spoiled.read(spoiled.topics[2], 3 * HELD)) == 3 * HELD
