"""One rank request on its way through a worker thread, and what becomes of it when it takes too long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from service.admission import Deadline
from service.errors import DeadlineExceeded, ModelFailed, PolicyFailed, ServiceError, slug
from service.fallback import fall_back
from service.record import Record
from service.snapshot import Snapshot
from service.wire.encodings import Encoding
from service.wire.inflate import inflate
from service.wire.request import RankRequest
from service.wire.v2 import Exchange
from service.worker import Worker


@dataclass(frozen=True)
class Order:
    """What a request's headers ask for.

    Attributes:
        deadline: when nobody waits for the answer any more.
        taken: the body's encoding.
        given: the answer's encoding; a v2 exchange is both.
        compression: the body's Content-Encoding.
        request_id: the id to use where the body gives none.
        wanted: variants to force, besides those that the body names.
        privileged: whether the caller holds an admin key.
    """

    deadline: Deadline
    taken: Encoding | Exchange
    given: Encoding | Exchange
    compression: str
    request_id: str
    wanted: Mapping[str, str] = field(default_factory=dict)
    privileged: bool = False


class Job:
    """A body to be answered."""

    def __init__(self, worker: Worker, order: Order, body: bytes, record: Record) -> None:
        """Do nothing yet; `record` will tell how it went."""
        self._worker = worker
        self._order = order
        self._body = body
        self._record = record
        self._parsed: tuple[RankRequest, Snapshot] | None = None
        self._seconds: float | None = None
        self._answered = threading.Lock()

    async def answer(self) -> bytes:
        """Return the answer: the ranking, or the fallback order where the model overruns the deadline.

        The permit is held until the thread is done with the job, even if its answer is no longer waited for.

        Raises:
            ServiceError: why there is no answer.
        """
        worker, deadline = self._worker, self._order.deadline
        worker.admission.take()
        future = asyncio.get_running_loop().run_in_executor(worker.pool, self._run)
        future.add_done_callback(self._done)
        await asyncio.wait((future,), timeout=deadline.seconds_to_compute)
        if future.done():
            return future.result()
        if not self._answered.acquire(blocking=False):
            return await future  # it was just done
        if self._parsed is None or worker.settings.fallback == "none":
            raise DeadlineExceeded("deadline", found="no answer in time", expected=f"one in {deadline.budget_ms} ms")
        return self._degraded("overrun")

    def _done(self, future: asyncio.Future[bytes]) -> None:
        self._worker.admission.give_back(self._seconds)
        if not future.cancelled():
            future.exception()  # nobody may be waiting for it any more

    def _run(self) -> bytes:
        """Return the ranking's bytes; runs on a worker thread."""
        start = time.perf_counter()
        try:
            return self._rank()
        finally:
            self._seconds = time.perf_counter() - start

    def _rank(self) -> bytes:
        worker, order = self._worker, self._order
        record, settings = self._record, worker.settings
        order.deadline.check("parse")
        with record.stage("parse"):
            plain = inflate(self._body, order.compression, settings.max_body_bytes)
            request = order.taken.parse(plain, settings.max_candidates, order.request_id)
            if order.wanted or order.privileged:
                wanted = {**request.force_variant, **order.wanted}
                request = replace(request, force_variant=wanted, privileged=order.privileged)
            snapshot = worker.serving.choose(request.model)
        self._parsed = request, snapshot
        record.request_id, record.candidates, record.snapshot = request.request_id, len(request.ids), snapshot
        worker.metrics.candidates.observe(len(request.ids))
        worker.metrics.encodings.labels(order.taken.label, order.given.label).inc()
        try:
            ranking = worker.ranker.rank(request, snapshot, order.deadline, record)
        except (ModelFailed, PolicyFailed) as exc:
            record.problem, record.error = slug(type(exc)), str(exc)
            if settings.fallback == "none":
                raise
            return self._degraded(_REASONS[type(exc)]) if self._answered.acquire(blocking=False) else b""
        with record.stage("respond"):
            answer = order.given.answer(ranking)
        if self._answered.acquire(blocking=False):  # else the answer was the fallback order, which exposes nobody
            record.ranking = ranking
            worker.ranker.note(ranking)
        return answer

    def _degraded(self, reason: str) -> bytes:
        """Return the fallback order's bytes."""
        assert self._parsed is not None
        self._record.degraded = reason
        self._worker.metrics.degraded.labels(reason).inc()
        feature = self._worker.settings.fallback_feature
        return self._order.given.answer(fall_back(*self._parsed, reason, feature))


_REASONS: dict[type[ServiceError], str] = {ModelFailed: "model failed", PolicyFailed: "policy failed"}
