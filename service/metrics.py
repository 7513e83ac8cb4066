"""What the service counts and times, and the port that shows it.

Labels are bounded: routes, statuses, stages, features of the schema, models and versions — never user or item
ids. With several workers each writes to its own slot's files (a slot outlives the process in it, so counters go
on rising over a restart) and the supervisor shows their sum.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
    values,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.errors import PortTaken
from service.tally import Observes, Tallies
from service.versioned import VersionedMetrics, collect_workers

_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
STAGE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1.0)
LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
CANDIDATES = (0, 1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """Every metric of one worker, in one registry."""

    def __init__(self, registry: CollectorRegistry, slot_files: Path | None = None) -> None:
        """Register the metrics; nothing is shown before the first event.

        Args:
            registry: where they are registered.
            slot_files: what `use_slot` returned, in one worker of several.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each of ours, that no query reads
        r = registry
        self.registry = registry
        self.tallies = tallies = Tallies()
        r.register(tallies)  # first, so that a scrape of the others finds all
        self.seconds_of_stage: Callable[[str], Observes] = cache(
            lambda name: tallies.observations(self.stage_seconds.labels(name))
        )
        self._request = cache(lambda *labels: tallies.count(self.requests.labels(*labels)))
        self._route = cache(lambda route: tallies.observations(self.request_seconds.labels(route)))
        self._encoding = cache(lambda *labels: tallies.count(self.encodings.labels(*labels)))
        self._source = cache(lambda source: tallies.count(self.items.labels(source)))
        self._part = cache(lambda part: tallies.count(self.rows.labels(part)))
        self._feature = cache(lambda feature: tallies.count(self.missing.labels(feature)))
        self.requests = Counter(
            "dlen_http_requests_total", "Requests answered.", ("route", "method", "status"), registry=r
        )
        self.request_seconds = Histogram(
            "dlen_http_request_seconds",
            "From the request's head to its answer.",
            ("route",),
            buckets=SECONDS,
            registry=r,
        )
        self.stage_seconds = Histogram(
            "dlen_rank_stage_seconds", "Time in each stage of a rank request.", ("stage",),
            buckets=STAGE_SECONDS, registry=r,
        )  # fmt: skip
        self.candidates = Histogram(
            "dlen_rank_candidates", "Candidates in a rank request.", buckets=CANDIDATES, registry=r
        )
        self._candidates = tallies.observations(self.candidates)
        self.encodings = Counter(
            "dlen_rank_encodings_total", "Rank requests parsed, by encodings.", ("taken", "given"), registry=r
        )
        self.in_flight = Gauge("dlen_rank_in_flight", "Rank requests held now.", registry=r, multiprocess_mode="sum")
        self.limit = Gauge(
            "dlen_rank_in_flight_limit", "Rank requests that may be held.", registry=r, multiprocess_mode="sum"
        )
        self.shed = Counter("dlen_rank_shed_total", "Rank requests not computed.", ("reason",), registry=r)
        self.degraded = Counter(
            "dlen_rank_degraded_total", "Rank requests answered with the fallback order.", ("reason",), registry=r
        )
        self.refused = Counter("dlen_rank_refused_total", "Rank requests refused.", ("problem",), registry=r)
        self.missing = Counter(
            "dlen_feature_missing_total", "Rows in which a feature had no value.", ("feature",), registry=r
        )
        self.items = Counter(
            "dlen_items_total", "Candidates, by where their features come from.", ("source",), registry=r
        )
        self.rows = Counter("dlen_feature_rows_total", "Rows encoded, by part of the schema.", ("part",), registry=r)
        self.exposures = Counter(
            "dlen_rank_exposures_total",
            "Requests ranked by a variant.",
            ("layer", "experiment", "phase", "variant", "forced"),
            registry=r,
        )
        self.versioned = VersionedMetrics(slot_files)
        registry.register(self.versioned)
        self.loop_lag = Histogram(
            "dlen_event_loop_lag_seconds", "How much later than asked for the event loop wakes.", buckets=LAG_SECONDS,
            registry=r,
        )  # fmt: skip
        self.log_dropped = Counter(
            "dlen_log_lines_dropped_total", "Log lines that found no room to wait, or nobody who reads.", ("kind",),
            registry=r,
        )  # fmt: skip
        self.compiled = Gauge(
            "dlen_compiled_loops", "1 where requests are read, scored and written by compiled loops.",
            registry=r, multiprocess_mode="min",
        )  # fmt: skip
        self.operators = Gauge(
            "dlen_operators", "1 for the instructions that fused graphs' operators use; none: stock graphs serve.",
            ("instructions",), registry=r, multiprocess_mode="min",
        )  # fmt: skip
        self.spans_lost = Counter("dlen_trace_spans_lost_total", "Spans that the collector did not take.", registry=r)
        for kind in ("exposures", "requests", "other"):
            self.log_dropped.labels(kind)
        self.rules_skipped = Counter(
            "dlen_rerank_skipped_total",
            "Rules, and attributes of expressions, that found no data to work on.",
            ("rule",),
            registry=r,
        )
        self.broken_caps = Counter(
            "dlen_rerank_broken_caps_total", "Positions at which no candidate kept all caps.", registry=r
        )
        self.load_failures = Counter(
            "dlen_load_failures_total", "Model versions or fusion configs that were refused.", ("kind", "reason"),
            registry=r,
        )  # fmt: skip
        self.reload_ok = Gauge(
            "dlen_last_reload_successful", "Whether the last look at models or config found nothing wrong.", ("kind",),
            registry=r, multiprocess_mode="min",
        )  # fmt: skip
        self.reload_time = Gauge(
            "dlen_last_reload_timestamp_seconds", "When models or config were last taken over.", ("kind",),
            registry=r, multiprocess_mode="max",
        )  # fmt: skip

    def note_parsed(self, taken: str, given: str, candidates: int) -> None:
        """Note the encodings and the size of a rank request."""
        self._encoding(taken, given).inc()
        self._candidates.observe(candidates)

    def note_sources(self, sources: Mapping[str, int]) -> None:
        """Note where candidates' features come from."""
        for source, candidates in sources.items():
            self._source(source).inc(candidates)

    def note_rows(self, part: str, rows: int, missing: Mapping[str, int]) -> None:
        """Note encoded rows, and in how many of them which features had no value."""
        self._part(part).inc(rows)
        for feature, lacking in missing.items():
            self._feature(feature).inc(lacking)

    def note_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Note an answered request."""
        self._request(route, method, status).inc()
        self._route(route).observe(seconds)


class SupervisorMetrics:
    """What the supervisor of several workers counts itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the metrics."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.restarts = Counter(
            "dlen_worker_restarts_total", "Workers that ended and were replaced.", registry=registry
        )


def use_slot(folder: Path, slot: int) -> Path:
    """Let this process's metrics live in files of `folder` that belong to a worker slot, not to a process.

    Must run before a `Metrics` is built, which takes what this returns: how the paths of its own files begin.
    """
    os.environ[_FOLDER_VARIABLE] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: f"slot{slot}")  # type: ignore[no-untyped-call]
    return folder / f"slot{slot}"


def start_metrics_server(registry: CollectorRegistry, host: str, port: int) -> tuple[WSGIServer, Thread, int]:
    """Show a registry at http://host:port/metrics from a thread; return server, thread and the port taken.

    Raises:
        PortTaken: the port cannot be bound.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as exc:
        raise PortTaken(f"metrics port {host}:{port}", found=exc.strerror, expected="a free port") from exc
    return server, thread, int(server.server_port)


def workers_registry(folder: Path) -> CollectorRegistry:
    """Return a registry that shows the sum over the workers whose files lie in `folder`."""
    registry = CollectorRegistry()
    registry.register(_Workers(folder))
    return registry


class _Workers(Collector):
    """The workers' metrics as one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = MultiProcessCollector(None, path=str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        yield from self._files.collect()  # type: ignore[no-untyped-call]
        yield from collect_workers(self._folder)
