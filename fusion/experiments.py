"""Which variants a user has: layers, traffic, targeting, holdout and forced variants.

Hashing, bucketing and targeting are those of the growthbook library (hash version 2). A layer deals its users to
slices by the library's filter hash; of the experiment that owns the user's slice, only the steps of the library's
evaluation that ours have are then taken: hash, bucket ranges, condition. That is what evaluating every experiment
with `filters` would give (a test holds the two together). Nothing is stored: a user's variant follows from the id
and the config. Knows nothing of policies or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import growthbook
from growthbook.core import chooseVariation, evalCondition, gbhash, getBucketRanges

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
    """An experiment ready to be evaluated: its slice, its variants' bucket ranges, and their exposures."""

    config: Experiment
    low: float
    high: float
    seed: str
    ranges: list[tuple[float, float]]
    exposures: tuple[Exposure, ...]

    @property
    def running(self) -> bool:
        """Whether it takes users."""
        return self.config.status == "running"

    def exposure_of(self, user_id: str) -> Exposure | None:
        """Return the variant that the user's bucket falls to, if any, whatever the condition says."""
        bucket = gbhash(self.seed, user_id, HASH_VERSION)
        index = -1 if bucket is None else chooseVariation(bucket, self.ranges)
        return self.exposures[index] if index >= 0 else None

    def meets(self, user_id: str, context: Mapping[str, Any] | None) -> bool:
        """Return whether the experiment's condition holds."""
        if not self.config.when:
            return True
        return evalCondition({**context, USER: user_id} if context else {USER: user_id}, self.config.when, {})


class Assigner:
    """Deals users to variants; immutable, so threads and requests share it.

    Attributes:
        targets: whether any experiment has a condition, and so reads the context.
    """

    def __init__(self, config: FusionConfig) -> None:
        """Prepare the config's layers; the config has been checked when it was read."""
        self._holdout = config.holdout
        self._test_users = frozenset(config.test_users)
        self._layers = tuple((layer, layer_seed(layer), _arms(layer)) for layer in config.layers)
        self.targets = any(arm.config.when for _, _, arms in self._layers for arm in arms)
        self._forceable = {
            layer.name: {exposure.variant: exposure for arm in arms for exposure in arm.exposures}
            for layer, _, arms in self._layers
        }

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
        for layer, seed, arms in self._layers:
            if layer.name in forced:
                exposures.append(forced[layer.name])
                continue
            if held_out or not arms or not user_id:
                continue
            place = gbhash(seed, user_id, HASH_VERSION)
            for arm in arms:
                if place is None or not arm.low <= place < arm.high or not arm.running:
                    continue
                exposure = arm.exposure_of(user_id)
                if exposure is not None and arm.meets(user_id, context):
                    exposures.append(exposure)
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
        bucket = gbhash(arm.seed, user_id, HASH_VERSION)
        exposure = arm.exposure_of(user_id)
        if exposure is None:
            return None, f"bucket {bucket:.4f} is outside the traffic of {arm.config.traffic:.2%}"
        if not arm.meets(user_id, context):
            return None, f"the condition {arm.config.when} does not hold for the context"
        return exposure.variant, f"layer bucket {place:.4f} in [{arm.low:g}, {arm.high:g}), bucket {bucket:.4f}"

    def _is_held_out(self, user_id: str) -> bool:
        if not self._holdout.share or not user_id:
            return False
        place = gbhash(f"holdout:{self._holdout.salt}", user_id, HASH_VERSION)
        return place is not None and place < self._holdout.share

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


def growthbook_experiment(layer: Layer, experiment: Experiment) -> growthbook.Experiment[int]:
    """Return the library's whole form of an experiment, which assignment agrees with; values are positions."""
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
        filters=slices,
        active=experiment.status == "running",
    )


def _arms(layer: Layer) -> tuple[_Arm, ...]:
    return tuple(
        _Arm(
            experiment,
            *experiment.slice,
            experiment_seed(layer, experiment),
            getBucketRanges(
                len(experiment.variants), experiment.traffic, [variant.weight for variant in experiment.variants]
            ),
            tuple(
                Exposure(layer.name, experiment.name, experiment.phase, variant.name) for variant in experiment.variants
            ),
        )
        for experiment in layer.experiments
    )


def planned_shares(config: FusionConfig) -> dict[tuple[str, ...], float]:
    """Return each variant's share of its experiment, above 0, by layer, experiment, phase and name; of running ones."""
    shares: dict[tuple[str, ...], float] = {}
    for layer in config.layers:
        for experiment in layer.experiments:
            for variant in experiment.variants:
                if experiment.status == "running" and variant.weight > 0:
                    labels = (layer.name, experiment.name, str(experiment.phase), variant.name)
                    shares[labels] = variant.weight
    return shares
