"""Benchmarks so short that their figures mean nothing: all programs reach the end."""

from __future__ import annotations

import zipfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.bench import ceiling, single
from tests.bench.benchmark import compare
from tests.bench.kafka import CONTESTANTS, KafkaBenchmark
from tests.bench.pubsub import PubSubBenchmark
from tools.servers.kafka import Kafka
from tools.servers.process import ROOT
from tools.servers.torchserve import PORTS

if TYPE_CHECKING:
    from pathlib import Path

    from tools.servers.kafka import Cluster
    from tools.servers.torchserve import TorchServe

pytestmark = pytest.mark.system


@pytest.mark.usefixtures("emulator")
def test_both_relay_all_images_of_a_race(server: TorchServe, tmp_path: Path) -> None:
    with PubSubBenchmark(server.url, tmp_path) as benchmark:
        found = compare(benchmark, rounds=1, records=100, wanted=0.0, say=lambda _: None)
    assert found.passed
    assert all(rate > 0 for rate in (found.ratio, *found.ceilings.values()))


@pytest.fixture(scope="module")
def ours(kafka: Cluster) -> Kafka:
    if not isinstance(kafka, Kafka):
        pytest.skip("the CPU of a Kafka that was there already cannot be counted")
    return kafka


@pytest.mark.parametrize(
    ("name", "records"), [("plain relay", 300), ("instant service", 2_000), ("bare loop", 20_000)]
)
def test_each_relay_answers_the_whole_backlog(
    ours: Kafka, server: TorchServe, tmp_path: Path, name: str, records: int
) -> None:
    with KafkaBenchmark(ours, {ROOT: server}, tmp_path, records) as benchmark:
        found = benchmark.run(CONTESTANTS[name])
    parts = {"torchserve": {"worker", "jvm"}, "instant": {"service"}, None: set[str]()}
    assert set(found.cpu_us) == {"relay", "kafka"} | parts[CONTESTANTS[name].service]
    assert found.records_s > 0


def test_the_delay_of_each_record_of_a_steady_load_is_seen(
    ours: Kafka, server: TorchServe, tmp_path: Path
) -> None:
    with KafkaBenchmark(ours, {ROOT: server}, tmp_path, records=1) as benchmark:
        found = benchmark.measure_latency(CONTESTANTS["exactly once"], rate=50.0, seconds=2.0)
    assert 0 < found.p50_ms <= found.p95_ms <= found.p99_ms


def test_the_ceiling_is_measured_with_the_archives_own_handler() -> None:
    assert ceiling.measure(records=300, cores=1) > 0


def test_a_server_answers_all_clients_that_ask_for_one_image_each(server: TorchServe) -> None:
    found = single.measure(server.url, clients=8, count=50)
    assert found.failed == 0
    assert found.rate > 0


def test_the_stock_settings_are_none_of_ours_but_for_the_handlers_and_the_addresses(
    tmp_path: Path,
) -> None:
    with closing(single.serve_stock(tmp_path)) as server, zipfile.ZipFile(server.archive) as opened:
        config = yaml.safe_load(opened.read("model-config.yaml"))
    assert list(config) == ["handler"]
    assert {*server.settings} - {*PORTS} == {"model_store", "disable_token_authorization"}
