"""What spans cost: `python -m tests.bench.traces`. Prints CPU a record, with and without.

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

RECORDS, PACK, ROUNDS = 10_000, 64, 5
BODY = {"class": 9, "label": "Ankle boot", "score": 0.99, "top": [], "model": {}}


class Fakes:
    """A broker that has RECORDS records, and a service that answers at once.

    `flags` are those of each record's trace context, 01 if it is sampled; None: it has none.
    """

    def __init__(self, flags: bytes | None) -> None:
        self.flags = flags
        self.left, self.committed = RECORDS, 0
        self.out: list[Request] = []
        self.encode = codec.encode

    def poll(self, limit: int, _: float) -> Sequence[Record]:
        count = min(limit, self.left, 500)
        self.left -= count
        return [self.record(self.left + number) for number in range(count)]

    def record(self, offset: int) -> Record:
        parent = b"00-%032x-%016x-%s" % (offset + 1, offset + 1, self.flags or b"")
        headers = (("traceparent", parent),) if self.flags else ()
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


def measure(traces: Traces | None, flags: bytes | None) -> float:
    """Return microseconds of CPU a record."""
    fakes, decode = Fakes(flags), codec.decode
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
    exporter = InMemorySpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    traces = Traces(provider.get_tracer("bench"), {}, {})
    cases = {
        "without an SDK": partial(measure, None, b"01"),
        "with spans, no record has a trace": partial(measure, traces, None),
        "with spans, no trace is sampled": partial(measure, traces, b"00"),
        "with spans, each trace is sampled": partial(measure, traces, b"01"),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            found[name].append(case())
            exporter.clear()
    print(f"{RECORDS} records in packs of {PACK}, {ROUNDS} rounds in turns, medians")
    without = median(found["without an SDK"])
    for name, values in found.items():
        more = median(values) - without
        print(
            f"{name:34}{median(values):6.1f} µs of CPU a record{f', {more:.1f} more' * bool(more)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
