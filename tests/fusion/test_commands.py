"""The commands: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli
from bundle.manifest import write_manifest
from fusion.history import History
from fusion.live import compile_config
from fusion.policy import load_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run_command(*args):
        code = cli.main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run_command


def bundle(folder, tasks, outputs=("p", "p_joint", "p_up")):
    manifest = {"tasks": [{"name": task} for task in tasks], "outputs": [{"name": name} for name in outputs]}
    write_manifest(folder, json.dumps(manifest).encode())
    return folder


def test_every_shipped_config_is_good(run):
    files = [CONFIGS / "fusion.yaml", *sorted((CONFIGS / "fusion").glob("*.yaml"))]
    assert len(files) >= 3
    for file in files:
        assert run("fusion", "check", file)[0] == 0


def test_check_says_whether_a_config_fits_a_bundle(run, tmp_path):
    full = ("click", "like", "follow", "comment", "forward")
    code, text = run("fusion", "check", CONFIGS / "fusion.yaml", "--bundle", bundle(tmp_path, full))
    assert (code, "fits" in text) == (0, True)
    code, text = run("fusion", "check", CONFIGS / "fusion.yaml", "--bundle", bundle(tmp_path, full[:2]))
    assert code == 2
    assert "fusion.yaml:14: policies.feed.weights.follow: got a name that the model does not have" in text
    code, text = run("fusion", "check", CONFIGS / "fusion.yaml", "--bundle", bundle(tmp_path, full, ["p"]))
    assert (code, "a model without a latent" in text) == (2, True)
    code, text = run("fusion", "check", CONFIGS / "fusion.yaml", "--bundle", tmp_path / "none")
    assert (code, "want a bundle's manifest" in text) == (2, True)


def test_check_tells_a_policy_that_multiplies_p_up_into_joint_probabilities(run, tmp_path):
    file = tmp_path / "f.yaml"
    product = "formula: power_product, weights: {click: 1}, p_up: 1"
    for text in ("formula: expression, expression: click * p_up", product):
        file.write_text(f"default: a\npolicies:\n  a: {{{text}}}\n")
        assert "joint probabilities already hold P(UP)" in run("fusion", "check", file)[1]
    for text in ("formula: expression, expression: click + 0.5*p_up", f"signal: marginal, {product}"):
        file.write_text(f"default: a\npolicies:\n  a: {{{text}}}\n")
        assert "joint probabilities" not in run("fusion", "check", file)[1]


def test_check_looks_at_patched_policies_too(run, make_config, experiment, tmp_path):
    arms = [{"name": "off", "weight": 0.5}, {"name": "times_up", "weight": 0.5, "patch": {"p_up": 1.0}}]
    config = make_config(
        policies={"feed": {"formula": "power_product", "weights": {"click": 1.0}}},
        layers=[{"name": "r", "experiments": [experiment("a", variants=arms)]}],
    )
    (tmp_path / "f.yaml").write_text(config.model_dump_json(exclude_unset=True))
    text = run("fusion", "check", tmp_path / "f.yaml")[1]
    assert "policy feed as patched by times_up: joint probabilities already hold P(UP)" in text


def test_check_names_negative_tasks_that_the_model_lacks(run, make_config, tmp_path):
    (tmp_path / "f.yaml").write_text(make_config().model_dump_json(exclude_unset=True))
    text = run("fusion", "check", tmp_path / "f.yaml", "--bundle", bundle(tmp_path, ("click", "like")))[1]
    assert "negative_tasks that the model does not have: hate" in text


def test_check_against_names_what_moves_and_writes_json(run, tmp_path):
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    text = (CONFIGS / "fusion.yaml").read_text()
    old.write_text(text)
    new.write_text(text.replace("p_up: 0.5", "p_up: 0.7"))
    code, printed = run("fusion", "check", new, "--against", old, "--json", tmp_path / "o.json")
    assert code == 0
    assert "moves: policy feed: p_up 0.5 → 0.7" in printed
    assert json.loads((tmp_path / "o.json").read_text())["moves"] == ["policy feed: p_up 0.5 → 0.7"]


def test_diff_prints_a_table_and_writes_figures(run, tmp_path):
    tasks = ["click", "like", "follow", "comment", "forward"]
    p = [[(row * column % 7) / 10 for column in range(1, 6)] for row in range(12)]
    request = {"tasks": tasks, "p": p, "p_joint": p, "p_up": [row / 12 for row in range(12)]}
    (tmp_path / "r.jsonl").write_text(json.dumps(request))
    options = ["--requests", tmp_path / "r.jsonl", "--config", CONFIGS / "fusion.yaml", "--top", 3]
    code, text = run(
        "fusion", "diff", "--control", "feed_without_up", "--treatment", f"{CONFIGS / 'fusion.yaml'}:feed", *options,
        "--json", tmp_path / "d.json",
    )  # fmt: skip
    assert code == 0
    for part in ("Kendall", "Σ P(click), top 3", "mean P(UP), top 3"):
        assert part in text
    assert json.loads((tmp_path / "d.json").read_text())["requests"] == 1
    code, text = run("fusion", "diff", "--control", "x", "--treatment", "feed", *options)
    assert (code, "policy: got 'x', want one of feed, feed_without_up" in text) == (2, True)


def test_rollback_pins_a_version_that_history_lists(run, tmp_path):
    history = History(tmp_path)
    version = history.record({"f.yaml": (CONFIGS / "fusion.yaml").read_bytes()})
    assert run("fusion", "rollback", "--state", tmp_path, "--to", version[7:14])[0] == 0
    assert history.pinned() == version
    code, text = run("fusion", "history", "--state", tmp_path)
    assert (code, version[:19] in text, "pinned" in text) == (0, True, True)
    assert run("fusion", "rollback", "--state", tmp_path, "--clear")[0] == 0
    assert history.pinned() is None
    assert run("fusion", "rollback", "--state", tmp_path, "--to", "0000")[0] == 2


def test_assign_says_which_variants_and_why(run, tmp_path):
    out = tmp_path / "a.json"
    config = CONFIGS / "fusion/experiment.yaml"
    code, text = run("ab", "assign", "--config", config, "--user", "712", "--context", '{"tab": 1}', "--json", out)
    assert code == 0
    assert "bucket" in text
    answer = json.loads(out.read_text())
    assert {one["layer"] for one in answer["experiments"]} == {"ranking", "diversity"}
    assert f"ranked by policy {answer['policy']}" in text
    assert run("ab", "assign", "--config", config, "--user", "1", "--context", "[]")[0] == 2


def test_assign_names_the_policy_that_a_request_of_the_user_is_ranked_by(run, tmp_path):
    config = CONFIGS / "fusion/experiment.yaml"
    fusion = compile_config(load_config(config), ("click", "like", "follow", "comment", "forward"), True)
    labels = set()
    for user in range(150):
        decision = fusion.decide(str(user), {"tab": 1})
        out = tmp_path / "a.json"
        run("ab", "assign", "--config", config, "--user", user, "--context", '{"tab": 1}', "--json", out)
        label = json.loads(out.read_text())["policy"]
        labels.add(label)
        assert label.split()[0] == decision.policy_name
        assert ("capped" in label) == bool(decision.policy.policy.rules)
    assert {"feed", "without_up", "feed as patched by capped"} <= labels


@pytest.mark.parametrize(
    "command",
    [["ab", "assign"], *(["fusion", name] for name in ("check", "diff", "history", "rollback", "schema", "benchmark"))],
)
def test_help_ends_with_an_example(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    assert f"dlen {' '.join(command)}" in capsys.readouterr().out.split("example:")[1]


def test_diff_and_check_take_calibrations_from_the_bundle(run, tmp_path):
    (tmp_path / "f.yaml").write_text(
        "default: a\npolicies:\n"
        "  a: {formula: weighted_sum, signal: marginal, weights: {click: 1, like: 1}}\n"
        "  b: {formula: weighted_sum, signal: marginal, calibrate: true, weights: {click: 1, like: 1}}\n"
    )
    request = {"tasks": ["click", "like"], "p": [[0.5, 0.01], [0.1, 0.4], [0.3, 0.1]]}
    (tmp_path / "r.jsonl").write_text(json.dumps(request))
    options = ["--config", tmp_path / "f.yaml", "--requests", tmp_path / "r.jsonl", "--top", 1]
    code, text = run("fusion", "diff", "--control", "a", "--treatment", "b", *options)
    assert (code, "got calibrate: true, want --bundle of the model" in text) == (2, True)
    folder = bundle(tmp_path, ("click", "like"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tasks"][1]["calibration"] = {"temperature": 1.0, "offset": 3.0}
    write_manifest(folder, json.dumps(manifest).encode())
    figures = tmp_path / "d.json"
    assert (
        run("fusion", "diff", "--control", "a", "--treatment", "b", *options, "--bundle", folder, "--json", figures)[0]
        == 0
    )
    assert json.loads(figures.read_text())["overlap"] == 0.0
    text = run("fusion", "check", tmp_path / "f.yaml", "--bundle", folder)[1]
    assert "policy b: calibrate: true, but the model has no calibration of click" in text
