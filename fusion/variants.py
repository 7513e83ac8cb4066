"""What a choice of variants makes of the policies: a policy by name, with the variants' patches merged in.

At most one layer names policies; other layers patch whatever that one chose, and no two layers patch the same
key. Every combination is built when a config is read, so that none can fail in a request. Knows nothing of users.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fusion.complaints import complaint, path_of
from fusion.document import dotted
from fusion.policies import POLICY, Policy
from fusion.policy_check import check_policy

if TYPE_CHECKING:
    from fusion.document import KeyPath
    from fusion.layers import Variant
    from fusion.policy import FusionConfig

MAX_COMBINATIONS = 256
"""Most combinations of variants (with an effect) over all layers."""

Choice = tuple[str | None, ...]
"""Per layer, the name of the variant that a user has, or None where it has none or one without effect."""


def merge_patch(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `patch` merged in as RFC 7386 says: mappings key by key, null removes, else replaces."""
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            inner = merged.get(key)
            merged[key] = merge_patch(inner if isinstance(inner, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def each_variant(config: FusionConfig, layer: int) -> Iterator[tuple[KeyPath, Variant]]:
    """Yield every variant of a layer with its place in the config."""
    for number, experiment in enumerate(config.layers[layer].experiments):
        for index, variant in enumerate(experiment.variants):
            yield ("layers", layer, "experiments", number, "variants", index), variant


def all_policies(config: FusionConfig) -> dict[Choice, tuple[str, Policy]]:
    """Return, for every choice of variants, the base policy's name and the resulting policy.

    Raises:
        ConfigInvalid: an unknown policy, two layers that touch the same thing, a patch that makes no policy.
    """
    _check_disjoint(config)
    options: list[list[tuple[KeyPath, Variant] | None]] = [
        [None, *(pair for pair in each_variant(config, layer) if pair[1].policy or pair[1].patch)]
        for layer in range(len(config.layers))
    ]
    count = 1
    for option in options:
        count *= len(option)
    if count > MAX_COMBINATIONS:
        expected = f"at most {MAX_COMBINATIONS} (fewer layers whose variants have a policy or patch)"
        raise config.error(("layers",), found=f"{count} combinations of variants", expected=expected)
    policies: dict[Choice, tuple[str, Policy]] = {}
    for combination in itertools.product(*options):
        choice = tuple(pair[1].name if pair else None for pair in combination)
        policies[choice] = _policy_of(config, [pair for pair in combination if pair])
    return policies


def _policy_of(config: FusionConfig, chosen: list[tuple[KeyPath, Variant]]) -> tuple[str, Policy]:
    name = next((variant.policy for _, variant in chosen if variant.policy), config.default)
    policy = config.policies[name]
    patches = [(path, variant.patch) for path, variant in chosen if variant.patch]
    if not patches:
        return name, policy
    data: dict[str, Any] = policy.model_dump(exclude_unset=True)
    for _, patch in patches:
        data = merge_patch(data, patch)
    path = (*patches[-1][0], "patch")
    try:
        policy = POLICY.validate_python(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        inside = path_of(first, data)
        found, expected = complaint(first, POLICY.json_schema(), data, inside)
        raise config.error(
            path, found=f"a patch of {name!r} with {dotted(inside)}: {found}", expected=expected
        ) from None
    check_policy(config, policy, path)
    return name, policy


def _check_disjoint(config: FusionConfig) -> None:
    naming: int | None = None
    patching: dict[KeyPath, int] = {}
    for layer in range(len(config.layers)):
        for path, variant in each_variant(config, layer):
            if variant.policy is not None:
                if variant.policy not in config.policies:
                    expected = f"the name of a policy ({', '.join(sorted(config.policies))})"
                    raise config.error((*path, "policy"), found=repr(variant.policy), expected=expected)
                if naming not in (None, layer):
                    expected = f"policies named by one layer only ({config.layers[naming or 0].name!r} does already)"
                    raise config.error((*path, "policy"), found=repr(variant.policy), expected=expected)
                naming = layer
            for key in _leaves(variant.patch or {}):
                _check_leaf(config, (*path, "patch"), key, layer, patching)


def _check_leaf(config: FusionConfig, path: KeyPath, key: KeyPath, layer: int, patching: dict[KeyPath, int]) -> None:
    for other, owner in patching.items():
        shorter = min(len(other), len(key))
        if owner != layer and other[:shorter] == key[:shorter]:
            expected = f"a key that layer {config.layers[owner].name!r} does not patch"
            raise config.error((*path, *key), found=f"a patch of {dotted(key)}", expected=expected)
    patching[key] = layer


def _leaves(patch: Mapping[str, Any], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in patch.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)
