"""Checks of one policy that no single key shows: signs of weights, sizes, rules in order, expressions.

Knows nothing of models; what depends on a model's tasks is checked when a policy is compiled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fusion.expression import ExpressionInvalid, parse
from fusion.policies import Expression, Policy, PowerProduct, RankProduct
from fusion.rules import RULE_STAGES, Decay, Dpp, Explore, FirstCap, Mmr, Pin, Rule, WindowCap

if TYPE_CHECKING:
    from fusion.document import KeyPath
    from fusion.policy import FusionConfig

_LARGEST_EXPONENT = 650.0  # exp overflows above 709


def check_policy(config: FusionConfig, policy: Policy, path: KeyPath) -> None:
    """Check one policy, which stands at `path`, against the rest of the config."""
    if isinstance(policy, Expression):
        _check_expression(config, policy, path)
    else:
        _check_weights(config, policy, path)
    _check_rules(config, policy, path)


def _check_expression(config: FusionConfig, policy: Expression, path: KeyPath) -> None:
    try:
        parsed = parse(policy.expression)
    except ExpressionInvalid as exc:
        raise config.error(
            (*path, "expression"), found=f"at position {exc.position} {exc.found}", expected=exc.expected
        ) from None
    for name in policy.attributes:
        if name not in parsed.names:
            expected = "an attribute that the expression reads"
            raise config.error((*path, "attributes", name), found=repr(name), expected=expected)
        if name == "p_up":
            raise config.error((*path, "attributes", name), found="'p_up'", expected="a name that is not taken")


def _check_weights(config: FusionConfig, policy: Policy, path: KeyPath) -> None:
    assert not isinstance(policy, Expression)
    for task, weight in policy.weights.items():
        if task == "p_up":
            expected = f"it beside weights, not among them ('p_up: {weight:g}' one level up)"
            raise config.error((*path, "weights", task), found="'p_up'", expected=expected)
        negative = task in config.negative_tasks
        if weight < 0 and not negative:
            expected = f"at least 0, or {task!r} among negative_tasks"
            raise config.error((*path, "weights", task), found=weight, expected=expected)
        if weight > 0 and negative:
            raise config.error((*path, "weights", task), found=weight, expected="at most 0: it is a negative task")
    if not any(policy.weights.values()) and not policy.p_up:
        raise config.error((*path, "weights"), found="only zeros", expected="a weight other than 0")
    total = sum(map(abs, policy.weights.values()))
    if isinstance(policy, PowerProduct):
        reach, form = total * -math.log(policy.epsilon), "Σ|w|·|log epsilon|"
    elif isinstance(policy, RankProduct):
        reach, form = (
            (total + policy.p_up) * math.log(2000.0**policy.beta + policy.smoothing),
            ("Σ|w|·log(2000^beta + smoothing)"),
        )
    else:
        return
    if reach > _LARGEST_EXPONENT:
        expected = f"{form} at most {_LARGEST_EXPONENT:g}, so that the product stays a number"
        raise config.error((*path, "weights"), found=f"{reach:.4g}", expected=expected)


def _check_rules(config: FusionConfig, policy: Policy, path: KeyPath) -> None:
    before: Rule | None = None
    diverse = [rule.type for rule in policy.rules if isinstance(rule, Mmr | Dpp)]
    pinned: dict[int, int] = {}
    for index, rule in enumerate(policy.rules):
        here = (*path, "rules", index)
        if before is not None and RULE_STAGES[rule.type] < RULE_STAGES[before.type]:
            expected = f"it before {before.type}, which it would undo (order: decay, mmr or dpp, caps, explore, pin)"
            raise config.error(here, found=f"{rule.type} after {before.type}", expected=expected)
        if isinstance(rule, Mmr | Dpp) and len(diverse) > 1:
            expected = "mmr or dpp, once: a second one would order the same head anew"
            raise config.error(here, found=f"{' and '.join(diverse)}", expected=expected)
        before = rule
        _check_rule(config, rule, here)
        if isinstance(rule, Pin):
            if rule.position in pinned:
                expected = f"another position than rule {pinned[rule.position]}"
                raise config.error((*here, "position"), found=rule.position, expected=expected)
            pinned[rule.position] = index


def _check_rule(config: FusionConfig, rule: Rule, path: KeyPath) -> None:
    nothing = "else the rule does nothing"
    if isinstance(rule, WindowCap) and rule.max >= rule.window:
        expected = f"less than window ({rule.window}), {nothing}"
        raise config.error((*path, "max"), found=rule.max, expected=expected)
    if isinstance(rule, FirstCap) and rule.max >= rule.first:
        expected = f"less than first ({rule.first}), {nothing}"
        raise config.error((*path, "max"), found=rule.max, expected=expected)
    if isinstance(rule, Decay) and rule.decay == 1:
        raise config.error((*path, "decay"), found=rule.decay, expected=f"less than 1, {nothing}")
    if isinstance(rule, Decay) and rule.floor == 1:
        raise config.error((*path, "floor"), found=rule.floor, expected=f"less than 1, {nothing}")
    if isinstance(rule, Mmr) and rule.relevance == 1:
        raise config.error((*path, "relevance"), found=rule.relevance, expected=f"less than 1, {nothing}")
    if isinstance(rule, Explore) and max(rule.positions) >= rule.pool:
        expected = f"positions below pool ({rule.pool}), {nothing} there"
        raise config.error((*path, "positions"), found=max(rule.positions), expected=expected)
    if isinstance(rule, Pin) and (rule.id is None) == (rule.attribute is None):
        raise config.error(path, found="both or neither", expected="one of id and attribute")
