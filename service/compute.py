"""Where rank requests are computed: on the event loop those that are sure to be short, else on threads.

To hand a request to a thread and its answer back takes more CPU time than a small request's model: two wake-ups, and
the interpreter's lock changing hands a dozen times. So a request that is expected to take no longer than `inline_ms`
is computed by the loop itself, for some of `TURN_SECONDS` in each of its turns: between them it reads what has
arrived, lets in or refuses, and answers probes, so that limits and deadlines hold as they do before threads. (With one
request a turn, refusals would take nearly all turns of an overloaded worker.) What is expected is what
requests of the same size in the same encoding took lately; of those never seen the first goes to a thread.

Knows nothing of what a job does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import Protocol

TURN_SECONDS = (0.001, 0.01)
"""After so long of computing the loop does everything else, which is at most what a refusal waits for: as long as
everything else took before, within these bounds, so that half of its time is computing, whatever is asked of it."""
LEARNED = 0.1
"""Weight of the newest job in what its kind is expected to take, where it took less; where more, it is believed."""
BELIEVED = 2.0
"""Most that is believed, in `inline_ms`: what is long past is forgotten after some eight others."""
Kind = tuple[str, str, int]
"""What makes jobs take about as long: encodings of request and answer, and the size's class."""


class Task(Protocol):
    """What is computed.

    Attributes:
        kind: jobs of one kind take about as long; None where nobody knows.
        seconds: how long it took, once it ran.
    """

    kind: Kind | None
    seconds: float | None

    def run(self) -> None:
        """Compute; keeps what it gives or raises to itself."""

    def finish(self) -> None:
        """Tell who waits for it; called on the event loop."""


class Compute:
    """The loop's own turn, and threads; all but the threads' work happens on the event loop."""

    def __init__(self, threads: int, inline_ms: float) -> None:
        """Start no thread before the first job for one; several threads mean that nothing is computed on the loop."""
        self._wanted = threads
        self._inline_s = inline_ms / 1000 if threads == 1 else 0.0
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[tuple[asyncio.AbstractEventLoop, Task] | None] = SimpleQueue()
        self._short: deque[Task] = deque()
        self._computed = 0.0
        self._expected_s: dict[Kind, float] = {}
        self._last_s: dict[Kind, float] = {}

    def submit(self, job: Task) -> bool:
        """Have a job computed and finished; return whether the loop itself will do it."""
        loop = asyncio.get_running_loop()
        if self._is_short(job):
            self._short.append(job)
            if len(self._short) == 1:
                loop.call_soon(self._compute_short, loop)
            return True
        while len(self._threads) < self._wanted:
            self._threads.append(threading.Thread(target=self._serve, name=f"rank-{len(self._threads)}", daemon=True))
            self._threads[-1].start()
        self._queue.put((loop, job))
        return False

    def close(self) -> None:
        """Let the threads end, and wait for them; jobs that wait are dropped."""
        with contextlib.suppress(Empty):
            while True:
                self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _is_short(self, job: Task) -> bool:
        return job.kind is not None and self._expected_s.get(job.kind, self._inline_s) < self._inline_s

    def _compute_short(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.perf_counter()
        least, most = TURN_SECONDS
        end = now + min(max(least, now - self._computed), most)
        while True:
            job = self._short[0]
            job.run()
            self._short.popleft()
            self._learn(job)
            job.finish()
            self._computed = time.perf_counter()
            if not self._short:
                return
            if self._computed >= end:
                loop.call_soon(self._compute_short, loop)  # after what has arrived is read
                return

    def _serve(self) -> None:
        while (taken := self._queue.get()) is not None:
            loop, job = taken
            job.run()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._back, job)

    def _back(self, job: Task) -> None:
        self._learn(job)
        job.finish()

    def _learn(self, job: Task) -> None:
        if job.kind is None or job.seconds is None or not self._inline_s:
            return
        last_s = self._last_s.get(job.kind, job.seconds)
        self._last_s[job.kind] = job.seconds
        took_s = min(job.seconds, last_s, BELIEVED * self._inline_s)  # one alone may have been interrupted
        expected_s = self._expected_s.get(job.kind, took_s)
        self._expected_s[job.kind] = max(took_s, expected_s + LEARNED * (took_s - expected_s))


def size_class(size_bytes: int) -> int:
    """Return the class of a size: four to each doubling."""
    bits = size_bytes.bit_length()
    return 4 * bits + ((size_bytes >> max(0, bits - 3)) & 3)
