"""What processes hold, as Linux tells: memory, descriptors, threads; sampled by a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_MB = 1024.0


@dataclass(frozen=True)
class Held:
    """What one process holds: resident and proportional memory in MiB, open descriptors, threads."""

    rss_mb: float
    pss_mb: float
    descriptors: int
    threads: int


def held_by(pid: int) -> Held:
    """Return what a process holds.

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
        pss_mb=kilobytes["Pss"] / _MB,
        descriptors=sum(1 for _ in (process / "fd").iterdir()),
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

    def __init__(self, pids: Callable[[], Sequence[int]], count: Callable[[], float], every_s: float) -> None:
        """Sample nothing yet; `pids` is asked each time, and `count` gives one more figure."""
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
                held[pid] = held_by(pid)
            except OSError:  # it ended just now; that it did shows in the next sample's processes
                continue
        self.samples.at.append(time.monotonic())
        self.samples.held.append(held)
        self.samples.counted.append(self._count())
