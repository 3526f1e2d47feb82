"""A daemon whose service is several servers behind one address, one of them sick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.connectors.test_client import Replicas, Script, predictions
from tests.connectors.test_main import relayed

if TYPE_CHECKING:
    from tests.connectors.test_client import Asked

DIED = b'{"code": 503, "type": "InternalServerException", "message": "Worker died."}'
RECORDS = 100
REQUESTS_OF_A_CONNECTION = 20
"""After so many a healthy server closes it, so that the daemon meets the sick one again."""


class OneIsSick(Replicas):
    """The first server answers 503 to all and closes the connection, as TorchServe does."""

    def next(self, peer: tuple[str, int], asked: Asked) -> Script:
        super().next(peer, asked)
        close = (("Connection", "close"),)
        if self._of_peer[peer] == 0:
            return Script(503, DIED, close)
        last = self.requests.total() % REQUESTS_OF_A_CONNECTION == 0
        return Script(body=predictions(1), headers=close if last else ())


@pytest.mark.parametrize("servers", [2, 3])
def test_behind_an_address_that_shares_out_connections_one_sick_server_costs_no_record(
    servers: int,
) -> None:
    service = OneIsSick(servers)
    with service.serving() as url:
        memory = relayed(url, RECORDS)
    assert service.requests[0] > 1
    results = [entry.key for entry in memory.read("predictions")]
    assert sorted(map(int, filter(None, results))) == list(range(1, RECORDS))
    assert [entry.key for entry in memory.read("images.dead")] == [b"0"]  # the tombstone
