"""A Prometheus of one test, and what a dashboard asks of it."""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from tests.conftest import missing
from tools.servers.process import Process, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
DASHBOARD = ROOT / "deploy" / "grafana" / "connectors.json"
START_TIMEOUT_S = 60.0
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: relay
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


def list_panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard."""
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return panels


def list_queries() -> list[str]:
    """Return the queries of the dashboard, as Grafana asks them for all jobs."""
    queries = [target["expr"] for panel in list_panels() for target in panel["targets"]]
    return [query.replace("$job", ".*").replace("$__rate_interval", "1m") for query in queries]


@contextmanager
def run_prometheus(folder: Path, port: int) -> Iterator[str]:
    """Scrape a relay's metrics at this port, each second; gives the URL."""
    if not shutil.which("prometheus"):
        missing("prometheus is not there: run tools/setup.sh programs")
    rules = ROOT / "deploy" / "prometheus" / "rules.yaml"
    (folder / "prometheus.yml").write_text(CONFIG.format(rules=json.dumps(str(rules)), port=port))
    (own_port,) = free_ports(1)
    flags = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{own_port}",
        "log.level": "warn",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in flags.items())]
    process = Process(command, folder / "prometheus.log").start()
    try:
        yield f"http://127.0.0.1:{own_port}"
    finally:
        process.kill()


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """Return the series that answer a query; none while Prometheus starts."""
    try:
        answer = requests.get(f"{url}/api/v1/query", {"query": query}, timeout=10)
    except requests.ConnectionError:
        return []
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        return []
    content = answer.json()
    if content["status"] != "success":
        raise ValueError(f"{query}: {content['error']}")
    series: list[dict[str, Any]] = content["data"]["result"]
    return series


def find_silent_queries(url: str, queries: Iterable[str]) -> list[str]:
    """Return the queries that have no data, or no number, in the end."""
    deadline, silent = time.monotonic() + START_TIMEOUT_S, list(queries)
    while silent and time.monotonic() < deadline:
        silent = [query for query in silent if not has_numbers(ask(url, query))]
        time.sleep(0.2)
    return silent


def has_numbers(series: list[dict[str, Any]]) -> bool:
    """Tell whether each series has one; NaN is none."""
    return bool(series) and all(re.fullmatch(r"-?[\d.e+-]+", one["value"][1]) for one in series)
