from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import operators
from bundle.read import read_bundle
from cli import main
from model_export.graph_profile import profile_graph
from model_export.parity import network_outputs
from model_export.plain_export import unrolled
from training.models.config import MODEL_NAMES


def test_every_graph_is_measured_profiled_and_compared(trained, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    arguments = [
        "--candidates",
        "3",
        "20",
        "--rounds",
        "1",
        "--items",
        "2000",
        "--profile",
        "20",
        "--json",
        str(figures),
    ]
    assert main(["benchmark", "graph", "--run", str(trained), *arguments]) == 0
    document = json.loads(figures.read_text())
    assert [point["n"] for point in document["candidates"]] == [3, 20]
    for point in document["candidates"]:
        graphs = point["graphs"]
        measured = ("fp32", "int8", *(["int8 fused"] if operators.usable() else []))
        cuts = {f"{precision}, {cut}" for precision in measured for cut in ("packed rows", "item cache")}
        assert set(graphs) == {"torch export", "torch export, unrolled", *measured} | cuts
        assert graphs["torch export"]["speedup"] == 1
        assert all(figures["ms"] > 0 for figures in graphs.values())
        for name, figures in graphs.items():
            assert figures["max_abs_change"] <= 1e-5 or (name.startswith("int8") and figures["max_abs_change"] < 0.02)
    assert set(document["ceilings"]) == {"fp32", "int8"}
    assert set(document["profiles"]) == set(graphs)
    assert "GOP/s" in capsys.readouterr().out


def test_the_other_benchmarks_stay(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    shown = capsys.readouterr().out
    assert "lightgbm" in shown
    assert "graph" in shown


@pytest.mark.parametrize("name", MODEL_NAMES)
@given(data=st.data(), levels=st.integers(1, 2))
@settings(max_examples=4, deadline=None)
def test_unrolling_changes_nothing(schemas, make_network, random_rows, name, data, levels):
    schema = data.draw(schemas)
    network, rows = make_network(name, schema, 3, 1, levels), random_rows(schema, 20, 1)
    found = network_outputs(unrolled(network), *rows.batch(0, 20))
    for output, wanted in network_outputs(network, *rows.batch(0, 20)).items():
        np.testing.assert_allclose(found[output], wanted, rtol=0, atol=1e-5)


def test_a_profile_counts_the_operations_of_products(models):
    bundle = read_bundle(models / "demo" / "1")
    operators = profile_graph(bundle.model_path, bundle.golden.inputs, runs=2)
    towers = [row for row in operators if row.shape == (16, 32) and "Gemm" in row.operator]
    assert sum(row.nodes for row in towers) == 5
    assert sum(row.operations for row in towers) == 5 * 2 * 16 * 8 * 32  # tasks, candidates, expert and tower widths
    assert all(row.operations == 0 for row in operators if row.operator == "Gather")
