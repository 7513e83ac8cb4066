"""Which variants a user has: layers, traffic, targeting, holdout and forced variants.

Hashing, bucketing and targeting are those of the growthbook library (hash version 2). A layer deals its users to
slices by the library's filter hash; only the experiment that owns the user's slice is then evaluated, which is what
evaluating all of them with `filters` would give (a test holds the two together). Nothing is stored: a user's
variant follows from the id and the config. Knows nothing of policies or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import growthbook
from growthbook.common_types import EvaluationContext, GlobalContext, Options, StackContext, UserContext
from growthbook.core import gbhash, run_experiment

from fusion.errors import ForceRefused, ForceUnknown
from fusion.layers import Experiment, Layer
from fusion.policy import FusionConfig

HASH_VERSION = 2
"""growthbook's second hash; the first one is not uniform."""
USER = "id"
"""The attribute that is hashed: the user's id."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """A user has a variant; log it once per request in which it took part.

    Attributes:
        layer: the layer's name.
        experiment: the experiment's name.
        phase: the experiment's phase.
        variant: the variant's name, unique within the layer.
        forced: given by request rather than by hash; keep these out of any analysis.
    """

    layer: str
    experiment: str
    phase: int
    variant: str
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a user is or is not in an experiment, for `dlen ab assign`."""

    layer: str
    experiment: str
    variant: str | None
    why: str


@dataclass(frozen=True)
class _Arm:
    """An experiment ready to be evaluated, and the exposure of each of its variants."""

    config: Experiment
    low: float
    high: float
    experiment: growthbook.Experiment[int]
    exposures: tuple[Exposure, ...]


class Assigner:
    """Deals users to variants; immutable, so threads and requests share it."""

    def __init__(self, config: FusionConfig) -> None:
        """Prepare the config's layers; the config has been checked when it was read."""
        self._holdout = config.holdout
        self._test_users = frozenset(config.test_users)
        self._layers = tuple((layer, layer_seed(layer), _arms(layer)) for layer in config.layers)
        self._forceable = {
            layer.name: {exposure.variant: exposure for arm in arms for exposure in arm.exposures}
            for layer, _, arms in self._layers
        }
        self._global = GlobalContext(options=Options())

    def assign(
        self,
        user_id: str,
        context: Mapping[str, Any] | None = None,
        force: Mapping[str, str] | None = None,
        *,
        privileged: bool = False,
    ) -> tuple[Exposure, ...]:
        """Return the user's variants, at most one per layer, in layer order.

        Args:
            user_id: what is hashed; an empty id is in no experiment.
            context: attributes that targeting conditions read.
            force: layer → variant to have instead of the hashed one.
            privileged: the caller holds the admin key, and may force for any user.

        Raises:
            ForceRefused: `force` by a caller who is neither privileged nor a listed test user.
            ForceUnknown: `force` names no layer or variant.
        """
        forced = self._check_force(user_id, force, privileged) if force else {}
        if not self._layers or not (user_id or forced):
            return ()
        exposures: list[Exposure] = []
        held_out = self._is_held_out(user_id)
        evaluation: EvaluationContext | None = None
        for layer, seed, arms in self._layers:
            if layer.name in forced:
                exposures.append(forced[layer.name])
                continue
            if held_out or not arms or not user_id:
                continue
            place = gbhash(seed, user_id, HASH_VERSION)
            for arm in arms:
                if place is None or not arm.low <= place < arm.high or arm.config.status != "running":
                    continue
                evaluation = evaluation or self._evaluation(user_id, context)
                result = run_experiment(arm.experiment, None, evaluation)
                if result.inExperiment:
                    exposures.append(arm.exposures[result.value])
        return tuple(exposures)

    def explain(self, user_id: str, context: Mapping[str, Any] | None = None) -> list[Reason]:
        """Return, for every experiment of every layer, whether the user is in it and why."""
        reasons: list[Reason] = []
        held_out = self._is_held_out(user_id)
        for layer, seed, arms in self._layers:
            place = gbhash(seed, user_id, HASH_VERSION) if user_id else None
            for arm in arms:
                variant, why = self._why(arm, place, held_out, user_id, context)
                reasons.append(Reason(layer.name, arm.config.name, variant, why))
        return reasons

    def _why(
        self, arm: _Arm, place: float | None, held_out: bool, user_id: str, context: Mapping[str, Any] | None
    ) -> tuple[str | None, str]:
        if place is None:
            return None, "no user id, so no experiment"
        if held_out:
            return None, f"in the holdout of {self._holdout.share:.2%} of users"
        if arm.config.status != "running":
            return None, f"the experiment is {arm.config.status}"
        if not arm.low <= place < arm.high:
            return None, f"layer bucket {place:.4f} is outside the slice [{arm.low:g}, {arm.high:g})"
        result = run_experiment(arm.experiment, None, self._evaluation(user_id, context))
        bucket = gbhash(str(arm.experiment.seed), user_id, HASH_VERSION)
        if result.inExperiment:
            text = f"layer bucket {place:.4f} in [{arm.low:g}, {arm.high:g}), bucket {bucket:.4f}"
            return arm.exposures[result.value].variant, text
        without = growthbook.Experiment(**{**arm.experiment.to_dict(), "condition": None})
        if run_experiment(without, None, self._evaluation(user_id, context)).inExperiment:
            return None, f"the condition {arm.config.when} does not hold for the context"
        return None, f"bucket {bucket:.4f} is outside the traffic of {arm.config.traffic:.2%}"

    def _is_held_out(self, user_id: str) -> bool:
        if not self._holdout.share or not user_id:
            return False
        place = gbhash(f"holdout:{self._holdout.salt}", user_id, HASH_VERSION)
        return place is not None and place < self._holdout.share

    def _evaluation(self, user_id: str, context: Mapping[str, Any] | None) -> EvaluationContext:
        attributes = {**context, USER: user_id} if context else {USER: user_id}
        return EvaluationContext(user=UserContext(attributes=attributes), global_ctx=self._global, stack=StackContext())

    def _check_force(self, user_id: str, force: Mapping[str, str], privileged: bool) -> dict[str, Exposure]:
        if not privileged and user_id not in self._test_users:
            raise ForceRefused(
                "force_variant", found=f"user {user_id!r} without the admin key", expected="a listed test user"
            )
        forced: dict[str, Exposure] = {}
        for layer, variant in force.items():
            if layer not in self._forceable:
                raise ForceUnknown("layer", found=repr(layer), expected=f"one of {', '.join(self._forceable)}")
            known = self._forceable[layer]
            if variant not in known:
                expected = f"one of {', '.join(known)}"
                raise ForceUnknown(f"variant of layer {layer!r}", found=repr(variant), expected=expected)
            hashed = known[variant]
            forced[layer] = Exposure(layer, hashed.experiment, hashed.phase, variant, forced=True)
        return forced


def layer_seed(layer: Layer) -> str:
    """Return what a layer's users are dealt to slices by."""
    return f"layer:{layer.salt or layer.name}"


def experiment_seed(layer: Layer, experiment: Experiment) -> str:
    """Return what an experiment's users are dealt to variants by; another phase deals anew."""
    return f"{layer.salt or layer.name}/{experiment.name}/{experiment.phase}"


def growthbook_experiment(layer: Layer, experiment: Experiment, *, filters: bool) -> growthbook.Experiment[int]:
    """Return the library's form of an experiment; values are variant positions."""
    low, high = experiment.slice
    slices: Any = [{"seed": layer_seed(layer), "ranges": [(low, high)], "hashVersion": HASH_VERSION, "attribute": USER}]
    return growthbook.Experiment(
        key=experiment.name,
        variations=list(range(len(experiment.variants))),
        weights=[variant.weight for variant in experiment.variants],
        coverage=experiment.traffic,
        condition=experiment.when,
        hashAttribute=USER,
        hashVersion=HASH_VERSION,
        seed=experiment_seed(layer, experiment),
        filters=slices if filters else None,
        active=experiment.status == "running",
    )


def _arms(layer: Layer) -> tuple[_Arm, ...]:
    return tuple(
        _Arm(
            experiment,
            *experiment.slice,
            growthbook_experiment(layer, experiment, filters=False),
            tuple(
                Exposure(layer.name, experiment.name, experiment.phase, variant.name) for variant in experiment.variants
            ),
        )
        for experiment in layer.experiments
    )
