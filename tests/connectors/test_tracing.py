"""Spans of packs: what they are called after, what they link to, and what names them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from connectors import codec, daemon, instrumentation, loop, tracing
from connectors.brokers.kafka.settings import RunKafka, SendKafka
from connectors.brokers.pubsub.settings import RunPubSub, SendPubSub
from connectors.errors import Exit, Stop
from connectors.records import (
    Busy,
    Headers,
    Image,
    Prediction,
    Record,
    Rejection,
    Settled,
    SizeLimit,
)
from connectors.relay import Relay
from connectors.tracing import TracedClient, TracedPublisher, Traces
from tests.connectors.otlp import KINDS, collect_traces
from tests.connectors.policies import policy as make_policy
from tests.connectors.test_loop import World, decode, predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from connectors.records import Answer

TRACES = ("0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736")
SETTINGS = RunKafka(input_topic="images", output_topic="predictions")


def parent(trace_id: str, span: int = 1) -> Headers:
    return (("color", b"red"), ("traceparent", f"00-{trace_id}-{span:016x}-01".encode()))


def record(offset: int, headers: Headers = ()) -> Record:
    return Record(f"images/0/{offset}", b"%d" % offset, None, headers, 0, "images/0", offset)


class Collector:
    """An SDK, and what it was given."""

    def __init__(self, *others: SpanExporter) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        for exporter in (self.exporter, *others):
            provider.add_span_processor(SimpleSpanProcessor(exporter))
        self.tracer = provider.get_tracer("test")
        self.traces = Traces(self.tracer, SETTINGS.describe_traces(), SETTINGS.describe_results())
        self.world: World

    def relay(self, *records: Record, answers: Sequence[Answer] = ()) -> list[Headers]:
        """Relay these; return the headers of what is published, in order."""
        left = list(answers)
        self.world = World(
            [(0.0, one) for one in records],
            answer=lambda request: left.pop(0) if left else predict(request),
        )
        client = TracedClient(self.world, self.traces)
        relay = Relay(make_policy(), lambda upper: upper, Image(b"blank"))
        self.world.on_iteration = lambda: self.stop(relay, len(records))
        traced = partial(self.traces.decode, decode)
        world = self.world
        loop.run(relay, world, client, world, traced, world.clock, world.begin_iteration)
        return [self.publish(settled) for settled in self.world.committed]

    def stop(self, relay: Relay, count: int) -> None:
        if len(self.world.committed) >= count:
            relay.drain(self.world.now)

    def publish(self, settled: Settled) -> Headers:
        if isinstance(settled.outcome, Prediction):
            body = dict.fromkeys(("class", "label", "score", "top", "model"), 0)
            settled = Settled(settled.record, Prediction(body))
        message = self.traces.encode(codec.encode, settled)
        assert message is not None
        return message.headers

    def spans(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind == kind]


class Kept:
    """A Publisher that keeps the headers of each record, unless it fails."""

    def __init__(self, limit: SizeLimit | None = None, fault: Exception | None = None) -> None:
        self.limit = limit
        self.fault = fault
        self.headers: list[Headers] = []

    def publish(self, _key: bytes | None, _value: bytes, headers: Headers) -> None:
        if self.fault:
            raise self.fault
        self.headers.append(headers)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def send(collector: Collector, count: int = 1) -> list[Headers]:
    """Send as `send` does; return the headers of each record."""
    kept = Kept()
    sending = SendKafka(input_topic="images", paths=[Path("x")]).describe_sending()
    publisher = TracedPublisher(kept, collector.tracer, sending)
    for _ in range(count):
        publisher.publish(None, b"image", (("color", b"red"),))
    publisher.flush()
    publisher.close()
    return kept.headers


@pytest.fixture
def collector() -> Collector:
    return Collector()


def trace_of(headers: Headers) -> str:
    (value,) = [value for name, value in headers if name == "traceparent"]
    return (value or b"").decode().split("-")[1]


def span_of(headers: Headers) -> int:
    (value,) = [value for name, value in headers if name == "traceparent"]
    return int((value or b"").split(b"-")[2], 16)


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def name_of(span: ReadableSpan) -> str:
    return trace.format_trace_id(context_of(span).trace_id)


def test_a_trace_goes_from_the_record_through_the_pack_to_the_result(collector: Collector) -> None:
    (headers,) = collector.relay(record(0, parent(TRACES[0])))
    (pack,), (call,) = collector.spans(SpanKind.CONSUMER), collector.spans(SpanKind.CLIENT)
    assert {name_of(pack), name_of(call), trace_of(headers)} == {TRACES[0]}
    assert pack.parent is not None
    assert pack.parent.span_id == 1
    assert call.parent == pack.get_span_context()
    assert headers[0] == ("color", b"red")
    assert f"-{context_of(pack).span_id:016x}-".encode() in (dict(headers)["traceparent"] or b"")


def test_a_pack_of_many_traces_links_to_each_and_is_one_of_its_own(collector: Collector) -> None:
    records = [record(0, parent(TRACES[0])), record(1), record(2, parent(TRACES[1], 7))]
    published = collector.relay(*records)
    (pack,) = collector.spans(SpanKind.CONSUMER)
    links = [trace.format_trace_id(link.context.trace_id) for link in pack.links]
    assert links == list(TRACES)
    assert pack.parent is None
    assert [trace_of(headers) for headers in published] == [TRACES[0], name_of(pack), TRACES[1]]


def test_a_result_of_such_a_pack_goes_on_in_the_trace_of_its_record(collector: Collector) -> None:
    (one, other) = collector.relay(record(0, parent(TRACES[0])), record(1, parent(TRACES[1], 7)))
    (pack,) = collector.spans(SpanKind.CONSUMER)
    first, second = collector.spans(SpanKind.PRODUCER)
    assert [span.parent and span.parent.span_id for span in (first, second)] == [1, 7]
    assert [link.context for link in (*first.links, *second.links)] == [context_of(pack)] * 2
    assert [span_of(one), span_of(other)] == [context_of(first).span_id, context_of(second).span_id]
    assert (first.name, dict(first.attributes or {})) == (
        "create predictions",
        {
            "messaging.system": "kafka",
            "messaging.destination.name": "predictions",
            "messaging.operation.name": "create",
            "messaging.operation.type": "create",
        },
    )


def test_a_result_of_such_a_pack_keeps_a_context_that_is_not_sampled(collector: Collector) -> None:
    left = tuple(
        (name, (value or b"").replace(b"-01", b"-00")) for name, value in parent(TRACES[0])
    )
    (headers, _) = collector.relay(record(0, left), record(1, parent(TRACES[1])))
    assert headers == left
    (made,) = collector.spans(SpanKind.PRODUCER)
    assert name_of(made) == TRACES[1]


def test_who_sends_names_a_span_in_each_record(collector: Collector) -> None:
    kept = send(collector, count=2)
    first, second = collector.spans(SpanKind.PRODUCER)
    assert [name_of(first), name_of(second)] == [trace_of(headers) for headers in kept]
    assert len({name_of(first), name_of(second)}) == 2
    assert [headers[0] for headers in kept] == [("color", b"red")] * 2
    assert (first.name, dict(first.attributes or {})) == (
        "send images",
        {
            "messaging.system": "kafka",
            "messaging.destination.name": "images",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
        },
    )


def test_what_the_names_of_spans_add_is_taken_off_what_fits(collector: Collector) -> None:
    publisher = TracedPublisher(Kept(SizeLimit(5_000, "none")), collector.tracer, {})
    assert publisher.limit == SizeLimit(5_000 - tracing.MAX_CONTEXT_BYTES, "none")
    assert TracedPublisher(Kept(), collector.tracer, {}).limit is None
    (headers,) = send(collector)
    added = sum(len(name) + len(value or b"") for name, value in headers[1:])
    assert 0 < added <= tracing.MAX_CONTEXT_BYTES


def test_an_image_that_is_not_taken_is_an_error(collector: Collector) -> None:
    publisher = TracedPublisher(Kept(fault=Stop("no", Exit.UNAVAILABLE)), collector.tracer, {})
    with pytest.raises(Stop):
        publisher.publish(None, b"image", ())
    (span,) = collector.spans(SpanKind.PRODUCER)
    assert span.status.status_code == StatusCode.ERROR


def test_a_subscription_is_no_group_in_the_words_of_the_conventions() -> None:
    settings = RunPubSub(
        project="p", subscription="images-sub", input_topic="images", output_topic="predictions"
    )
    assert settings.describe_traces() == {
        "messaging.system": "gcp_pubsub",
        "messaging.destination.name": "images",
        "messaging.destination.subscription.name": "images-sub",
    }
    assert settings.describe_results()["messaging.destination.name"] == "predictions"
    sender = SendPubSub(project="p", input_topic="images", paths=[Path("x")])
    assert sender.describe_sending()["messaging.destination.name"] == "images"


def test_a_collector_sees_one_trace_from_send_through_the_pack_to_the_result() -> None:
    with collect_traces() as there:
        ours = Collector(OTLPSpanExporter(f"{there.url}/v1/traces"))
        (headers,) = ours.relay(record(0, *send(ours)))
    (sent,), (pack,) = there.of(KINDS.SPAN_KIND_PRODUCER), there.of(KINDS.SPAN_KIND_CONSUMER)
    (call,) = there.of(KINDS.SPAN_KIND_CLIENT)
    assert {span.trace_id.hex() for span in there.spans} == {trace_of(headers)}
    assert (pack.parent_span_id, call.parent_span_id) == (sent.span_id, pack.span_id)
    assert [link.span_id for link in pack.links] == [sent.span_id]
    assert span_of(headers) == int.from_bytes(pack.span_id, "big")


def test_a_collector_sees_one_trace_of_each_image_of_a_pack() -> None:
    with collect_traces() as there:
        ours = Collector(OTLPSpanExporter(f"{there.url}/v1/traces"))
        sent_headers = send(ours, count=3)
        published = ours.relay(*(record(at, of) for at, of in enumerate(sent_headers)))
    (pack,) = there.of(KINDS.SPAN_KIND_CONSUMER)
    sent, made = (
        [span for span in there.of(KINDS.SPAN_KIND_PRODUCER) if span.name == name]
        for name in ("send images", "create predictions")
    )
    assert [span.trace_id for span in made] == [span.trace_id for span in sent]
    assert [span.parent_span_id for span in made] == [span.span_id for span in sent]
    assert [link.span_id for link in pack.links] == [span.span_id for span in sent]
    assert [span.links[0].span_id for span in made] == [pack.span_id] * 3
    assert [trace_of(headers) for headers in published] == [span.trace_id.hex() for span in sent]


def test_a_span_says_what_was_processed_in_the_words_of_the_conventions(
    collector: Collector,
) -> None:
    collector.relay(record(0), record(1))
    (pack,) = collector.spans(SpanKind.CONSUMER)
    assert pack.name == "process images"
    assert dict(pack.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.destination.name": "images",
        "messaging.consumer.group.name": "fmnist",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.batch.message_count": 2,
    }


def test_what_was_refused_is_an_error_and_the_next_request_has_spans_of_its_own(
    collector: Collector,
) -> None:
    collector.relay(record(0), answers=[Busy("503: full")])
    first, second = collector.spans(SpanKind.CONSUMER)
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "503: full")
    assert second.status.status_code == StatusCode.UNSET
    assert len(collector.spans(SpanKind.CLIENT)) == 2


def test_a_dead_letter_keeps_the_trace_of_its_record(collector: Collector) -> None:
    refused: Answer = [Rejection("not_an_image", "no")]
    (headers,) = collector.relay(record(0, parent(TRACES[0])), answers=[refused])
    assert headers[:2] == parent(TRACES[0])


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"00-0-0-00", b"a" * 100_000])
def test_a_header_that_is_no_context_is_no_trouble(
    collector: Collector, value: bytes | None
) -> None:
    (headers,) = collector.relay(record(0, (("traceparent", value), ("tracestate", b"=,"))))
    (pack,) = collector.spans(SpanKind.CONSUMER)
    assert not pack.links
    assert trace_of(headers) == name_of(pack)


def test_what_is_remembered_is_bounded(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MAX_KNOWN", 3)
    collector.relay(*(record(offset) for offset in range(50)))
    assert len(collector.traces._origins) == len(collector.traces._packs) == 3
    assert not collector.traces._out


def test_without_an_sdk_nothing_is_traced() -> None:
    world = World([])
    client, _, encode = daemon.trace_packs(SETTINGS, world)
    assert client is world
    assert encode is codec.encode


def test_without_an_sdk_nothing_is_traced_by_send() -> None:
    kept = Kept()
    sending = SendKafka(input_topic="images", paths=[Path("x")])
    assert instrumentation.trace_publisher(sending, kept) is kept


def test_with_an_sdk_what_is_sent_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    kept = Kept()
    sending = SendKafka(input_topic="images", paths=[Path("x")])
    instrumentation.trace_publisher(sending, kept).publish(None, b"image", ())
    assert [name for name, _ in kept.headers[0]] == ["traceparent"]


def test_an_sdk_that_is_disabled_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    world = World([])
    assert daemon.trace_packs(SETTINGS, world)[0] is world


def test_with_an_sdk_packs_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
    client, traced, _ = daemon.trace_packs(SETTINGS, World([]))
    assert isinstance(client, TracedClient)
    assert isinstance(traced(record(0)), Image)


def test_without_the_extra_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instrumentation, "find_spec", lambda _: None)
    world = World([])
    assert daemon.trace_packs(SETTINGS, world)[0] is world
