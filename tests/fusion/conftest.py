from __future__ import annotations

import pytest
import yaml

from fusion.policy import parse_config

BASE = {
    "format": 1,
    "default": "feed",
    "negative_tasks": ["hate"],
    "policies": {
        "feed": {"formula": "weighted_sum", "weights": {"click": 1.0, "like": 2.0}, "p_up": 0.5},
        "plain": {"formula": "weighted_sum", "signal": "marginal", "weights": {"click": 1.0}},
    },
}


@pytest.fixture
def make_config():
    """A function that makes a config of the base one and other top-level keys."""

    def make(**keys):
        return parse_config({"fusion.yaml": yaml.safe_dump({**BASE, **keys}, sort_keys=False).encode()})

    return make


def experiment(name, *, variants=None, **keys):
    """An experiment with two equal variants named after it."""
    variants = variants or [{"name": f"{name}_a", "weight": 0.5}, {"name": f"{name}_b", "weight": 0.5}]
    return {"name": name, "variants": variants, **keys}


@pytest.fixture(name="experiment")
def experiment_fixture():
    return experiment
