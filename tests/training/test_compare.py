"""`dlen compare`: killed in the middle it resumes without repeating a run; its figures are those of its runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from cli import main
from training.compare import Comparison
from training.dataset import read_prepared
from training.errors import ConfigInvalid
from training.experiment import Experiment
from training.page import write_page
from training.predict import predict
from training.run import read_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(simulated, prepared, tmp_path_factory) -> Path:
    """Return an experiment of two models, two seeds and a grid of two learning rates."""
    sizes = {"expert_hidden": [8], "latent_hidden": [8], "tower_hidden": [4], "experts": 2}
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "title": "A tiny one",
                "paper": "table-1",
                "data": [str(prepared)],
                "truth": [str(simulated)],
                "baseline": "mmoe",
                "seeds": [1, 2],
                "tuning": {"learning_rates": [0.002, 0.01], "seed": 9},
                "redraws": 50,
                "common": {"model": sizes, "training": {"epochs": 1, "batch_size": 512}},
                "models": {"mmoe": {"model": {"name": "mmoe"}}, "dlen": {"model": {"name": "dlen-mmoe"}}},
            }
        )
    )
    return path


def results(out: Path) -> list[Path]:
    """Return the results there are; unlike glob, os.walk bears with a folder that is renamed meanwhile."""
    found = (
        Path(folder) / "result.json" for folder, _, names in os.walk(out / "tiny" / "runs") if "result.json" in names
    )
    return sorted(found)


@pytest.fixture(scope="module")
def compared(config, tmp_path_factory) -> tuple[Path, dict[Path, float]]:
    """Return the experiment's folder, made by a process killed in the middle and one that went on; what was there."""
    out = tmp_path_factory.mktemp("compared")
    command = [sys.executable, ROOT / "cli.py", "compare", "--config", config, "--out", out, "--threads", "1"]
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while len(results(out)) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in results(out)}
    assert len(finished) < 8 and not (out / "tiny" / "results").exists()
    arguments = ["compare", "--config", config, "--out", out, "--json", out / "all.json"]
    assert main([str(argument) for argument in arguments]) == 0
    return out, finished


def test_what_was_finished_before_the_kill_is_not_done_again(compared):
    out, finished = compared
    assert len(results(out)) == 2 * (2 + 2)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_each_model_keeps_its_own_best_learning_rate_and_the_tuning_seed_is_not_compared(compared):
    out, _ = compared
    document = json.loads((out / "all.json").read_text())["tiny"]
    for model, figures in document["models"].items():
        losses = {float(rate): loss for rate, loss in figures["tuning_losses"].items()}
        assert set(losses) == {0.002, 0.01}
        assert figures["learning_rate"] == min(losses, key=losses.get)
        folders = {path.name for path in (out / "tiny" / "runs" / model / "data").iterdir()}
        kept = f"{figures['learning_rate']:g}"
        assert folders == {"lr-0.002", "lr-0.01", f"seed-1-lr-{kept}", f"seed-2-lr-{kept}"}


def test_figures_are_means_over_the_seeds_runs(compared, prepared):
    out, _ = compared
    document = json.loads((out / "tiny" / "results" / "results.json").read_text())
    data = read_prepared(prepared)
    split = data.split("test")
    clicks = np.asarray(split.labels)[:, 0]
    figures = document["models"]["dlen"]
    aucs, ups = [], []
    for seed in (1, 2):
        run = read_run(out / "tiny" / "runs" / "dlen" / "data" / f"seed-{seed}-lr-{figures['learning_rate']:g}")
        found = predict(run.trained_network(), split)
        aucs.append(roc_auc_score(clicks, found.p[:, 0]))
        ups.append(found.p_up.mean())
    assert figures["tasks"]["click"]["auc_by_seed"] == pytest.approx(aucs)
    assert figures["tasks"]["click"]["auc"] == pytest.approx(np.mean(aucs))
    assert figures["p_up"]["mean"] == pytest.approx(np.mean(ups), rel=1e-5)
    assert sum(figures["p_up"]["histogram"]) == pytest.approx(1)
    baseline = document["models"]["mmoe"]
    gain = figures["tasks"]["click"]["auc"] - baseline["tasks"]["click"]["auc"]
    assert figures["tasks"]["click"]["gain"] == pytest.approx(gain)
    low, high = figures["tasks"]["click"]["gain_interval"]
    assert low < high
    assert (baseline["p_up"], baseline["recovery"]) == (None, None)
    assert 0 < figures["recovery"]["ece"] < 1
    assert baseline["tasks"]["click"]["gain_interval"] == [0, 0]


def test_the_page_shows_every_model_the_papers_figures_and_that_data_differ(compared):
    out, _ = compared
    folder = out / "tiny" / "results"
    assert {path.name for path in folder.iterdir()} == {
        "results.json", "results.md", "auc.png", "gain.png", "reliability.png", "p_up.png"
    }  # fmt: skip
    text = (folder / "results.md").read_text()
    assert "| DLEN | 0.7532 | 0.8971 |" in text
    assert "The data differ from ours" in text
    assert "Recovery of P(UP)" in text
    assert text.count("\n| dlen |") >= 5
    assert (folder / "auc.png").read_bytes().startswith(b"\x89PNG")


def test_one_page_holds_every_experiment_with_its_pictures_and_command(compared, tmp_path):
    out = tmp_path / "out"
    for name in ("b-second", "a-first"):
        shutil.copytree(compared[0] / "tiny" / "results", out / name / "results")
    (out / "c-unfinished").mkdir()
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    assert write_page(out, page) == ["a-first", "b-second"]
    text = page.read_text()
    assert text.count("## A tiny one\n") == 2 and text.count("### AUC\n") == 2
    assert "dlen compare --config configs/experiments/a-first.yaml --page" in text
    pictures = re.findall(r"\]\((.+\.png)\)", text)
    assert len(pictures) == 8 and all((page.parent / picture).is_file() for picture in pictures)


def test_running_again_gives_the_same_figures(compared, config):
    out, _ = compared
    before = (out / "tiny" / "results" / "results.json").read_bytes()
    assert main(["compare", "--config", str(config), "--out", str(out)]) == 0
    assert (out / "tiny" / "results" / "results.json").read_bytes() == before


def test_a_model_added_later_takes_up_the_runs_that_are_there(compared, config, tmp_path):
    out, _ = compared
    document = yaml.safe_load(config.read_text())
    document["models"]["bottom"] = {"model": {"name": "shared-bottom"}}
    again = tmp_path / "tiny.yaml"
    again.write_text(yaml.safe_dump(document))
    before = {path: path.stat().st_mtime_ns for path in results(out)}
    assert main(["compare", "--config", str(again), "--out", str(out)]) == 0
    after = {path: path.stat().st_mtime_ns for path in results(out)}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 4


def comparison(tmp_path, *folders: Path) -> Comparison:
    models = {"mmoe": {"model": {"name": "mmoe"}}}
    experiment = Experiment(title="t", data=folders, baseline="mmoe", seeds=(1,), models=models)
    return Comparison(experiment, tmp_path / "out", lambda news: None, lambda done, total: None)


def test_folders_are_pooled_and_a_person_stays_one_user_across_them(prepared, tmp_path):
    (tmp_path / "again").symlink_to(prepared)
    alone, both = comparison(tmp_path, prepared).test_rows, comparison(tmp_path, prepared, tmp_path / "again").test_rows
    rows = len(alone.labels)
    assert len(both.labels) == 2 * rows
    assert (both.users_N[:rows] == both.users_N[rows:]).all()
    assert both.users_N.max() + 1 == len(np.unique(read_prepared(prepared).split("test").user))


def test_folders_of_other_tasks_are_refused(prepared, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    info = json.loads((other / "prepared.json").read_text())
    info["tasks"][1]["held_out"] = True
    (other / "prepared.json").write_text(json.dumps(info))
    with pytest.raises(ConfigInvalid, match="tasks of .*other"):
        comparison(tmp_path, prepared, other)
