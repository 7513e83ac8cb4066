"""The serving graph against the network, over random schemas, sizes, weights and numbers of candidates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.features import FeatureSchema
from bundle.read import input_tensors
from model_export.graph import write_serving_graph
from model_export.parity import SampleRows, network_outputs, open_session, run_graph
from training.models.config import MODEL_NAMES, ModelConfig
from training.models.initialise import initialise
from training.models.network import Network

SIDES = ("user", "item", "context")


@st.composite
def schemas(draw) -> FeatureSchema:
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


def random_rows(schema: FeatureSchema, rows: int, seed: int) -> SampleRows:
    """Return rows of codes that every feature allows, lists partly empty."""
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


def make_network(name: str, schema: FeatureSchema, tasks: int, seed: int, levels: int = 1) -> Network:
    torch.manual_seed(seed)
    config = ModelConfig(
        name=name, experts=3, shared_experts=2, task_experts=2, levels=levels, embedding_std=1.0,
        expert_hidden=(7, 5), tower_hidden=(4,), latent_hidden=(6, 3),
    )  # fmt: skip
    network = Network(config, schema, tasks)
    initialise(network, np.linspace(0.3, 0.01, tasks), tuple(f"t{i}" for i in range(tasks)))
    return network


@pytest.mark.parametrize("name", MODEL_NAMES)
@given(schema=schemas(), tasks=st.integers(1, 4), seed=st.integers(0, 999), levels=st.integers(1, 2))
@settings(max_examples=12, deadline=None)
def test_graph_equals_the_network_for_any_schema_and_number_of_candidates(
    tmp_path_factory, name, schema, tasks, seed, levels
):
    folder = tmp_path_factory.mktemp("graph")
    network = make_network(name, schema, tasks, seed, levels)
    write_serving_graph(network, schema, folder)
    session, rows = open_session(folder / "model.onnx"), random_rows(schema, 40, seed)
    tensors = input_tensors(schema)
    for count in (1, 2, 33):
        items = np.random.default_rng(seed).integers(40, size=count)
        expected = network_outputs(network, *rows.rows_of(3, items))
        found = run_graph(session, rows.request(3, items, tensors))
        assert set(found) == set(expected)
        for output, wanted in expected.items():
            np.testing.assert_allclose(found[output], wanted, rtol=0, atol=1e-5)


def test_a_candidates_scores_do_not_depend_on_its_neighbours(tmp_path):
    schema = FeatureSchema.model_validate(
        {"features": [{"name": "id", "side": "item", "kind": "categorical", "value_type": "integer",
                       "encoding": {"type": "hash", "buckets": 9}}]}
    )  # fmt: skip
    network = make_network("dlen-mmoe", schema, 2, 1)
    write_serving_graph(network, schema, tmp_path)
    session, rows = open_session(tmp_path / "model.onnx"), random_rows(schema, 30, 2)
    together = run_graph(session, rows.request(0, np.arange(30), input_tensors(schema)))["p_up"]
    for row in range(30):
        alone = run_graph(session, rows.request(0, np.array([row]), input_tensors(schema)))["p_up"]
        np.testing.assert_allclose(alone[0], together[row], atol=1e-6)
