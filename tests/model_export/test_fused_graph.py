"""Graphs in operators of our own against the stock ones: over random schemas, models, weights and requests."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import operators
from bundle.encode import EncodedPart
from bundle.features import FeatureSchema
from bundle.manifest import FUSED_MODEL_FILE, FUSED_ROWS_MODEL_FILE
from bundle.read import input_tensors, read_bundle
from model_export import write
from model_export.fused_graph import FusedInt8Graph, can_fuse
from model_export.int8_graph import Int8Graph
from model_export.item_int8 import integer_cut
from model_export.items import CutSession
from model_export.onnx_writer import WeightsFile
from model_export.parity import open_session, run_graph
from model_export.quantise import quantise
from model_export.write import export_run
from service.engine import Engine
from training.models.config import ModelName

WIDE = {"expert_hidden": (32, 16), "latent_hidden": (32, 16), "tower_hidden": (8,)}
SIZES = (
    WIDE,
    {"expert_hidden": (32,), "latent_hidden": (40,), "tower_hidden": (12,)},
    {"expert_hidden": (70, 33, 20), "latent_hidden": (17,), "tower_hidden": (9, 5)},
)

_FEATURE = {"kind": "categorical", "value_type": "integer", "encoding": {"type": "hash", "buckets": 9}}
SCHEMA = FeatureSchema.model_validate(
    {"features": [{"name": side, "side": side} | _FEATURE for side in ("user", "item")]}
)

pytestmark = pytest.mark.usefixtures("operators_library")


def agree(found, wanted, count: int) -> None:
    """Bytes are the same; a share of the request on the edge between two steps moves a few of them by one."""
    assert set(found) == set(wanted)
    for output, expected in wanted.items():
        assert found[output].shape == expected.shape
        difference = np.abs(found[output] - expected)
        if count >= 40:
            assert np.median(difference) <= 1e-6
        assert difference.max(initial=0) <= 1e-2


@pytest.mark.parametrize("name", get_args(ModelName))
@given(data=st.data(), seed=st.integers(0, 999), levels=st.integers(1, 2), sizes=st.sampled_from(SIZES))
@settings(max_examples=12, deadline=None)
def test_a_fused_graph_gives_what_the_stock_one_gives(
    tmp_path_factory, schemas, make_network, random_rows, relations, name, data, seed, levels, sizes
):
    schema, folder = data.draw(schemas), tmp_path_factory.mktemp("graph")
    rows, tensors = random_rows(schema, 40, seed), input_tensors(schema)
    network = make_network(name, schema, data.draw(relations(name, schema)), seed, levels, **sizes)
    quantised, weights = quantise(network, *rows.batch(0, 40)), WeightsFile(folder)
    assert can_fuse(quantised)
    Int8Graph(quantised, tensors).write(folder, weights)
    FusedInt8Graph(quantised, tensors).write(folder, weights, FUSED_MODEL_FILE)
    stock, fused = (open_session(folder / file) for file in ("model.onnx", FUSED_MODEL_FILE))
    for count in (1, 2, data.draw(st.integers(40, 300))):
        request = rows.request(3, np.random.default_rng(seed).integers(40, size=count), tensors)
        agree(run_graph(fused, request), run_graph(stock, request), count)


@pytest.mark.parametrize("name", get_args(ModelName))
@given(
    data=st.data(), seed=st.integers(0, 99), levels=st.integers(1, 2), sizes=st.sampled_from(SIZES),
    kind=st.sampled_from(("packed", "layer1")),
)  # fmt: skip
@settings(max_examples=6, deadline=None)
def test_rows_rank_the_same_in_a_fused_graph(
    tmp_path_factory, schemas, make_network, random_rows, relations, name, data, seed, levels, sizes, kind
):
    schema, folder = data.draw(schemas), tmp_path_factory.mktemp("cut")
    rows, tensors = random_rows(schema, 60, seed), input_tensors(schema)
    network = make_network(name, schema, data.draw(relations(name, schema)), seed, levels, **sizes)
    quantised, weights = quantise(network, *rows.batch(0, 60)), WeightsFile(folder)
    cut = integer_cut(quantised, tensors, kind, [rows.request(0, np.arange(60), tensors)])
    cut.write(folder, weights)
    cut.write_fused(folder, weights)
    stock, fused = CutSession(folder), CutSession(folder, FUSED_ROWS_MODEL_FILE)
    for count in (1, data.draw(st.integers(40, 200))):
        request = rows.request(3, np.random.default_rng(seed).integers(60, size=count), tensors)
        agree(run_graph(fused, request), run_graph(stock, request), count)


def test_most_of_a_fused_graph_is_a_few_nodes_of_ours(tmp_path, make_network, random_rows):
    schema = SCHEMA
    rows, network = random_rows(schema, 40, 1), make_network("dlen-mmoe", schema, 3, 1, 1, **WIDE)
    FusedInt8Graph(quantise(network, *rows.batch(0, 40)), input_tensors(schema)).write(tmp_path)
    nodes = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph.node
    ours = [node.op_type for node in nodes if node.domain == operators.DOMAIN]
    assert ours.count("LatentHead") == 1
    assert not {"QLinearConv", "Softmax", "Sigmoid"} & {node.op_type for node in nodes}
    read = {edge for node in nodes for edge in node.input}
    made = [edge for node in nodes if node.op_type != "Identity" for edge in node.output]
    assert sum(edge not in read for edge in made) <= 1  # nothing is computed that nobody reads


def test_networks_too_deep_for_the_operators_have_no_fused_graph(make_network, random_rows):
    schema = SCHEMA
    network = make_network("mmoe", schema, 2, 1, 1, **{**WIDE, "expert_hidden": (8,) * 9})
    assert not can_fuse(quantise(network, *random_rows(schema, 40, 1).batch(0, 40)))


def test_a_bundle_of_int8_holds_a_fused_graph_and_one_of_fp32_none(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "check_gate", lambda *_: None)  # of 1,200 rows
    int8 = export_run(trained, tmp_path / "int8" / "1", "int8")
    assert int8.manifest.fused == operators.VERSION
    assert int8.fused_model_path.exists()
    assert not export_run(trained, tmp_path / "fp32" / "1", "fp32").manifest.fused
    monkeypatch.setattr(operators, "native", None)
    without = export_run(trained, tmp_path / "without" / "1", "int8")
    assert not without.manifest.fused
    assert read_bundle(without.folder).manifest.precision == "int8"


def test_the_service_runs_the_fused_graph_where_it_can(trained, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(write, "check_gate", lambda *_: None)
    bundle = export_run(trained, tmp_path / "int8" / "1", "int8")
    usable = operators.instructions() != "portable"
    assert operators.usable() is usable
    stock = Engine(bundle, stock_graphs=True)
    assert not stock.fused
    monkeypatch.setattr(operators, "usable", lambda: True)  # portable code is slow, and right
    fused = Engine(bundle)
    assert fused.fused
    golden = bundle.golden.inputs
    items = EncodedPart(golden["item_codes"], golden.get("item_values", np.zeros((16, 0), np.float32)), {})
    request = EncodedPart(golden["request_codes"], golden.get("request_values", np.zeros((1, 0), np.float32)), {})
    for count in (0, 1, 16):
        some = EncodedPart(items.codes_NC[:count], items.values_NV[:count], {})
        found, wanted = fused.predict(request, some), stock.predict(request, some)
        np.testing.assert_allclose(found.p_NT, wanted.p_NT, atol=1e-3)
        np.testing.assert_allclose(found.p_up_N, wanted.p_up_N, atol=1e-3)
    monkeypatch.setattr(operators, "VERSION", operators.VERSION + 1)  # a service that is newer than its bundle
    assert not Engine(bundle).fused
    monkeypatch.undo()
    monkeypatch.setattr(operators, "native", None)
    assert not Engine(bundle).fused
