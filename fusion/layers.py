"""Config models of experiments: layers of mutually exclusive experiments, their variants and traffic.

Knows nothing of how users are hashed (experiments.py does, with the growthbook library).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fusion.rules import Model, Share, Text, Whole

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
"""A name that can stand in a metric label, a URL and a log without quoting."""


class Variant(Model):
    """One arm: the policy it uses (or the default one), and a merge patch on top of it."""

    name: Name
    weight: Share
    policy: Name | None = None
    patch: dict[str, Any] | None = None


class Experiment(Model):
    """Variants for a slice of a layer's users.

    Attributes:
        slice: share of the layer's users, from and to; slices of one layer do not overlap.
        traffic: share of the slice that is in the experiment; raising it moves nobody between variants.
        phase: part of the hash; a new phase deals users anew (needed to change weights).
        status: draft and stopped experiments take nobody in.
        when: condition on context attributes in the growthbook library's (MongoDB-like) form.
    """

    name: Name
    phase: Annotated[Whole, Field(ge=1)] = 1
    status: Literal["draft", "running", "stopped"] = "running"
    slice: tuple[Share, Share] = (0.0, 1.0)
    traffic: Share = 1.0
    when: dict[str, Any] | None = None
    variants: Annotated[tuple[Variant, ...], Field(min_length=2, max_length=20)]


class Layer(Model):
    """Experiments of which a user is in at most one; other layers deal users independently."""

    name: Name
    salt: Text | None = None
    experiments: Annotated[tuple[Experiment, ...], Field(max_length=50)] = ()


class Holdout(Model):
    """A share of users that is in no experiment of any layer."""

    share: Share = 0.0
    salt: Text = "holdout"
