"""The int8 graph against its arithmetic in plain torch, and that against the float network."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.features import FeatureSchema
from bundle.read import input_tensors
from model_export.int8_graph import Int8Graph
from model_export.int8_reference import reference_network
from model_export.parity import network_outputs, open_session, run_graph
from model_export.quantise import integer_layer, quantise
from training.models.config import ModelName

WIDE = {"expert_hidden": (32, 16), "latent_hidden": (32, 16), "tower_hidden": (8,)}


@pytest.mark.parametrize("name", get_args(ModelName))
@given(data=st.data(), seed=st.integers(0, 999), levels=st.integers(1, 2))
@settings(max_examples=16, deadline=None)
def test_graph_computes_the_integer_arithmetic_for_any_schema_and_number_of_candidates(
    tmp_path_factory, schemas, make_network, random_rows, relations, name, data, seed, levels
):
    schema, folder = data.draw(schemas), tmp_path_factory.mktemp("graph")
    rows, tensors = random_rows(schema, 40, seed), input_tensors(schema)
    network = make_network(name, schema, data.draw(relations(name, schema)), seed, levels, **WIDE)
    quantised = quantise(network, *rows.batch(0, 40))
    Int8Graph(quantised, tensors).write(folder)
    session, reference = open_session(folder / "model.onnx"), reference_network(quantised)
    for count in (1, 2, data.draw(st.integers(40, 2000))):
        items = np.random.default_rng(seed).integers(40, size=count)
        expected = network_outputs(reference, *rows.rows_of(3, items))
        found = run_graph(session, rows.request(3, items, tensors))
        assert set(found) == set(expected)
        for output, wanted in expected.items():
            difference = np.abs(found[output] - wanted)
            if count >= 40:  # equal, but for a sum that lies on the edge of two steps; of a few all may
                assert np.median(difference) <= 1e-6
            assert difference.max() <= 1e-2


@pytest.mark.parametrize("name", get_args(ModelName))
@given(data=st.data(), seed=st.integers(0, 999), levels=st.integers(1, 2))
@settings(max_examples=8, deadline=None)
def test_integers_stay_near_the_network_and_equalising_changes_nothing(
    schemas, make_network, random_rows, relations, name, data, seed, levels
):
    schema = data.draw(schemas)
    rows = random_rows(schema, 60, seed)
    network = make_network(name, schema, data.draw(relations(name, schema)), seed, levels, **WIDE)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    quantised = quantise(network, *rows.batch(0, 60))
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key])
    expected = network_outputs(network, *rows.batch(0, 60))
    equal = network_outputs(quantised.network, *rows.batch(0, 60))
    found = network_outputs(reference_network(quantised), *rows.batch(0, 60))
    for output, wanted in expected.items():
        np.testing.assert_allclose(equal[output], wanted, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found[output], wanted, rtol=0, atol=0.02)


def test_a_standardised_value_beyond_the_calibrated_ones_is_clipped(tmp_path, make_network, random_rows):
    encoding = {"type": "standardise", "mean": 0.0, "deviation": 1.0}
    feature = {"name": "length", "side": "item", "kind": "numeric", "encoding": encoding}
    schema = FeatureSchema.model_validate({"features": [feature]})
    rows, network = random_rows(schema, 60, 1), make_network("mmoe", schema, 2, 1, **WIDE)
    Int8Graph(quantise(network, *rows.batch(0, 60)), input_tensors(schema)).write(tmp_path)
    largest = np.abs(rows.values).max(axis=0)
    session = open_session(tmp_path / "model.onnx")
    at_limit, above, far = (run_graph(session, {"item_values": k * largest[None, :]})["p"] for k in (1, 2, 1000))
    np.testing.assert_array_equal(above, far)
    np.testing.assert_allclose(at_limit, far, atol=1e-3)


def test_layers_of_256_inputs_and_their_biases_that_come_at_run_time(tmp_path, make_network, random_rows):
    encoding = {"type": "hash", "buckets": 9}
    feature = {"kind": "categorical", "value_type": "integer", "encoding": encoding}
    features = [{"name": side, "side": side} | feature for side in ("user", "item")]
    schema = FeatureSchema.model_validate({"features": features})
    network = make_network("dlen-ple", schema, 2, 1, 2, expert_hidden=(256, 16), latent_hidden=(256, 16))
    rows, tensors = random_rows(schema, 60, 1), input_tensors(schema)
    quantised = quantise(network, *rows.batch(0, 60))
    Int8Graph(quantised, tensors).write(tmp_path)
    items = np.arange(60)
    found = run_graph(open_session(tmp_path / "model.onnx"), rows.request(0, items, tensors))
    for output, wanted in network_outputs(reference_network(quantised), *rows.rows_of(0, items)).items():
        np.testing.assert_allclose(found[output], wanted, rtol=0, atol=2e-3)
    for output, wanted in network_outputs(network, *rows.rows_of(0, items)).items():
        np.testing.assert_allclose(found[output], wanted, rtol=0, atol=0.02)


@given(data=st.data(), inputs=st.integers(1, 33), spread=st.sampled_from([0.0, 1.0, 4.0]))
@settings(max_examples=100)
def test_no_two_neighbouring_inputs_can_reach_beyond_16_bits(data, inputs, spread):
    """What `vpmaddubsw` adds before it saturates: bytes times signed bytes, in pairs."""
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    weight_EKH = (random.normal(size=(2, inputs, 3)) * np.exp(spread * random.normal(size=(2, inputs, 1)))).astype("f4")
    weight_EKH = np.abs(weight_EKH) if data.draw(st.booleans()) else weight_EKH
    layer = integer_layer(weight_EKH, np.zeros((2, 3), np.float32), np.zeros((2, inputs), np.float32))
    steps = np.zeros((2, inputs + inputs % 2, 3), dtype=np.int64)
    steps[:, :inputs] = layer.weight_EKH
    pairs = steps.reshape(2, -1, 2, 3)
    for side in (pairs.clip(0, None), pairs.clip(None, 0)):
        assert np.abs(255 * side.sum(axis=2)).max() <= np.iinfo(np.int16).max
    reached = np.maximum(np.abs(steps).max(axis=1), np.abs(pairs.sum(axis=2)).max(axis=1))
    assert (reached >= 126).all()  # and no more bits are given away than that takes
