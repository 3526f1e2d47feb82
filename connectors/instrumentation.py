"""What a command uses, with spans if the process has an SDK of OpenTelemetry, which is an extra."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from .records import Publisher
    from .tracing import Traces
    from .verbs import Daemon, Send


def open_traces(settings: Daemon) -> Traces | None:
    """Return what makes the spans of a daemon; None: nobody wants any."""
    tracer = _find_tracer()
    if tracer is None:
        return None
    from .tracing import Traces  # noqa: PLC0415 - imports the extra

    return Traces(tracer, settings.describe_traces(), settings.describe_results())


def trace_publisher(settings: Send, publisher: Publisher) -> Publisher:
    """Return the publisher of `send`, with a span for each image if somebody wants it."""
    tracer = _find_tracer()
    if tracer is None:
        return publisher
    from .tracing import TracedPublisher  # noqa: PLC0415 - imports the extra

    return TracedPublisher(publisher, tracer, settings.describe_sending())


def _find_tracer() -> Tracer | None:
    if find_spec("opentelemetry") is None:
        return None
    from .tracing import find_tracer  # noqa: PLC0415 - imports the extra

    return find_tracer()
