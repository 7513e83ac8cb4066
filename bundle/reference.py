"""The bins in which predicted probabilities are counted: by the export as a reference, by the service as it runs.

Fixed edges, denser where probabilities of rare tasks lie, so that versions can be held against each other and against
their reference (population stability index).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
"""A probability p falls into the first bin whose upper edge is at least p, or into the last."""
BINS = tuple(f"{edge:g}" for edge in (*EDGES, 1))
"""Each bin's name, its upper edge."""


def bin_counts(values_NC: NDArray[np.floating], edges: tuple[float, ...] = EDGES) -> NDArray[np.int64]:
    """Return how many of each column's values fall into each bin, int64 [C, bins]."""
    bins = len(edges) + 1
    columns = values_NC.shape[1]
    where = np.searchsorted(edges, values_NC) + bins * np.arange(columns)
    return np.bincount(where.ravel(), minlength=columns * bins).reshape(columns, bins)


def shares_of(values_N: NDArray[np.floating]) -> tuple[float, ...]:
    """Return the share of values in each bin, rounded to six digits."""
    counts = bin_counts(values_N.reshape(-1, 1))[0]
    return tuple(round(float(share), 6) for share in counts / max(counts.sum(), 1))
