"""Checks across a config's keys: names that must exist, slices that must not overlap, rules in order.

Knows nothing of models; what depends on a model's tasks is checked when a policy is compiled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fusion.expression import ExpressionInvalid, parse
from fusion.rules import RULE_STAGES, Decay, FirstCap, Pin, WindowCap

if TYPE_CHECKING:
    from fusion.document import KeyPath
    from fusion.policy import Expression, FusionConfig, Policy

_LARGEST_EXPONENT = 650.0  # exp overflows above 709


def cross_check(config: FusionConfig) -> None:
    """Check everything in a config that no single key shows.

    Raises:
        ConfigInvalid: the first thing wrong.
    """
    if config.default not in config.policies:
        names = ", ".join(sorted(config.policies))
        raise config.error(("default",), found=repr(config.default), expected=f"the name of a policy ({names})")
    for index, task in enumerate(config.negative_tasks):
        if task in config.negative_tasks[:index]:
            raise config.error(("negative_tasks", index), found=f"{task!r} again", expected="each task once")
    for name, policy in config.policies.items():
        check_policy(config, policy, ("policies", name))


def check_policy(config: FusionConfig, policy: Policy, path: KeyPath) -> None:
    """Check one policy, which stands at `path`, against the rest of the config."""
    if policy.formula == "expression":
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
    assert policy.formula != "expression"
    for task, weight in policy.weights.items():
        negative = task in config.negative_tasks
        if weight < 0 and not negative:
            expected = f"at least 0, or {task!r} among negative_tasks"
            raise config.error((*path, "weights", task), found=weight, expected=expected)
        if weight > 0 and negative:
            raise config.error((*path, "weights", task), found=weight, expected="at most 0: it is a negative task")
    if not any(policy.weights.values()) and not policy.p_up:
        raise config.error((*path, "weights"), found="only zeros", expected="a weight other than 0")
    if policy.formula == "power_product":
        reach = sum(map(abs, policy.weights.values())) * -math.log(policy.epsilon)
        if reach > _LARGEST_EXPONENT:
            expected = f"Σ|w|·|log epsilon| at most {_LARGEST_EXPONENT:g}, so that the product stays a number"
            raise config.error((*path, "weights"), found=f"{reach:.4g}", expected=expected)
    if policy.formula == "rank_product":
        total = sum(map(abs, policy.weights.values())) + policy.p_up
        reach = total * math.log(2000.0**policy.beta + policy.smoothing)
        if reach > _LARGEST_EXPONENT:
            expected = f"Σ|w|·log(2000^beta + smoothing) at most {_LARGEST_EXPONENT:g}"
            raise config.error((*path, "weights"), found=f"{reach:.4g}", expected=expected)


def _check_rules(config: FusionConfig, policy: Policy, path: KeyPath) -> None:
    before = None
    pinned: dict[int, int] = {}
    for index, rule in enumerate(policy.rules):
        here = (*path, "rules", index)
        if before is not None and RULE_STAGES[rule.type] < RULE_STAGES[before.type]:
            expected = f"it before {before.type}, which it would undo (order: decay, mmr or dpp, caps, explore, pin)"
            raise config.error(here, found=f"{rule.type} after {before.type}", expected=expected)
        before = rule
        if isinstance(rule, WindowCap) and rule.max >= rule.window:
            expected = f"less than window ({rule.window}), else the rule does nothing"
            raise config.error((*here, "max"), found=rule.max, expected=expected)
        if isinstance(rule, FirstCap) and rule.max >= rule.first:
            expected = f"less than first ({rule.first}), else the rule does nothing"
            raise config.error((*here, "max"), found=rule.max, expected=expected)
        if isinstance(rule, Decay) and rule.decay == 1:
            raise config.error((*here, "decay"), found=rule.decay, expected="less than 1, else the rule does nothing")
        if isinstance(rule, Pin):
            if (rule.id is None) == (rule.attribute is None):
                raise config.error(here, found="both or neither", expected="one of id and attribute")
            if rule.position in pinned:
                expected = f"another position than rule {pinned[rule.position]}"
                raise config.error((*here, "position"), found=rule.position, expected=expected)
            pinned[rule.position] = index
