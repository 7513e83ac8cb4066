"""A core for the ranker and another for the load, so that neither takes time from the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """Where each runs: the first core this process may use, and the second; all of them where there is only one."""

    ranker: frozenset[int]
    load: frozenset[int]

    @property
    def one_each(self) -> bool:
        """Whether ranker and load share no core."""
        return not self.ranker & self.load

    def take_for_ranker(self) -> None:
        """Let what is started from now on run on the ranker's core."""
        os.sched_setaffinity(0, self.ranker)

    def take_for_load(self) -> None:
        """Let this process run on the load's core."""
        os.sched_setaffinity(0, self.load)


@contextlib.contextmanager
def a_core_each() -> Iterator[Cores]:
    """Give the cores; in the end this process has all that it had."""
    allowed = os.sched_getaffinity(0)
    first, *others = sorted(allowed)
    try:
        yield Cores(frozenset({first}), frozenset(others[:1])) if others else Cores(*2 * (frozenset(allowed),))
    finally:
        os.sched_setaffinity(0, allowed)
