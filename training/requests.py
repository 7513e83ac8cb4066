"""Rank requests built from held-back rows: one user's features, real candidates with theirs.

The body is that of `POST /v1/rank`. Knows nothing of HTTP or of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from bundle.features import Feature
from training.dataset import ROW_ITEM, ROW_USER, Prepared
from training.errors import RequestImpossible

Body = dict[str, object]


@dataclass(frozen=True)
class RequestChoice:
    """Which requests to build.

    Attributes:
        split: validation or test.
        user: this user only, as text; None takes those with the most rows first.
        candidates: at most this many in each request; short users are filled up with other rows' items.
        count: how many requests, one per user.
    """

    split: str = "test"
    user: str | None = None
    candidates: int = 50
    count: int = 1


def build_requests(prepared: Prepared, choice: RequestChoice) -> Iterator[Body]:
    """Yield rank request bodies.

    User and context features are those of the user's first row; candidates are the items of that user's rows,
    then of other rows (the nearest in the log), each item once. A filled-up candidate carries the item features
    of its own row.

    Raises:
        RequestImpossible: no such user, or no rows.
    """
    frame = pl.read_parquet(prepared.rows_path(choice.split)).with_row_index("__row")
    has_user = ROW_USER in frame.columns
    if choice.user is not None and not has_user:
        raise RequestImpossible(f"user {choice.user!r}", found="data without a user column", expected="no --user")
    for number, user in enumerate(_users(frame, choice) if has_user else [None] * choice.count):
        own = frame.filter(pl.col(ROW_USER) == user) if has_user else frame.slice(number, 1)
        if not len(own):
            raise RequestImpossible(
                f"request {number}", found=f"{len(frame)} rows", expected="more rows, or fewer requests"
            )
        yield _body(prepared, frame, own, choice, f"{choice.split}-{number}")


def _users(frame: pl.DataFrame, choice: RequestChoice) -> list[object]:
    """Return the ids of the users to build requests for, those with the most rows first."""
    if choice.user is not None:
        known = frame.filter(pl.col(ROW_USER).cast(pl.String) == choice.user).get_column(ROW_USER)
        if not len(known):
            raise RequestImpossible(f"user {choice.user!r}", found=f"no row in {choice.split}", expected="a user in it")
        return [known[0]]
    counted = frame.group_by(ROW_USER, maintain_order=True).len().sort("len", descending=True, maintain_order=True)
    if len(counted) < choice.count:
        raise RequestImpossible("--count", found=choice.count, expected=f"at most {len(counted)}, one per user")
    return counted.get_column(ROW_USER).head(choice.count).to_list()


def _body(prepared: Prepared, frame: pl.DataFrame, own: pl.DataFrame, choice: RequestChoice, request_id: str) -> Body:
    first = own.row(0, named=True)
    at = int(first["__row"])
    nearest = frame.with_columns((pl.col("__row").cast(pl.Int64) - at).abs().alias("__far")).sort("__far")
    rows = pl.concat([own, nearest.select(own.columns)])
    key = ROW_ITEM if ROW_ITEM in rows.columns else "__row"
    rows = rows.unique(key, keep="first", maintain_order=True).head(choice.candidates)
    item_part = prepared.schema.item_part
    candidates = [{"id": str(row[key]), "features": features_of(row, item_part)} for row in rows.iter_rows(named=True)]
    body: Body = {"request_id": request_id}
    user: Body = {"features": features_of(first, prepared.schema.of_side("user"))}
    if ROW_USER in frame.columns:
        user = {"id": str(first[ROW_USER])} | user
    body["user"] = user
    body["context"] = features_of(first, prepared.schema.of_side("context"))
    body["candidates"] = candidates
    return body


def features_of(row: dict[str, object], features: tuple[Feature, ...]) -> dict[str, object]:
    """Return a row's values of the given features, those without a value left out."""
    return {f.name: row[f.name] for f in features if row[f.name] is not None and row[f.name] != []}
