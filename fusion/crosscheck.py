"""Checks across a config's keys: names that must exist, slices that must not overlap, rules in order.

Knows nothing of models; what depends on a model's tasks is checked when a policy is compiled.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from fusion.policy_check import check_policy
from fusion.variants import all_policies

if TYPE_CHECKING:
    from fusion.document import KeyPath
    from fusion.layers import Experiment, Layer
    from fusion.policy import FusionConfig

_OPERATORS = frozenset(
    """$and $or $nor $not $eq $ne $lt $lte $gt $gte $in $nin $ini $nini $all $alli $exists $type $size $elemMatch
    $regex $regexi $notRegex $notRegexi $veq $vne $vlt $vlte $vgt $vgte""".split()  # noqa: SIM905
)
_JOINING = frozenset(("$and", "$or", "$nor"))
_OF_LISTS = _JOINING | {"$in", "$nin", "$ini", "$nini", "$all", "$alli"}


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
    _check_layers(config)
    all_policies(config)


def _check_layers(config: FusionConfig) -> None:
    layers: set[str] = set()
    salts: dict[str, str] = {}
    experiments: set[str] = set()
    for index, layer in enumerate(config.layers):
        path: KeyPath = ("layers", index)
        if layer.name in layers:
            raise config.error((*path, "name"), found=f"{layer.name!r} again", expected="each layer's name once")
        layers.add(layer.name)
        salt = layer.salt or layer.name
        if salt in salts:
            expected = f"another salt than layer {salts[salt]!r}, else the layers are not independent"
            raise config.error((*path, "salt"), found=repr(salt), expected=expected)
        salts[salt] = layer.name
        variants: set[str] = set()
        for number, experiment in enumerate(layer.experiments):
            here = (*path, "experiments", number)
            if experiment.name in experiments:
                expected = "each experiment's name once"
                raise config.error((*here, "name"), found=f"{experiment.name!r} again", expected=expected)
            experiments.add(experiment.name)
            _check_experiment(config, experiment, here, variants)
        _check_slices(config, layer, path)


def _check_experiment(config: FusionConfig, experiment: Experiment, path: KeyPath, taken: set[str]) -> None:
    for index, variant in enumerate(experiment.variants):
        if variant.name in taken:
            expected = "a name that no other variant of the layer has (logs name variants by layer)"
            raise config.error((*path, "variants", index, "name"), found=f"{variant.name!r} again", expected=expected)
        taken.add(variant.name)
    total = math.fsum(variant.weight for variant in experiment.variants)
    if abs(total - 1) > 1e-9:
        raise config.error((*path, "variants"), found=f"weights that add up to {total:g}", expected="1")
    low, high = experiment.slice
    if low >= high:
        raise config.error((*path, "slice"), found=f"[{low:g}, {high:g}]", expected="from below to")
    _check_condition(config, experiment.when, (*path, "when"))


def _check_condition(config: FusionConfig, condition: object, path: KeyPath, *, of_value: bool = False) -> None:
    """Check a condition on attributes, or (`of_value`) what one attribute's value is held against.

    The library takes what it does not understand as "does not hold", in every request.
    """
    if not isinstance(condition, dict):
        return
    for key, value in condition.items():
        here = (*path, key)
        if not key.startswith("$"):
            _check_condition(config, value, here, of_value=True)
            continue
        if key not in _OPERATORS:
            raise config.error(here, found=f"operator {key}", expected=f"one of {' '.join(sorted(_OPERATORS))}")
        if key != "$not" and (key in _JOINING) == of_value:
            expected = "$and, $or and $nor around attributes, other operators below one ({attribute: {$gte: 18}})"
            raise config.error(here, found=f"operator {key} here", expected=expected)
        if key in _OF_LISTS and not isinstance(value, list):
            raise config.error(here, found=repr(value), expected="a list")
        if key in ("$regex", "$regexi", "$notRegex", "$notRegexi"):
            _check_pattern(config, value, here)
        if key in _JOINING:
            for index, part in enumerate(value):
                if not isinstance(part, dict):
                    raise config.error((*here, index), found=repr(part), expected="a condition ({attribute: value})")
                _check_condition(config, part, (*here, index))
        elif key in ("$not", "$elemMatch"):
            if not isinstance(value, dict) and not (key == "$not" and of_value):
                raise config.error(here, found=repr(value), expected="a condition")
            inside = of_value if key == "$not" else any(str(name).startswith("$") for name in value)
            _check_condition(config, value, here, of_value=inside)


def _check_pattern(config: FusionConfig, pattern: object, path: KeyPath) -> None:
    try:
        re.compile(str(pattern))
        fault = "" if isinstance(pattern, str) else "no text"
    except re.error as exc:
        fault = str(exc)
    if fault:
        raise config.error(path, found=f"{pattern!r} ({fault})", expected="a regular expression")


def _check_slices(config: FusionConfig, layer: Layer, path: KeyPath) -> None:
    taken: list[tuple[float, float, str]] = []
    for number, experiment in enumerate(layer.experiments):
        if experiment.status == "stopped":
            continue
        low, high = experiment.slice
        for other_low, other_high, other in taken:
            if low < other_high and other_low < high:
                expected = f"no overlap with [{other_low:g}, {other_high:g}] of {other!r}: a user is in one experiment"
                found = f"[{low:g}, {high:g}]"
                raise config.error((*path, "experiments", number, "slice"), found=found, expected=expected)
        taken.append((low, high, experiment.name))
