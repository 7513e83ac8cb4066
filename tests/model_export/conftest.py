"""Random schemas, rows and networks, for the tests that hold graphs against networks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from bundle.features import FeatureSchema
from bundle.read import input_tensors
from model_export.parity import SampleRows
from training.models.config import ModelConfig
from training.models.initialise import initialise
from training.models.network import Network
from training.models.structure import task_structure

SIDES = ("user", "item", "context")


@st.composite
def draw_schema(draw) -> FeatureSchema:
    features = []
    for index in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["hash", "list", "quantile", "standardise"]))
        feature = {"name": f"f{index}", "side": "item" if index == 0 else draw(st.sampled_from(SIDES))}
        feature["embedding_size"] = draw(st.sampled_from([3, 4]))
        if kind in ("hash", "list"):
            feature |= {"kind": "categorical" if kind == "hash" else "categorical_list", "value_type": "integer"}
            feature["encoding"] = {"type": "hash", "buckets": draw(st.integers(2, 20))}
            if kind == "list":
                feature["max_length"] = draw(st.integers(1, 3))
        elif kind == "quantile":
            feature |= {"kind": "numeric", "encoding": {"type": "quantile", "buckets": 3, "edges": [0.0, 1.0]}}
        else:
            feature |= {"kind": "numeric", "encoding": {"type": "standardise", "mean": 0.0, "deviation": 1.0}}
        features.append(feature)
    return FeatureSchema.model_validate({"features": features})


@dataclass(frozen=True)
class Relations:
    """How the tasks of a network relate: chains, mirrored complaints, habit towers, a wide layer."""

    tasks: int
    within: dict[str, str] = field(default_factory=dict)
    negative: tuple[int, ...] = ()
    habits: bool = False
    wide: bool = False


@st.composite
def draw_relations(draw, name: str, schema: FeatureSchema) -> Relations:
    tasks = draw(st.integers(2 if name == "esmm" else 1, 4))
    within = {}
    for task in range(1, tasks):  # later tasks are rarer
        if (name == "esmm" and task == 1) or draw(st.booleans()):
            within[f"t{task}"] = f"t{draw(st.integers(0, task - 1))}"
    related = {*within, *within.values()}
    negative = tuple(t for t in range(tasks) if f"t{t}" not in related and draw(st.booleans()))
    habits = name.startswith("dlen-") and bool(schema.request_part) and draw(st.booleans())
    return Relations(tasks, within, negative, habits, wide=draw(st.booleans()))


@pytest.fixture(scope="session")
def relations():
    """Return a strategy of the relations that the tasks of a model of a given name may have."""
    return draw_relations


@pytest.fixture(scope="session")
def schemas():
    """Return a strategy of schemas of every kind of feature, item features first or not."""
    return draw_schema()


@pytest.fixture(scope="session")
def random_rows():
    """Return a function that makes rows of codes that every feature allows, lists partly empty."""

    def make(schema: FeatureSchema, rows: int, seed: int) -> SampleRows:
        random = np.random.default_rng(seed)
        widths = {tensor.name: int(tensor.shape[1]) for tensor in input_tensors(schema)}
        codes = widths.get("request_codes", 0) + widths.get("item_codes", 0)
        values = widths.get("request_values", 0) + widths.get("item_values", 0)
        return SampleRows(
            random.integers(0, 4, size=(rows, codes)).astype(np.int32),
            random.normal(size=(rows, values)).astype(np.float32),
            widths.get("request_codes", 0),
            widths.get("request_values", 0),
        )

    return make


@pytest.fixture(scope="session")
def make_network():
    """Return a function that makes a small network of a given name, task relations and random weights."""

    def make(
        name: str, schema: FeatureSchema, relations: Relations | int, seed: int, levels: int = 1, **sizes
    ) -> Network:
        torch.manual_seed(seed)
        relations = Relations(relations) if isinstance(relations, int) else relations
        tasks = relations.tasks
        related = {"within": relations.within, "mirror_negative": True, "habit_towers": relations.habits}
        sizes = related | {"wide": relations.wide} | sizes
        small = {"expert_hidden": (7, 5), "tower_hidden": (4,), "latent_hidden": (6, 3)} | sizes
        config = ModelConfig(
            name=name, experts=3, shared_experts=2, task_experts=2, levels=levels, embedding_std=1.0, **small
        )
        names = tuple(f"t{i}" for i in range(tasks))
        kinds = ["negative" if t in relations.negative else "positive" for t in range(tasks)]
        network = Network(config, schema, tasks, task_structure(config, names, kinds))
        initialise(network, np.linspace(0.3, 0.01, tasks), names)
        for parameter, tensor in network.named_parameters():
            if ".biases." in parameter or parameter.endswith("gates.bias") or parameter == "wide.weight":
                torch.nn.init.normal_(tensor, std=0.3)
        return network.eval()

    return make
