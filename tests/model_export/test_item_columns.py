from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.features import FeatureSchema
from model_export.item_columns import WEIGHT_STEPS, item_columns
from training.models.inputs import InputLayer

SCHEMA = FeatureSchema.model_validate(
    {
        "features": [
            {"name": "author", "side": "item", "kind": "categorical", "value_type": "integer", "embedding_size": 3,
             "encoding": {"type": "hash", "buckets": 5}},
            {"name": "rate", "side": "item", "kind": "numeric",
             "encoding": {"type": "standardise", "mean": 0.0, "deviation": 1.0}},
        ]
    }
)  # fmt: skip


def columns_of(reach: float):
    torch.manual_seed(0)
    inputs = InputLayer(SCHEMA, embedding_std=0.1)
    values = torch.tensor([[reach, 0.0], [-reach, 0.0]])
    return inputs, item_columns(inputs, values)


@given(value=st.floats(-1, 1, width=32), reach=st.floats(0.5, 8))
@settings(max_examples=200)
def test_the_columns_of_a_value_add_up_to_it_in_finer_steps(value, reach):
    _, columns = columns_of(reach)
    mine = columns.source_K == 3
    steps = columns.steps(torch.tensor([[0.0, 0.0, 0.0, value * reach, 0.0]])).numpy()[0]
    finest = reach / (WEIGHT_STEPS - 1) / mine.sum()
    assert mine.sum() > 1
    assert np.ptp(steps[mine]) <= 1
    assert abs((steps * columns.worth_K)[mine].sum() - value * reach) <= 0.501 * finest


def test_every_embedding_column_uses_all_its_steps():
    inputs, columns = columns_of(1.0)
    embedded = inputs.tables["3"].detach()
    x = torch.cat([embedded, torch.zeros(len(embedded), 2)], dim=1)
    steps = columns.steps(x).numpy()
    assert (np.abs(steps[:, :3]).max(axis=0) == WEIGHT_STEPS).all()
    np.testing.assert_allclose((steps * columns.worth_K)[:, :3], embedded, atol=columns.worth_K[:3].max() / 2 + 1e-7)


def test_a_mark_of_missing_values_that_no_row_had_keeps_its_reach_of_one():
    _, columns = columns_of(5.0)
    marks = columns.source_K == 4
    assert marks.sum() == 1
    assert columns.steps(torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])).numpy()[0][marks] == WEIGHT_STEPS - 1
    assert columns.worth_K[marks] == np.float32(1 / (WEIGHT_STEPS - 1))
