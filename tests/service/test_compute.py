"""Which jobs the event loop computes itself, and that it does not neglect anything else for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

import service.compute
from service.compute import Compute, Kind, size_class

SMALL: Kind = ("json", "json", 20)


class Job:
    """Claims to have taken some time; notes where it ran."""

    def __init__(self, seconds: float = 0.0001, kind: Kind | None = SMALL, wait: threading.Event | None = None) -> None:
        self.kind, self.takes, self.wait = kind, seconds, wait
        self.seconds: float | None = None
        self.thread = ""
        self.finished = asyncio.Event()

    def run(self) -> None:
        self.thread = threading.current_thread().name
        if self.wait is not None:
            assert self.wait.wait(20)
        self.seconds = self.takes

    def finish(self) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.finished.set()


async def done(compute: Compute, job: Job) -> bool:
    """Have a job done; return whether the loop computed it."""
    inline = compute.submit(job)
    await asyncio.wait_for(job.finished.wait(), 20)
    assert inline == (job.thread == threading.main_thread().name)
    return inline


def with_compute(test: Callable[[Compute], object], threads: int = 1, inline_ms: float = 1.0) -> None:
    async def run() -> None:
        compute = Compute(threads, inline_ms)
        try:
            await test(compute)  # type: ignore[misc]
        finally:
            await asyncio.to_thread(compute.close)

    asyncio.run(run())


def test_only_what_is_known_to_be_short_is_computed_on_the_loop():
    async def test(compute: Compute) -> None:
        assert [await done(compute, Job()) for _ in range(3)] == [False, True, True]
        assert [await done(compute, Job(kind=None)) for _ in range(2)] == [False, False]
        assert [await done(compute, Job(0.002, ("json", "json", 40))) for _ in range(3)] == [False] * 3

    with_compute(test)


def test_two_that_took_long_send_their_kind_to_threads_for_a_while_and_one_does_not():
    async def test(compute: Compute) -> None:
        await done(compute, Job())
        assert [await done(compute, Job(seconds)) for seconds in (10.0, 0.0001, 10.0, 10.0)] == [True] * 4
        where = [await done(compute, Job()) for _ in range(40)]
        assert where == sorted(where) and not where[5] and where[20]

    with_compute(test)


@pytest.mark.parametrize(("threads", "inline_ms"), [(1, 0.0), (2, 1.0)])
def test_nothing_is_computed_on_the_loop_where_the_settings_say_so(threads, inline_ms):
    async def test(compute: Compute) -> None:
        assert [await done(compute, Job()) for _ in range(3)] == [False] * 3

    with_compute(test, threads, inline_ms)


def test_a_short_job_does_not_wait_for_a_long_one():
    async def test(compute: Compute) -> None:
        await done(compute, Job())
        go_on = threading.Event()
        long, short = Job(kind=None, wait=go_on), Job()
        assert (compute.submit(long), compute.submit(short)) == (False, True)
        await asyncio.wait_for(short.finished.wait(), 20)
        assert not long.finished.is_set()
        go_on.set()
        await asyncio.wait_for(long.finished.wait(), 20)

    with_compute(test)


@pytest.mark.parametrize(("turn_seconds", "a_turn"), [((0.0, 0.0), 1), ((60.0, 60.0), 5)])
def test_after_its_share_of_a_turn_the_loop_does_what_else_is_to_be_done(monkeypatch, turn_seconds, a_turn):
    monkeypatch.setattr(service.compute, "TURN_SECONDS", turn_seconds)

    async def test(compute: Compute) -> None:
        await done(compute, Job())
        jobs = [Job() for _ in range(5)]
        finished: list[int] = []
        for job in jobs:
            assert compute.submit(job)
        for _ in range(5):
            await asyncio.sleep(0)
            finished.append(sum(job.finished.is_set() for job in jobs))
        assert finished == [min(5, a_turn * turn) for turn in range(1, 6)]

    with_compute(test)


def test_the_more_else_there_was_to_do_the_longer_the_loop_computes(monkeypatch):
    monkeypatch.setattr(service.compute, "TURN_SECONDS", (0.0, 60.0))

    async def test(compute: Compute) -> None:
        await done(compute, Job())
        jobs = [Job() for _ in range(5)]
        for job in jobs:
            assert compute.submit(job)
        compute._computed = time.perf_counter() - 30.0
        await asyncio.sleep(0)
        assert all(job.finished.is_set() for job in jobs)

    with_compute(test)


def test_classes_of_size_are_four_to_a_doubling():
    classes = [size_class(size) for size in range(64, 1024)]
    assert classes == sorted(classes)
    assert len(set(classes)) == 16
    assert [size_class(size) for size in (0, 1, 2**40)] == [0, 5, 164]
