from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.manifest import PrecisionGate, ScoreChange
from bundle.read import read_bundle
from cli import main
from model_export import quantise
from model_export.errors import PrecisionRefused
from model_export.gate import check_gate, top_overlap
from model_export.parity import network_outputs, open_session, run_graph, sample_rows
from model_export.write import export_run
from service.engine import Engine
from training.batches import gather
from training.dataset import read_prepared
from training.run import read_run
from training.tensors import read_tensors, write_tensors


@pytest.fixture(scope="session")
def judged(trained, prepared, tmp_path_factory):
    """Return the trained run with all training rows as its sample: a gate over a handful of positives is chance."""
    run, data = tmp_path_factory.mktemp("judged") / "run", read_prepared(prepared)
    shutil.copytree(trained, run)
    names = [task.name for task in data.tasks]
    tasks = [names.index(name) for name in read_run(run).description.task_names]
    batch = gather(data.split("train"), slice(None), tasks)
    tensors = {"codes": batch.codes_BC, "values": batch.values_BV, "labels": batch.labels_BT.to(torch.uint8)}
    write_tensors(run / "sample.safetensors", tensors, {})
    return run


@pytest.fixture(scope="session")
def int8(judged, tmp_path_factory):
    return export_run(judged, tmp_path_factory.mktemp("int8") / "demo" / "1", "int8")


@pytest.fixture
def coarse(monkeypatch):
    """Leave 3 bits of every weight."""
    exact = quantise._steps

    def steps(weight, mean):
        whole, *rest = exact(weight, mean)
        return ((np.rint(whole / 42) * 42).astype(np.int8), *rest)

    monkeypatch.setattr(quantise, "_steps", steps)


def test_an_int8_bundle_carries_its_figures_and_serves(int8):
    gate = int8.manifest.precision_gate
    assert int8.manifest.precision == "int8"
    assert set(gate.scores) == {*int8.manifest.task_names, "p_up"}
    assert all(change.mean_abs_change <= 2e-3 and change.top10_overlap >= 0.97 for change in gate.scores.values())
    Engine(int8)  # the service's own checks: tensors, warm-up, golden replay


def test_figures_are_those_of_the_graph_row_by_row(int8, judged):
    run, gate = read_run(judged), int8.manifest.precision_gate
    rows, session = sample_rows(run), open_session(int8.model_path)
    exact = network_outputs(run.trained_network(), *rows.batch(0, len(rows.codes)))
    changes = []
    for row in range(len(rows.codes)):
        found = run_graph(session, rows.request(row, np.array([row]), int8.manifest.inputs))
        changes.append(np.abs(np.append(found["p"][0] - exact["p"][row], found["p_up"][0] - exact["p_up"][row])))
    means = np.mean(changes, axis=0)
    for mean, name in zip(means, [*int8.manifest.task_names, "p_up"], strict=True):
        assert gate.scores[name].mean_abs_change == pytest.approx(mean, rel=1e-3)


def test_int8_takes_a_quarter_of_the_item_table(int8, models):
    sizes = [bundle.manifest.files["model.weights"].size_bytes for bundle in (int8, read_bundle(models / "demo" / "1"))]
    assert sizes[0] < sizes[1]


def test_outside_the_gate_nothing_is_written_and_the_figures_are_named(trained, tmp_path, coarse, capsys):
    out = tmp_path / "demo" / "1"
    assert main(["export", "--run", str(trained), "--out", str(out), "--precision", "int8"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "mean |Δp| of click" in error
    assert list(out.parent.iterdir()) == []


def test_auto_falls_back_to_fp32_and_says_why(trained, tmp_path, coarse, capsys):
    out, figures = tmp_path / "demo" / "1", tmp_path / "figures.json"
    arguments = ["export", "--run", str(trained), "--out", str(out), "--precision", "auto", "--json", str(figures)]
    assert main(arguments) == 0
    assert "written as fp32, not int8" in capsys.readouterr().out
    assert read_bundle(out).manifest.precision == "fp32"
    assert json.loads(figures.read_text())["precision_gate"] is None


def test_a_run_without_labels_in_its_sample_is_refused(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    tensors, _ = read_tensors(run / "sample.safetensors")
    del tensors["labels"]
    write_tensors(run / "sample.safetensors", tensors, {})
    with pytest.raises(PrecisionRefused, match="no labels"):
        export_run(run, tmp_path / "demo" / "1", "int8")


def gate_of(**change) -> PrecisionGate:
    fine = {
        "auc_before": 0.7, "auc_after": 0.7004, "mean_abs_change": 2e-3, "max_abs_change": 0.1, "top10_overlap": 0.97,
    }  # fmt: skip
    return PrecisionGate(rows=9, requests=1, candidates=9, scores={"click": ScoreChange(**fine | change)})


def test_figures_at_the_limits_pass():
    check_gate(gate_of())
    check_gate(gate_of(auc_before=None, auc_after=None))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"auc_after": 0.6994}, "AUC of click -0.00060"),
        ({"auc_after": 0.7006}, "AUC of click"),
        ({"mean_abs_change": 2.1e-3}, "0.0021"),
        ({"top10_overlap": 0.96}, "overlap of click 0.960"),
    ],
)
def test_each_figure_outside_its_limit_is_refused_by_name(change, named):
    with pytest.raises(PrecisionRefused) as refused:
        check_gate(gate_of(**change))
    assert named in str(refused.value)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.randoms())
@settings(max_examples=50)
def test_overlap_counts_candidates_that_are_in_both_top_tens(scores, random):
    exact = np.array(scores, dtype=np.float32)
    found = np.array(random.sample(scores, len(scores)), dtype=np.float32)
    tops = [sorted(range(len(scores)), key=lambda i, s=s: (-s[i], i))[:10] for s in (exact, found)]
    assert top_overlap(exact, found) == len(set(tops[0]) & set(tops[1])) / len(tops[0])
