"""Traces: what a real OTLP/HTTP collector receives, and that no collector is waited for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.errors import SettingsInvalid
from service.metrics import Metrics
from service.settings import Settings
from service.tracing import Tracing
from tests.conftest import skip_or_fail

TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps the spans; or hangs until it is told to go on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Take)
        self.spans: list[Any] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_port}/v1/traces"

    def wait(self, trace_id: str, wanted: int) -> list[Any]:
        give_up = time.monotonic() + 15
        while True:
            found = [span for span in self.spans if span.trace_id.hex() == trace_id]
            if len(found) >= wanted or time.monotonic() > give_up:
                return found
            time.sleep(0.05)


class Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.set()
        self.server.may_answer.wait(20)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError:
        skip_or_fail("dlen-ranker[otel] is not installed")
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.may_answer.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def traced(tmp_path_factory, models_folder, fusion_file, start_service, collector):
    folder = tmp_path_factory.mktemp("traced")
    service = start_service(
        folder, models_folder, fusion_file, DLEN_OTEL_ENDPOINT=collector.endpoint, DLEN_OTEL_SAMPLE="0",
        DLEN_LOG_SAMPLE="1", DLEN_DRAIN_SECONDS="0",
    )  # fmt: skip
    yield service
    service.stop()


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_a_callers_trace_goes_on_in_a_span_of_the_request_and_one_of_each_stage(traced, collector, body):
    answer = traced.rank(body, traceparent=f"00-{TRACE_ID}-{CALLER}-01")
    spans = {span.name: span for span in collector.wait(TRACE_ID, 6)}
    assert set(spans) == {"POST /v1/rank", "parse", "features", "predict", "fuse", "respond"}
    request = spans.pop("POST /v1/rank")
    assert request.parent_span_id.hex() == CALLER
    assert answer.headers["traceparent"] == f"00-{TRACE_ID}-{request.span_id.hex()}-01"
    told = attributes(request)
    assert (told["dlen.model"], told["dlen.model_version"], told["dlen.candidates"]) == ("tiny", "1", 5)
    assert told["dlen.request_id"] == "r-1"
    slack_ns = 2_000_000  # two clocks
    for stage in spans.values():
        assert stage.parent_span_id == request.span_id
        assert request.start_time_unix_nano - slack_ns <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= request.end_time_unix_nano + slack_ns
    order = ["parse", "features", "predict", "fuse", "respond"]
    assert sorted(spans, key=lambda name: spans[name].start_time_unix_nano) == order
    assert traced.lines("service.requests", wanted=1, trace_id=TRACE_ID)


def test_a_caller_that_does_not_sample_is_not_traced_but_keeps_its_id(traced, collector, body):
    other = "1" * 32
    answer = traced.rank(body, traceparent=f"00-{other}-{CALLER}-00")
    assert answer.headers["traceparent"].startswith(f"00-{other}-") and answer.headers["traceparent"].endswith("-00")
    last = "2" * 32
    traced.rank(body, traceparent=f"00-{last}-{CALLER}-01")
    assert collector.wait(last, 6) and not collector.wait(other, 0)


def test_refused_requests_are_traced_with_their_problem_and_probes_are_not(traced, collector, body):
    trace = "3" * 32
    context = {"traceparent": f"00-{trace}-{CALLER}-01"}
    traced.client.get(f"{traced.url}/readyz", headers=context)
    traced.rank({**body, "top_k": -1}, **context)
    spans = collector.wait(trace, 2)
    assert {span.name for span in spans} == {"POST /v1/rank", "parse"}
    assert {attributes(span).get("dlen.problem") for span in spans} == {"body-malformed", None}
    assert not any("r-1" in str(span) and "GET" in span.name for span in collector.spans)


def test_a_collector_that_hangs_or_is_gone_costs_spans_and_no_requests(serve, body, collector):
    collector.asked.clear()
    collector.may_answer.clear()
    service = serve(DLEN_OTEL_ENDPOINT=collector.endpoint, DLEN_OTEL_SAMPLE="1", DLEN_DRAIN_SECONDS="0")
    try:
        assert service.rank(body).status_code == 200
        assert collector.asked.wait(10), "the exporter's thread hangs now"
        assert {service.rank(body).status_code for _ in range(360)} == {200}  # 2,160 spans: more than may wait
        give_up = time.monotonic() + 15
        while service.metric("dlen_trace_spans_lost_total") == 0 and time.monotonic() < give_up:
            time.sleep(0.1)
        assert service.metric("dlen_trace_spans_lost_total") > 0
        assert service.stop(15) == 0
    finally:
        collector.may_answer.set()


def test_without_the_packages_the_setting_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    settings = Settings.model_validate({"models": "m", "fusion": "f", "otel_endpoint": "http://127.0.0.1:1/v1/traces"})
    with pytest.raises(
        SettingsInvalid, match=r"no package opentelemetry.*want the packages of `pip install dlen-ranker"
    ):
        Tracing(settings, Metrics(CollectorRegistry()).spans_lost)


def test_without_the_setting_no_exporter_is_loaded():
    code = (
        "import sys; from prometheus_client import CollectorRegistry as R; from service.metrics import Metrics;"
        "from service.app import build_app; from service.worker import Worker; from service.settings import Settings;"
        "w = Worker(Settings(models='m', fusion='f'), Metrics(R())); build_app(w); w.close();"
        "sys.exit(any(m.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
