"""From typed raw values to codes and finite numbers, an array at a time: hashing, vocabularies, quantiles, transforms.

Knows nothing of requests, files or where columns stand (`encode` does). Nothing here depends on the process, the
platform or the order of rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bundle.errors import NotFinite, SchemaNotFitted
from bundle.features import (
    FIRST_CODE,
    UNSEEN_CODE,
    Feature,
    HashEncoding,
    QuantileEncoding,
    Transform,
    VocabularyEncoding,
)

Codes = NDArray[np.int32]

_LOGIT_MARGIN = 1e-5
_DENSE_SPAN, _DENSE_PER_VALUE = 1 << 16, 16
"""Integer vocabularies that span no more than this, or this many integers per value, are looked up in one table."""


def hash_codes(values: NDArray[np.generic], buckets: int | NDArray[np.uint64]) -> Codes:
    """Return codes, shaped as the values, in [FIRST_CODE, FIRST_CODE + buckets) of integers or strings.

    Integers enter as themselves, strings as the CRC-32 of their UTF-8 bytes; both are then mixed by the
    finaliser of SplitMix64 (Steele et al., 2014) and reduced modulo `buckets`.
    """
    if values.dtype.kind in "iu":
        keys = values.astype(np.int64).view(np.uint64)
    else:
        keys = np.fromiter(
            (zlib.crc32(str(v).encode("utf-8", "surrogatepass")) for v in values), np.uint64, len(values)
        )
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys = keys ^ (keys >> np.uint64(31))
    modulus = np.uint64(buckets) if isinstance(buckets, int) else buckets
    return (keys % modulus).astype(np.int32) + np.int32(FIRST_CODE)


def bucket_codes(values: NDArray[np.float64], edges: NDArray[np.float64]) -> Codes:
    """Return codes [N] of numbers by quantile edges: FIRST_CODE + the number of edges <= x."""
    return np.searchsorted(edges, values, side="right").astype(np.int32) + np.int32(FIRST_CODE)


def transformed(values: NDArray[np.float64], transform: Transform) -> NDArray[np.float64]:
    """Return numbers as they are standardised: see `StandardiseEncoding`."""
    if transform == "log1p":
        return np.asarray(np.sign(values) * np.log1p(np.abs(values)))
    if transform == "logit":
        rates = np.clip(values, _LOGIT_MARGIN, 1 - _LOGIT_MARGIN)
        return np.asarray(np.log(rates) - np.log1p(-rates))
    return values


def lookup_of(feature: Feature) -> Callable[[NDArray[np.generic]], Codes]:
    """Return the function from typed values [N] to codes [N] of one feature with code columns."""
    encoding = feature.encoding
    if isinstance(encoding, HashEncoding):
        buckets = encoding.buckets
        return lambda values: hash_codes(values, buckets)
    if isinstance(encoding, VocabularyEncoding):
        return _vocabulary_lookup(feature.name, encoding)
    if isinstance(encoding, QuantileEncoding) and encoding.edges is not None:
        edges = np.asarray(encoding.edges, dtype=np.float64)
        return lambda values: bucket_codes(finite(feature.name, values), edges)
    raise SchemaNotFitted(f"feature {feature.name!r}", found=encoding.type, expected="a fitted encoding")


def _vocabulary_lookup(name: str, encoding: VocabularyEncoding) -> Callable[[NDArray[np.generic]], Codes]:
    if encoding.values is None:
        raise SchemaNotFitted(f"feature {name!r}", found="no vocabulary values", expected="a fitted schema")
    if encoding.values and isinstance(encoding.values[0], str):
        codes = {value: FIRST_CODE + index for index, value in enumerate(encoding.values)}
        get = codes.get
        return lambda values: np.fromiter((get(str(v), UNSEEN_CODE) for v in values), np.int32, len(values))
    known = np.asarray(encoding.values, dtype=np.int64)
    span = int(known.max()) - int(known.min()) + 1 if len(known) else 0
    if 0 < span <= max(_DENSE_SPAN, _DENSE_PER_VALUE * len(known)):
        return _dense_lookup(known, span)
    order = np.argsort(known, kind="stable")
    ordered = known[order]

    def lookup(values: NDArray[np.generic]) -> Codes:
        if not len(ordered):
            return np.full(len(values), UNSEEN_CODE, dtype=np.int32)
        wanted = values.astype(np.int64)
        at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
        found = np.where(ordered[at] == wanted, FIRST_CODE + order[at], UNSEEN_CODE)
        return found.astype(np.int32)

    return lookup


def _dense_lookup(known: NDArray[np.int64], span: int) -> Callable[[NDArray[np.generic]], Codes]:
    """Return a look-up by one table over all integers between the smallest and the largest known one."""
    low = known.min()
    codes = np.full(span + 1, UNSEEN_CODE, dtype=np.int32)  # the last one is that of integers outside
    codes[known - low] = np.arange(FIRST_CODE, FIRST_CODE + len(known))

    def lookup(values: NDArray[np.generic]) -> Codes:
        at = (values.astype(np.int64) - low).view(np.uint64)  # what lies below wraps round to far above
        return np.asarray(codes[np.minimum(at, np.uint64(span))])

    return lookup


def finite(name: str, values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the values as float64, all finite."""
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        row = int(np.argmin(finite))
        raise NotFinite(f"feature {name!r} row {row}", found=numbers[row], expected="a finite number")
    return numbers
