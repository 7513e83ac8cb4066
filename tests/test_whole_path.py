"""The whole path through the commands a user types: simulated logs, then real ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli import main

ROOT = Path(__file__).parents[1]
FUSION = ROOT / "configs" / "fusion.yaml"


def dlen(*arguments: object, expect: int = 0) -> str:
    """Run a command in a process of its own; return what it printed."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def here(*arguments: object) -> None:
    """Run a command in this process."""
    assert main(list(map(str, arguments))) == 0


@contextmanager
def served(models: Path, fusion: Path = FUSION):
    """Yield the URLs of the API and the metrics of a service on free ports; it must stop cleanly."""
    command = [sys.executable, "-m", "cli", "serve", "--models", models, "--fusion", fusion]
    process = subprocess.Popen(
        [*map(str, command), "--port", "0", "--metrics-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"serving on (http://[\w.:]+), metrics on (http://[\w.:]+)", line):
                break
        else:
            pytest.fail("the service ended: " + "".join(lines))
        yield found[1], found[2]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_from_simulated_logs_to_an_ordered_feed(models, prepared, tmp_path):
    request = tmp_path / "request.json"
    dlen("request", "--data", prepared, "--split", "test", "--candidates", 12, "--out", request)
    with served(models) as (url, metrics_url):
        printed = dlen("rank", "--url", url, "--request", request, "--json", tmp_path / "answer.json")
        with urllib.request.urlopen(metrics_url, timeout=10) as response:
            metrics = response.read().decode()
    answer = json.loads((tmp_path / "answer.json").read_text())
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 12
    sent = json.loads(request.read_text())
    assert {item["id"] for item in answer["items"]} == {candidate["id"] for candidate in sent["candidates"]}
    for item in answer["items"]:
        assert 0 < item["p_up"] < 1
        assert all(0 < item["p_joint"][task] < item["p"][task] < 1 for task in item["p"])
        assert item["id"] in printed
    assert answer["model"] == "demo"
    assert "dlen" in metrics


def test_served_probabilities_are_the_trained_networks(models, trained, prepared, tmp_path):
    """What a user gets over HTTP is what torch computes from the very rows of the log."""
    import numpy as np
    import polars as pl
    import torch

    from training.dataset import read_prepared
    from training.run import read_run

    request = tmp_path / "request.json"
    dlen("request", "--data", prepared, "--split", "test", "--candidates", 10, "--out", request)
    with served(models) as (url, _):
        dlen("rank", "--url", url, "--request", request, "--json", tmp_path / "answer.json")
    served_items = {item["id"]: item for item in json.loads((tmp_path / "answer.json").read_text())["items"]}
    data = read_prepared(prepared)
    rows, split = pl.read_parquet(data.rows_path("test")), data.split("test")
    body = json.loads(request.read_text())
    encoded_user = data.encoder.request.encode(
        data.encoder.request.columns_from_python(
            {k: [v] for k, v in (body["user"]["features"] | body["context"]).items() if k in data.encoder.request.names}
        ),
        1,
    )
    network = read_run(trained).trained_network()
    ids = rows["__item"].cast(pl.String).to_list()
    for candidate in body["candidates"]:
        row = ids.index(candidate["id"])  # item features do not vary between rows of the simulator
        codes, values = split.codes[row].copy(), split.values[row].copy()
        codes[: data.request_code_columns] = encoded_user.codes_NC[0]
        values[: data.request_value_columns] = encoded_user.values_NV[0]
        with torch.inference_mode():
            out = network(torch.from_numpy(codes[None]), torch.from_numpy(values[None])).probabilities()
        assert served_items[candidate["id"]]["p_up"] == pytest.approx(float(out.p_up_B[0]), abs=1e-5)
        np.testing.assert_allclose(
            list(served_items[candidate["id"]]["p"].values()), out.p_BT[0].numpy(), rtol=0, atol=1e-5
        )


@pytest.mark.real_logs
def test_from_real_logs_to_an_ordered_feed(real_prepared, tmp_path):
    data, run, models = real_prepared, tmp_path / "run", tmp_path / "models"
    small = ("--set", "expert_hidden=[64,32]", "--set", "latent_hidden=[64,32]", "--set", "experts=3")
    dlen("train", "--data", data, "--model", "dlen-mmoe", "--out", run, "--set", "epochs=1", *small)
    here("evaluate", "--run", run, "--data", data, "--split", "test", "--json", tmp_path / "test.json")
    figures = json.loads((tmp_path / "test.json").read_text())
    assert figures["tasks"]["click"]["auc"] > 0.72
    assert figures["tasks"]["click"]["gauc"] > 0.58
    assert 0.8 < figures["tasks"]["click"]["pcoc"] < 1.2
    here("export", "--run", run, "--out", models / "kuairand" / "1")
    request = tmp_path / "request.json"
    here("request", "--data", data, "--split", "test", "--out", request)
    with served(models) as (url, _):
        dlen("rank", "--url", url, "--request", request, "--json", tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text())
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) > 1
    assert scores == sorted(scores, reverse=True)


def test_a_strangers_wide_table_trains_and_evaluates(tmp_path):
    """No user, no time: labels and columns only, split at random."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    colour = random.choice(["red", "green", "blue"], size=3000)
    size = random.normal(size=3000)
    buy = random.random(3000) < 1 / (1 + np.exp(-(size + (colour == "red") * 2 - 1)))
    keep = random.random(3000) < 0.2
    pl.DataFrame({"colour": colour, "size": size, "buy": buy.astype(int), "keep": keep.astype(int)}).write_csv(
        tmp_path / "wide.csv"
    )
    (tmp_path / "schema.yaml").write_text(
        "split: {by: random, seed: 1}\n"
        "features:\n"
        "  - {name: colour, side: item, kind: categorical, encoding: {type: vocabulary}}\n"
        "  - {name: size, side: item, kind: numeric, encoding: {type: standardise}}\n"
        "tasks:\n"
        "  - {name: buy, label: buy, kind: positive}\n"
        "  - {name: keep, label: keep, kind: positive}\n"
    )
    data, run = tmp_path / "data", tmp_path / "run"
    schema = tmp_path / "schema.yaml"
    here("prepare", "--source", "table", "--input", tmp_path / "wide.csv", "--schema", schema, "--out", data)
    small = [f"--set={s}" for s in ("expert_hidden=[16]", "latent_hidden=[16]", "batch_size=64", "learning_rate=0.01")]
    here("train", "--data", data, "--out", run, *small)
    here("evaluate", "--run", run, "--data", data, "--json", tmp_path / "wide.json")
    figures = json.loads((tmp_path / "wide.json").read_text())["tasks"]
    assert figures["buy"]["auc"] > 0.75
    assert figures["buy"]["gauc"] is None


def test_nested_tasks_are_served_as_chains(nested, tmp_path):
    """ESMM from rows to an ordered feed, in int8 where the gate lets it: a like never exceeds the click it needs."""
    run, request = tmp_path / "run", tmp_path / "request.json"
    within = "within={like: click, follow: click, comment: click, forward: click}"
    settings = ("expert_hidden=[16,8]", "batch_size=256", "learning_rate=0.005", within)
    here("train", "--data", nested, "--model", "esmm", "--out", run, *(f"--set={x}" for x in settings))
    here("export", "--run", run, "--out", tmp_path / "models" / "chain" / "1", "--precision", "auto")
    here("request", "--data", nested, "--split", "test", "--candidates", 12, "--out", request)
    weights = {"click": 1.0, "like": 3.0, "follow": 6.0}
    policy = {"formula": "weighted_sum", "signal": "marginal", "weights": weights}
    fusion = tmp_path / "fusion.yaml"
    fusion.write_text(json.dumps({"format": 1, "default": "feed", "policies": {"feed": policy}}))
    with served(tmp_path / "models", fusion) as (url, _):
        dlen("rank", "--url", url, "--request", request, "--json", tmp_path / "answer.json")
    items = json.loads((tmp_path / "answer.json").read_text())["items"]
    assert len(items) == 12
    for item in items:
        p = item["p"]
        assert all(0 < p[task] < p["click"] < 1 for task in ("like", "follow", "comment", "forward"))
        assert item["score"] == pytest.approx(sum(weight * p[task] for task, weight in weights.items()), rel=1e-5)
