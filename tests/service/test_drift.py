from __future__ import annotations

import json
import time

import pytest
from prometheus_client import CollectorRegistry

from bundle.reference import BINS
from service.admission import Deadline
from service.drift import ONE_IN
from service.metrics import Metrics
from service.ranker import Ranker
from service.reload import Reloader
from service.settings import Settings
from service.snapshot import Serving
from service.wire.encodings import parse_json


@pytest.fixture
def counted(models_folder, fusion_file, make_body):
    """Metrics and the one ranking that was noted twice as often as one in so many is counted."""
    serving, metrics = Serving(), Metrics(CollectorRegistry())
    Reloader(Settings(models=models_folder, fusion=fusion_file), metrics, serving).load()
    ranker = Ranker(metrics)
    request = parse_json(json.dumps(make_body(40)).encode(), 100, "r")
    ranking = ranker.rank(request, serving.choose(None), Deadline(time.monotonic() + 1e6, 1))
    for _ in range(2 * ONE_IN):
        ranker.note(ranking)
    return metrics, ranking


def test_one_ranking_in_eight_is_counted_by_task_and_bin(counted):
    metrics, ranking = counted
    edges = [float(name) for name in BINS]
    for column, task in enumerate(("click", "like", "hate")):
        found = {
            name: metrics.registry.get_sample_value(
                "dlen_model_probabilities_total", {"model": "tiny", "version": "1", "task": task, "bin": name}
            )
            for name in BINS
        }
        wanted = dict.fromkeys(BINS, 0)
        for p in ranking.predicted.p_NT[:, column].tolist():
            wanted[BINS[next(i for i, edge in enumerate(edges) if p <= edge or edge == 1)]] += 2
        assert found == wanted
    scores = [s for m in metrics.registry.collect() if m.name == "dlen_rank_scores" for s in m.samples]
    assert sum(sample.value for sample in scores) == 80
    up = [s for m in metrics.registry.collect() for s in m.samples if s.labels.get("task") == "p_up"]
    assert sum(sample.value for sample in up) == 80


def test_a_worker_with_eight_tasks_and_many_versions_shows_no_more_than_5000_series(counted):
    metrics, _ = counted
    for version in range(10):
        for task in range(8):
            for name in BINS:
                labels = ("tiny", str(version), f"t{task}", name)
                metrics.versioned.count(("counts", *labels), [("dlen_model_probabilities", labels)])
                metrics.versioned.show(("reference", *labels), {("dlen_model_reference_share", labels): 0.1})
    assert sum(len(metric.samples) for metric in metrics.registry.collect()) <= 5000
