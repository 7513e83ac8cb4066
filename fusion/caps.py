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
_PLACED = 1 << 20


@dataclass
class _Cap:
    """One rule's state while positions are filled."""

    max: int
    window: int  # positions that count, including the one to fill
    depth: int  # positions that the rule binds
    codes_M: list[int]
    by_code_M: Ints  # places in the order, as they were before, those of one code side by side
    bounds: list[int]  # where each code's places begin there
    counts: list[int]
    recent: list[int]

    def members(self, code: int) -> Ints:
        """Return the places of a code, as they were before."""
        return self.by_code_M[self.bounds[code] : self.bounds[code + 1]]


def apply_caps(order_M: Ints, rules: Sequence[WindowCap | FirstCap], codes: Sequence[Ints]) -> tuple[Ints, int]:
    """Return the order with the caps kept, and how many positions could not keep them.

    Args:
        order_M: candidate indices.
        rules: cap rules, applied together.
        codes: per rule, each candidate's key as a whole number from 0, by candidate index.
    """
    caps = [_prepare(rule, code_N[order_M]) for rule, code_N in zip(rules, codes, strict=True)]
    depth = min(max(cap.depth for cap in caps), len(order_M))
    blocked_M = np.zeros(len(order_M), dtype=np.int32)
    placed: list[int] = []
    broken = 0
    head = 0  # no unplaced candidate stands before it
    for position in range(depth):
        for cap in caps:
            _free(cap, position, blocked_M)
        while blocked_M[head] >= _PLACED:
            head += 1
        place = head
        if blocked_M[head]:
            place = head + int((blocked_M[head:] == 0).argmax())
            if blocked_M[place]:
                place, broken = head, broken + 1
        placed.append(place)
        blocked_M[place] += _PLACED
        for cap in caps:
            _block(cap, position, place, blocked_M)
    rest = np.ones(len(order_M), dtype=bool)
    rest[placed] = False
    return np.concatenate([order_M[placed], order_M[rest]]), broken


def _prepare(rule: WindowCap | FirstCap, codes_M: Ints) -> _Cap:
    window, depth = (rule.window, rule.depth) if isinstance(rule, WindowCap) else (rule.first, rule.first)
    by_code = np.argsort(codes_M, kind="stable")
    sorted_M = codes_M[by_code]
    starts = np.flatnonzero(np.concatenate([[True], sorted_M[1:] != sorted_M[:-1]]))
    bounds = np.append(starts, len(codes_M))
    dense_M = np.empty(len(codes_M), dtype=np.intp)
    dense_M[by_code] = np.repeat(np.arange(len(starts)), np.diff(bounds))
    return _Cap(rule.max, window, depth, dense_M.tolist(), by_code, bounds.tolist(), [0] * len(starts), [])


def _free(cap: _Cap, position: int, blocked_M: NDArray[np.int32]) -> None:
    """Let go of what the window leaves behind, and of everything once the rule ends."""
    if position == cap.depth:
        for code in {code for code in cap.recent if cap.counts[code] >= cap.max}:
            blocked_M[cap.members(code)] -= 1
        cap.recent.clear()
    elif position < cap.depth and position >= cap.window:
        code = cap.recent[position - cap.window]
        cap.counts[code] -= 1
        if cap.counts[code] == cap.max - 1:
            blocked_M[cap.members(code)] -= 1


def _block(cap: _Cap, position: int, place: int, blocked_M: NDArray[np.int32]) -> None:
    if position >= cap.depth:
        return
    code = cap.codes_M[place]
    cap.recent.append(code)
    cap.counts[code] += 1
    if cap.counts[code] == cap.max:
        blocked_M[cap.members(code)] += 1
