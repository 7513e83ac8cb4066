"""Probabilities → scores → order, by a policy compiled for a model's tasks.

`compile_policy` refuses what does not fit; `CompiledPolicy.rank` is what a request runs. Shapes: N candidates,
K of them returned, T tasks in manifest order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fusion.calibration import Calibration
from fusion.compile import Formula, compile_formula
from fusion.explain import Explanation, explain_slate
from fusion.formulas import Floats, order_by_score
from fusion.policies import Policy
from fusion.rerank import Slate, apply_rules
from fusion.rules import Decay, Dpp, FirstCap, Mmr, Pin, WindowCap
from fusion.signals import NO_CANDIDATES, Candidates, Probabilities, check_shapes


class Ranked(Struct, frozen=True):
    """A ranked request.

    Attributes:
        order_K: candidate indices from the first position on; shorter than N by `top_k` and by dropped ones.
        score_N: score per candidate in input order, float64, after scoring rules.
        propensity_N: probability of exploration's draws per candidate; None where the policy does not explore.
        skipped: rules that found no data to work on, and an expression's attributes that no candidate has, by label.
        broken_caps: positions at which no candidate kept all caps.
    """

    order_K: NDArray[np.intp]
    score_N: Floats
    propensity_N: Floats | None = None
    skipped: tuple[str, ...] = ()
    broken_caps: int = 0


@dataclass(frozen=True)
class Needs:
    """What a policy reads of `Candidates`, so that nothing else need be collected."""

    keys: frozenset[str]
    attributes: frozenset[str]
    ids: bool
    vectors: bool


@dataclass(frozen=True)
class CompiledPolicy:
    """A policy that fits a model; immutable, so threads and requests share it."""

    policy: Policy
    tasks: tuple[str, ...]
    formula: Formula

    def rank(
        self, probabilities: Probabilities, top_k: int | None = None, candidates: Candidates = NO_CANDIDATES
    ) -> Ranked:
        """Return the final order and every candidate's score.

        The order is by score descending, ties by input order, then by the gate and the moving rules.

        Raises:
            InputInvalid: arrays that do not fit each other or the model, or a score that is not finite.
        """
        fused_N = self.score(probabilities, candidates)
        if self.is_score_alone:
            return Ranked(order_by_score(fused_N)[:top_k], fused_N)
        return _ranked(self._rerank(fused_N, probabilities, candidates, explain=False), top_k)

    def explain(
        self, probabilities: Probabilities, top_k: int | None = None, candidates: Candidates = NO_CANDIDATES
    ) -> tuple[Ranked, Explanation]:
        """Return what `rank` returns, and how each score and position came about."""
        self._check(probabilities)
        terms_KN = self.formula.terms(probabilities, candidates)
        fused_N = self.formula.score_of(terms_KN)
        slate = self._rerank(fused_N, probabilities, candidates, explain=True)
        return _ranked(slate, top_k), explain_slate(self.formula, terms_KN, fused_N, slate)

    def score(self, probabilities: Probabilities, candidates: Candidates = NO_CANDIDATES) -> Floats:
        """Return the fused score per candidate, float64 [N], before gate and rules.

        Raises:
            InputInvalid: arrays that do not fit each other or the model, or a score that is not finite.
        """
        self._check(probabilities)
        return self.formula.score(probabilities, candidates)

    @cached_property
    def needs(self) -> Needs:
        """What the policy reads of the candidates besides probabilities."""
        rules = self.policy.rules
        pins = [rule for rule in rules if isinstance(rule, Pin)]
        return Needs(
            keys=frozenset(rule.key for rule in rules if isinstance(rule, Decay | WindowCap | FirstCap)),
            attributes=frozenset(self.formula.attributes) | {pin.attribute for pin in pins if pin.attribute},
            ids=any(pin.id for pin in pins),
            vectors=any(isinstance(rule, Mmr | Dpp) for rule in rules),
        )

    @cached_property
    def is_score_alone(self) -> bool:
        """Whether the order is that of scores, which read nothing but probabilities: no gate, rules or attributes."""
        return self.policy.gate is None and not self.policy.rules and not self.formula.attributes

    def _check(self, probabilities: Probabilities) -> None:
        needs_p_up = self.formula.needs_p_up or self.policy.gate is not None
        check_shapes(probabilities, len(self.tasks), joint=self.formula.needs_joint, p_up=needs_p_up)

    def _rerank(self, fused_N: Floats, probabilities: Probabilities, candidates: Candidates, *, explain: bool) -> Slate:
        slate = Slate(fused_N, order_by_score(fused_N), candidates, explain)
        slate.record("score")
        slate.skipped += [f"attribute {name}" for name in self.formula.attributes if name not in candidates.attributes]
        apply_rules(slate, self.policy.gate, probabilities.p_up_N, self.policy.rules)
        return slate


def _ranked(slate: Slate, top_k: int | None) -> Ranked:
    order_K = slate.order_M[:top_k]
    return Ranked(order_K, slate.score_N, slate.propensity_N, tuple(slate.skipped), slate.broken_caps)


def compile_policy(
    policy: Policy,
    tasks: Sequence[str],
    has_p_up: bool,
    negative_tasks: Collection[str] = (),
    calibrations: Mapping[str, Calibration] | None = None,
) -> CompiledPolicy:
    """Return the policy ready to rank the outputs of a model with these tasks.

    Raises:
        UnknownTask: names what the model does not have.
        NoLatent: the policy reads P(UP) or joint probabilities and the model has no latent.
    """
    formula = compile_formula(policy, tasks, has_p_up, negative_tasks, calibrations)
    return CompiledPolicy(policy, tuple(tasks), formula)
