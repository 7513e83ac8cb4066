"""Encodings fitted on training rows, against slow references."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

import training.fit
from bundle.features import FeatureSchema, NumericFeature, QuantileEncoding, VocabularyEncoding
from bundle.lookups import bucket_codes
from training.fit import SchemaFitter, moments, quantile_edges, vocabulary

NUMBERS = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=200)


@settings(max_examples=80)
@given(NUMBERS, st.integers(2, 40))
def test_edges_rise_strictly_and_lie_between_values(numbers, buckets):
    values = np.array(numbers)
    edges = quantile_edges(values, buckets)
    assert len(edges) < buckets
    assert (np.diff(edges) > 0).all()
    assert ((edges > values.min()) & (edges <= values.max())).all()


def test_distinct_values_fill_the_buckets_evenly():
    values = np.random.default_rng(0).normal(size=10_000)
    counts = np.bincount(bucket_codes(values, quantile_edges(values, 16)))
    assert (np.abs(counts[2:] - 625) <= 1).all()


def test_a_heavy_value_keeps_a_bucket_of_its_own():
    values = np.concatenate([np.zeros(600), np.arange(1, 401)])
    codes = bucket_codes(values, quantile_edges(values, 10))
    assert set(codes[:600]) & set(codes[600:]) == set()
    assert len(set(codes[600:])) >= 4


def test_a_constant_has_no_edges():
    assert len(quantile_edges(np.full(9, 3.0), 8)) == 0
    assert len(quantile_edges(np.empty(0), 8)) == 0


def test_moments_of_nothing_and_of_a_constant_are_usable():
    assert moments(np.empty(0), "none") == (0.0, 1.0)
    assert moments(np.full(5, 2.0), "none") == (2.0, 1.0)


def test_a_vocabulary_is_ordered_by_count_then_value():
    counts = Counter({5: 2, 3: 2, 9: 7, 1: 1})
    assert vocabulary(counts, VocabularyEncoding()) == (9, 3, 5, 1)
    assert vocabulary(counts, VocabularyEncoding(min_count=2)) == (9, 3, 5)
    assert vocabulary(counts, VocabularyEncoding(max_size=2)) == (9, 3)


def test_the_sample_is_bounded_and_uniform(monkeypatch):
    monkeypatch.setattr(training.fit, "SAMPLE_ROWS", 1000)
    feature = NumericFeature(name="x", side="item", encoding=QuantileEncoding(buckets=4))
    fitter = SchemaFitter(FeatureSchema(features=(feature,)))
    for start in range(0, 100_000, 700):  # rising values: a sample of the first or last rows would be far off
        fitter.add(pl.DataFrame({"x": np.arange(start, start + 700, dtype=np.float64)}))
        assert len(fitter._sample) <= 2700
    edges = fitter.fitted().features[0].encoding.edges
    assert np.allclose(edges, [25_000, 50_000, 75_000], atol=5_000)
