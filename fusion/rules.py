"""Config models of the gate and of the rerank rules: what a tuner may write under `gate:` and `rules:`.

Knows nothing of how a rule is applied (rerank.py does).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, Strict

Number = Annotated[float, Strict(), AllowInfNan(False)]
"""A finite number; text and true/false are refused rather than converted."""
Whole = Annotated[int, Strict()]
"""A whole number; text, fractions and true/false are refused."""
Text = Annotated[str, Field(min_length=1, max_length=200)]
"""One line's worth of text."""
Share = Annotated[float, Strict(), AllowInfNan(False), Field(ge=0, le=1)]
"""A number from 0 to 1."""

MAX_DEPTH = 500
"""Most positions that a rule may fill."""


class Model(BaseModel):
    """A frozen config model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Gate(Model):
    """What becomes of candidates whose P(UP) is below `min_p_up`: put below all others, or left out."""

    min_p_up: Share
    mode: Literal["demote", "drop"] = "demote"


class Decay(Model):
    """Score × ((1 − floor)·decay^k + floor), k = candidates with the same key that score higher."""

    type: Literal["decay"]
    key: Text = "group"
    decay: Share = 0.5
    floor: Share = 0.1


class Mmr(Model):
    """Maximal marginal relevance (Carbonell & Goldstein 1998) on the candidates' vectors."""

    type: Literal["mmr"]
    relevance: Share = 0.7
    depth: Annotated[Whole, Field(ge=1, le=100)] = 20
    pool: Annotated[Whole, Field(ge=1, le=500)] = 100


class Dpp(Model):
    """Greedy MAP of a determinantal point process (Chen et al. 2018) on the candidates' vectors."""

    type: Literal["dpp"]
    relevance: Annotated[Number, Field(ge=0, lt=1)] = 0.7
    depth: Annotated[Whole, Field(ge=1, le=100)] = 20
    pool: Annotated[Whole, Field(ge=1, le=500)] = 100


class WindowCap(Model):
    """At most `max` candidates with the same key in any `window` neighbouring positions."""

    type: Literal["window_cap"]
    key: Text = "group"
    max: Annotated[Whole, Field(ge=1)] = 1
    window: Annotated[Whole, Field(ge=2, le=100)] = 5
    depth: Annotated[Whole, Field(ge=1, le=MAX_DEPTH)] = 100


class FirstCap(Model):
    """At most `max` candidates with the same key in the `first` positions."""

    type: Literal["first_cap"]
    key: Text
    max: Annotated[Whole, Field(ge=1)]
    first: Annotated[Whole, Field(ge=1, le=MAX_DEPTH)] = 10


class Explore(Model):
    """At each of `positions`, with probability `rate`, a uniform draw from the slot to `pool` is shown."""

    type: Literal["explore"]
    positions: Annotated[tuple[Annotated[Whole, Field(ge=1, le=MAX_DEPTH)], ...], Field(min_length=1, max_length=20)]
    rate: Share = 1.0
    pool: Annotated[Whole, Field(ge=1, le=2000)] = 100
    seed: Text = "explore"


class Pin(Model):
    """The candidate `id`, or the best one whose numeric `attribute` is above 0, stands at `position`."""

    type: Literal["pin"]
    position: Annotated[Whole, Field(ge=1, le=MAX_DEPTH)]
    id: Text | None = None
    attribute: Text | None = None


Rule = Annotated[
    Decay | Mmr | Dpp | WindowCap | FirstCap | Explore | Pin,
    Field(discriminator="type"),
]
RULE_STAGES: dict[str, int] = {
    "decay": 0,
    "mmr": 1,
    "dpp": 1,
    "window_cap": 2,
    "first_cap": 2,
    "explore": 3,
    "pin": 4,
}
"""Rules must come in rising stage: a later stage would undo an earlier one placed after it."""
