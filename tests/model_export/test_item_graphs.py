"""The graphs cut at the item half, against the whole ones: over random schemas, sizes, weights and requests."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.read import input_tensors
from model_export.int8_graph import Int8Graph
from model_export.item_graphs import FloatCut
from model_export.item_int8 import integer_cut
from model_export.items import CutSession
from model_export.onnx_writer import WeightsFile
from model_export.parity import network_outputs, open_session, run_graph
from model_export.quantise import quantise
from training.models.config import ModelName

WIDE = {"expert_hidden": (32, 16), "latent_hidden": (32, 16), "tower_hidden": (8,)}
KINDS = ("packed", "layer1")


@pytest.mark.parametrize("name", get_args(ModelName))
@given(data=st.data(), seed=st.integers(0, 99), levels=st.integers(1, 2))
@settings(max_examples=4, deadline=None)
def test_float_rows_rank_as_the_network_does(
    tmp_path_factory, schemas, make_network, random_rows, relations, name, data, seed, levels
):
    schema, rows_kind = data.draw(schemas), data.draw(st.sampled_from(KINDS))
    related, inputs = data.draw(relations(name, schema)), input_tensors(schema)
    network = make_network(name, schema, related, seed, levels)
    folder, rows = tmp_path_factory.mktemp("cut"), random_rows(schema, 40, seed)
    cut = FloatCut(network, inputs, rows_kind)
    cut.write(folder, WeightsFile(folder))
    session = CutSession(folder)
    for count in (1, data.draw(st.integers(2, 300))):
        items = np.random.default_rng(seed).integers(40, size=count)
        request = rows.request(3, items, inputs)
        assert session.rows(request).shape == (count, cut.row.shape[1])
        found = run_graph(session, request)
        for output, wanted in network_outputs(network, *rows.rows_of(3, items)).items():
            np.testing.assert_allclose(found[output], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", get_args(ModelName))
@given(data=st.data(), seed=st.integers(0, 99), levels=st.integers(1, 2), deep=st.booleans())
@settings(max_examples=5, deadline=None)
def test_rows_of_bytes_rank_as_the_int8_graph_does(
    tmp_path_factory, schemas, make_network, random_rows, relations, name, data, seed, levels, deep
):
    schema, rows_kind = data.draw(schemas), data.draw(st.sampled_from(KINDS))
    sizes = WIDE if deep else {**WIDE, "expert_hidden": (32,), "latent_hidden": (32,)}
    related, inputs = data.draw(relations(name, schema)), input_tensors(schema)
    network = make_network(name, schema, related, seed, levels, **sizes)
    folder, rows = tmp_path_factory.mktemp("cut"), random_rows(schema, 60, seed)
    quantised, weights = quantise(network, *rows.batch(0, 60)), WeightsFile(folder)
    Int8Graph(quantised, inputs).write(folder, weights)
    items = np.random.default_rng(seed).integers(60, size=data.draw(st.integers(1, 200)))
    cut = integer_cut(quantised, inputs, rows_kind, [rows.request(0, np.arange(60), inputs)])
    cut.write(folder, weights)
    request = rows.request(3, items, inputs)
    whole, found = run_graph(open_session(folder / "model.onnx"), request), run_graph(CutSession(folder), request)
    assert CutSession(folder).rows(request).dtype == np.uint8
    for output, wanted in network_outputs(network, *rows.rows_of(3, items)).items():
        if rows_kind == "packed":
            np.testing.assert_array_equal(found[output], whole[output])
        np.testing.assert_allclose(found[output], whole[output], rtol=0, atol=0.02)
        np.testing.assert_allclose(found[output], wanted, rtol=0, atol=0.02)
