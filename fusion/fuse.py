"""Probabilities → scores → order, by a policy compiled for a model's tasks.

`compile_policy` refuses what does not fit; `CompiledPolicy.rank` is what a request runs. Shapes: N candidates,
K of them returned, T tasks in manifest order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.calibration import Calibration
from fusion.compile import Formula, compile_formula
from fusion.errors import InputInvalid
from fusion.formulas import Floats, add_terms, order_by_score
from fusion.policies import Policy
from fusion.signals import NO_CANDIDATES, Candidates, Probabilities, check_shapes


@dataclass(frozen=True)
class Ranked:
    """A ranked request.

    Attributes:
        order_K: candidate indices from the first position on; shorter than N by `top_k` and by dropped ones.
        score_N: score per candidate in input order, float64.
    """

    order_K: NDArray[np.intp]
    score_N: Floats


@dataclass(frozen=True)
class CompiledPolicy:
    """A policy that fits a model; immutable, so threads and requests share it."""

    policy: Policy
    tasks: tuple[str, ...]
    formula: Formula

    def rank(
        self, probabilities: Probabilities, top_k: int | None = None, candidates: Candidates = NO_CANDIDATES
    ) -> Ranked:
        """Return the order by score descending, ties by input order, and every candidate's score.

        Raises:
            InputInvalid: arrays that do not fit each other or the model, or a score that is not finite.
        """
        score_N = self.score(probabilities, candidates)
        return Ranked(order_by_score(score_N)[:top_k], score_N)

    def score(self, probabilities: Probabilities, candidates: Candidates = NO_CANDIDATES) -> Floats:
        """Return the fused score per candidate, float64 [N], before gate and rules."""
        formula = self.formula
        check_shapes(probabilities, len(self.tasks), joint=formula.needs_joint, p_up=formula.needs_p_up)
        score_N = formula.link(add_terms(formula.terms(probabilities, candidates)))
        if not np.isfinite(score_N).all():
            row = int(np.flatnonzero(~np.isfinite(score_N))[0])
            raise InputInvalid(f"score of candidate {row}", found=score_N[row], expected="a finite number")
        return score_N


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
