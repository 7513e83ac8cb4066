"""OpenTelemetry traces, where the settings name a collector: FastAPI's own spans, and our stages.

Needs the packages of `dlen-ranker[otel]`, which are loaded here and only then. Spans wait in a bounded queue for a
thread that sends them; a collector that is slow or gone costs spans, never requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig
from prometheus_client import Counter

from service.errors import SettingsInvalid
from service.record import PROBES, Record
from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

QUEUE_SPANS = 2048
BATCH_SPANS = 512
SEND_EVERY_MS = 1000
SEND_SECONDS = 2
"""Longest that sending one batch may take; also how long the end of the process waits for the last one."""
OFF: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""What FastAPI is told where there are no traces: nothing, whatever the environment says."""
_STATED = ("degraded", "problem", "candidates")


class Tracing:
    """The spans of one worker."""

    def __init__(self, settings: Settings, lost: Counter) -> None:
        """Start to send spans to the collector at `otel_endpoint`; what it does not take is counted in `lost`.

        Raises:
            SettingsInvalid: the packages are not installed.
        """
        assert settings.otel_endpoint is not None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError as exc:
            raise SettingsInvalid(
                f"otel_endpoint {settings.otel_endpoint}",
                found=f"no package {exc.name}",
                expected="the packages of `pip install dlen-ranker[otel]`",
            ) from exc
        for name in ("opentelemetry.exporter", "opentelemetry.sdk"):  # tells each lost batch at length
            logging.getLogger(name).setLevel(logging.CRITICAL)

        class Exporter(OTLPSpanExporter):
            def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
                result = super().export(spans)
                if result is not SpanExportResult.SUCCESS:
                    lost.inc(len(spans))
                return result

        exporter = Exporter(endpoint=settings.otel_endpoint, timeout=SEND_SECONDS)
        self._provider: TracerProvider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.otel_sample)),
            resource=Resource.create({"service.name": "dlen-ranker"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, QUEUE_SPANS, SEND_EVERY_MS, BATCH_SPANS))
        self._tracer = self._provider.get_tracer("service")

    @property
    def config(self) -> TelemetryConfig:
        """What FastAPI is told: a span for each request but probes, below the caller's."""
        return {
            **OFF,
            "tracing": True,
            "tracer_provider": self._provider,
            "operation_spans": False,
            "exclude": lambda scope: scope["path"] in PROBES,
        }

    @staticmethod
    def take_context(record: Record) -> None:
        """Put the request's own span in the place of its caller's."""
        from opentelemetry.trace import get_current_span

        context = get_current_span().get_span_context()
        if context.is_valid:
            record.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def tell(self, record: Record, method: str, route: str) -> None:
        """Add what is noted of an answered request to its span, and a span for each of its stages."""
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        if not span.is_recording():
            return
        span.update_name(f"{method} {route}")  # ours goes past FastAPI's routing, which would name it
        span.set_attribute("http.route", route)
        told: dict[str, Any] = {f"dlen.{name}": getattr(record, name) for name in _STATED}
        told["dlen.request_id"] = record.request_id or None
        if record.snapshot is not None:
            told["dlen.model"] = record.snapshot.model.name
            told["dlen.model_version"] = str(record.snapshot.model.version)
            told["dlen.config_version"] = record.snapshot.fusion.version
        if record.ranking is not None:
            told.update({f"dlen.variant.{k}": v for k, v in record.ranking.decision.assignments.items()})
        span.set_attributes({name: value for name, value in told.items() if value is not None})
        epoch_ns = time.time_ns() - int(time.perf_counter() * 1e9)
        for name, start, end in list(record.stages):
            stage = self._tracer.start_span(name, start_time=epoch_ns + int(start * 1e9))
            stage.end(epoch_ns + int(end * 1e9))

    def close(self) -> None:
        """Send what is left, for a moment at most."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(SEND_SECONDS)
