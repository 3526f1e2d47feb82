"""Spans from `send` to the result, by OpenTelemetry's API: off unless the process has an SDK.

    send images         PRODUCER, one for each image; its record's `traceparent` names it
     |   `- - link - - process images   CONSUMER, one for each request
     |                  |   `-- POST    CLIENT, until the service answered
    create predictions - link           PRODUCER; the result's `traceparent` names it

A pack holds records of many traces, so it links to them, as OpenTelemetry asks for batches, and
each result goes on in the trace of its own record. If all records of a pack are of one trace the
pack is a part of that one, and its results name the pack; so does that of a record without a trace.
A result in a pack of many whose record's trace is not sampled keeps the `traceparent` that came.
Records, relay and loop know nothing of this: an image is known by its identity, from the record
that it was decoded of to the request that it travels in. What is remembered is changed in the
thread of the loop alone; `encode` only reads.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .records import Busy, Failed, Image, Prediction, Reopened, SizeLimit
from .text import decode_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer

    from .records import (
        Answer,
        Client,
        Headers,
        Message,
        Publisher,
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

MAX_CONTEXT_BYTES = len("traceparent") + 55 + len("tracestate") + 512
"""What these headers add to a record, at most."""

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
    tracer = provider.get_tracer("fmnist.connectors")
    return None if isinstance(tracer, trace.NoOpTracer) else tracer  # OTEL_SDK_DISABLED


def read_context(headers: Headers) -> SpanContext:
    """Return the span that a record's headers name; an invalid one when they name none."""
    carrier = {name: decode_text(value) for name, value in headers if name in CARRIED and value}
    if not carrier:
        return trace.INVALID_SPAN_CONTEXT
    return trace.get_current_span(_PROPAGATOR.extract(carrier)).get_span_context()


def write_context(context: SpanContext) -> Headers:
    """Return the headers that name this span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context=_inside(context))
    return tuple((name, text.encode()) for name, text in carrier.items())


def replace_context(headers: Headers, ours: Headers) -> Headers:
    """Return the headers with `ours` in place of those that name another span."""
    return (*(header for header in headers if header[0] not in CARRIED), *ours)


class Pack(NamedTuple):
    """The span of a pack, and the headers that name it."""

    context: SpanContext
    headers: Headers


class Operation:
    """One of OpenTelemetry's operations on a topic: the name and attributes of its spans."""

    def __init__(self, operation: str, topic: Mapping[str, str]) -> None:
        self.name = f"{operation} {topic.get('messaging.destination.name', '')}".strip()
        ours = {"messaging.operation.name": operation, "messaging.operation.type": operation}
        self.attributes = {**topic, **ours}


class Traces:
    """Makes the spans of one daemon; `source` and `target`: attributes of packs and of results."""

    def __init__(
        self, tracer: Tracer, source: Mapping[str, str], target: Mapping[str, str]
    ) -> None:
        self._tracer = tracer
        self._process = Operation("process", source)
        self._create = Operation("create", target)
        # By the image's identity: an image that has one anew was decoded anew, and overwrites this.
        self._origins: OrderedDict[int, tuple[str, SpanContext]] = OrderedDict()
        self._packs: OrderedDict[str, tuple[SpanContext, Pack]] = OrderedDict()  # by record's id
        self._out: dict[Request, tuple[Span, Span]] = {}

    def follow(self, client: Client) -> Client:
        """Return a client whose requests have spans."""
        return TracedClient(client, self)

    def decode(self, decode: Decode, record: Record) -> Image | Rejection | Skipped:
        """Decode, and remember of which record and trace an image is."""
        found = decode(record)
        if isinstance(found, Image):
            _keep(self._origins, id(found), (record.id, read_context(record.headers)))
        return found

    def begin(self, request: Request) -> None:
        """Begin the spans of a request; one without records, a canary, may name the last ones."""
        contexts = [context for _, context in self._list_origins(request) if context.is_valid]
        pack = self._tracer.start_span(
            self._process.name,
            _inside(contexts[0]) if _are_of_one_trace(contexts) else None,
            kind=SpanKind.CONSUMER,
            attributes={
                **self._process.attributes,
                "messaging.batch.message_count": len(request.images),
            },
            links=[Link(context) for context in contexts],
        )
        inside = trace.set_span_in_context(pack)
        call = self._tracer.start_span("POST", inside, kind=SpanKind.CLIENT)
        self._out[request] = pack, call

    def end(self, request: Request, answer: Answer) -> None:
        """End the spans of a request, and remember of which pack its records were."""
        pack, call = self._out.pop(request)
        if isinstance(answer, Busy | Failed | Reopened):
            for span in (call, pack):
                span.set_status(StatusCode.ERROR, answer.detail)
        call.end()
        pack.end()
        context = pack.get_span_context()
        ours = Pack(context, write_context(context))
        for record, origin in self._list_origins(request):
            _keep(self._packs, record, (origin, ours))

    def encode(self, encode: Encode, settled: Settled) -> Message | None:
        """Encode, and let a result name its span; a dead letter keeps its headers as they came."""
        message = encode(settled)
        known = self._packs.get(settled.record.id)
        if message is None or known is None or not isinstance(settled.outcome, Prediction):
            return message
        origin, pack = known
        ours = pack.headers
        if origin.is_valid and origin.trace_id != pack.context.trace_id:
            if not origin.trace_flags.sampled:
                return message  # nobody keeps spans of that trace
            ours = self._create_result(origin, pack)
        return message._replace(headers=replace_context(message.headers, ours))

    def _create_result(self, origin: SpanContext, pack: Pack) -> Headers:
        """Make the span of a result in its record's trace; return what names it."""
        span = self._tracer.start_span(
            self._create.name,
            _inside(origin),
            kind=SpanKind.PRODUCER,
            attributes=self._create.attributes,
            links=[Link(pack.context)],
        )
        span.end()
        return write_context(span.get_span_context())

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


class TracedPublisher:
    """A Publisher whose records name the span in which each was handed over."""

    def __init__(self, publisher: Publisher, tracer: Tracer, topic: Mapping[str, str]) -> None:
        self._publisher = publisher
        self._tracer = tracer
        self._send = Operation("send", topic)

    @property
    def limit(self) -> SizeLimit | None:
        """See `Publisher.limit`; less what is added here."""
        limit = self._publisher.limit
        return limit and SizeLimit(limit.bytes - MAX_CONTEXT_BYTES, limit.fix)

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        """See `Publisher.publish`."""
        with self._tracer.start_as_current_span(
            self._send.name, kind=SpanKind.PRODUCER, attributes=self._send.attributes
        ) as span:
            ours = write_context(span.get_span_context())
            self._publisher.publish(key, value, replace_context(headers, ours))

    def flush(self) -> None:
        """See `Publisher.flush`."""
        self._publisher.flush()

    def close(self) -> None:
        """See `Publisher.close`."""
        self._publisher.close()


def _inside(context: SpanContext) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(context))


def _are_of_one_trace(contexts: Sequence[SpanContext]) -> bool:
    return len({context.trace_id for context in contexts}) == 1


def _keep(known: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    """Keep the newest MAX_KNOWN."""
    known.pop(key, None)
    known[key] = value
    if len(known) > MAX_KNOWN:
        known.popitem(last=False)
