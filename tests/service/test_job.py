"""Who gives the answer, thread or deadline, and that exactly one of them does."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service import job
from service.admission import Deadline
from service.errors import DeadlineExceeded, ModelFailed
from service.job import Job, Order
from service.metrics import Metrics
from service.record import Record
from service.settings import Settings
from service.wire.request import RankRequest
from service.worker import Worker


class SlowRanker:
    """A ranker that takes as long as it is told, or fails; notes what was answered."""

    def __init__(self, error: Exception | None = None) -> None:
        self.noted: list[str] = []
        self.go_on = threading.Event()
        self.error = error

    def rank(self, request: RankRequest, snapshot: object, deadline: Deadline, record: Record) -> str:
        assert self.go_on.wait(20)
        if self.error is not None:
            raise self.error
        return f"ranked {request.request_id} {dict(request.force_variant)} {request.privileged}"

    def note(self, ranking: str) -> None:
        self.noted.append(ranking)


def worker_with(ranker: SlowRanker, **settings: Any) -> Worker:
    worker = Worker(Settings.model_validate({"models": "m", "fusion": "f", **settings}), Metrics(CollectorRegistry()))
    worker.ranker = ranker  # type: ignore[assignment]
    worker.serving = SimpleNamespace(choose=lambda name: "snapshot", snapshots={}, typed_json=None)  # type: ignore[assignment]
    return worker


def order(budget_ms: int, **more: Any) -> Order:
    request = RankRequest("r", "u", ["a"], force_variant={"x": "field", "y": "field"})
    wire: Any = SimpleNamespace(label="test", parse=lambda *_: request, answer=lambda ranking: str(ranking).encode())
    return Order(Deadline(time.monotonic() + budget_ms / 1000, budget_ms), wire, wire, "identity", "r", **more)


@pytest.fixture(autouse=True)
def plain_fallback(monkeypatch):
    monkeypatch.setattr(job, "fall_back", lambda request, snapshot, reason, feature: f"fallback: {reason}")


def degraded(worker: Worker) -> dict[str, float]:
    found = next(metric for metric in worker.metrics.registry.collect() if metric.name == "dlen_rank_degraded")
    return {sample.labels["reason"]: sample.value for sample in found.samples}


def test_a_ranking_in_time_is_answered_and_noted_once():
    ranker = SlowRanker()
    ranker.go_on.set()
    worker = worker_with(ranker)
    answer = asyncio.run(
        Job(worker, order(20_000, wanted={"x": "header"}, privileged=True), b"", Record(worker.metrics)).answer()
    )
    worker.close()
    assert answer == b"ranked r {'x': 'header', 'y': 'field'} True"
    assert (ranker.noted, degraded(worker)) == ([answer.decode()], {})


@pytest.mark.parametrize("error", [None, ModelFailed("p", found="NaN", expected="numbers")])
def test_a_ranking_that_comes_too_late_is_neither_noted_nor_counted_again(error):
    ranker = SlowRanker(error)
    worker = worker_with(ranker)
    answer = asyncio.run(late(worker, ranker))
    assert answer == b"fallback: overrun"
    assert (ranker.noted, degraded(worker)) == ([], {"overrun": 1.0})


def test_without_fallback_a_ranking_that_comes_too_late_is_not_noted():
    ranker = SlowRanker()
    worker = worker_with(ranker, fallback="none")
    with pytest.raises(DeadlineExceeded):
        asyncio.run(late(worker, ranker))
    assert ranker.noted == []


async def late(worker: Worker, ranker: SlowRanker) -> bytes:
    """Return the answer of a job whose thread ends only after it."""
    try:
        return await Job(worker, order(50), b"", Record(worker.metrics)).answer()
    finally:
        ranker.go_on.set()
        await asyncio.to_thread(worker.close)
