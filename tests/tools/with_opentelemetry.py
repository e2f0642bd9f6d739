"""What OpenTelemetry has seen of the site, as JSON.

``early|late django|asgi``: instrumented before or after this
package's import, by Django's middleware or by ASGI's.
"""

from __future__ import annotations

import json
import logging
import sys

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tools import site_of_many

exporter = InMemorySpanExporter()
tracer = trace.get_tracer("site")


def span(name: str, number: int) -> None:
    """Open a span in the view."""
    with tracer.start_as_current_span(name) as current:
        current.set_attribute("number", number)


if __name__ == "__main__":
    logging.basicConfig()
    when, which = sys.argv[1:]
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    site_of_many.configure()
    if when == "early" and which == "django":
        DjangoInstrumentor().instrument()
    import trio

    import trio_asgi.handler

    if when == "late" and which == "django":
        DjangoInstrumentor().instrument()
    site_of_many.before = lambda number: span("before", number)
    site_of_many.after = lambda number: span("after", number)
    app = trio_asgi.get_asgi_application()
    if which == "asgi":
        app = OpenTelemetryMiddleware(app)  # type: ignore[assignment]
    cookies = site_of_many.log_in()
    exporter.clear()
    statuses = trio.run(site_of_many.make_all_requests, app, cookies)
    spans = [
        {
            "name": each.name,
            "kind": each.kind.name,
            "id": each.context.span_id,
            "trace": each.context.trace_id,
            "parent": each.parent and each.parent.span_id,
            "attributes": dict(each.attributes or {}),
            "ended": each.end_time is not None,
        }
        for each in exporter.get_finished_spans()
    ]
    print(json.dumps({"spans": spans, "statuses": statuses}))  # noqa: T201
