"""The dashboard over a real relay: Kafka, TorchServe, and a Prometheus that scrapes the daemon."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from connectors.drift import WINDOW
from tests.deploy.prometheus import ask, find_silent_queries, list_queries, run_prometheus
from tests.system.daemons import wait_until
from tests.system.test_relay import Site, pictures
from tools.servers.process import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.servers.kafka import Cluster
    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system


@pytest.fixture
def site(kafka: Cluster, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(kafka=kafka, folder=tmp_path, stack=stack)
        made.create()
        yield made


def test_each_query_of_the_dashboard_has_data_of_a_real_relay(
    site: Site, server: TorchServe, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with run_prometheus(tmp_path, port) as url:
        site.daemon(
            server.url, "--metrics-port", str(port), "--baseline-url", server.description_url
        )
        # A rate needs a scrape before the first record.
        wait_until(lambda: ask(url, "connector_info") and ask(url, "sum(connector_lag_records)"))
        site.produce(pictures(WINDOW + 500))
        assert find_silent_queries(url, list_queries()) == [], site.words()
