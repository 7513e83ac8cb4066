"""Gate and rerank rules: a scored request → its final order, step by step.

Scoring rules (decay) come first, then moving ones; the config check holds that order. A rule whose data the request
does not bring (keys, vectors, ids) is skipped and named. Shapes: N candidates, M still in the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from fusion.caps import apply_caps
from fusion.diversity import select_dpp, select_mmr
from fusion.errors import InputInvalid
from fusion.formulas import Floats, order_by_score
from fusion.keys import encode_keys, group_by_code
from fusion.rules import Decay, Dpp, Explore, FirstCap, Gate, Mmr, Pin, Rule, WindowCap
from fusion.signals import Candidates, read_attribute

Ints = NDArray[np.intp]


@dataclass
class Step:
    """What one rule did, kept when an explanation is wanted."""

    label: str
    order_M: Ints
    factor_N: Floats | None = None


class Slate(Struct):
    """A request while its rules run.

    Attributes:
        score_N: score per candidate, in input order.
        order_M: candidate indices.
        top: how many of the order are not demoted; they come first.
        propensity_N: probability with which exploration put the candidate where it is; 1 elsewhere.
        skipped: labels of rules that found no data, or nothing to do it with.
        broken_caps: positions at which no candidate kept all caps.
        steps: filled where `explain` is set.
    """

    score_N: Floats
    order_M: Ints
    candidates: Candidates
    explain: bool = False
    top: int = 0
    demoted_N: NDArray[np.bool_] | None = None
    kept_N: NDArray[np.bool_] | None = None
    propensity_N: Floats | None = None
    skipped: list[str] = field(default_factory=list)
    broken_caps: int = 0
    steps: list[Step] = field(default_factory=list)
    codes: dict[str, Ints] = field(default_factory=dict)

    def record(self, label: str, factor_N: Floats | None = None) -> None:
        """Keep what a rule did, where an explanation is wanted."""
        if self.explain:
            self.steps.append(Step(label, self.order_M.copy(), factor_N))


def apply_rules(slate: Slate, gate: Gate | None, p_up_N: NDArray[Any] | None, rules: Sequence[Rule]) -> None:
    """Run the gate and then every rule on the slate, in place.

    Raises:
        InputInvalid: keys, ids or vectors of another length than the candidates.
    """
    slate.top = len(slate.order_M)
    if gate is not None and p_up_N is not None:
        _gate(slate, gate, p_up_N)
    if not rules:
        return
    for stage, group in groupby(enumerate(rules), key=lambda pair: _batch(pair[1])):
        members = list(group)
        if stage == "caps":
            _caps(slate, [rule for _, rule in members if isinstance(rule, WindowCap | FirstCap)])
            continue
        if stage == "pins":
            _pins(slate, [rule for _, rule in members if isinstance(rule, Pin)])
            continue
        for index, rule in members:
            if isinstance(rule, Decay):
                _decay(slate, rule)
            elif isinstance(rule, Mmr | Dpp):
                _diversify(slate, rule)
            elif isinstance(rule, Explore):
                _explore(slate, rule, index)


def _batch(rule: Rule) -> str:
    if isinstance(rule, WindowCap | FirstCap):
        return "caps"
    return "pins" if isinstance(rule, Pin) else "single"


def _gate(slate: Slate, gate: Gate, p_up_N: NDArray[Any]) -> None:
    passed_N = p_up_N >= gate.min_p_up
    passed_M = passed_N[slate.order_M]
    slate.top = int(passed_M.sum())
    if gate.mode == "drop":
        slate.kept_N = passed_N
        slate.order_M = slate.order_M[passed_M]
    else:
        slate.demoted_N = ~passed_N
        slate.order_M = np.concatenate([slate.order_M[passed_M], slate.order_M[~passed_M]])
    slate.record(f"gate {gate.mode}")


def _decay(slate: Slate, rule: Decay) -> None:
    label = f"decay {rule.key}"
    codes_N = _codes(slate, rule.key, label)
    if codes_N is None or not len(slate.order_M):
        return
    before_M = _earlier_with_same_code(codes_N[slate.order_M])
    factor_N = np.ones(len(slate.score_N))
    factor_of = (1 - rule.floor) * rule.decay ** np.arange(before_M.max() + 1) + rule.floor
    factor_N[slate.order_M] = factor_of[before_M]
    factor_N = np.where(slate.score_N < 0, 2 - factor_N, factor_N)  # a negative score is lowered too
    slate.score_N = slate.score_N * factor_N
    order_N = order_by_score(slate.score_N)
    if slate.kept_N is not None:
        order_N = order_N[slate.kept_N[order_N]]
    if slate.demoted_N is not None:
        demoted = slate.demoted_N[order_N]
        order_N = np.concatenate([order_N[~demoted], order_N[demoted]])
    slate.order_M = order_N
    slate.record(label, factor_N)


def _earlier_with_same_code(codes_M: Ints) -> Ints:
    """Return, for each place, how many earlier places hold the same code."""
    by_code, starts = group_by_code(codes_M)
    sizes = np.diff(starts, append=len(codes_M))
    earlier_M = np.empty(len(codes_M), dtype=np.intp)
    earlier_M[by_code] = np.arange(len(codes_M)) - np.repeat(starts, sizes)
    return earlier_M


def _diversify(slate: Slate, rule: Mmr | Dpp) -> None:
    vectors_ND = slate.candidates.vectors_ND
    pool = min(rule.pool, slate.top)
    if vectors_ND is None or pool == 0:
        slate.skipped.append(rule.type)
        return
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(slate.score_N):
        raise InputInvalid("vectors_ND", found=f"shape {list(vectors_ND.shape)}", expected=f"[{len(slate.score_N)}, D]")
    select = select_mmr if isinstance(rule, Mmr) else select_dpp
    head_M = slate.order_M[:pool]
    chosen = select(slate.score_N[head_M], vectors_ND[head_M], rule.depth, rule.relevance)
    rest = np.ones(len(slate.order_M), dtype=bool)
    rest[chosen] = False
    slate.order_M = np.concatenate([slate.order_M[chosen], slate.order_M[rest]])
    slate.record(rule.type)


def _caps(slate: Slate, rules: list[WindowCap | FirstCap]) -> None:
    labels = [f"{rule.type} {rule.key}" for rule in rules]
    found = [(rule, label, _codes(slate, rule.key, label)) for rule, label in zip(rules, labels, strict=True)]
    usable = [(rule, label, codes_N) for rule, label, codes_N in found if codes_N is not None]
    if not usable or not slate.top:
        return
    top_M, slate.broken_caps = apply_caps(
        slate.order_M[: slate.top], [rule for rule, _, _ in usable], [codes_N for _, _, codes_N in usable]
    )
    slate.order_M = np.concatenate([top_M, slate.order_M[slate.top :]])
    slate.record(" + ".join(label for _, label, _ in usable))


def _explore(slate: Slate, rule: Explore, index: int) -> None:
    slate.propensity_N = np.ones(len(slate.score_N)) if slate.propensity_N is None else slate.propensity_N
    order = slate.order_M
    end = min(rule.pool, slate.top)
    for position in sorted(set(rule.positions)):
        slot = position - 1
        options = end - slot
        if options < 1:
            break
        draw, place = _uniforms(f"{rule.seed}|{index}|{position}|{slate.candidates.seed}")
        chosen = slot + int(place * options) if draw < rule.rate else slot
        candidate = order[chosen]
        order = np.concatenate([order[:slot], [candidate], order[slot:chosen], order[chosen + 1 :]])
        slate.propensity_N[candidate] = rule.rate / options + (1 - rule.rate) * (chosen == slot)
    slate.order_M = order
    slate.record("explore")


def _uniforms(seed: str) -> tuple[float, float]:
    """Return two numbers in [0, 1) that follow from the text alone, the same on every machine and version."""
    digest = hashlib.blake2b(seed.encode(), digest_size=16).digest()
    first, second = (int.from_bytes(half, "big") >> 11 for half in (digest[:8], digest[8:]))
    return first / 2.0**53, second / 2.0**53


def _pins(slate: Slate, rules: list[Pin]) -> None:
    pinned: list[tuple[int, int]] = []
    for rule in sorted(rules, key=lambda rule: rule.position):
        candidate = _pinned_candidate(slate, rule, {candidate for _, candidate in pinned})
        if candidate is None:
            slate.skipped.append(f"pin {rule.id or rule.attribute}")
        else:
            pinned.append((rule.position - 1, candidate))
    if not pinned:
        return
    free_N = np.ones(len(slate.score_N), dtype=bool)
    free_N[[candidate for _, candidate in pinned]] = False
    order_M = slate.order_M[free_N[slate.order_M]]
    for slot, candidate in pinned:
        order_M = np.insert(order_M, min(slot, len(order_M)), candidate)
    slate.order_M = order_M
    slate.record("pin")


def _pinned_candidate(slate: Slate, rule: Pin, taken: set[int]) -> int | None:
    if rule.attribute is not None:
        value_N = read_attribute(slate.candidates, rule.attribute, 0.0, len(slate.score_N))
        places = np.flatnonzero(value_N[slate.order_M] > 0)
        return next((int(c) for c in slate.order_M[places] if int(c) not in taken), None)
    ids = slate.candidates.ids
    if ids is None or rule.id is None or rule.id not in ids:
        return None
    if len(ids) != len(slate.score_N):
        raise InputInvalid("ids", found=f"{len(ids)} ids", expected=f"{len(slate.score_N)}")
    candidate = list(ids).index(rule.id)
    gone = candidate in taken or (slate.kept_N is not None and not slate.kept_N[candidate])
    return None if gone else candidate


def _codes(slate: Slate, key: str, label: str) -> Ints | None:
    """Return each candidate's key as a whole number; None, and the rule is named as skipped, where it is not given."""
    if key not in slate.codes:
        values = slate.candidates.keys.get(key)
        if values is None:
            slate.skipped.append(label)
            return None
        if len(values) != len(slate.score_N):
            raise InputInvalid(f"key {key!r}", found=f"{len(values)} values", expected=f"{len(slate.score_N)}")
        slate.codes[key] = encode_keys(values)
    return slate.codes[key]
