"""Caps: at most so many candidates with the same key in a window, or among the first positions.

Neighbouring cap rules are applied together, position by position: the best candidate that breaks none of them is
next; where every one left breaks some, the best one left is placed all the same and counted. Work is bounded by
the rules' depth, not by the number of candidates. Shapes: M candidates still in the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.rules import FirstCap, WindowCap

Ints = NDArray[np.intp]
_NEAR = 12
"""Candidates that are looked at one by one before all are looked at together: the next one is most often near."""


@dataclass
class _Cap:
    """One rule's state while positions are filled."""

    max: int
    window: int  # positions that count, including the one to fill
    depth: int  # positions that the rule binds
    code_M: Ints  # each place's key, as a whole number from 0
    codes: list[int]  # the same
    counts: list[int]  # per code, how many stand in the window
    full: bytearray  # per code, whether no more may
    recent: list[int]  # code at each position filled so far

    def leave(self, position: int) -> None:
        """Let go of what the window leaves behind."""
        if position >= self.window:
            self._count(self.recent[position - self.window], -1)

    def place(self, place: int) -> None:
        """Take note that a candidate stands at the next position."""
        self.recent.append(self.codes[place])
        self._count(self.codes[place], 1)

    def _count(self, code: int, by: int) -> None:
        self.counts[code] += by
        self.full[code] = self.counts[code] >= self.max


def apply_caps(order_M: Ints, rules: Sequence[WindowCap | FirstCap], codes: Sequence[Ints]) -> tuple[Ints, int]:
    """Return the order with the caps kept, and how many positions could not keep them.

    Args:
        order_M: candidate indices.
        rules: cap rules, applied together.
        codes: per rule, each candidate's key as a whole number, by candidate index.
    """
    caps = [_prepare(rule, code_N[order_M]) for rule, code_N in zip(rules, codes, strict=True)]
    taken = bytearray(len(order_M))  # per place, whether it has been given a position
    placed: list[int] = []
    broken = 0
    head = 0  # no place before it is free
    for position in range(min(max(cap.depth for cap in caps), len(order_M))):
        binding = [cap for cap in caps if position < cap.depth]
        for cap in binding:
            cap.leave(position)
        while taken[head]:
            head += 1
        place = _first_allowed(head, taken, binding)
        if place is None:
            place, broken = head, broken + 1
        placed.append(place)
        taken[place] = True
        for cap in binding:
            cap.place(place)
    rest_M = np.frombuffer(taken, dtype=np.bool_) == 0
    return np.concatenate([order_M[placed], order_M[rest_M]]), broken


def _first_allowed(head: int, taken: bytearray, caps: Sequence[_Cap]) -> int | None:
    """Return the first free place from `head` on that every cap allows."""
    near = min(head + _NEAR, len(taken))
    for place in range(head, near):
        if taken[place]:
            continue
        for cap in caps:
            if cap.full[cap.codes[place]]:
                break
        else:
            return place
    blocked_M = np.frombuffer(taken, dtype=np.bool_)[near:].copy()
    for cap in caps:
        blocked_M |= np.frombuffer(cap.full, dtype=np.bool_).take(cap.code_M[near:], mode="clip")
    place = int(blocked_M.argmin()) if len(blocked_M) else 0
    return near + place if len(blocked_M) and not blocked_M[place] else None


def _prepare(rule: WindowCap | FirstCap, code_M: Ints) -> _Cap:
    window, depth = (rule.window, rule.depth) if isinstance(rule, WindowCap) else (rule.first, rule.first)
    if code_M.min() < 0 or code_M.max() > 4 * len(code_M):
        code_M = np.unique(code_M, return_inverse=True)[1]
    kinds = int(code_M.max()) + 1
    return _Cap(rule.max, window, depth, code_M, code_M.tolist(), [0] * kinds, bytearray(kinds), [])
