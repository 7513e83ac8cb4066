from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from bundle.features import FeatureSchema
from simulator.errors import OutputExists, SizeInvalid
from simulator.exposures import DAY_MS, START_MS
from simulator.latent import find_intercepts
from simulator.logs import Simulation, write_logs
from simulator.scenario import read_scenario

ROWS = 200_000
SEED = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("simulated") / "log"
    write_logs(Simulation(read_scenario("default"), ROWS, SEED), out)
    return out


@pytest.fixture(scope="module")
def log(folder):
    return read_columns(folder / "impressions.parquet")


@pytest.fixture(scope="module")
def truth(folder):
    return read_columns(folder / "truth.parquet")


def read_columns(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_logs(Simulation(read_scenario("default"), 3_000, seed), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["impressions.parquet", "schema.yaml", "simulation.json", "truth.parquet"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    for file in ("impressions.parquet", "truth.parquet"):
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


def test_rates_are_those_of_the_scenario(log, truth):
    scenario = read_scenario("default")
    assert scenario.emotion.mean == pytest.approx(truth["u"].mean(), abs=0.01)
    for task in scenario.tasks:
        deviation = (task.base_rate / ROWS) ** 0.5
        assert task.base_rate == pytest.approx(log[f"is_{task.name}"].mean(), rel=0.05, abs=5 * deviation)


def test_states_are_calibrated_against_the_true_probability(truth):
    for rows in np.array_split(np.argsort(truth["u"]), 20):
        u = truth["u"][rows].astype(np.float64)
        deviation = np.sqrt((u * (1 - u)).sum()) / len(rows)
        assert u.mean() == pytest.approx(truth["z"][rows].mean(), abs=4.5 * deviation)


@pytest.mark.parametrize("task", read_scenario("default").task_names)
def test_labels_follow_the_conditional_probabilities_of_each_state(log, truth, task):
    for state, column in ((1, f"a_{task}"), (0, f"b_{task}")):
        rows = truth["z"] == state
        p = truth[column][rows].astype(np.float64)
        deviation = np.sqrt((p * (1 - p)).sum()) / rows.sum()
        assert p.mean() == pytest.approx(log[f"is_{task}"][rows].mean(), abs=4.5 * deviation)


def test_tasks_are_independent_given_the_state_and_the_truth(log, truth):
    for state, side in ((1, "a"), (0, "b")):
        rows = truth["z"] == state
        click, like = (log[f"is_{task}"][rows] - truth[f"{side}_{task}"][rows] for task in ("click", "like"))
        score = (click * like).sum() / np.sqrt((click**2 * like**2).sum())
        assert abs(score) < 4.5


def test_tasks_are_dependent_when_the_state_is_not_known(log):
    assert np.corrcoef(log["is_click"], log["is_like"])[0, 1] > 0.1


@pytest.mark.parametrize("name", ["default", "strong_habits", "clickbait"])
def test_the_unlikely_state_stays_below_its_ceiling(name):
    scenario = read_scenario(name)
    for chunk in Simulation(scenario, 20_000, SEED).chunks():
        for index, task in enumerate(scenario.tasks):
            rare = chunk.truth.b_NT if task.kind == "positive" else chunk.truth.a_NT
            assert rare[:, index].min() > 0
            assert rare[:, index].max() < scenario.k * task.base_rate


def test_users_express_the_same_emotion_in_different_ways(truth, log):
    likers, lurkers = (log["style"] == style for style in ("liker", "lurker"))
    up = truth["z"] == 1
    assert log["is_like"][likers & up].mean() > 3 * log["is_like"][lurkers & up].mean()
    assert truth["u"][likers].mean() == pytest.approx(truth["u"][lurkers].mean(), abs=0.02)


def test_objectionable_items_are_hated_and_clicked_and_not_preferred():
    simulation = Simulation(read_scenario("default"), 50_000, SEED)
    for chunk in simulation.chunks():
        bad = simulation.world.items.objectionable_I[chunk.rows.item_N] > 0
        p = chunk.truth
        p_NT = p.a_NT * p.u_N[:, None] + p.b_NT * (1 - p.u_N[:, None])
        assert p.u_N[bad].mean() < 0.5 * p.u_N[~bad].mean()
        assert p_NT[bad, 5].mean() > 3 * p_NT[~bad, 5].mean()
        assert p.a_NT[bad, 0].mean() > p.a_NT[~bad, 0].mean()


def test_in_click_only_the_click_probability_is_a_function_of_p_up():
    for chunk in Simulation(read_scenario("click_only"), 20_000, SEED).chunks():
        assert np.ptp(chunk.truth.a_NT[:, 0]) < 1e-6
        assert np.ptp(chunk.truth.b_NT[:, 0]) < 1e-6


def test_truth_has_a_row_for_each_impression_and_the_log_holds_no_truth(log, truth):
    assert {len(column) for column in (*log.values(), *truth.values())} == {ROWS}
    assert not set(truth) & set(log)


def test_rows_are_of_the_chunk_that_the_simulation_drew(folder, log, truth):
    start = 0
    for chunk in Simulation(read_scenario("default"), ROWS, SEED).chunks():
        end = start + len(chunk.z_N)
        np.testing.assert_array_equal(chunk.truth.u_N, truth["u"][start:end])
        np.testing.assert_array_equal(chunk.labels_NT[:, 1], log["is_like"][start:end])
        np.testing.assert_array_equal(chunk.rows.user_N + 1, log["user_id"][start:end])
        start = end


def test_days_hold_equal_shares_in_order_of_time_and_the_last_two_are_held_back(folder, log):
    schema = yaml.safe_load((folder / "schema.yaml").read_text())
    time = log["time_ms"]
    assert np.all(np.diff(log["day"]) >= 0)
    assert np.bincount(log["day"]).tolist() == [ROWS // 10] * 10
    np.testing.assert_array_equal((time - START_MS) // DAY_MS, log["day"])
    np.testing.assert_array_equal((time % DAY_MS) // 3_600_000, log["hour"])
    np.testing.assert_array_equal(time >= schema["split"]["test_from"], log["day"] == 9)
    np.testing.assert_array_equal(time >= schema["split"]["validation_from"], log["day"] >= 8)


def test_rows_of_a_request_share_user_and_tab(log):
    order = np.argsort(log["request_id"], kind="stable")
    same = np.diff(log["request_id"][order]) == 0
    for name in ("user_id", "tab"):
        values = log[name][order]
        assert np.all(values[1:][same] == values[:-1][same])
    assert 5 < len(order) / len(np.unique(log["request_id"])) < 15


def test_schema_names_columns_that_exist_and_features_that_the_contract_accepts(folder, log):
    schema = yaml.safe_load((folder / "schema.yaml").read_text())
    features = FeatureSchema.model_validate({"features": schema["features"]}).features
    assert {feature.name for feature in features} <= set(log)
    assert {task["label"] for task in schema["tasks"]} == {name for name in log if name.startswith("is_")}
    assert {"user_id", "item_id", "time_ms"} == set(schema["columns"].values())


def test_an_existing_folder_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(OutputExists, match="want a new one"):
        write_logs(Simulation(read_scenario("default"), 1_000, 1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(("impressions", "seed"), [(0, 1), (99, 1), (-5, 1), (1_000, -1)])
def test_sizes_that_cannot_be_simulated_are_refused(impressions, seed):
    with pytest.raises(SizeInvalid):
        Simulation(read_scenario("default"), impressions, seed)


def test_intercepts_depend_on_the_pilot_only():
    simulation = Simulation(read_scenario("default"), 2_000, 1)
    rows = next(iter(simulation.chunks())).rows
    first = find_intercepts(simulation.scenario, simulation.world, rows)
    assert first == find_intercepts(simulation.scenario, simulation.world, rows)
