"""One row of raw values → model input, without an array per feature: what a request's user and context take.

The same codes and numbers as `encode.PartEncoder` gives, to the bit. What it does not take (a wrong type, an unknown
name, a number that is not finite) it leaves to that, which says what is wrong.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bundle import loops
from bundle.features import (
    FIRST_CODE,
    MISSING_CODE,
    UNSEEN_CODE,
    CategoricalListFeature,
    Feature,
    HashEncoding,
    NumericFeature,
    QuantileEncoding,
    StandardiseEncoding,
    VocabularyEncoding,
)
from bundle.lookups import Codes, transformed

if TYPE_CHECKING:
    from bundle.encode import PartEncoder

Encode = Callable[[object], int | None]
"""A value → its code, None where the value is not of the feature's type."""
Row = tuple[Codes, NDArray[np.float32], dict[str, int]]
"""Codes [1, C], values [1, V], and 1 for each feature without a value."""
_MOST_KNOWN = 1 << 16
"""Larger vocabularies of integers are looked up in the part's own table: a dict of them would be large."""
_64_BITS = (1 << 64) - 1


class RowEncoder:
    """Encodes single rows of one part of a fitted schema."""

    def __init__(self, part: PartEncoder) -> None:
        """Take the features of a part with its look-ups and defaults."""
        self._names = part.names
        self._width = part.code_columns
        self._hash_plan = part.hash_plan
        entries = [_Entry(feature, part) for feature in part.code_features]
        hashed = {name for name, *_ in part.hash_plan}
        self._codes = _Codes(entries)
        self._other_codes = _Codes([entry for entry in entries if entry.name not in hashed])
        self._values = [_Standardised(feature) for feature in part.value_features]

    def encode(self, values: Mapping[str, object]) -> Row | None:
        """Return the model input of one row, None and absent names being missing; None where a value is not taken."""
        if not values.keys() <= self._names:
            return None
        codes_1C = np.empty((1, self._width), dtype=np.int32)
        if loops.compiled is None:
            missing = self._codes.write({}, values, codes_1C)
        else:
            missing = loops.compiled.hash_values(values, self._hash_plan, codes_1C, FIRST_CODE)
            if missing is not None:
                missing = self._other_codes.write(missing, values, codes_1C)
        if missing is None:
            return None
        numbers: list[float] = []
        for feature in self._values:
            value = values.get(feature.name)
            if value is None:
                missing[feature.name] = 1
                numbers += feature.when_missing
            else:
                number = feature.scaled(value)
                if number is None:
                    return None
                numbers += (number, 0.0)
        return codes_1C, np.array([numbers], dtype=np.float32), missing


class _Entry:
    """A feature with code columns."""

    def __init__(self, feature: Feature, part: PartEncoder) -> None:
        self.name, self.columns = feature.name, part.columns_of(feature)
        self.default, self.code_of = part.default_codes[feature.name], _code_of(feature, part)
        self.is_list = isinstance(feature, CategoricalListFeature)


class _Codes:
    """Some of a part's features with code columns, encoded in Python."""

    def __init__(self, entries: Sequence[_Entry]) -> None:
        self._entries = [(e.name, e.default, len(e.columns), e.is_list, e.code_of) for e in entries]
        self._columns = np.array([at for e in entries for at in e.columns], dtype=np.intp)

    def write(self, missing: dict[str, int], values: Mapping[str, object], codes_1C: Codes) -> dict[str, int] | None:
        """Write their codes of one row; return what was missing and what is; None where a value is not taken."""
        if not self._entries:
            return missing
        codes: list[int] = []
        for name, default, columns, is_list, code_of in self._entries:
            value = values.get(name)
            if value is None:
                codes += [default] * columns
                missing[name] = 1
            elif is_list:
                if type(value) is not list:
                    return None
                found = [code_of(item) for item in value]
                if None in found:
                    return None
                codes += found[:columns]  # type: ignore[arg-type]  # none of them is None
                codes += [MISSING_CODE] * (columns - len(found))
                if not found:
                    missing[name] = 1
            else:
                code = code_of(value)
                if code is None:
                    return None
                codes.append(code)
        codes_1C[0, self._columns] = codes
        return missing


def _code_of(feature: Feature, part: PartEncoder) -> Encode:
    encoding = feature.encoding
    if isinstance(feature, NumericFeature):
        assert isinstance(encoding, QuantileEncoding) and encoding.edges is not None
        edges = [float(edge) for edge in encoding.edges]
        return lambda value: None if (x := _number(value)) is None else bisect_right(edges, x) + FIRST_CODE
    integers = feature.value_type == "integer"
    if isinstance(encoding, HashEncoding):
        buckets = encoding.buckets
        return (lambda value: _hashed_integer(value, buckets)) if integers else lambda value: _hashed(value, buckets)
    assert isinstance(encoding, VocabularyEncoding)
    return _known(part.lookups[feature.name], encoding.values or (), integers)


def _known(
    lookup: Callable[[NDArray[np.generic]], Codes], values: tuple[int, ...] | tuple[str, ...], integers: bool
) -> Encode:
    def looked_up(value: object) -> int:
        return int(lookup(np.array([value], dtype=np.int64 if integers else object))[0])

    if len(values) > _MOST_KNOWN:
        return lambda value: looked_up(value) if (_is_integer(value) if integers else type(value) is str) else None
    known: dict[object, int] = {value: looked_up(value) for value in values}
    if integers:
        return lambda value: known.get(value, UNSEEN_CODE) if _is_integer(value) else None
    return lambda value: known.get(value, UNSEEN_CODE) if type(value) is str else None


def _is_integer(value: object) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _number(value: object) -> float | None:
    """Return a finite number as a float."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if type(value) is int and -(1 << 1000) < value < 1 << 1000:
        return float(value)
    return None


def _hashed_integer(value: object, buckets: int) -> int | None:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        return None
    return _mixed(value & _64_BITS, buckets)


def _hashed(value: object, buckets: int) -> int | None:
    if type(value) is not str:
        return None
    return _mixed(zlib.crc32(value.encode("utf-8", "surrogatepass")), buckets)


def _mixed(key: int, buckets: int) -> int:
    """Return `lookups.hash_codes` of one key."""
    key = (key + 0x9E3779B97F4A7C15) & _64_BITS
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return (key ^ (key >> 31)) % buckets + FIRST_CODE


class _Standardised:
    """One standardised feature."""

    def __init__(self, feature: NumericFeature) -> None:
        encoding = feature.encoding
        assert isinstance(encoding, StandardiseEncoding)
        assert encoding.mean is not None and encoding.deviation is not None
        self.name = feature.name
        self._mean, self._deviation, self._clip = encoding.mean, encoding.deviation, encoding.clip
        self._transform = encoding.transform
        self.when_missing = (0.0, 1.0) if feature.default is None else (self._scale(feature.default), 0.0)

    def scaled(self, value: object) -> float | None:
        """Return what a value becomes."""
        number = _number(value)
        return None if number is None else self._scale(number)

    def _scale(self, number: float) -> float:
        if self._transform != "none":
            number = float(transformed(np.array([number]), self._transform)[0])
        return max(-self._clip, min(self._clip, (number - self._mean) / self._deviation))
