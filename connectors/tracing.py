"""Spans of packs, by OpenTelemetry's API: off unless the process has an SDK.

    record's traceparent - - link - - >  process images   CONSUMER, one for each request
                                            `-- POST      CLIENT, until the service answered
    result's traceparent < - - - - - -   process images

A pack holds records of many traces, so it links to them, as OpenTelemetry asks for batches; if all
its records are of one trace it is a part of that one. Records, relay and loop know nothing of this:
an image is known by its identity, from the record that it was decoded of to the request that it
travels in. What is remembered is changed in the thread of the loop alone; `encode` only reads.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .records import Busy, Failed, Image, Prediction, Reopened
from .text import decode_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.trace import Span, SpanContext, Tracer

    from .records import (
        Answer,
        Client,
        Headers,
        Message,
        Record,
        Rejection,
        Request,
        Settled,
        Skipped,
    )

    Decode = Callable[[Record], Image | Rejection | Skipped]
    Encode = Callable[[Settled], Message | None]

CARRIED = ("traceparent", "tracestate")
"""Headers of the W3C's Trace Context."""

MAX_KNOWN = 16_384
"""Images and records whose context is kept; a window of as many records has all of them."""

_PROPAGATOR = TraceContextTextMapPropagator()

Key = TypeVar("Key")
Value = TypeVar("Value")


def find_tracer() -> Tracer | None:
    """Return a tracer if the process has an SDK, else None: then nothing of this runs."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return provider.get_tracer("fmnist.connectors")


def read_context(headers: Headers) -> SpanContext:
    """Return the span that a record's headers name; an invalid one when they name none."""
    carrier = {name: decode_text(value) for name, value in headers if name in CARRIED and value}
    if not carrier:
        return trace.INVALID_SPAN_CONTEXT
    return trace.get_current_span(_PROPAGATOR.extract(carrier)).get_span_context()


def write_context(span: Span) -> Headers:
    """Return the headers that name this span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span))
    return tuple((name, text.encode()) for name, text in carrier.items())


class Traces:
    """Makes the spans of one daemon; `attributes` are those of each pack's."""

    def __init__(self, tracer: Tracer, attributes: Mapping[str, str]) -> None:
        self._tracer = tracer
        self._attributes = attributes
        # By the image's identity: an image that has one anew was decoded anew, and overwrites this.
        self._origins: OrderedDict[int, tuple[str, SpanContext]] = OrderedDict()
        self._packs: OrderedDict[str, Headers] = OrderedDict()  # by the record's id
        self._out: dict[Request, tuple[Span, Span]] = {}

    def decode(self, decode: Decode, record: Record) -> Image | Rejection | Skipped:
        """Decode, and remember of which record and trace an image is."""
        found = decode(record)
        if isinstance(found, Image):
            _keep(self._origins, id(found), (record.id, read_context(record.headers)))
        return found

    def begin(self, request: Request) -> None:
        """Begin the spans of a request; one without records, a canary, may name the last ones."""
        contexts = [context for _, context in self._list_origins(request) if context.is_valid]
        parent = trace.NonRecordingSpan(contexts[0]) if _are_of_one_trace(contexts) else None
        pack = self._tracer.start_span(
            f"process {self._attributes.get('messaging.destination.name', '')}".strip(),
            trace.set_span_in_context(parent) if parent else None,
            kind=SpanKind.CONSUMER,
            attributes={
                **self._attributes,
                "messaging.operation.type": "process",
                "messaging.batch.message_count": len(request.images),
            },
            links=[Link(context) for context in contexts],
        )
        inside = trace.set_span_in_context(pack)
        call = self._tracer.start_span("POST", inside, kind=SpanKind.CLIENT)
        self._out[request] = pack, call

    def end(self, request: Request, answer: Answer) -> None:
        """End the spans of a request; the results of its records will name the pack."""
        pack, call = self._out.pop(request)
        if isinstance(answer, Busy | Failed | Reopened):
            for span in (call, pack):
                span.set_status(StatusCode.ERROR, answer.detail)
        call.end()
        pack.end()
        headers = write_context(pack)
        for record, _ in self._list_origins(request):
            _keep(self._packs, record, headers)

    def encode(self, encode: Encode, settled: Settled) -> Message | None:
        """Encode, and let a result name the pack; a dead letter keeps its headers as they came."""
        message = encode(settled)
        ours = self._packs.get(settled.record.id)
        if message is None or ours is None or not isinstance(settled.outcome, Prediction):
            return message
        kept = [header for header in message.headers if header[0] not in CARRIED]
        return replace(message, headers=(*kept, *ours))

    def _list_origins(self, request: Request) -> list[tuple[str, SpanContext]]:
        return [self._origins[id(image)] for image in request.images if id(image) in self._origins]


class TracedClient:
    """A Client whose requests have spans."""

    def __init__(self, client: Client, traces: Traces) -> None:
        self._client = client
        self._traces = traces

    def send(self, request: Request) -> None:
        """See `Client.send`."""
        self._traces.begin(request)
        self._client.send(request)

    def collect(self, timeout: float) -> Sequence[tuple[Request, Answer]]:
        """See `Client.collect`."""
        answered = self._client.collect(timeout)
        for request, answer in answered:
            self._traces.end(request, answer)
        return answered

    def close(self) -> None:
        """See `Client.close`."""
        self._client.close()


def _are_of_one_trace(contexts: Sequence[SpanContext]) -> bool:
    return len({context.trace_id for context in contexts}) == 1


def _keep(known: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    """Keep the newest MAX_KNOWN."""
    known.pop(key, None)
    known[key] = value
    if len(known) > MAX_KNOWN:
        known.popitem(last=False)
