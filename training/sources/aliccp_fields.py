"""Which fields of Ali-CCP a dataset schema wants, from which file, and their ids as arrays.

A feature `f_<field>` of side user is read from the common features, one of side item or context from the skeleton.
Legend: L lines, K features of all lines, S slots of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bundle.features import CategoricalListFeature, Feature
from training.errors import DatasetSchemaInvalid
from training.sources.aliccp_lines import Lines, packed

PREFIX = "f_"
ABSENT = -1
"""Stands for no id; ids are 0 or more."""
_FIELD_BYTES = 8

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Field:
    """A wanted field: its column's name, and how many ids of a line are kept (0: one, in a column that is no list)."""

    column: str
    slots: int

    @property
    def word(self) -> np.uint64:
        """The field's name as in `Lines.field_K`."""
        return np.uint64(packed(self.column.removeprefix(PREFIX)))

    @property
    def width(self) -> int:
        """Ids kept per line."""
        return max(1, self.slots)

    def ids(self, lines: Lines, count: int) -> Ints:
        """Return the first ids of the field in each of `count` lines [L, width], ABSENT where there are fewer."""
        at_K = np.flatnonzero(lines.field_K == self.word)
        line_K = lines.line_K[at_K]
        slot_K = np.arange(len(at_K)) - np.searchsorted(line_K, line_K)
        ids = np.full((count, self.width), ABSENT, np.int64)
        kept = slot_K < self.width
        ids[line_K[kept], slot_K[kept]] = lines.id_K[at_K[kept]]
        return ids

    def column_of(self, ids: Ints) -> pa.Array[Any]:
        """Return ids [L, width] as a column: integers, or lists of them."""
        if not self.slots:
            return pa.array(ids[:, 0], mask=ids[:, 0] == ABSENT)
        given = ids != ABSENT
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(given.sum(axis=1))])
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(ids[given]))


def wanted_fields(features: Sequence[Feature], schema_path: Path) -> tuple[Field, ...]:
    """Return the fields that features name.

    Raises:
        DatasetSchemaInvalid: a feature whose name is no field's, or that is a number (ids are categories).
    """
    fields = []
    for feature in features:
        place = f"{schema_path}: feature {feature.name!r}"
        name = feature.name.removeprefix(PREFIX)
        if not feature.name.startswith(PREFIX) or not 1 <= len(name.encode()) <= _FIELD_BYTES:
            expected = f"{PREFIX}<field>, a field's name being of at most {_FIELD_BYTES} bytes"
            raise DatasetSchemaInvalid(place, found="another name", expected=expected)
        if feature.kind == "numeric":
            raise DatasetSchemaInvalid(f"{place}: kind", found="numeric", expected="categorical or categorical_list")
        fields.append(Field(feature.name, feature.max_length if isinstance(feature, CategoricalListFeature) else 0))
    return tuple(fields)
