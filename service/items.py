"""The item side of a request → what the engine takes: features, or rows of the bundle's item table.

A candidate's own features win over the table's; what it does not bring comes from the table, else it is the schema's
default. Candidates that bring nothing and stand in the table need nothing but their rows. As soon as one candidate of
a request does, all are ranked by rows, the others' being made of their features. Knows neither HTTP nor bytes.

Legend: N candidates, C code columns, V value columns, F item features, B width of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bundle.columns import Column, ListColumn
from bundle.encode import EncodedPart, PartEncoder
from bundle.items import ItemTable, feature_names, given_features
from bundle.items_index import NO_ROW, Rows
from service.engine import Engine

SOURCES = ("table", "mixed", "request", "default")
"""Where a candidate's features come from: the table, request and table, the request, or nowhere."""


class ItemInput(Struct, frozen=True):
    """The candidates as the engine takes them: one of features and rows.

    Attributes:
        rows: how many candidates.
        features: encoded features.
        rows_NB: rows of the item table, or made as those are.
        missing: candidates without a value, by feature; only features with any.
        sources: candidates by where their features come from; only sources with any.
    """

    rows: int
    features: EncodedPart | None
    rows_NB: NDArray[np.generic] | None
    missing: Mapping[str, int]
    sources: Mapping[str, int]


class ItemEncoder:
    """Encodes the candidates of one model version."""

    def __init__(self, encoder: PartEncoder, table: ItemTable | None, engine: Engine) -> None:
        """Take the model's encoder and engine, and its item table if it has one."""
        self._encoder, self._table, self._engine = encoder, table, engine
        self._names = feature_names(encoder)
        self._complete = table is not None and all(share == 1 for share in table.entry.given.values())
        count = len(encoder.code_features)
        widths = [feature.columns for feature in encoder.code_features]
        self._feature_of_code = np.repeat(np.arange(count), widths)  # [C]
        self._feature_of_value = np.repeat(np.arange(count, len(self._names)), 2)  # [V]

    @property
    def some_ids(self) -> Sequence[str]:
        """Some items of the table; none where there is no table."""
        return () if self._table is None else self._table.golden_ids

    def encode(self, ids: Sequence[str], columns: Mapping[str, Column | ListColumn]) -> ItemInput:
        """Return the candidates of a request.

        Raises:
            ValueInvalid: a feature's values cannot be encoded.
            ModelFailed: no rows can be made of features.
        """
        rows = len(ids)
        if self._table is None:
            return self._of_request(columns, rows)
        at_N = self._table.find(ids)
        if not columns and self._complete and rows and at_N.min() != NO_ROW:
            return ItemInput(rows, None, self._table.rows_MB.take(at_N, axis=0), {}, {"table": rows})
        known_N = at_N != NO_ROW
        given_NF = given_features(columns, self._names, rows) if columns else None
        if not known_N.any() or (given_NF is not None and given_NF.all()):
            return self._of_request(columns, rows)
        return self._of_table(self._table, columns, at_N, known_N, given_NF)

    def _of_request(self, columns: Mapping[str, Column | ListColumn], rows: int) -> ItemInput:
        """Return candidates of whom the table knows nothing that the request does not."""
        encoded = self._encoder.encode(columns, rows)
        if any(isinstance(column, Column) and column.missing is None for column in columns.values()):
            bringing = rows
        else:
            bringing = int(given_features(columns, self._names, rows).any(axis=1).sum()) if columns else 0
        sources = _counted(table=0, mixed=0, request=bringing, default=rows - bringing)
        return ItemInput(rows, encoded, None, encoded.missing, sources)

    def _of_table(
        self, table: ItemTable, columns: Mapping[str, Column | ListColumn], at_N: Rows,
        known_N: NDArray[np.bool_], given_NF: NDArray[np.bool_] | None,
    ) -> ItemInput:  # fmt: skip
        """Return candidates of whom the table knows some."""
        rows, known = len(at_N), int(known_N.sum())
        at_N = at_N if known == rows else np.where(known_N, at_N, 0)
        has_NF = table.given_MF[at_N]
        if known < rows:
            has_NF &= known_N[:, None]
        brings_N: NDArray[np.bool_] | None = None if given_NF is None else np.asarray(given_NF.any(axis=1))
        by_row_N = known_N if brings_N is None else known_N & ~brings_N
        others = np.flatnonzero(~by_row_N)
        missing = self._missing(has_NF if given_NF is None else has_NF | given_NF)
        sources = _sources(rows, by_row_N, known_N, given_NF, brings_N)
        if len(others) == rows:
            return ItemInput(
                rows, self._merged(table, columns, at_N, known_N, given_NF, others), None, missing, sources
            )
        rows_NB = np.take(table.rows_MB, at_N, axis=0)
        if len(others):
            merged = self._merged(table, columns, at_N, known_N, given_NF, others)
            rows_NB[others] = self._engine.rows_of(merged)
        elif columns:
            self._encoder.encode(columns, rows)  # nothing but nulls, checked as any feature is
        return ItemInput(rows, None, rows_NB, missing, sources)

    def _merged(
        self, table: ItemTable, columns: Mapping[str, Column | ListColumn], at_N: Rows,
        known_N: NDArray[np.bool_], given_NF: NDArray[np.bool_] | None, others: NDArray[np.intp],
    ) -> EncodedPart:  # fmt: skip
        """Return the features of some candidates: their own, the table's, else the defaults."""
        if given_NF is None:  # candidates without features that are not by row are unknown to the table
            return self._encoder.encode({}, len(others))
        encoded = self._encoder.encode(columns, len(at_N))
        lacks_NF = ~given_NF[others] & known_N[others, None]
        kept = table.features(at_N[others])
        codes_NC = np.where(lacks_NF[:, self._feature_of_code], kept.codes_NC, encoded.codes_NC[others])
        values_NV = np.where(lacks_NF[:, self._feature_of_value], kept.values_NV, encoded.values_NV[others])
        return EncodedPart(codes_NC, values_NV, {})

    def _missing(self, has_NF: NDArray[np.bool_]) -> dict[str, int]:
        lacking_F = len(has_NF) - has_NF.sum(axis=0)
        return {self._names[at]: int(lacking_F[at]) for at in np.flatnonzero(lacking_F).tolist()}


def _sources(
    rows: int, by_row_N: NDArray[np.bool_], known_N: NDArray[np.bool_],
    given_NF: NDArray[np.bool_] | None, brings_N: NDArray[np.bool_] | None,
) -> dict[str, int]:  # fmt: skip
    table = int(by_row_N.sum())
    if given_NF is None or brings_N is None:
        return _counted(table=table, mixed=0, request=0, default=rows - table)
    bringing = int(brings_N.sum())
    mixed = int((brings_N & known_N & ~given_NF.all(axis=1)).sum())
    return _counted(table=table, mixed=mixed, request=bringing - mixed, default=rows - table - bringing)


def _counted(**candidates: int) -> dict[str, int]:
    return {source: count for source, count in candidates.items() if count}
