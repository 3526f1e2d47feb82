"""What spans of packs cost: `python -m tests.bench.traces`. Prints CPU a record, with and without.

Relay, loop and codec are ours; broker and service are fakes, so only what the spans add counts.
The SDK hands each span to an exporter that keeps it: what sends them away costs more, elsewhere.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from connectors import codec, loop
from connectors.committer import CommitThread
from connectors.images import CANARY
from connectors.records import Prediction, Record, Request, Settled
from connectors.relay import Relay
from connectors.tracing import TracedClient, Traces
from tests.connectors.policies import policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectors.records import Answer, Client, Message

RECORDS, PACK, ROUNDS = 20_000, 64, 7
BODY = {"class": 9, "label": "Ankle boot", "score": 0.99, "top": [], "model": {}}


class Fakes:
    """A broker that has RECORDS records, and a service that answers at once."""

    def __init__(self) -> None:
        self.left, self.committed = RECORDS, 0
        self.out: list[Request] = []
        self.encode = codec.encode

    def poll(self, limit: int, _: float) -> Sequence[Record]:
        count = min(limit, self.left, 500)
        self.left -= count
        return [self.record(self.left + number) for number in range(count)]

    def record(self, offset: int) -> Record:
        parent = b"00-%032x-%016x-01" % (offset + 1, offset + 1)
        headers = (("traceparent", parent),)
        return Record(f"images/0/{offset}", b"image", None, headers, 0, "images/0", offset)

    def commit(self, settled: Sequence[Settled]) -> None:
        messages: list[Message | None] = [self.encode(one) for one in settled]
        self.committed += len(messages)

    def lag(self) -> None:
        """Not known."""

    def joined(self) -> bool:
        return True

    def send(self, request: Request) -> None:
        self.out.append(request)

    def collect(self, _: float) -> Sequence[tuple[Request, Answer]]:
        answered, self.out = self.out, []
        return [(request, [Prediction(BODY)] * len(request.images)) for request in answered]

    def close(self) -> None:
        """Nothing is open."""


def measure(traces: Traces | None) -> float:
    """Return microseconds of CPU a record."""
    fakes, decode = Fakes(), codec.decode
    client: Client = fakes
    if traces:
        client = TracedClient(fakes, traces)
        decode = partial(traces.decode, codec.decode)
        fakes.encode = partial(traces.encode, codec.encode)
    relay = Relay(policy(pack=PACK, window=4096), lambda upper: upper, CANARY)

    def stop() -> None:
        if fakes.committed == RECORDS:
            relay.drain(time.monotonic())

    began = time.process_time()
    with closing(CommitThread()) as committer:
        loop.run(relay, fakes, client, committer, decode, time.monotonic, stop)
    return (time.process_time() - began) / RECORDS * 1e6


def main() -> int:
    """Measure in turns; print medians."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    traces = Traces(provider.get_tracer("bench"), {}, {})
    rounds = [(measure(None), measure(traces)) for _ in range(ROUNDS)]
    without, with_spans = (median(values) for values in zip(*rounds, strict=True))
    print(f"{RECORDS} records in packs of {PACK}, {ROUNDS} rounds in turns, medians")
    print(f"without an SDK {without:6.1f} µs of CPU a record")
    print(f"with spans     {with_spans:6.1f} µs, {with_spans - without:.1f} more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
