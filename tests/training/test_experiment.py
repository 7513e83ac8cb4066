"""Experiment files: what they resolve to, and how a wrong one is named."""

from __future__ import annotations

import pytest
import yaml

from training.errors import ConfigInvalid
from training.experiment import read_experiment

GOOD = {
    "title": "t",
    "data": ["data/day1"],
    "baseline": "mmoe",
    "seeds": [1, 2],
    "tuning": {"learning_rates": [0.001, 0.003], "seed": 9},
    "common": {"model": {"experts": 2}, "training": {"epochs": 1}},
    "models": {"mmoe": {"model": {"name": "mmoe"}}, "dlen": {"model": {"experts": 3}, "training": {"loss": "mixed"}}},
}


def read(tmp_path, **changes):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes, sort_keys=False))
    return read_experiment(path)


def test_a_models_own_settings_go_before_the_common_ones_and_the_runs_before_both(tmp_path):
    experiment = read(tmp_path)
    mmoe, dlen = experiment.run_config("mmoe"), experiment.run_config("dlen", learning_rate=0.1, seed=4)
    assert (mmoe.model.name, mmoe.model.experts, mmoe.training.epochs) == ("mmoe", 2, 1)
    assert (dlen.model.experts, dlen.training.loss, dlen.training.epochs) == (3, "mixed", 1)
    assert (dlen.training.learning_rate, dlen.training.seed) == (0.1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "ple"}, "baseline 'ple' must be one of mmoe, dlen"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"seeds": [1, 9]}, "tuning seed 9 must not be one of the compared seeds"),
        ({"data": ["a/day", "b/day"]}, "names of their own, found day, day"),
        ({"truth": ["a", "b"]}, "one folder for each of data, found 2 of 1"),
        ({"models": {"mmoe": {}, "../x": {}}}, r"found '\.\./x'"),
        ({"common": {"training": {"seed": 3}}}, "seeds are set by `seeds`"),
        ({"models": {"mmoe": {"model": {"expert": 3}}}}, r"models\.mmoe: model\.expert: got 3"),
        ({"title": None}, r"yaml: title: got None"),
        ({"models": {"mmoe": {"modell": {}}}}, "modell"),
    ],
)
def test_a_wrong_experiment_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ConfigInvalid, match=message):
        read(tmp_path, **changes)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigInvalid, match=r"none\.yaml: got No such file"):
        read_experiment(tmp_path / "none.yaml")
