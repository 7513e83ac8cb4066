"""KuaiRand-Pure in its official layout → rows with features known before each row's day.

Files of the folder (or of its `data/`): log_standard_4_22_to_5_08_pure.csv, user_features_pure.csv and
video_features_basic_pure.csv must be there; log_standard_4_08_to_4_21_pure.csv and
history_exposures_before_0425.parquet add history when they are. Outcome columns of a row (play time, stay
times, long_view …) never become its features; they enter the history of later days.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.errors import ColumnMissing, SourceEmpty, SourceMissing, SourceUnreadable
from training.schema import DatasetSchema, read_dataset_schema
from training.shards import Shards, open_shards
from training.sources.history import DAY, SHOWN, Rate, Tally, with_days_since, with_tally

LOG_FILE = "log_standard_4_22_to_5_08_pure.csv"
EARLIER_LOG_FILE = "log_standard_4_08_to_4_21_pure.csv"
USER_FILE = "user_features_pure.csv"
VIDEO_FILE = "video_features_basic_pure.csv"
EXPOSURES_FILE = "history_exposures_before_0425.parquet"
DEFAULT_SCHEMA = Path(__file__).resolve().parents[2] / "configs" / "datasets" / "kuairand.yaml"

REPEAT_KEY = ("user_id", "video_id", "time_ms")
OUTCOMES = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate")
_VIDEO_COLUMNS = (
    "video_id", "author_id", "video_type", "upload_type", "video_duration", "server_width", "server_height",
    "music_id", "music_type", "tag",
)  # fmt: skip
_LENGTH_BOUNDS_S = (7, 12, 18, 30, 60, 120, 240)
_LOG_COLUMNS = (*REPEAT_KEY, "date", "hourmin", *OUTCOMES, "play_time_ms", "duration_ms", "is_profile_enter", "tab")

_CLICK, _LONG, _LIKE = Rate("click", 10), Rate("long_view", 10), Rate("like", 20)
_FOLLOW, _COMMENT, _FORWARD = Rate("follow", 50), Rate("comment", 50), Rate("forward", 50)
_HATE, _PROFILE, _PLAYED = Rate("hate", 50), Rate("profile_enter", 50), Rate("played", 10)
_ALL = (_CLICK, _LONG, _LIKE, _FOLLOW, _COMMENT, _FORWARD, _HATE, _PROFILE, _PLAYED)
_SECONDS, _SKIP = Rate("seconds", 10), Rate("skip", 10)
_PAIR = (Rate("click", 3), Rate("long_view", 3), Rate("like", 5))
_PAIR_SETTLED = _PAIR[:1]

TALLIES = (
    Tally("user", ("user_id",), _ALL, per_day=True),
    Tally("video", ("video_id",), (*_ALL, _SECONDS, _SKIP), per_day=True),
    Tally("author", ("author_id",), (_CLICK, _LONG, _LIKE, _FOLLOW), per_day=True),
    Tally("music", ("music_id",), (_CLICK, _LIKE), per_day=True),
    Tally("tag", ("main_tag",), (_CLICK, _LONG, _LIKE, _COMMENT), per_day=True),
    Tally("user_tab", ("user_id", "tab"), (_CLICK, _LONG, _LIKE), per_day=True),
    Tally("video_tab", ("video_id", "tab"), (_CLICK, _LONG, _LIKE, _SECONDS), per_day=True),
    Tally("user_video", ("user_id", "video_id"), _PAIR),
    Tally("user_author", ("user_id", "author_id"), _PAIR),
    Tally("user_tag", ("user_id", "main_tag"), _PAIR),
    Tally("user_length", ("user_id", "length_band"), _PAIR),
    Tally("user_hour", ("user_id", "day_part"), (Rate("click", 3),), per_day=True),
    # settled: without the day before the row's
    Tally("user_settled", ("user_id",), (_CLICK, _PLAYED, _SECONDS, _SKIP), per_day=True, lag=2),
    Tally("user_tab_settled", ("user_id", "tab"), (_CLICK, _LONG, _SECONDS), per_day=True, lag=2),
    Tally("user_hour_settled", ("user_id", "day_part"), (Rate("click", 3),), per_day=True, lag=2),
    Tally("user_video_settled", ("user_id", "video_id"), _PAIR_SETTLED, lag=2),
    Tally("user_author_settled", ("user_id", "author_id"), _PAIR_SETTLED, lag=2),
    Tally("user_tag_settled", ("user_id", "main_tag"), _PAIR_SETTLED, lag=2),
    Tally("user_length_settled", ("user_id", "length_band"), _PAIR_SETTLED, lag=2),
)
LIFT_TALLIES = (
    Tally("video", ("video_id",), (Rate("lift", 20),)),
    Tally("author", ("author_id",), (Rate("lift", 20),)),
    Tally("tag_tab", ("main_tag", "tab"), (Rate("lift", 50),)),
    Tally("video_tab", ("video_id", "tab"), (Rate("lift", 20),)),
    Tally("user", ("user_id",), (Rate("pull", 10),)),
    Tally("user_tab", ("user_id", "tab"), (Rate("pull", 10),)),
    Tally("user_tag", ("user_id", "main_tag"), (Rate("pull", 5),)),
    Tally("user_length", ("user_id", "length_band"), (Rate("pull", 5),)),
    Tally("user_settled", ("user_id",), (Rate("pull", 10),), lag=2),
    Tally("user_tab_settled", ("user_id", "tab"), (Rate("pull", 10),), lag=2),
    Tally("user_tag_settled", ("user_id", "main_tag"), (Rate("pull", 5),), lag=2),
    Tally("user_length_settled", ("user_id", "length_band"), (Rate("pull", 5),), lag=2),
)
_LONG_LIFT = (Rate("long_lift", 10),)
LONG_LIFT_TALLIES = (
    Tally("video", ("video_id",), _LONG_LIFT),
    Tally("author", ("author_id",), _LONG_LIFT),
    Tally("music", ("music_id",), _LONG_LIFT),
    Tally("tag", ("main_tag",), _LONG_LIFT),
    Tally("length", ("length_band",), _LONG_LIFT),
)
_LONGEST_LAG = max(tally.lag for tally in TALLIES)
_EXPOSURE_KEYS = ("user_id", "video_id", "author_id", "music_id", "main_tag", "length_band", DAY)


@dataclass(frozen=True)
class KuaiRandSource:
    """The official files in a folder; see `training.sources.source.Source` for the attributes."""

    input: Path
    schema: DatasetSchema
    schema_path: Path
    name: str = "kuairand"
    version: int = 5

    def files(self) -> tuple[Path, ...]:
        """Return the files that are read, in a fixed order.

        Raises:
            SourceMissing: one of the three official files that must be there is not.
        """
        folder = self.input / "data" if (self.input / "data").is_dir() else self.input
        needed = [folder / name for name in (LOG_FILE, USER_FILE, VIDEO_FILE)]
        for path in needed:
            if not path.is_file():
                raise SourceMissing(str(path), found="no such file", expected="a file of the official KuaiRand-Pure")
        optional = [folder / name for name in (EARLIER_LOG_FILE, EXPOSURES_FILE)]
        return (*needed, *(path for path in optional if path.is_file()))

    def stage(self, folder: Path) -> tuple[Shards, int]:
        """Return the rows with every feature that this source can make, and the number of repeated rows."""
        try:
            log, dropped = read_log(self.files())
            kept = (self.schema.dwell.column,) if self.schema.dwell else ()
            rows = with_features(log, self.files(), kept)
        except pl.exceptions.PolarsError as exc:
            reason = " ".join(str(exc).split())[:160]
            raise SourceUnreadable(str(self.input), found=reason, expected="values of the official layout") from None
        path = folder / "rows.parquet"
        rows.write_parquet(path)
        return open_shards([path], given=[self.input]), dropped


def open_kuairand(folder: Path, schema_path: Path | None = None, split_path: Path | None = None) -> KuaiRandSource:
    """Return the KuaiRand source; without `schema_path` the shipped schema serves.

    Raises:
        SourceMissing, DatasetSchemaInvalid: see `training.errors`.
    """
    schema_path = schema_path or DEFAULT_SCHEMA
    source = KuaiRandSource(folder, read_dataset_schema(schema_path, split_path), schema_path)
    source.files()
    return source


def read_log(files: tuple[Path, ...]) -> tuple[pl.DataFrame, int]:
    """Return the log in order of time without repeated rows, and how many those were."""
    logs = [_read_csv(path, _LOG_COLUMNS) for path in files if path.name in (LOG_FILE, EARLIER_LOG_FILE)]
    whole = pl.concat(logs).sort("time_ms", "user_id", "video_id", maintain_order=True)
    if not len(whole):
        raise SourceEmpty(str(files[0]), found="no rows", expected="at least one row")
    log = whole.unique(list(REPEAT_KEY), keep="first", maintain_order=True)
    log = log.with_columns(
        pl.col("date").cast(pl.String).str.to_date("%Y%m%d").to_physical().alias(DAY),
        (pl.col("hourmin") // 100).alias("hour"),
        (pl.col("hourmin") // 600).alias("day_part"),
    )
    return log, len(whole) - len(log)


def with_features(log: pl.DataFrame, files: tuple[Path, ...], kept: tuple[str, ...] = ()) -> pl.DataFrame:
    """Return the log's rows with profile, context and history features, the labels, and the outcomes to be kept."""
    videos = read_videos(next(path for path in files if path.name == VIDEO_FILE))
    users = read_users(next(path for path in files if path.name == USER_FILE))
    rows = log.join(videos, on="video_id", how="left", maintain_order="left")
    past = _past(rows)
    exposures = past.select(*_EXPOSURE_KEYS, "long_view", "like").clear()
    for path in files:
        if path.name == EXPOSURES_FILE:
            exposures = _exposures(path, videos, int(rows.select(pl.col(DAY).min()).item()) - _LONGEST_LAG)
    past = pl.concat([exposures, past], how="diagonal")
    rows = rows.drop({"play_time_ms", "duration_ms", "is_profile_enter"} - set(kept))
    for tally in TALLIES:
        rows = with_tally(rows, past, tally)
    rows = _with_long_lifts(_with_lifts(rows), exposures)
    rows = with_days_since(rows, past.filter(pl.col("click").is_not_null()), ["user_id"], "user_days_since")
    return rows.join(users, on="user_id", how="left", maintain_order="left")


def _with_lifts(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with click rates freed of who watched (lift) and of what was shown (pull).

    `lift` is the click less the user's own earlier click rate in the tab, `pull` the click less the video's.
    """
    by_user = pl.coalesce("user_tab_click_rate", "user_click_rate", "tag_click_rate")
    by_video = pl.coalesce("video_tab_click_rate", "video_click_rate", "tag_click_rate")
    past = rows.select(
        "user_id", "video_id", "author_id", "main_tag", "length_band", "tab", DAY,
        (pl.col("is_click") - by_user).alias("lift"),
        (pl.col("is_click") - by_video).alias("pull"),
        pl.lit(1).alias(SHOWN),
    )  # fmt: skip
    for tally in LIFT_TALLIES:
        added = with_tally(rows.drop(*(set(tally.columns) & set(rows.columns))), past, tally)
        rows = rows.with_columns(added.get_column(tally.columns[1]))
    return rows


def _with_long_lifts(rows: pl.DataFrame, exposures: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with long-view rates freed of who watched, and the user's of the exposures freed of what.

    Among the exposures both sides are freed of each other: user's rate → video's lift → user's pull → lift.
    """
    own = _over_all(exposures, "user_id", "long_view", 5)
    lift = exposures.with_columns((pl.col("long_view") - own).alias("long_lift"))
    pull = exposures.with_columns(
        (pl.col("long_view") - _over_all(lift, "video_id", "long_lift", 10)).alias("long_pull")
    )
    own = _over_all(pull, "user_id", "long_pull", 5)
    lift = exposures.with_columns((pl.col("long_view") - own).alias("long_lift"))
    earlier_rate = pl.coalesce("user_long_view_rate", "tag_long_view_rate")
    logged = rows.with_columns((pl.col("long_view") - earlier_rate).alias("long_lift"), pl.lit(1).alias(SHOWN))
    columns = (*_EXPOSURE_KEYS, "long_lift")
    past = pl.concat([lift.select(columns), logged.select(*columns, SHOWN)], how="diagonal")
    for tally in LONG_LIFT_TALLIES:
        rows = rows.with_columns(_rate(rows, past, tally))
    of_user = Tally("user", ("user_id",), (Rate("long_pull", 5),))
    return rows.with_columns(_rate(rows, pull.with_columns(pl.lit(None, pl.Int32).alias(SHOWN)), of_user))


def _rate(rows: pl.DataFrame, log: pl.DataFrame, tally: Tally) -> pl.Series:
    """Return the tally's one rate of the rows."""
    return with_tally(rows.select(*tally.keys, DAY), log, tally).get_column(tally.columns[1])


def _over_all(log: pl.DataFrame, key: str, outcome: str, weight: float) -> pl.Series:
    """Return, per row of a log of one day, the key's smoothed mean over all of it, the row included."""
    log = log.with_columns(pl.lit(None, pl.Int32).alias(SHOWN))
    return _rate(log.with_columns(pl.col(DAY) + 1), log, Tally("of", (key,), (Rate(outcome, weight),)))


def _past(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the log as history: keys and outcomes under short names."""
    played = (pl.col("play_time_ms") / pl.col("duration_ms").clip(1000)).clip(0, 3).log1p()
    seconds = pl.col("play_time_ms") / 1000
    return rows.select(
        "user_id", "video_id", "author_id", "music_id", "main_tag", "length_band", "tab", "day_part", DAY,
        *(pl.col(name).alias(name.removeprefix("is_")) for name in (*OUTCOMES, "is_profile_enter")),
        played.alias("played"), seconds.clip(0, 60).log1p().alias("seconds"),
        (seconds < 3).cast(pl.Int64).alias("skip"), pl.lit(1).alias(SHOWN),
    )  # fmt: skip


def _exposures(path: Path, videos: pl.DataFrame, day: int) -> pl.DataFrame:
    """Return the history exposures as rows of a day before the log begins; only two outcomes are known."""
    frame = read_exposures(path).rename({"is_like": "like"}).with_columns(pl.lit(day, dtype=pl.Int32).alias(DAY))
    keys = ("video_id", "author_id", "music_id", "main_tag", "length_band")
    return frame.join(videos.select(keys), on="video_id", how="left")


def read_exposures(path: Path) -> pl.DataFrame:
    """Return the history exposures: user_id, video_id, long_view, is_like."""
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as exc:
        raise SourceUnreadable(str(path), found=str(exc)[:120], expected="a whole Parquet file") from None
    wanted = ("user_id", "video_id", "long_view", "is_like")
    _check_columns(path, frame, wanted)
    return frame.select(pl.col(wanted).cast(pl.Int64))


def read_videos(path: Path) -> pl.DataFrame:
    """Return the video profiles with derived columns, one row per video."""
    frame = _read_csv(path, _VIDEO_COLUMNS, {"tag": pl.String, "music_type": pl.Float64, "video_duration": pl.Float64})
    tags = pl.col("tag").str.split(",").list.eval(pl.element().filter(pl.element() != "").cast(pl.Int64))
    seconds = pl.col("video_duration") / 1000
    band = pl.sum_horizontal((seconds > bound).cast(pl.Int64) for bound in _LENGTH_BOUNDS_S)
    return frame.unique("video_id", keep="first", maintain_order=True).with_columns(
        tags.alias("tags"),
        tags.list.first().alias("main_tag"),
        pl.col("music_type").cast(pl.Int64),
        seconds.alias("duration_s"),
        pl.when(seconds.is_null()).then(-1).otherwise(band).alias("length_band"),
        (pl.col("server_height") / pl.col("server_width")).fill_nan(None).alias("height_to_width"),
    )


def read_users(path: Path) -> pl.DataFrame:
    """Return the user profiles, one row per user."""
    frame = _read_csv(path, ("user_id", "user_active_degree", *(f"onehot_feat{i}" for i in range(18))))
    whole = [name for name, dtype in frame.schema.items() if dtype.is_float()]
    return frame.unique("user_id", keep="first", maintain_order=True).with_columns(pl.col(whole).cast(pl.Int64))


def _read_csv(path: Path, wanted: tuple[str, ...], types: dict[str, type[pl.DataType]] | None = None) -> pl.DataFrame:
    try:
        frame = pl.read_csv(path, schema_overrides=types, infer_schema_length=None)
    except pl.exceptions.NoDataError:
        raise SourceEmpty(str(path), found="an empty file", expected="a header and rows") from None
    except (pl.exceptions.PolarsError, OSError) as exc:
        reason = " ".join(str(exc).split())[:160]
        raise SourceUnreadable(str(path), found=reason, expected="a CSV file in the official layout") from None
    _check_columns(path, frame, wanted)
    return frame.select(wanted) if path.name != USER_FILE else frame


def _check_columns(path: Path, frame: pl.DataFrame, wanted: tuple[str, ...]) -> None:
    for name in wanted:
        if name not in frame.columns:
            raise ColumnMissing(f"{path}: column {name!r}", found="no such column", expected="the official columns")
