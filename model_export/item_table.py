"""Logged rows of a prepared folder → an item table: each item's features as last seen."""

from __future__ import annotations

import io
from pathlib import Path

import polars as pl

from bundle.files import write_file
from model_export.errors import TableInvalid
from training.dataset import ROW_ITEM, ROW_TIME, Prepared

SPLITS = ("validation", "test")
"""The splits whose raw rows a prepared folder keeps, in the order of their time."""


def item_table(data: Prepared, id_column: str = "id") -> pl.DataFrame:
    """Return one row per item of the held-back splits: its id and the item features of its last row.

    Raises:
        TableInvalid: the data have no item column.
    """
    names = [feature.name for feature in data.schema.item_part]
    pieces = []
    for split in SPLITS:
        frame = pl.scan_parquet(data.rows_path(split))
        columns = frame.collect_schema().names()
        if ROW_ITEM not in columns:
            raise TableInvalid(str(data.folder), found="no item column", expected="data prepared with one")
        frame = frame.sort(ROW_TIME, maintain_order=True) if ROW_TIME in columns else frame
        pieces.append(frame.select(pl.col(ROW_ITEM).alias(id_column), *names))
    rows = pl.concat(pieces).unique(id_column, keep="last", maintain_order=True)
    return rows.filter(pl.col(id_column).is_not_null()).collect()


def write_item_table(data: Prepared, out: Path, id_column: str = "id") -> int:
    """Write the item table as Parquet; return how many items it holds.

    Raises:
        TableInvalid: see `item_table`.
    """
    table = item_table(data, id_column)
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    write_file(out, buffer.getvalue())
    return len(table)
