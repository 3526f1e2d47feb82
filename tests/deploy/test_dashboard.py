"""The dashboard: each of its queries has data from a Prometheus that scrapes a relay."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING

from connectors.drift import Answer
from connectors.metrics import make_pages
from connectors.page_server import serve_pages
from connectors.records import Prediction
from connectors.relay import Stats
from tests.connectors.test_drift import body
from tests.connectors.test_metrics import GOLDEN, Daemon, fill_window
from tests.deploy.prometheus import find_silent_queries, list_panels, list_queries, run_prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from connectors.page_server import Page


RULES = (
    "namespace_job:connector_lag_records:sum",
    'ALERTS{alertname="FmnistDriftConfidence",alertstate="pending"}',
)
"""What Prometheus knows when it evaluates the rules: one of each kind."""


class Working:
    """The metrics of a relay that commits something before each scrape."""

    def __init__(self) -> None:
        self.daemon = Daemon()
        fill_window(self.daemon, Answer(0, 1.0, 1.0))
        self.page = make_pages(self.daemon.collector, self.daemon.health)["/metrics"]
        self.scrapes = 0

    def __call__(self, accept: str) -> Page:
        self.scrapes += 1
        stats = self.daemon.relay.stats
        packs = stats.packs + Counter({64: 1})
        self.daemon.relay.stats = Stats(predicted=self.scrapes, packs=packs)
        self.daemon.commit(self.daemon.take(1), Prediction(body()))
        self.daemon.iterate(1)
        return self.page(accept)


def test_each_query_has_data_and_each_rule_is_evaluated(tmp_path: Path) -> None:
    with (
        serve_pages("127.0.0.1", 0, {"/metrics": Working()}) as port,
        run_prometheus(tmp_path, port) as url,
    ):
        assert find_silent_queries(url, [*list_queries(), *RULES]) == []


def test_each_query_asks_for_metrics_that_a_relay_has() -> None:
    there = set(re.findall(r"^(connector_\w+)", GOLDEN.read_text(), re.MULTILINE))
    asked = {name for query in list_queries() for name in re.findall(r"connector_\w+", query)}
    assert asked
    assert asked - there == set()


def test_each_panel_has_a_place_and_a_name_of_its_own() -> None:
    panels = list_panels()
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels})
    places = [frozenset(list_cells(panel["gridPos"])) for panel in panels]
    assert all(column < 24 for place in places for column, _ in place)
    assert not any(one & other for one, other in combinations(places, 2))


def list_cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    """Give the cells of Grafana's grid that a panel covers."""
    for column in range(place["x"], place["x"] + place["w"]):
        for row in range(place["y"], place["y"] + place["h"]):
            yield column, row
