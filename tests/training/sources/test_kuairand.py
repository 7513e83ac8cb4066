"""The KuaiRand reader: no leak from a row's own day, no repeated rows, the dates of the split."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest

from training.dataset import read_prepared
from training.errors import ColumnMissing, SourceEmpty, SourceMissing, SourceUnreadable
from training.prepare import prepare
from training.requests import RequestChoice, build_requests
from training.sources.exposures import open_kuairand_exposures
from training.sources.kuairand import (
    DEFAULT_SCHEMA,
    EXPOSURES_FILE,
    LOG_FILE,
    OUTCOMES,
    USER_FILE,
    VIDEO_FILE,
    open_kuairand,
    read_log,
    with_features,
)

OUTCOME_COLUMNS = (*OUTCOMES, "play_time_ms", "is_profile_enter", "profile_stay_time", "comment_stay_time")
LABELS = [name for name in OUTCOMES if name != "long_view"]


@pytest.fixture
def official(tmp_path):
    """Return a folder in the official layout: 900 impressions of 30 users and 40 videos over eleven days."""
    random = np.random.default_rng(0)
    rows = 900
    day = np.sort(random.integers(0, 11, rows))
    dates = np.array([20220425, 20220426, 20220427, 20220428, 20220429, 20220430, 20220501, 20220502, 20220503,
                      20220504, 20220505])  # fmt: skip
    log = {
        "user_id": random.integers(0, 30, rows),
        "video_id": random.integers(0, 40, rows),
        "date": dates[day],
        "hourmin": random.integers(0, 24, rows) * 100,
        "time_ms": 1_650_812_400_000 + day * 86_400_000 + random.integers(0, 86_400_000, rows),
        **{name: (random.random(rows) < 0.3).astype(int) for name in OUTCOMES},
        "play_time_ms": random.integers(0, 60_000, rows),
        "duration_ms": random.integers(5_000, 60_000, rows),
        "profile_stay_time": 0, "comment_stay_time": 0, "is_profile_enter": 0, "is_rand": 0,
        "tab": random.integers(0, 3, rows),
    }  # fmt: skip
    frame = pl.DataFrame(log)
    pl.concat([frame, frame[10:15]]).write_csv(tmp_path / LOG_FILE)
    users = {"user_id": range(30), "user_active_degree": "full_active", "is_live_streamer": 0, "is_video_author": 1}
    users |= {name: random.integers(0, 99, 30) for name in ("follow_user_num", "fans_user_num", "friend_user_num")}
    users |= {"register_days": random.integers(0, 999, 30)} | {f"onehot_feat{i}": 0 for i in range(18)}
    pl.DataFrame(users).with_columns(pl.lit(1.0).alias("onehot_feat4")).write_csv(tmp_path / USER_FILE)
    videos = {
        "video_id": range(40), "author_id": random.integers(0, 9, 40), "video_type": "NORMAL",
        "upload_dt": "2022-04-10", "upload_type": "Web", "visible_status": 0.0, "video_duration": 12_000.0,
        "server_width": 720.0, "server_height": 1280.0, "music_id": random.integers(0, 9, 40), "music_type": 9.0,
        "tag": ["1,2", "3", "", "12"] * 10,
    }  # fmt: skip
    pl.DataFrame(videos).write_csv(tmp_path / VIDEO_FILE)
    return tmp_path


def features_of(folder, change=(), users=None):
    """Return the features of the log, its outcomes changed, for the users whose number leaves 0 by `users`."""
    files = open_kuairand(folder).files()
    log, _ = read_log(files)
    if users is not None:
        log = log.filter(pl.col("user_id") % users == 0)
    return with_features(log.with_columns(change), files)


def with_outcomes_flipped(from_date):
    late = pl.col("date") >= from_date
    flipped = [pl.when(late).then(1 - pl.col(name)).otherwise(name).alias(name) for name in OUTCOMES]
    watched = pl.when(late).then(pl.col("play_time_ms") + 9_999).otherwise("play_time_ms").alias("play_time_ms")
    entered = pl.when(late).then(1 - pl.col("is_profile_enter")).otherwise("is_profile_enter").alias("is_profile_enter")
    return [*flipped, watched, entered]


def check_no_leak(folder, date, users=None):
    inputs = sorted(feature.name for feature in open_kuairand(folder).schema.features)
    one = features_of(folder, users=users)
    other = features_of(folder, with_outcomes_flipped(date), users)
    seen = pl.col("date") <= date
    assert one.filter(seen).select(inputs).equals(other.filter(seen).select(inputs))
    assert not one.filter(~seen).select(inputs).equals(other.filter(~seen).select(inputs))


@pytest.mark.parametrize("date", [20220425, 20220429, 20220504])
def test_features_do_not_change_with_outcomes_of_their_day_or_later(official, date):
    check_no_leak(official, date)


def test_settled_features_do_not_change_with_outcomes_of_the_day_before(official):
    one, other = features_of(official), features_of(official, with_outcomes_flipped(20220501))
    settled = [name for name in one.columns if "_settled_" in name]
    seen = pl.col("date") <= 20220502
    assert len(settled) > 20
    assert one.filter(seen).select(settled).equals(other.filter(seen).select(settled))
    assert not one.filter(seen).select("user_click_rate").equals(other.filter(seen).select("user_click_rate"))


def test_exposures_are_history_of_every_day_and_their_lifts_are_freed_of_who_watched(official):
    # video 0 is shown to the user who finishes everything, video 1 to the one who finishes nothing: equal lifts
    pairs = [(0, 0, 1)] * 20 + [(0, 2, 1)] * 20 + [(1, 1, 0)] * 20 + [(1, 2, 0)] * 20
    shown = pl.DataFrame(pairs, schema=["user_id", "video_id", "long_view"], orient="row")
    shown.with_columns(pl.lit(0).alias("is_like")).write_parquet(official / EXPOSURES_FILE)
    first = features_of(official).filter(pl.col("date") == 20220425)
    rates = {
        name: dict(first.select("video_id", name).drop_nulls().iter_rows())
        for name in ("video_long_view_rate", "video_long_lift_rate")
    }
    assert set(rates["video_long_lift_rate"]) <= {0, 1, 2}
    assert rates["video_long_view_rate"][0] - rates["video_long_view_rate"][1] > 0.6
    assert abs(rates["video_long_lift_rate"][0] - rates["video_long_lift_rate"][1]) < 0.1


def test_no_outcome_is_an_input(official):
    assert not set(OUTCOME_COLUMNS) & {feature.name for feature in open_kuairand(official).schema.features}


def test_play_time_is_kept_where_the_schema_calls_it_dwell_and_changes_nothing_else(official):
    named = DEFAULT_SCHEMA.with_name("kuairand-dwell.yaml")
    dwell, plain = (prepare(open_kuairand(official, path), official / n)[0] for path, n in ((named, "a"), (None, "b")))
    assert dwell.schema == plain.schema
    log = pl.read_csv(official / LOG_FILE).sort("time_ms").filter(pl.col("date") == 20220503)
    part = dwell.split("validation")
    assert part.dwell.tolist() == pytest.approx((log["play_time_ms"] / 1000).to_list())
    assert plain.split("validation").dwell is None
    assert np.array_equal(part.codes, plain.split("validation").codes)
    assert np.array_equal(part.values, plain.split("validation").values)


def test_repeated_rows_are_dropped_before_the_split(official):
    prepared, _ = prepare(open_kuairand(official), official / "out")
    assert prepared.info.dropped == 5
    assert sum(split.rows for split in prepared.info.splits.values()) == 900


def test_earlier_days_of_the_full_download_are_history_only(official):
    log = pl.read_csv(official / LOG_FILE)
    earlier = log.with_columns(pl.lit(20220420).alias("date"), pl.col("time_ms") - 20 * 86_400_000)
    before = prepare(open_kuairand(official), official / "before")[0]
    earlier.write_csv(official / "log_standard_4_08_to_4_21_pure.csv")
    after = prepare(open_kuairand(official), official / "after")[0]
    assert after.info.splits == before.info.splits
    assert after.info.left_out == 900
    assert "author_click_rate" in before.info.missing  # the first day looks back on nothing
    assert "author_click_rate" not in after.info.missing


def test_the_layout_may_lie_in_a_data_folder(official):
    (official / "data").mkdir()
    for path in official.glob("*.csv"):
        shutil.move(path, official / "data")
    assert len(open_kuairand(official).files()) == 3


def test_what_is_wrong_with_the_files_is_named(official):
    text = (official / LOG_FILE).read_text()
    (official / LOG_FILE).write_text(text.replace("is_follow", "followed", 1))
    with pytest.raises(ColumnMissing, match="'is_follow'"):
        features_of(official)
    (official / LOG_FILE).write_text(text.splitlines()[0] + "\n")
    with pytest.raises(SourceEmpty, match="no rows"):
        features_of(official)
    (official / LOG_FILE).write_text(text.splitlines()[0] + "\n1,2,x" + ",1" * 40 + "\n")
    with pytest.raises(SourceUnreadable, match=LOG_FILE):
        features_of(official)
    (official / LOG_FILE).write_text(text)
    videos = (official / VIDEO_FILE).read_text()
    (official / VIDEO_FILE).write_text(videos.replace('"1,2"', '"1,cats"'))
    with pytest.raises(SourceUnreadable, match="official layout"):
        prepare(open_kuairand(official), official / "out")
    assert not (official / "out").exists()
    (official / VIDEO_FILE).unlink()
    with pytest.raises(SourceMissing, match=VIDEO_FILE):
        open_kuairand(official)


@pytest.mark.real_logs
def test_real_rows_are_those_of_the_reference(real_prepared):
    data = read_prepared(real_prepared)
    splits = {name: (split.rows, split.first, split.last) for name, split in data.info.splits.items()}
    assert {name: rows for name, (rows, _, _) in splits.items()} == {
        "train": 131_177, "validation": 18_555, "test": 30_290
    }  # fmt: skip
    assert data.info.dropped == 5_039
    positives = np.asarray(data.split("test").labels).sum(axis=0).tolist()
    assert positives == [13_499, 466, 45, 85, 21, 30]


@pytest.mark.real_logs
def test_real_requests_encode_to_the_prepared_codes(real_prepared):
    data = read_prepared(real_prepared)
    encoder = data.encoder
    rows = pl.read_parquet(data.rows_path("test"))
    test = data.split("test")
    (body,) = build_requests(data, RequestChoice(candidates=10))
    at = int(np.argmax((rows["__user"] == int(body["user"]["id"])).to_numpy()))
    request = body["user"]["features"] | body["context"]
    encoded = encoder.request.encode(encoder.request.columns_from_python({k: [v] for k, v in request.items()}), 1)
    assert np.array_equal(encoded.codes_NC[0], test.codes[at, : data.request_code_columns])
    assert np.array_equal(encoded.values_NV[0], test.values[at, : data.request_value_columns])


@pytest.mark.real_logs
def test_real_features_do_not_leak(real_logs):
    check_no_leak(real_logs, 20220502, users=8)


def with_exposures(official):
    """Write three exposures, one of a user and one of a video that have no profile, into the folder."""
    rows = [(0, 3, 1, 0), (99, 3, 0, 1), (1, 77, 1, 1)] * 40
    frame = pl.DataFrame(rows, schema=["user_id", "video_id", "long_view", "is_like"], orient="row")
    frame.write_parquet(official / EXPOSURES_FILE)
    return open_kuairand_exposures(official)


def test_exposures_become_rows_with_profiles_to_pre_train_on(official, tmp_path):
    prepared, _ = prepare(with_exposures(official), tmp_path / "exposures")
    assert [(task.name, task.label) for task in prepared.tasks] == [("click", "long_view"), ("like", "is_like")]
    rows = pl.concat([pl.read_parquet(prepared.rows_path(name)) for name in ("validation", "test")])
    profiles = pl.read_csv(official / VIDEO_FILE)
    known = rows.filter(pl.col("video_id") == 3)
    assert known["author_id"].unique().to_list() == profiles.filter(pl.col("video_id") == 3)["author_id"].to_list()
    assert rows.filter(pl.col("video_id") == 77)["author_id"].null_count() == rows["video_id"].to_list().count(77)


def test_every_feature_of_the_exposures_is_one_of_the_log_with_ids_encoded_alike(official):
    features = open_kuairand(official, DEFAULT_SCHEMA.with_name("kuairand-ids.yaml")).schema.features
    exposed = with_exposures(official).schema.features
    assert len(exposed) == 34
    assert set(map(str, exposed)) <= set(map(str, features))


def test_a_download_without_exposures_is_named(official):
    with pytest.raises(SourceMissing, match=EXPOSURES_FILE):
        open_kuairand_exposures(official)
