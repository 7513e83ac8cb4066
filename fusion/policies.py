"""Config models of one policy: a formula with its numbers, a gate, rerank rules.

Knows nothing of the rest of the config, of models or of arrays.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from fusion.layers import Name
from fusion.rules import Gate, Model, Number, Rule, Text

MAX_WEIGHT = 1000.0
"""Largest weight by absolute value."""

Weight = Annotated[Number, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
Weights = Annotated[dict[Text, Weight], Field(min_length=1, max_length=200)]
UpWeight = Annotated[Number, Field(ge=0, le=MAX_WEIGHT)]


class _Policy(Model):
    """What every formula shares.

    Attributes:
        signal: joint = P(t, UP) (Eq. 4 of the paper), marginal = P(t) (Eq. 1); a declared negative task always
            enters by its marginal probability, since P(hate, UP) is not what is to be avoided.
        calibrate: apply the bundle's temperature and offset per task first.
        gate: what becomes of candidates below a P(UP).
        rules: rerank rules in order.
    """

    description: str | None = None
    signal: Literal["joint", "marginal"] = "joint"
    calibrate: bool = False
    gate: Gate | None = None
    rules: Annotated[tuple[Rule, ...], Field(max_length=20)] = ()


class WeightedSum(_Policy):
    """Σ w·s + p_up·P(UP); a negative total is squeezed below every positive one, in order."""

    formula: Literal["weighted_sum"]
    weights: Weights
    p_up: UpWeight = 0.0
    negative_ceiling: Annotated[Number, Field(gt=0, le=1)] = 1e-3


class PowerProduct(_Policy):
    """Π (epsilon + s)^w · P(UP)^p_up, computed in logs."""

    formula: Literal["power_product"]
    weights: Weights
    p_up: UpWeight = 0.0
    epsilon: Annotated[Number, Field(ge=1e-9, le=1)] = 1e-4


class RankSum(_Policy):
    """Σ w / (rank^beta + smoothing) on ranks within the request; 1 is the most probable candidate."""

    formula: Literal["rank_sum"]
    weights: Weights
    p_up: UpWeight = 0.0
    beta: Annotated[Number, Field(gt=0, le=5)] = 1.0
    smoothing: Annotated[Number, Field(ge=0, le=1e6)] = 60.0
    negative_ceiling: Annotated[Number, Field(gt=0, le=1)] = 1e-3


class RankProduct(_Policy):
    """Π (rank^beta + smoothing)^−w on ranks within the request, computed in logs."""

    formula: Literal["rank_product"]
    weights: Weights
    p_up: UpWeight = 0.0
    beta: Annotated[Number, Field(gt=0, le=5)] = 1.0
    smoothing: Annotated[Number, Field(ge=0, le=1e6)] = 1.0


class Expression(_Policy):
    """A formula over task names, p_up and declared numeric candidate attributes (see expression.py)."""

    formula: Literal["expression"]
    expression: Annotated[str, Field(min_length=1, max_length=2000)]
    attributes: Annotated[dict[Name, Number], Field(max_length=50)] = {}


Policy = Annotated[WeightedSum | PowerProduct | RankSum | RankProduct | Expression, Field(discriminator="formula")]
POLICY: TypeAdapter[Policy] = TypeAdapter(Policy)
"""Validates one policy from plain data."""
