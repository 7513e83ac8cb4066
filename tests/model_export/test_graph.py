"""The serving graph against the network, over random schemas, sizes, weights and numbers of candidates."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.features import FeatureSchema
from bundle.read import input_tensors
from model_export.graph import write_serving_graph
from model_export.parity import network_outputs, open_session, run_graph
from training.models.config import ModelName


@pytest.mark.parametrize("name", get_args(ModelName))
@given(data=st.data(), seed=st.integers(0, 999), levels=st.integers(1, 2))
@settings(max_examples=16, deadline=None)
def test_graph_equals_the_network_for_any_schema_and_number_of_candidates(
    tmp_path_factory, schemas, make_network, random_rows, relations, name, data, seed, levels
):
    schema, folder = data.draw(schemas), tmp_path_factory.mktemp("graph")
    network = make_network(name, schema, data.draw(relations(name, schema)), seed, levels)
    write_serving_graph(network, schema, folder)
    session, rows = open_session(folder / "model.onnx"), random_rows(schema, 40, seed)
    tensors = input_tensors(schema)
    for count in (1, 2, data.draw(st.integers(3, 2000))):
        items = np.random.default_rng(seed).integers(40, size=count)
        expected = network_outputs(network, *rows.rows_of(3, items))
        found = run_graph(session, rows.request(3, items, tensors))
        assert set(found) == set(expected)
        for output, wanted in expected.items():
            np.testing.assert_allclose(found[output], wanted, rtol=0, atol=1e-5)


def test_a_candidates_scores_do_not_depend_on_its_neighbours(tmp_path, make_network, random_rows):
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
