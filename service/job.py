"""One rank request on its way through the worker, and what becomes of it when it takes too long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct, field

from service.admission import Deadline
from service.compute import size_class
from service.errors import DeadlineExceeded, ModelFailed, PolicyFailed, ServiceError, slug
from service.fallback import fall_back
from service.record import Record
from service.snapshot import Snapshot
from service.wire.encodings import Encoding
from service.wire.inflate import inflate
from service.wire.request import RankRequest
from service.wire.v2 import Exchange
from service.worker import Worker

Outcome = bytes | Exception
"""An answer's bytes, or why there is none."""


class Order(Struct, frozen=True):
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
    """A body to be answered.

    Attributes:
        kind: what it is like, for `Compute`.
        seconds: what it took to compute, once it was.
    """

    def __init__(self, worker: Worker, order: Order, body: bytes, record: Record) -> None:
        """Do nothing yet; `record` will tell how it went."""
        self._worker = worker
        self._order = order
        self._body = body
        self._record = record
        self._parsed: tuple[RankRequest, Snapshot] | None = None
        self._outcome: Outcome = b""
        self._tell: Callable[[Outcome], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answered = threading.Lock()
        self.seconds: float | None = None
        telling = order.compression == "identity" and len(worker.serving.snapshots) == 1  # else the size tells little
        self.kind = (order.taken.label, order.given.label, size_class(len(body))) if telling else None

    async def answer(self) -> bytes:
        """Return the answer: the ranking, or the fallback order where the model overruns the deadline.

        Raises:
            ServiceError: why there is no answer.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.begin(lambda outcome: None if future.cancelled() else future.set_result(outcome))
        outcome = await future
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def begin(self, tell: Callable[[Outcome], None]) -> None:
        """Have the job done; `tell` is called once, later on the event loop, with the answer or why there is none.

        The permit is held until the job is computed, even if its answer is no longer waited for.

        Raises:
            Overloaded: there is no permit.
        """
        worker = self._worker
        worker.admission.take(self._order.deadline.budget_ms)
        self._tell = tell
        if not worker.compute.submit(self):
            loop, deadline = asyncio.get_running_loop(), self._order.deadline
            self._timer = loop.call_later(deadline.seconds_to_compute, self._overrun)

    def run(self) -> None:
        """Compute the answer; on a worker thread, or on the event loop."""
        start = time.perf_counter()
        try:
            self._outcome = self._rank()
        except Exception as exc:  # noqa: BLE001  # whatever it is, whoever waits is told
            self._outcome = exc
        finally:
            self.seconds = time.perf_counter() - start

    def finish(self) -> None:
        """Give the permit back and tell the outcome, unless something else was told before."""
        self._worker.admission.give_back(self.seconds)
        if self._timer is not None:
            self._timer.cancel()
        self._told(self._outcome)

    def _told(self, outcome: Outcome) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(outcome)

    def _overrun(self) -> None:
        """Answer in the place of a thread that is not done; if it just was, `finish` is on its way."""
        if not self._answered.acquire(blocking=False):
            return
        deadline = self._order.deadline
        if self._parsed is None or self._worker.settings.fallback == "none":
            found, expected = "no answer in time", f"one in {deadline.budget_ms} ms"
            self._told(DeadlineExceeded("deadline", found=found, expected=expected))
        else:
            self._told(self._degraded("overrun"))

    def _rank(self) -> bytes:
        worker, order = self._worker, self._order
        record, settings = self._record, worker.settings
        order.deadline.check("parse")
        with record.stage("parse"):
            plain = inflate(self._body, order.compression, settings.max_body_bytes)
            request = order.taken.parse(plain, settings.max_candidates, order.request_id, worker.serving.typed_json)
            if order.wanted or order.privileged:
                wanted = {**request.force_variant, **order.wanted}
                request = msgspec.structs.replace(request, force_variant=wanted, privileged=order.privileged)
            snapshot = worker.serving.choose(request.model)
        self._parsed = request, snapshot
        record.request_id, record.candidates, record.snapshot = request.request_id, len(request.ids), snapshot
        worker.metrics.note_parsed(order.taken.label, order.given.label, len(request.ids))
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
