"""Typed columns of raw values, and how lists of Python values become such columns.

Knows nothing of encodings. Missing values are marked by a mask, never by a magic value.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from bundle.errors import WrongType


class Column(Struct, frozen=True):
    """One value per row, optionally dictionary-coded.

    Attributes:
        values: int64, float64 or strings [N]; with `indices`, the distinct values [K].
        missing: bool [N], true where there is no value; None when every row has one.
        indices: integers [N] into `values`; None when `values` are the rows themselves.
    """

    values: NDArray[np.generic]
    missing: NDArray[np.bool_] | None = None
    indices: NDArray[np.integer] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.values) if self.indices is None else len(self.indices)

    def plain(self) -> NDArray[np.generic]:
        """Return the row values [N], dictionary resolved."""
        return self.values if self.indices is None else self.values[self.indices]


class ListColumn(Struct, frozen=True):
    """A list of values per row: row i holds items[offsets[i] : offsets[i + 1]].

    Attributes:
        items: the values of all rows, one after another; none of them missing.
        offsets: int64 [N + 1], rising from 0.
    """

    items: Column
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1


_PLACEHOLDER = {"integer": 0, "string": "", "number": 0.0}
_PACKED = {"integer": ("q", np.int64), "number": ("d", np.float64)}
_ALLOWED = {
    "integer": frozenset({int}),
    "string": frozenset({str}),
    "number": frozenset({int, float}),
}


def values_from_python(name: str, values: Sequence[object], value_type: str) -> Column:
    """Return a typed column from Python values, where None is missing.

    Args:
        name: the feature, for messages.
        values: one per row.
        value_type: "integer", "string" or "number".

    Raises:
        WrongType: a value of another type (bool is not an integer), or an integer beyond 64 bits.
    """
    allowed = _ALLOWED[value_type]
    found = set(map(type, values))
    missing = None
    if type(None) in found:
        missing = np.fromiter((v is None for v in values), np.bool_, len(values))
        placeholder = _PLACEHOLDER[value_type]
        values = [placeholder if v is None else v for v in values]
        found.discard(type(None))
    if not found <= allowed:
        row = next(i for i, v in enumerate(values) if type(v) not in allowed)
        raise WrongType(f"feature {name!r} row {row}", found=_shown(values[row]), expected=f"{value_type} or null")
    try:
        return Column(np.array(values, dtype=object) if value_type == "string" else packed(values, value_type), missing)
    except (OverflowError, struct.error):
        raise WrongType(f"feature {name!r}", found="an integer beyond 64 bits", expected="a 64-bit integer") from None


def packed(values: Sequence[object], value_type: str) -> NDArray[np.generic]:
    """Return integers or numbers as an array; by struct, which takes a third of numpy's time.

    Raises:
        struct.error, OverflowError: a value is no number, or beyond 64 bits.
    """
    code, dtype = _PACKED[value_type]
    return np.frombuffer(struct.pack(f"{len(values)}{code}", *values), dtype)


def lists_from_python(name: str, values: Sequence[object], value_type: str) -> ListColumn:
    """Return a list column from Python lists, where None or an empty list is missing.

    Raises:
        WrongType: a row that is not a list, or an item that is null or of another type.
    """
    flat: list[object] = []
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    for row, value in enumerate(values):
        if isinstance(value, list):
            flat.extend(value)
        elif value is not None:
            raise WrongType(
                f"feature {name!r} row {row}", found=_shown(value), expected=f"a list of {value_type}s or null"
            )
        offsets[row + 1] = len(flat)
    items = values_from_python(name, flat, value_type)
    if items.missing is not None:
        at = int(np.argmax(items.missing))
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise WrongType(f"feature {name!r} row {row}", found="null in a list", expected=f"{value_type}s")
    return ListColumn(items, offsets)


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"
