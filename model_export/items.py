"""An item table → the part of a bundle that ranks by item id: two graphs, features, rows, index, golden request.

The table is read twice a bounded piece at a time: once to encode it with the bundle's own encoder, once, from what was
encoded, to make rows. What must be in memory whole is a few words per item: ids, their index.

Legend: N candidates.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bundle.encode import SchemaEncoder
from bundle.features import FeatureSchema
from bundle.golden import Arrays, Golden, golden_bytes
from bundle.items import CODES_FILE, GOLDEN_IDS, IDS_FILE, ROWS_FILE, VALUES_FILE, feature_names, given_features
from bundle.items_write import FeatureWriter, GrowingArray
from bundle.manifest import (
    ITEM_CODES,
    ITEM_ENCODER_FILE,
    ITEM_ROWS,
    ITEM_VALUES,
    ITEMS_GOLDEN_FILE,
    ROWS_MODEL_FILE,
    ItemTableEntry,
    Parity,
    PrecisionGate,
    Tensor,
)
from model_export.errors import TableInvalid
from model_export.item_graphs import Cut, Rows
from model_export.onnx_writer import WeightsFile
from model_export.parity import SampleRows, open_session, run_graph
from training.columns import clean, typed_columns
from training.shards import Shards, open_shards
from training.sources.table import stage_csv, table_files

GOLDEN_ITEMS = 16
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ItemsWanted:
    """An item table to be shipped with a bundle.

    Attributes:
        table: Parquet, CSV, or a folder of Parquet files; raw item features under their names, one row per item.
        id_column: integers or texts.
        rows: what is kept of an item.
    """

    table: Path
    id_column: str = "id"
    rows: Rows = "layer1"


class CutSession:
    """Both graphs behind one another, run as if they were one that takes items' features."""

    def __init__(self, folder: Path, ranks: str = ROWS_MODEL_FILE) -> None:
        """Open the graphs in a folder."""
        self._encoder = open_session(folder / ITEM_ENCODER_FILE)
        self._ranks = open_session(folder / ranks)

    def get_outputs(self) -> Any:
        """Return what an ONNX Runtime session returns."""
        return self._ranks.get_outputs()

    def rows(self, inputs: Arrays) -> NDArray[np.generic]:
        """Return the rows of items' features."""
        of_items = {name: array for name, array in inputs.items() if name in (ITEM_CODES, ITEM_VALUES)}
        return np.asarray(self._encoder.run([ITEM_ROWS], of_items)[0])

    def run(self, names: list[str], inputs: Arrays) -> list[Any]:
        """Return outputs by name, as an ONNX Runtime session does."""
        return self.rank(names, inputs, self.rows(inputs))

    def rank(self, names: list[str], inputs: Arrays, rows: NDArray[np.generic]) -> list[Any]:
        """Return outputs by name for rows."""
        of_request = {name: array for name, array in inputs.items() if name not in (ITEM_CODES, ITEM_VALUES)}
        return list(self._ranks.run(names, of_request | {ITEM_ROWS: rows}))


Judge = Callable[[CutSession], tuple[Parity, PrecisionGate | None]]
"""Holds the cut graphs against the whole one: what the manifest says of them, or a refusal."""


def write_features(folder: Path, schema: FeatureSchema, wanted: ItemsWanted) -> dict[str, float]:
    """Encode a table into `folder`; return the share of items that have a value, by feature.

    Raises:
        TableInvalid, SourceInvalid, ItemIdInvalid, ValueInvalid: what is wrong with the table.
    """
    encoder = SchemaEncoder(schema).item
    names = feature_names(encoder)
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        shards = _open(wanted, schema, Path(staging))
        present = [feature for feature in schema.item_part if feature.name in shards.columns]
        if not present:
            expected = f"at least one of {', '.join(sorted(encoder.names)[:20])}"
            raise TableInvalid(f"{wanted.table}", found="no item feature of the model", expected=expected)
        with FeatureWriter(folder, encoder.code_columns, encoder.value_columns, len(names)) as writer:
            for place, first, frame in shards.chunks([wanted.id_column, *(feature.name for feature in present)]):
                columns = typed_columns(clean(frame, present, place, first), present)
                ids = _ids(frame.get_column(wanted.id_column), place, first)
                writer.append(ids, encoder.encode(columns, len(ids)), given_features(columns, names, len(ids)))
            return dict(zip(names, writer.finish().tolist(), strict=True))


def write_items(
    folder: Path, wanted: ItemsWanted, given: dict[str, float], cut: Cut, weights: WeightsFile, rows: SampleRows,
    inputs: tuple[Tensor, ...], judge: Judge,
) -> ItemTableEntry:  # fmt: skip
    """Write the cut graphs, the rows of all items whose features are in `folder`, and a golden request of some.

    Raises:
        ParityFailed, PrecisionRefused: ranking by rows changes more than it may.
    """
    cut.write(folder, weights)
    session = CutSession(folder)
    parity, gate = judge(session)
    row = cut.row
    with GrowingArray(folder / ROWS_FILE, np.dtype(row.dtype), int(row.shape[1])) as array:
        for features in encoded_items(folder):
            array.append(session.rows({name: features[name] for name in features if _is_input(name, inputs)}))
    _write_golden(folder, session, rows, inputs)
    return ItemTableEntry(
        rows=wanted.rows, count=array.rows, row=row, given=given, parity=parity, precision_gate=gate,
        source=wanted.table.name,
    )  # fmt: skip


def encoded_items(folder: Path) -> Iterator[Arrays]:
    """Yield the encoded features of a written table piece by piece, by input name."""
    codes = np.load(folder / CODES_FILE, mmap_mode="r")
    values = np.load(folder / VALUES_FILE, mmap_mode="r")
    for at in range(0, len(codes), ROWS_AT_ONCE):
        piece = slice(at, at + ROWS_AT_ONCE)
        yield {ITEM_CODES: np.array(codes[piece]), ITEM_VALUES: np.array(values[piece])}


def _write_golden(folder: Path, session: CutSession, rows: SampleRows, inputs: tuple[Tensor, ...]) -> None:
    """Write the first items' ids, features and scores for the first sample row's request."""
    ids = [words.tobytes().rstrip(b"\0").decode() for words in np.load(folder / IDS_FILE, mmap_mode="r")[:GOLDEN_ITEMS]]
    first = next(encoded_items(folder))
    request = rows.request(0, np.arange(1), inputs)
    request |= {name: array[: len(ids)] for name, array in first.items() if name in request}
    golden = golden_bytes(Golden(request, run_graph(session, request)), **{GOLDEN_IDS: np.array(ids)})
    (folder / ITEMS_GOLDEN_FILE).write_bytes(golden)


def _open(wanted: ItemsWanted, schema: FeatureSchema, staging: Path) -> Shards:
    files = table_files(wanted.table)
    staged = [
        stage_csv(path, staging / f"{number:05d}.parquet", schema, [wanted.id_column])
        if path.suffix.lower() in (".csv", ".tsv")
        else path
        for number, path in enumerate(files)
    ]
    shards = open_shards(staged, given=files)
    present = {feature.name: "an item feature" for feature in schema.item_part if feature.name in shards.columns}
    shards.check_holds({wanted.id_column: "the items' ids"} | present)
    return shards


def _ids(column: pl.Series, place: str, first: int) -> list[str]:
    """Return ids as texts."""
    if not (column.dtype.is_integer() or column.dtype == pl.String):
        found = f"{column.dtype}"
        raise TableInvalid(f"{place}: column {column.name!r}", found=found, expected="integers or texts")
    if column.null_count():
        row = first + int(column.is_null().arg_max() or 0)
        raise TableInvalid(f"{place}: column {column.name!r}", found=f"null in row {row}", expected="an id in each row")
    return list(column.cast(pl.String).to_list())


def _is_input(name: str, inputs: tuple[Tensor, ...]) -> bool:
    return any(tensor.name == name for tensor in inputs)
