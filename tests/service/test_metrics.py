from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from service.errors import PortTaken
from service.metrics import Metrics, SupervisorMetrics, start_metrics_server
from service.record import Record
from service.tally import Tallies
from service.versioned import FAMILIES, VersionedMetrics


def test_the_docs_list_every_metric_with_its_labels():
    registry = CollectorRegistry()
    Metrics(registry)
    SupervisorMetrics(registry)
    wanted = set()
    for name, family in FAMILIES.items():
        kind = "counter" if family.counts else "gauge"
        wanted.add((name + ("_total" if family.counts else ""), kind, ", ".join(family.labels)))
    for collector in registry._collector_to_names:
        if isinstance(collector, VersionedMetrics | Tallies):
            continue
        suffix = "_total" if collector._type == "counter" else ""
        wanted.add((collector._name + suffix, collector._type, ", ".join(collector._labelnames) or "–"))
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    assert {row for row in re.findall(r"^\| `(dlen_\w+)` \| (\w+) \| ([^|]+?) \| .+ \|$", page, re.M)} == wanted


def test_stages_are_timed_even_when_they_fail():
    metrics = Metrics(CollectorRegistry())
    with pytest.raises(KeyError), Record(metrics).stage("predict"):
        raise KeyError
    assert metrics.registry.get_sample_value("dlen_rank_stage_seconds_count", {"stage": "predict"}) == 1


def test_a_taken_port_is_named():
    server, thread, port = start_metrics_server(CollectorRegistry(), "127.0.0.1", 0)
    try:
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
        with pytest.raises(PortTaken, match=f"metrics port 127.0.0.1:{port}"):
            start_metrics_server(CollectorRegistry(), "127.0.0.1", port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
