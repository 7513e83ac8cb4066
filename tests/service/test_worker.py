"""What a worker says of itself when it starts."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry

from service.metrics import Metrics
from service.settings import Settings
from service.worker import Worker


@pytest.mark.parametrize(
    "missing",
    [
        None,
        "bundle.loops.compiled",
        "fusion.loops.compiled",
        "service.wire.loops.json",
        "service.wire.loops.arrow",
        "service.tally.compiled",
    ],
)
def test_a_worker_without_compiled_loops_says_so(
    tmp_path,
    make_bundle,
    fusion_file,
    json_loops,
    arrow_loops,
    hash_loops,
    score_loops,
    compiled_tally,
    monkeypatch,
    caplog,
    missing,
):
    make_bundle(tmp_path / "models" / "tiny" / "1")
    if missing is not None:
        monkeypatch.setattr(missing, None)
    registry = CollectorRegistry()
    worker = Worker(Settings(models=tmp_path / "models", fusion=fusion_file, reload_seconds=0), Metrics(registry))
    with caplog.at_level(logging.WARNING, "service.worker"):
        worker.load()
    worker.close()
    assert ("compiled loops are not built" in caplog.text) == (missing is not None)
    assert registry.get_sample_value("dlen_compiled_loops") == (missing is None)
