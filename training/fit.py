"""Vocabularies, quantile edges and moments, measured on training rows only; fills a feature schema.

Counts of values are exact; quantiles and moments come from a uniform sample of at most `SAMPLE_ROWS` rows,
so memory is bounded by the vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bundle.features import (
    CategoricalFeature,
    CategoricalListFeature,
    Feature,
    FeatureSchema,
    NumericFeature,
    QuantileEncoding,
    StandardiseEncoding,
    Transform,
    VocabularyEncoding,
)
from bundle.lookups import transformed

SAMPLE_ROWS = 262_144
_COUNTS_AT_ONCE = 1_000_000
_KEY = "__key"


class SchemaFitter:
    """Collects what a schema's encodings need from training rows, piece by piece."""

    def __init__(self, schema: FeatureSchema, seed: int = 0) -> None:
        """Start with no rows; `seed` decides which rows enter the sample."""
        self.schema = schema
        self._counts: dict[str, list[pl.DataFrame]] = {
            f.name: [] for f in schema.features if isinstance(f.encoding, VocabularyEncoding)
        }
        self._numeric = [f.name for f in schema.features if isinstance(f, NumericFeature)]
        self._sample = pl.DataFrame()
        self._random = np.random.Generator(np.random.Philox(seed))

    def add(self, frame: pl.DataFrame) -> None:
        """Take in training rows, cleaned by `training.columns.clean`."""
        for feature in self.schema.features:
            if feature.name in self._counts:
                series = frame.get_column(feature.name)
                if isinstance(feature, CategoricalListFeature):
                    series = series.explode()
                counts = self._counts[feature.name]
                counts.append(series.drop_nulls().rename("value").value_counts())
                if sum(map(len, counts[1:])) > max(_COUNTS_AT_ONCE, len(counts[0])):
                    counts[:] = [_added(counts)]
        if self._numeric:
            keys = pl.Series(_KEY, self._random.random(len(frame)))
            self._sample = pl.concat([self._sample, frame.select(self._numeric).with_columns(keys)])
            if len(self._sample) > 2 * SAMPLE_ROWS:
                self._shrink()

    def fitted(self) -> FeatureSchema:
        """Return the schema with everything that training stores in it."""
        self._shrink()
        return FeatureSchema(features=tuple(self._fit(feature) for feature in self.schema.features))

    def _shrink(self) -> None:
        if len(self._sample) > SAMPLE_ROWS:
            self._sample = self._sample.bottom_k(SAMPLE_ROWS, by=_KEY)

    def _fit(self, feature: Feature) -> Feature:
        encoding = feature.encoding
        if isinstance(feature, CategoricalFeature | CategoricalListFeature):
            if isinstance(encoding, VocabularyEncoding) and encoding.values is None:
                counts = self._counts[feature.name]
                values = vocabulary(dict(_added(counts).iter_rows()) if counts else {}, encoding)
                return feature.model_copy(update={"encoding": encoding.model_copy(update={"values": values})})
            return feature
        numbers = self._sample.get_column(feature.name).drop_nulls().to_numpy()
        if isinstance(encoding, QuantileEncoding) and encoding.edges is None:
            edges = tuple(quantile_edges(numbers, encoding.buckets).tolist())
            return feature.model_copy(update={"encoding": encoding.model_copy(update={"edges": edges})})
        if isinstance(encoding, StandardiseEncoding) and None in (encoding.mean, encoding.deviation):
            mean, deviation = moments(numbers, encoding.transform)
            update = {"mean": mean, "deviation": deviation}
            return feature.model_copy(update={"encoding": encoding.model_copy(update=update)})
        return feature


def _added(counts: list[pl.DataFrame]) -> pl.DataFrame:
    """Return each value once, with the sum of its counts."""
    return pl.concat(counts).group_by("value").agg(pl.col("count").sum())


def vocabulary(counts: Mapping[int, int] | Mapping[str, int], encoding: VocabularyEncoding) -> tuple[int | str, ...]:
    """Return the values to keep, the commonest first, equals in value order."""
    kept = [(value, count) for value, count in counts.items() if count >= encoding.min_count]
    kept.sort(key=lambda pair: pair[0])
    kept.sort(key=lambda pair: pair[1], reverse=True)
    return tuple(value for value, _ in kept[: encoding.max_size])


def quantile_edges(numbers: NDArray[np.float64], buckets: int) -> NDArray[np.float64]:
    """Return strictly rising edges, at most `buckets - 1`, between values whose mid-ranks fall in other buckets.

    An edge lies half-way between two values seen in training, so a value computed a little differently when
    serving still lands in its bucket; a value shared by many rows keeps a bucket of its own.
    """
    distinct, counts = np.unique(numbers, return_counts=True)
    if len(distinct) < 2:
        return np.empty(0)
    mid_rank = (np.cumsum(counts) - counts / 2) / counts.sum()
    bucket = np.floor(mid_rank * buckets)
    at = np.flatnonzero(np.diff(bucket))
    edges = distinct[at] + (distinct[at + 1] - distinct[at]) / 2
    return np.unique(edges)


def moments(numbers: NDArray[np.float64], transform: Transform) -> tuple[float, float]:
    """Return mean and deviation of the transformed numbers; 0 and 1 without values, deviation 1 if constant."""
    if not len(numbers):
        return 0.0, 1.0
    numbers = transformed(numbers, transform)
    deviation = float(np.std(numbers))
    return float(np.mean(numbers)), deviation if deviation > 1e-12 else 1.0
