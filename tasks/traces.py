"""Traces of flow and task runs to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names.

Prefect makes the spans; without a provider nobody gets them. The other OTEL_* variables hold as
OpenTelemetry documents them. The exporter comes with the `wandb` extra.
"""

import logging
import os
from importlib.util import find_spec

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def start() -> None:
    """Send from here on; a collector that is away is a warning, never a failure."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    if find_spec("opentelemetry.exporter") is None:
        logging.getLogger("trainyard.traces").warning(
            "no traces: install opentelemetry-exporter-otlp-proto-http"
        )
        return
    # half a second of imports, only for who asks for traces
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    os.environ.setdefault("OTEL_SERVICE_NAME", "trainyard")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
