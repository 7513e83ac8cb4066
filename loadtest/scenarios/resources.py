"""What processes hold, as Linux tells: memory, descriptors, threads; sampled by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.scenarios.stack import connections_of

_MB = 1024.0


@dataclass(frozen=True)
class Held:
    """What one process holds.

    Attributes:
        rss_mb: resident memory, MiB; own_mb: of it what is no file's, which no other process has a part in; pss_mb:
            its share of all, which depends on what else runs.
        descriptors: open ones, but for live connections to its port, which are as many as callers want.
        threads: of execution.
    """

    rss_mb: float
    own_mb: float
    pss_mb: float
    descriptors: int
    threads: int


def held_by(pid: int, port: int = 0) -> Held:
    """Return what a process holds that serves a port.

    Raises:
        OSError: there is no such process.
    """
    process = Path(f"/proc/{pid}")
    kilobytes = {}
    for line in (process / "smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        kilobytes[name] = int(value.split()[0])
    return Held(
        rss_mb=kilobytes["Rss"] / _MB,
        own_mb=kilobytes["Anonymous"] / _MB,
        pss_mb=kilobytes["Pss"] / _MB,
        descriptors=sum(1 for _ in (process / "fd").iterdir()) - (connections_of(pid, port) if port else 0),
        threads=sum(1 for _ in (process / "task").iterdir()),
    )


@dataclass
class Samples:
    """What was sampled: moments of `time.monotonic()`, and for each one every process, and a count of the caller's."""

    at: list[float] = field(default_factory=list)
    held: list[dict[int, Held]] = field(default_factory=list)
    counted: list[float] = field(default_factory=list)


class Sampler:
    """Samples processes until the block ends."""

    def __init__(
        self, pids: Callable[[], Sequence[int]], port: int, count: Callable[[], float], every_s: float
    ) -> None:
        """Sample nothing yet; `pids`, which serve `port`, is asked each time, and `count` gives one more figure."""
        self._port = port
        self.samples = Samples()
        self._pids, self._count, self._every_s = pids, count, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._sample()
            due += self._every_s

    def _sample(self) -> None:
        held = {}
        for pid in self._pids():
            try:
                held[pid] = held_by(pid, self._port)
            except OSError:  # it ended just now; that it did shows in the next sample's processes
                continue
        self.samples.at.append(time.monotonic())
        self.samples.held.append(held)
        self.samples.counted.append(self._count())
