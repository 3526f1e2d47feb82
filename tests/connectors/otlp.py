"""A collector of OpenTelemetry's in this process: OTLP over HTTP, decoded by its own library."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = Span.SpanKind


class Collector:
    """Keeps the spans that it was sent, in the order they came."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans: list[Span] = []

    def of(self, kind: Span.SpanKind.ValueType) -> list[Span]:
        """Return the spans of one kind."""
        return [span for span in self.spans if span.kind == kind]


@contextmanager
def collect_traces() -> Iterator[Collector]:
    """Collect at a free port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        collector = Collector(server.server_port)
        server.RequestHandlerClass = partial(_Handler, collector)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    timeout = 10

    def __init__(self, collector: Collector, *args: object) -> None:
        self._collector = collector
        super().__init__(*args)  # type: ignore[arg-type]  # as the server calls it

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self._collector.spans.extend(scope.spans)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
