"""A policy and a model's tasks → functions over arrays, or a refusal that names what does not fit.

Knows nothing of files, experiments or rerank rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from fusion import formulas, loops
from fusion.calibration import Calibration
from fusion.errors import InputInvalid, NoLatent, UnknownTask
from fusion.expression import Node, parse
from fusion.formulas import Floats
from fusion.policies import Expression, Policy, RankProduct, RankSum
from fusion.signals import P_UP, Candidates, Probabilities, SignalReader, read_attribute

IDENTITY = Calibration()
_FLOAT32 = np.dtype(np.float32)

Link = Literal["identity", "squeeze", "exp"]


@dataclass(frozen=True)
class Formula:
    """A compiled formula: terms, and what is done to their sum.

    Attributes:
        names: one per term: a task, p_up, or an expression's summand.
        terms: model outputs and candidates → float64 [K, N].
        link: sum of terms, float64 [N] → score, float64 [N], rising.
        link_name: identity; squeeze (negative sums below the others); exp (the terms are logs of factors).
        needs_joint: reads P(task, UP).
        needs_p_up: reads P(UP).
        attributes: candidate attributes that it reads, with their defaults.
        in_one_pass: the scores of a model's outputs, or None where they are left to `terms` and `link`; the same bits.
    """

    names: tuple[str, ...]
    terms: Callable[[Probabilities, Candidates], Floats]
    link: Callable[[Floats], Floats]
    link_name: Link
    needs_joint: bool
    needs_p_up: bool
    attributes: Mapping[str, float]
    in_one_pass: Callable[[Probabilities], Floats | None] | None = None

    def score(self, probabilities: Probabilities, candidates: Candidates) -> Floats:
        """Return the score of each candidate, float64 [N].

        Raises:
            InputInvalid: a score that is not finite.
        """
        if self.in_one_pass is not None and (finite_N := self.in_one_pass(probabilities)) is not None:
            return finite_N
        return self.score_of(self.terms(probabilities, candidates))

    def score_of(self, terms_KN: Floats) -> Floats:
        """Return the same from the terms [K, N]."""
        score_N = self.link(formulas.add_terms(terms_KN))
        if not np.isfinite(score_N).all():
            row = int(np.flatnonzero(~np.isfinite(score_N))[0])
            raise InputInvalid(f"score of candidate {row}", found=score_N[row], expected="a finite number")
        return score_N


def compile_formula(
    policy: Policy,
    tasks: Sequence[str],
    has_p_up: bool,
    negative_tasks: Collection[str] = (),
    calibrations: Mapping[str, Calibration] | None = None,
) -> Formula:
    """Return the policy's formula for a model with these tasks.

    Raises:
        UnknownTask: names the task or expression name that the model does not have.
        NoLatent: the policy reads P(UP) or joint probabilities and the model has no latent.
    """
    if isinstance(policy, Expression):
        parsed = parse(policy.expression)
        used = [task for task in tasks if task in parsed.names]
        if shadowed := set(used) & set(policy.attributes):
            expected = "a name that no task of the model has"
            raise UnknownTask(f"attributes.{min(shadowed)}", found="a task of the model", expected=expected)
        unknown = parsed.names - set(tasks) - set(policy.attributes) - {P_UP}
        if unknown:
            _refuse(f"expression name {min(unknown)!r}", [*tasks, P_UP, *policy.attributes])
        needs_p_up = P_UP in parsed.names
    else:
        for task in policy.weights:
            if task not in tasks:
                _refuse(f"weights.{task}", tasks)
        used = [task for task in tasks if policy.weights.get(task)]
        needs_p_up = policy.p_up > 0
    joint = tuple(policy.signal == "joint" and task not in negative_tasks for task in used)
    _check_latent(policy, has_p_up, needs_joint=any(joint), needs_p_up=needs_p_up)
    known = (calibrations or {}) if policy.calibrate else {}
    reader = SignalReader(
        tuple(tasks),
        tuple(list(tasks).index(task) for task in used),
        joint,
        tuple(known.get(task, IDENTITY) for task in used),
    )
    if isinstance(policy, Expression):
        return _expression(policy, parsed.terms, reader, used, needs_p_up)
    return _weighted(policy, reader, used, needs_p_up)


def _refuse(thing: str, known: Sequence[str]) -> None:
    raise UnknownTask(thing, found="a name that the model does not have", expected=f"one of {', '.join(known)}")


def _check_latent(policy: Policy, has_p_up: bool, *, needs_joint: bool, needs_p_up: bool) -> None:
    if has_p_up:
        return
    model = "a model without a latent"
    if needs_joint:
        raise NoLatent("signal joint", found=model, expected="'signal: marginal', or a model with P(UP) (DLEN)")
    if needs_p_up:
        raise NoLatent("p_up", found=model, expected="a policy that does not read p_up, or a model with P(UP)")
    if policy.gate is not None:
        raise NoLatent("gate.min_p_up", found=model, expected="a policy without gate, or a model with P(UP)")


def _weighted(policy: Policy, reader: SignalReader, used: list[str], needs_p_up: bool) -> Formula:
    assert not isinstance(policy, Expression)
    weights = [policy.weights[task] for task in used] + ([policy.p_up] if needs_p_up else [])
    weights_K = np.array(weights, dtype=np.float64)
    has_negative = bool((weights_K < 0).any())
    to_terms: Callable[[Floats], Floats]
    link: Callable[[Floats], Floats] = _identity
    link_name: Link = "identity"
    squeeze: tuple[float, float, float] | None = None
    if isinstance(policy, RankSum | RankProduct):
        terms_of = formulas.rank_sum_terms if isinstance(policy, RankSum) else formulas.rank_product_terms
        to_terms = partial(_ranked, terms_of=terms_of, weights_K=weights_K, policy=policy)
    elif policy.formula == "power_product":
        floors_K = np.array([policy.epsilon] * len(used) + [formulas.TINY_P_UP] * needs_p_up)
        to_terms = partial(formulas.power_terms, weights_K=weights_K, floors_K=floors_K)
    else:
        to_terms = partial(formulas.weighted_terms, weights_K=weights_K)
    if policy.formula in ("power_product", "rank_product"):
        link, link_name = np.exp, "exp"
    elif has_negative and not isinstance(policy, RankProduct) and policy.formula != "power_product":
        negative, weight = float(-weights_K[weights_K < 0].sum()), float(np.abs(weights_K).sum())
        squeeze = negative, weight, policy.negative_ceiling
        link = partial(formulas.squeeze_negative, negative=negative, weight=weight, ceiling=policy.negative_ceiling)
        link_name = "squeeze"

    def terms(probabilities: Probabilities, candidates: Candidates) -> Floats:
        signals_KN = reader.read(probabilities, extra_rows=int(needs_p_up))
        if needs_p_up:
            signals_KN[-1] = probabilities.p_up_N
        return to_terms(signals_KN)

    names = (*used, *([P_UP] if needs_p_up else []))
    in_one_pass = None
    if policy.formula == "weighted_sum":
        in_one_pass = _weighted_sum(reader, weights[: len(used)], policy.p_up if needs_p_up else None, squeeze)
    return Formula(names, terms, link, link_name, any(reader.joint), needs_p_up, {}, in_one_pass)


def _weighted_sum(
    reader: SignalReader, weights: list[float], p_up: float | None, squeeze: tuple[float, float, float] | None
) -> Callable[[Probabilities], Floats | None] | None:
    """Return the compiled sum of float32 outputs; None where it was not built, or signals are calibrated."""
    if loops.compiled is None or not all(calibration.is_identity for calibration in reader.calibrations):
        return None
    compiled = loops.compiled.WeightedSum(len(reader.tasks), reader.columns, reader.joint, weights, p_up, squeeze)

    def scores(probabilities: Probabilities) -> Floats | None:
        p_NT, p_joint_NT, p_up_N = probabilities.p_NT, probabilities.p_joint_NT, probabilities.p_up_N
        if p_NT.dtype is not _FLOAT32:
            return None
        if (p_joint_NT is not None and p_joint_NT.dtype is not _FLOAT32) or (
            p_up_N is not None and p_up_N.dtype is not _FLOAT32
        ):
            return None
        return compiled.scores(p_NT, p_joint_NT, p_up_N)

    return scores


def _ranked(
    signals_KN: Floats,
    *,
    terms_of: Callable[..., Floats],
    weights_K: Floats,
    policy: RankSum | RankProduct,
) -> Floats:
    return terms_of(formulas.rank_within(signals_KN), weights_K, policy.beta, policy.smoothing)


def _expression(
    policy: Expression, parsed: tuple[tuple[str, Node], ...], reader: SignalReader, used: list[str], needs_p_up: bool
) -> Formula:
    attributes = dict(policy.attributes)

    def terms(probabilities: Probabilities, candidates: Candidates) -> Floats:
        count = probabilities.p_NT.shape[0]
        arrays = dict(zip(used, reader.read(probabilities), strict=True))
        if needs_p_up:
            assert probabilities.p_up_N is not None
            arrays[P_UP] = probabilities.p_up_N.astype(np.float64)
        for name, default in attributes.items():
            arrays[name] = read_attribute(candidates, name, default, count)
        terms_KN = np.empty((len(parsed), count))
        for row, (_, evaluate) in enumerate(parsed):
            terms_KN[row] = evaluate(arrays)
        return terms_KN

    names = tuple(text for text, _ in parsed)
    return Formula(names, terms, _identity, "identity", any(reader.joint), needs_p_up, attributes)


def _identity(total_N: Floats) -> Floats:
    return total_N
