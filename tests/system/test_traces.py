"""Traces as an operator switches them on, through real Kafka and TorchServe."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.connectors.otlp import KINDS, collect_traces
from tests.system.daemons import drain
from tests.system.test_relay import Site
from tools.servers.process import ROOT, Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.connectors.otlp import Collector
    from tools.servers.kafka import Cluster
    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system

INSTRUMENT = [str(Path(sys.executable).with_name("opentelemetry-instrument"))]
BOOT = "tests/data/ankle-boot.png"


@pytest.fixture
def site(kafka: Cluster, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(kafka=kafka, folder=tmp_path, stack=stack)
        made.create()
        yield made


def switch_on(site: Site, collector: Collector) -> None:
    site.environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


def send(site: Site, *paths: str) -> None:
    servers = ["--bootstrap-servers", site.kafka.bootstrap_servers, "--input-topic", site.name]
    command = [*INSTRUMENT, sys.executable, "-m", "connectors", "send", "kafka", *servers, *paths]
    sender = Process(command, site.folder / "send.log", site.environment, ROOT).start()
    site.stack.callback(sender.kill)
    assert sender.child.wait(60) == 0, sender.tail(15)


def test_a_collector_sees_one_trace_from_send_to_the_result_in_kafka(
    site: Site, server: TorchServe
) -> None:
    with collect_traces() as collector:
        switch_on(site, collector)
        send(site, BOOT)
        daemon = site.daemon(server.url, under=INSTRUMENT)
        (result,) = site.read(site.topics[1], 1)
        assert drain(daemon) == 0
    (sent,) = collector.of(KINDS.SPAN_KIND_PRODUCER)
    (pack,) = collector.of(KINDS.SPAN_KIND_CONSUMER)
    (call,) = collector.of(KINDS.SPAN_KIND_CLIENT)
    assert [span.name for span in (sent, pack, call)] == [
        f"send {site.name}",
        f"process {site.name}",
        "POST",
    ]
    assert len({span.trace_id for span in collector.spans}) == 1
    assert (pack.parent_span_id, call.parent_span_id) == (sent.span_id, pack.span_id)
    (named,) = [value for name, value in result.headers if name == "traceparent"]
    assert named.decode().split("-")[1:3] == [sent.trace_id.hex(), pack.span_id.hex()]
