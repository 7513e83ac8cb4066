"""A whole config compiled for a model: what one request holds from start to end.

`compile_config` checks every policy and every combination of variants against the model, so that nothing can be
refused later; `Fusion.decide` then gives a request its policy and its variants. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from msgspec import Struct

from fusion.calibration import Calibration
from fusion.errors import ConfigInvalid, PolicyMismatch
from fusion.experiments import Assigner, Exposure
from fusion.fuse import CompiledPolicy, compile_policy
from fusion.policies import Policy
from fusion.policy import FusionConfig
from fusion.variants import Choice, all_policies


class Decision(Struct, frozen=True):
    """What one request is ranked by.

    Attributes:
        policy: ranks the request.
        policy_name: the base policy's name in the config.
        assignments: layer → variant, for the response.
        exposures: to be logged once, if the request was ranked with them.
    """

    policy: CompiledPolicy
    policy_name: str
    assignments: Mapping[str, str]
    exposures: tuple[Exposure, ...]


@dataclass(frozen=True)
class Fusion:
    """A config compiled for a model; immutable, so threads and requests share it.

    Attributes:
        config: what it was compiled from.
        version: the config's content hash.
        tasks: the model's tasks in manifest order.
        policies: every policy of the config by name.
    """

    config: FusionConfig
    version: str
    tasks: tuple[str, ...]
    policies: Mapping[str, CompiledPolicy]
    assigner: Assigner
    _by_choice: Mapping[Choice, tuple[str, CompiledPolicy]]
    _effects: tuple[tuple[str, frozenset[str]], ...]

    def decide(
        self,
        user_id: str,
        context: Mapping[str, Any] | None = None,
        force: Mapping[str, str] | None = None,
        *,
        privileged: bool = False,
    ) -> Decision:
        """Return the request's policy and variants; arguments and errors as of `Assigner.assign`."""
        if not (self._effects or force):
            return self._only
        exposures = self.assigner.assign(user_id, context, force, privileged=privileged)
        assignments = {exposure.layer: exposure.variant for exposure in exposures}
        choice = tuple(
            variant if (variant := assignments.get(layer)) in variants else None for layer, variants in self._effects
        )
        name, policy = self._by_choice[choice]
        return Decision(policy, name, assignments, exposures)

    @cached_property
    def _only(self) -> Decision:
        """What every request is ranked by where there are no layers."""
        name, policy = self._by_choice[()]
        return Decision(policy, name, {}, ())


def compile_config(
    config: FusionConfig,
    tasks: Sequence[str],
    has_p_up: bool,
    calibrations: Mapping[str, Calibration] | None = None,
) -> Fusion:
    """Return the config ready to serve a model with these tasks.

    Raises:
        ConfigInvalid: a policy, or a combination of variants, does not fit the model: file, line, key, found,
            expected.
    """
    policies = {
        name: _compile(config, name, policy, tasks, has_p_up, calibrations) for name, policy in config.policies.items()
    }
    by_choice: dict[Choice, tuple[str, CompiledPolicy]] = {}
    for choice, (name, policy) in all_policies(config).items():
        compiled = policies[name]
        if policy is not config.policies[name]:
            compiled = _compile(config, name, policy, tasks, has_p_up, calibrations, choice)
        by_choice[choice] = name, compiled
    effects = tuple(
        (layer.name, frozenset(variant for choice in by_choice if (variant := choice[index])))
        for index, layer in enumerate(config.layers)
    )
    return Fusion(config, config.version, tuple(tasks), policies, Assigner(config), by_choice, effects)


def _compile(
    config: FusionConfig,
    name: str,
    policy: Policy,
    tasks: Sequence[str],
    has_p_up: bool,
    calibrations: Mapping[str, Calibration] | None,
    choice: Choice | None = None,
) -> CompiledPolicy:
    try:
        return compile_policy(policy, tasks, has_p_up, config.negative_tasks, calibrations)
    except PolicyMismatch as exc:
        raise _placed(config, name, exc, choice) from exc


def _placed(config: FusionConfig, name: str, exc: PolicyMismatch, choice: Choice | None) -> ConfigInvalid:
    """Return the mismatch with the place in the config that it comes from."""
    if choice is None:
        inside = {"expression name": "expression", "signal joint": "signal"}
        key = next((to for start, to in inside.items() if exc.thing.startswith(start)), exc.thing)
        found = exc.found if key == exc.thing else f"{exc.thing}: {exc.found}"
        return config.error(("policies", name, *key.split(".", 1)), found=found, expected=exc.expected)
    variants = ", ".join(variant for variant in choice if variant)
    return config.error(
        ("layers",), found=f"{name!r} as patched by {variants}: {exc.thing}: {exc.found}", expected=exc.expected
    )
