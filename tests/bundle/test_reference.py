from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.reference import BINS, EDGES, bin_counts, shares_of

probability = st.one_of(st.floats(0, 1), st.sampled_from(EDGES))


@given(st.lists(st.tuples(probability, probability), max_size=20))
def test_counts_are_those_of_a_loop_over_values_and_edges(rows):
    wanted = [[0] * len(BINS) for _ in range(2)]
    for row in rows:
        for column, value in enumerate(row):
            wanted[column][sum(value > edge for edge in EDGES)] += 1
    assert bin_counts(np.array(rows, dtype=np.float64).reshape(-1, 2)).tolist() == wanted


def test_shares_add_up_to_one_and_of_nothing_are_nothing():
    assert sum(shares_of(np.random.default_rng(1).random(999))) == pytest.approx(1, abs=1e-5)
    assert shares_of(np.empty(0)) == (0.0,) * len(BINS)


def test_bins_are_named_by_their_upper_edge():
    assert BINS[0] == "0.001" and BINS[-1] == "1" and len(BINS) == len(EDGES) + 1
