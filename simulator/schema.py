"""The dataset schema of a simulated log, and its columns as Arrow arrays; knows nothing of the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from simulator.exposures import DAY_MS, START_MS, Exposures
from simulator.scenario import Scenario
from simulator.world import AGE_BANDS, TABS, World


def dataset_schema(scenario: Scenario, n_users: int, n_items: int) -> dict[str, Any]:
    """Return the dataset schema: the last day is the test, the day before it the validation."""
    days = scenario.size.days

    def category(name: str, side: str, buckets: int | None = None, size: int = 16) -> dict[str, Any]:
        encoding = {"type": "hash", "buckets": buckets} if buckets else {"type": "vocabulary"}
        return {
            "name": name, "side": side, "kind": "categorical", "encoding": encoding, "embedding_size": size
        }  # fmt: skip

    def number(name: str, side: str, buckets: int = 32, size: int = 8) -> dict[str, Any]:
        encoding = {"type": "quantile", "buckets": buckets}
        return {"name": name, "side": side, "kind": "numeric", "encoding": encoding, "embedding_size": size}

    return {
        "columns": {"user": "user_id", "item": "item_id", "time": "time_ms"},
        "split": {
            "by": "time",
            "validation_from": START_MS + (days - 2) * DAY_MS,
            "test_from": START_MS + (days - 1) * DAY_MS,
        },
        "features": [
            category("user_id", "user", buckets=_room(n_users)),
            category("age_band", "user", size=8),
            category("style", "user", size=8),
            category("favourite_topic", "user"),
            number("activity", "user"),
            category("hour", "context", size=8),
            category("tab", "context", size=8),
            category("item_id", "item", buckets=_room(n_items)),
            category("author_id", "item", buckets=_room(n_items)),
            category("topic", "item"),
            number("duration_s", "item"),
            number("views", "item"),
            number("finish_rate", "item"),
            number("report_rate", "item"),
        ],
        "tasks": [
            {"name": task.name, "label": f"is_{task.name}", "kind": task.kind}
            | ({"held_out": True} if task.held_out else {})
            for task in scenario.tasks
        ],
    }


def impression_columns(
    scenario: Scenario, world: World, rows: Exposures, first_session: int, labels_NT: NDArray[np.int8]
) -> dict[str, pa.Array]:
    """Return the columns of impressions.parquet for these rows; ids are 1-based."""
    users, items = world.users, world.items
    user_N, item_N = rows.user_N, rows.item_N
    columns = {
        "user_id": pa.array(user_N.astype(np.int64) + 1),
        "item_id": pa.array(item_N.astype(np.int64) + 1),
        "request_id": pa.array(rows.session_N.astype(np.int64) + first_session),
        "time_ms": pa.array(rows.time_ms_N),
        "day": pa.array(((rows.time_ms_N - START_MS) // DAY_MS).astype(np.int32)),
        "age_band": _names(AGE_BANDS, users.age_U[user_N], ~users.age_known_U[user_N]),
        "style": _names(tuple(scenario.styles), users.style_U[user_N]),
        "favourite_topic": pa.array(users.favourite_U[user_N]),
        "activity": pa.array(users.activity_U[user_N]),
        "hour": pa.array(rows.hour_N),
        "tab": _names(TABS, rows.tab_N),
        "author_id": pa.array(items.author_I[item_N].astype(np.int64) + 1),
        "topic": pa.array(items.topic_I[item_N]),
        "duration_s": pa.array(items.duration_s_I[item_N]),
        "views": pa.array(items.views_I[item_N]),
        "finish_rate": pa.array(items.finish_rate_I[item_N]),
        "report_rate": pa.array(items.report_rate_I[item_N]),
    }
    for index, task in enumerate(scenario.tasks):
        columns[f"is_{task.name}"] = pa.array(labels_NT[:, index])
    return columns


def _names(names: tuple[str, ...], code_N: NDArray[np.int32], missing_N: NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.array(names).take(pa.array(code_N, mask=missing_N))


def _room(distinct: int) -> int:
    """Return a number of hash buckets in which few of `distinct` ids collide: the power of two above twice it."""
    return 1 << max(8, (2 * distinct - 1).bit_length())
