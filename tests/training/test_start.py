"""Weights from an earlier run: the same data give the same predictions; what changed is carried over by meaning."""

from __future__ import annotations

import json
import re

import numpy as np
import polars as pl
import pytest
import torch

from bundle.features import FeatureSchema
from cli import main
from tests.training.small_runs import trainer_of
from tests.training.tables import SCHEMA, made, table
from training import train
from training.config import read_config
from training.errors import RunInvalid
from training.experiment import Experiment
from training.models.config import MODEL_NAMES
from training.models.network import Network
from training.models.places import common_codes, places
from training.run import read_run
from training.start import _NOT_LEARNED, _READS_INPUT, carry_over

SMALL = {
    "model.expert_hidden": (8, 8),
    "model.latent_hidden": (8,),
    "model.tower_hidden": (4,),
    "model.embedding_std": 1.0,
    "model.experts": 2,
    "model.shared_experts": 2,
    "model.task_experts": 1,
    "training.batch_size": 64,
    "training.learning_rate": 0.02,
    "training.epochs": 2,
    "training.average": 0.0,
}
TASKS = [{"name": name, "label": name} for name in ("click", "hate")]
LEARNED = SCHEMA | {"tasks": TASKS}


class Killed(BaseException):
    """Stands for a kill signal."""


def data_of(folder, schema=LEARNED, seed=0, **columns):
    folder.mkdir()
    return made(folder, table(seed=seed).with_columns(**columns), schema)


def trainer(folder, data, model="dlen-mmoe", start=None, advance=lambda done, of: None, **changes):
    overrides = SMALL | {"training.start_from": start} | changes
    news = []
    made = trainer_of(folder, data, model, overrides, news.append, advance)
    made.news = news
    return made


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    return data_of(tmp_path_factory.mktemp("day") / "data")


@pytest.fixture(scope="module")
def earlier(day, tmp_path_factory):
    """Return a finished run of each model on the first day."""
    folder = tmp_path_factory.mktemp("earlier")
    for model in MODEL_NAMES:
        trainer(folder / model, day, model, **{"model.levels": 2, "model.wide": model == "dlen-ple"}).fit()
    return folder


def outputs(network, data):
    split = data.split("test")
    with torch.no_grad():
        return network.eval()(torch.from_numpy(np.array(split.codes)), torch.from_numpy(np.array(split.values)))


def probabilities(network, data):
    return outputs(network, data).probabilities().p_BT


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_on_the_same_data_a_network_starts_with_the_predictions_of_the_run(day, earlier, tmp_path, model):
    wide = {"model.wide": model == "dlen-ple"}  # of the tests' fixture, as it was trained
    new = trainer(tmp_path / "run", day, model, earlier / model, **{"model.levels": 2, "training.seed": 7}, **wide)
    trained = read_run(earlier / model).trained_network()
    assert torch.equal(probabilities(new.network, day), probabilities(trained, day))
    cold = trainer(tmp_path / "cold", day, model, **{"model.levels": 2, "training.seed": 7})
    assert not torch.allclose(probabilities(cold.network, day), probabilities(trained, day), atol=1e-5)
    assert len(new.news) == 1
    assert re.search(r"start from .*: 5 of 5 features \((\d+) of \1 embedding rows\), (\d+) of \2 layers", new.news[0])
    assert new.news[0].endswith("tasks click, hate")


def test_the_layers_that_read_the_input_are_those_whose_shape_follows_the_features(day):
    fewer = FeatureSchema(features=day.schema.features[:-1])
    for model in (*MODEL_NAMES, "esmm"):
        within = {"hate": "click"} if model == "esmm" else {}
        more = {"model.levels": 2, "model.wide": True, "model.within": within}
        config = read_config(None, model, SMALL | more).model
        shapes = [{n: t.shape for n, t in Network(config, s, 2).state_dict().items()} for s in (day.schema, fewer)]
        differ = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
        reads = {name for name in shapes[0] if _READS_INPUT.fullmatch(name)}
        assert differ - {"inputs.offsets"} == reads
        assert set(_NOT_LEARNED) >= {name for name in shapes[0] if name in ("inputs.offsets", "head.alpha")}


def test_places_are_where_the_network_reads_each_feature(day):
    network = Network(read_config(None, "mmoe", SMALL).model, day.schema, 2).eval()
    split = day.split("test")
    codes, values = torch.from_numpy(np.array(split.codes)), torch.from_numpy(np.array(split.values))
    before = network.inputs(codes, values)
    for name, place in places(day.schema).items():
        changed, other_values = {size: t.detach().clone() for size, t in network.inputs.tables.items()}, values
        size = str(place.feature.embedding_size)
        if place.feature.encoding.type == "standardise":
            other_values = values + 1  # the only standardised feature
        else:
            network.inputs.tables[size].data[place.first_row : place.first_row + place.feature.encoding.codes] += 1
        moved = (network.inputs(codes, other_values) != before).any(0).nonzero().flatten().tolist()
        assert moved == list(place.columns), name
        for key, tensor in changed.items():
            network.inputs.tables[key].data.copy_(tensor)


def test_another_vocabulary_moves_rows_by_value_and_new_values_keep_their_initial_rows(day, earlier, tmp_path):
    cities = pl.Series([["zürich", "oslo", None, "rome"][i % 4] for i in range(300)])
    later = data_of(tmp_path / "later", city=cities)
    new = trainer(tmp_path / "run", later, start=earlier / "dlen-mmoe", **{"model.levels": 2})
    cold = trainer(tmp_path / "cold", later, **{"model.levels": 2})
    old = read_run(earlier / "dlen-mmoe").trained_network()

    def row(network, data, value):
        place = places(data.schema)["city"]
        code = {None: 0}.get(value, 2 + (place.feature.encoding.values or ()).index(value) if value else 0)
        return network.inputs.tables["16"][place.first_row + code]

    assert places(day.schema)["city"].feature.encoding.values != places(later.schema)["city"].feature.encoding.values
    for value in (None, "oslo", "rome"):
        assert torch.equal(row(new.network, later, value), row(old, day, value))
        assert not torch.equal(row(new.network, later, value), row(cold.network, later, value))
    assert torch.equal(row(new.network, later, "zürich"), row(cold.network, later, "zürich"))


def test_an_added_feature_starts_anew_and_the_others_keep_their_columns(day, earlier, tmp_path):
    added = {"name": "weekday", "side": "user", "kind": "categorical", "encoding": {"type": "vocabulary"}}
    schema = LEARNED | {"features": [added, *SCHEMA["features"]]}
    later = data_of(tmp_path / "later", schema, weekday=pl.Series([i % 7 for i in range(300)]))
    new = trainer(tmp_path / "run", later, start=earlier / "dlen-mmoe", **{"model.levels": 2})
    assert new.news[1] == "at initial values: features weekday"
    cold = trainer(tmp_path / "cold", later, **{"model.levels": 2})
    assert_only_columns_of_differ("weekday", new, cold)
    with torch.no_grad():  # without the new columns it is the run's network, whatever the new feature says
        for name, tensor in new.network.state_dict().items():
            if _READS_INPUT.fullmatch(name):
                tensor[:, places(later.schema)["weekday"].columns] = 0
    expected = probabilities(read_run(earlier / "dlen-mmoe").trained_network(), day)
    torch.testing.assert_close(probabilities(new.network, later), expected)


def assert_only_columns_of_differ(feature, new, cold):
    """Columns of the added feature are the initial ones; all others are not."""
    own = list(places(new.run.schema)[feature].columns)
    name = "backbone.experts.weights.0"
    warm, initial = new.network.state_dict()[name], cold.network.state_dict()[name]
    kept = [k for k in range(warm.shape[1]) if torch.equal(warm[:, k], initial[:, k])]
    assert kept == own


@pytest.mark.parametrize("model", ["mmoe", "ple", "dlen-ple"])
def test_towers_and_experts_follow_their_task_and_a_new_task_starts_anew(day, earlier, tmp_path, model):
    tasks = [{"name": "like", "label": "like"}, *reversed(TASKS)]
    likes = pl.Series(np.random.default_rng(1).integers(0, 2, 300))
    later = data_of(tmp_path / "later", LEARNED | {"tasks": tasks}, like=likes)
    new = trainer(tmp_path / "run", later, model, earlier / model, **{"model.levels": 1})
    assert "tasks hate, click" in new.news[0]
    assert "tasks like" in new.news[1]
    same = trainer(tmp_path / "same", day, model, earlier / model, **{"model.levels": 1})
    found, expected = (probabilities(made.network, data) for made, data in ((new, later), (same, day)))
    torch.testing.assert_close(found[:, [2, 1]], expected, rtol=1e-3, atol=1e-4)  # α is of other training rows


def test_a_backbone_without_the_latent_head_lends_its_experts_to_one_with_it(day, earlier, tmp_path):
    new = trainer(tmp_path / "run", day, "dlen-mmoe", earlier / "mmoe")
    assert "tasks click, hate" in new.news[0]
    left = new.news[1].partition("layers ")[2].split(", ")
    assert "head.weight" in left
    assert all(name.startswith("head.") for name in left)


def features_of(*features):
    return {f.name: f for f in FeatureSchema.model_validate({"features": list(features)}).features}


def test_features_compare_only_if_codes_mean_the_same():
    base = {"name": "x", "side": "item"}
    words = base | {"kind": "categorical", "value_type": "string"}
    vocabulary = words | {"encoding": {"type": "vocabulary", "values": ["a", "b", "c"]}}
    hashed = words | {"encoding": {"type": "hash", "buckets": 4}}
    quantiles = base | {"kind": "numeric", "encoding": {"type": "quantile", "edges": [0.5, 1.0]}}
    scaled = base | {"kind": "numeric", "encoding": {"type": "standardise", "mean": 0.0, "deviation": 1.0}}

    def common(old, new):
        found = common_codes(features_of(old)["x"], features_of(new)["x"])
        return None if found is None else list(zip(*(codes.tolist() for codes in found), strict=True))

    other = vocabulary | {"encoding": {"type": "vocabulary", "values": ["c", "d", "a"]}}
    assert common(vocabulary, other) == [(0, 0), (1, 1), (4, 2), (2, 4)]
    assert common(vocabulary, vocabulary | {"encoding": {"type": "vocabulary", "values": ["d"]}}) is None
    assert common(hashed, hashed) == [(code, code) for code in range(6)]
    assert common(hashed, hashed | {"encoding": {"type": "hash", "buckets": 5}}) is None
    assert common(hashed, hashed | {"value_type": "integer"}) is None
    assert common(hashed, hashed | {"embedding_size": 4}) is None
    assert common(vocabulary, hashed) is None
    assert common(quantiles, quantiles) == [(code, code) for code in range(5)]
    moved = quantiles | {"encoding": {"type": "quantile", "edges": [0.5, 1.1]}}
    assert common(quantiles, moved) is None
    rescaled = scaled | {"encoding": scaled["encoding"] | {"mean": 2.0, "deviation": 3.0}, "embedding_size": 4}
    assert common(scaled, rescaled) == []
    assert common(scaled, scaled | {"encoding": scaled["encoding"] | {"transform": "log1p"}}) is None
    assert common(scaled, quantiles) is None


def test_a_run_that_started_from_another_resumes_after_a_kill_to_the_same_weights(day, earlier, tmp_path, monkeypatch):
    def kill_at_3(done, of):
        if done == 3:
            raise Killed

    start = earlier / "dlen-mmoe"
    trainer(tmp_path / "whole", day, start=start).fit()
    monkeypatch.setattr(train, "STATE_INTERVAL_S", 0.0)
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", day, start=start, advance=kill_at_3).fit()
    resumed = trainer(tmp_path / "killed", day, start=start)
    assert not any("start from" in line for line in resumed.news)
    resumed.fit()
    found, expected = (read_run(tmp_path / n).trained_network().state_dict() for n in ("killed", "whole"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_network_that_holds_some_rows_takes_those(day, earlier, tmp_path):
    run = trainer(tmp_path / "run", day).run
    own = {"16": slice(3, 40)}
    whole, part = run.new_network(), run.new_network(lambda rows: own["16"])
    carry_over(whole, run, earlier / "dlen-mmoe")
    carry_over(part, run, earlier / "dlen-mmoe", lambda rows: own["16"])
    assert torch.equal(part.inputs.tables["16"], whole.inputs.tables["16"][own["16"]])


def test_the_run_that_weights_came_from_is_part_of_the_description(day, earlier, tmp_path):
    start = tmp_path / "start"
    trainer(start, day, **{"training.seed": 5}).fit()
    trainer(tmp_path / "run", day, start=start)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["config"]["training"]["start_from"] == str(start)
    trainer(tmp_path / "run", day, start=start)
    weights = start / "model.safetensors"
    weights.write_bytes((earlier / "dlen-mmoe" / "model.safetensors").read_bytes())
    with pytest.raises(RunInvalid, match=r"run: start: got a run with 'sha256:"):
        trainer(tmp_path / "run", day, start=start)


def test_an_experiment_gives_each_seed_the_run_of_that_seed():
    model = {"model": {"name": "mmoe"}, "training": {"start_from": "runs/before-{seed}"}}
    experiment = Experiment(title="t", data=["d"], baseline="warm", seeds=[1, 2], models={"warm": model})
    found = [experiment.run_config("warm", seed=seed).training.start_from.name for seed in (1, 2)]
    assert found == ["before-1", "before-2"]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("nowhere", "run.json: got No such file or directory"),
        ("unfinished", "got an unfinished run, want a finished one (dlen train)"),
        ("other", "got nothing that fits: features colour, want some of city, item, tags, price, age, encoded alike"),
    ],
)
def test_a_run_that_cannot_be_started_from_is_one_line_and_no_new_folder(day, tmp_path, capsys, start, message):
    colour = {"name": "colour", "side": "item", "kind": "categorical", "encoding": {"type": "hash", "buckets": 4}}
    other = data_of(tmp_path / "other-data", LEARNED | {"features": [colour]}, colour=pl.Series(range(300)))
    trainer(tmp_path / "unfinished", day)
    trainer(tmp_path / "other", other).fit()
    arguments = ["train", "--data", str(day.folder), "--out", str(tmp_path / "run"), "--start-from"]
    assert main([*arguments, str(tmp_path / start)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_it_took_and_what_not(day, earlier, tmp_path, capsys):
    sizes = ["expert_hidden=[8,8]", "latent_hidden=[4]", "tower_hidden=[4]", "experts=2", "epochs=1"]
    arguments = ["train", "--data", str(day.folder), "--out", str(tmp_path / "run"), "--model", "dlen-mmoe"]
    settings = [argument for setting in sizes for argument in ("--set", setting)]
    assert main([*arguments, *settings, "--start-from", str(earlier / "dlen-mmoe")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"start from .*: 5 of 5 features .* tasks click, hate\n", shown)
    assert "at initial values: layers head.latent_weight, head.latent.weights.0" in shown


def test_habit_towers_take_the_columns_that_they_see_and_lend_no_others(day, earlier, tmp_path):
    habit = {"model.habit_towers": True}
    narrow = trainer(tmp_path / "narrow", day, start=earlier / "dlen-mmoe", **habit)
    name = "backbone.experts.weights.0"
    whole = read_run(earlier / "dlen-mmoe").trained_network().state_dict()[name]
    seen = narrow.network.state_dict()[name]
    assert 0 < seen.shape[1] < whole.shape[1]
    assert torch.equal(seen, whole[:, : seen.shape[1]])
    narrow.fit()
    wide = trainer(tmp_path / "wide", day, start=tmp_path / "narrow").network.state_dict()[name]
    cold = trainer(tmp_path / "cold", day).network.state_dict()[name]
    lent = read_run(tmp_path / "narrow").trained_network().state_dict()[name]
    assert torch.equal(wide[:, : seen.shape[1]], lent)
    assert torch.equal(wide[:, seen.shape[1] :], cold[:, seen.shape[1] :])
