"""Raw values → codes: what holds for every schema and every value."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.columns import Column, ListColumn
from bundle.encode import PartEncoder, SchemaEncoder
from bundle.errors import NotFinite, SchemaNotFitted, UnknownFeature, WrongLength, WrongType
from bundle.features import (
    FIRST_CODE,
    MISSING_CODE,
    UNSEEN_CODE,
    CategoricalFeature,
    CategoricalListFeature,
    FeatureSchema,
    HashEncoding,
    NumericFeature,
    QuantileEncoding,
    StandardiseEncoding,
    VocabularyEncoding,
)
from bundle.lookups import hash_codes

MASK = (1 << 64) - 1


def category(encoding, value_type="integer", **more):
    return CategoricalFeature(name="f", side="item", value_type=value_type, encoding=encoding, **more)


def number(encoding, **more):
    return NumericFeature(name="f", side="item", encoding=encoding, **more)


def codes_of(feature, values):
    encoder = PartEncoder([feature])
    return encoder.encode(encoder.columns_from_python({"f": values}), len(values)).codes_NC.tolist()


def values_of(feature, values):
    encoder = PartEncoder([feature])
    return encoder.encode(encoder.columns_from_python({"f": values}), len(values)).values_NV


def slow_hash(value, buckets):
    key = value & MASK if isinstance(value, int) else zlib.crc32(value.encode())
    key = (key + 0x9E3779B97F4A7C15) & MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & MASK
    return (key ^ (key >> 31)) % buckets + FIRST_CODE


@settings(max_examples=60)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(2, 10**8))
def test_integers_hash_as_the_slow_reference_does(values, buckets):
    assert hash_codes(np.array(values, dtype=np.int64), buckets).tolist() == [slow_hash(v, buckets) for v in values]


WHOLE = [np.int8, np.uint16, np.int32, np.int64, np.uint64, ">i8"]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(2, 10**8), st.sampled_from(WHOLE)), min_size=1, max_size=4), st.data())
def test_many_features_are_hashed_at_once_as_one_by_one(hash_loops, asked, data):
    rows = data.draw(st.integers(0, 5))
    features = [
        category(HashEncoding(buckets=buckets)).model_copy(update={"name": f"f{at}"})
        for at, (buckets, _) in enumerate(asked)
    ]
    columns, wanted_CN = {}, []
    for feature, (buckets, dtype) in zip(features, asked, strict=True):
        limits = np.iinfo(dtype)
        drawn = data.draw(st.lists(st.integers(int(limits.min), int(limits.max)), min_size=rows, max_size=rows))
        values, missing = np.array(drawn, dtype=dtype), np.arange(rows) % 3 == 1
        columns[feature.name] = Column(values, missing if data.draw(st.booleans()) else None)
        column = columns[feature.name]
        wanted_CN.append(
            [
                MISSING_CODE if column.missing is not None and gone else slow_hash(value, buckets)
                for value, gone in zip(drawn, missing, strict=True)
            ]
        )
    encoder = PartEncoder(features)
    for loops in (hash_loops, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bundle.loops.compiled", loops)
            assert encoder.encode(columns, rows).codes_NC.T.tolist() == (wanted_CN if rows else [[]] * len(features))


@pytest.mark.parametrize(("column", "buckets"), [(1, 5), (-1, 5), (0, 0)])
def test_hashing_refuses_a_plan_that_does_not_fit(hash_loops, column, buckets):
    codes_1C, plan = np.zeros((1, 1), dtype=np.int32), [("a", buckets, column, 0)]
    for hashing, values in ((hash_loops.hash_columns, Column(np.arange(1))), (hash_loops.hash_values, 1)):
        with pytest.raises(ValueError, match="expected one of 1 columns and a bucket"):
            hashing({"a": values}, plan, codes_1C, FIRST_CODE)
    assert not codes_1C.any()


@pytest.mark.parametrize(
    "column",
    [
        Column(np.arange(3)), Column(np.arange(2, dtype=np.int32)), Column(np.arange(4)[::2]),
        Column(np.arange(5), None, np.array([4, 0])), Column(np.array(["a", "b"])),
        Column(np.arange(2), np.zeros(3, dtype=bool)), ListColumn(Column(np.arange(2)), np.arange(3)),
    ],
)  # fmt: skip
def test_what_is_not_common_is_left_to_others(hash_loops, column):
    codes_NC, plan = np.full((2, 2), -7, dtype=np.int32), [("a", 5, 0, 0), ("b", 5, 1, 9)]
    assert hash_loops.hash_columns({"a": column}, plan, codes_NC, FIRST_CODE) == ({"b": 2}, ["a"])
    assert codes_NC.tolist() == [[-7, 9], [-7, 9]]


def test_a_column_of_too_few_rows_is_refused_with_and_without_compiled_loops(hash_loops):
    encoder = PartEncoder([category(HashEncoding(buckets=5)).model_copy(update={"name": name}) for name in "ab"])
    for loops in (hash_loops, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bundle.loops.compiled", loops)
            with pytest.raises(WrongLength, match="'b'"):
                encoder.encode({"a": Column(np.arange(2)), "b": Column(np.arange(3))}, 2)


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1), st.integers(2, 10**8))
def test_strings_hash_as_the_slow_reference_does(values, buckets):
    assert codes_of(category(HashEncoding(buckets=buckets), "string"), values) == [
        [slow_hash(v, buckets)] for v in values
    ]


def test_hash_codes_never_change():
    assert hash_codes(np.array([0, 1, -1, 712]), 1000).tolist() == [slow_hash(v, 1000) for v in (0, 1, -1, 712)]
    assert hash_codes(np.array([0, 1, -1, 712]), 1000).tolist() == [537, 467, 938, 482]


def test_vocabulary_codes_follow_its_order_and_unseen_has_its_own():
    feature = category(VocabularyEncoding(values=(30, 10, 20)))
    assert codes_of(feature, [10, 20, 30, 40, None]) == [[3], [4], [2], [UNSEEN_CODE], [MISSING_CODE]]


LARGEST = (1 << 63) - 1
near = st.integers(-50, 50)
anywhere = near | st.integers(-LARGEST - 1, LARGEST) | st.sampled_from([-LARGEST - 1, LARGEST, 1 << 16, -(1 << 16)])


@settings(max_examples=150)
@given(st.lists(near, min_size=1, unique=True) | st.lists(anywhere, min_size=1, unique=True), st.lists(anywhere))
def test_integers_near_and_far_get_the_codes_of_a_slow_look_up(known, others):
    codes = {value: FIRST_CODE + index for index, value in enumerate(known)}
    values = known + others
    found = codes_of(category(VocabularyEncoding(values=tuple(known))), values)
    assert found == [[codes.get(value, UNSEEN_CODE)] for value in values]


def test_string_vocabulary_codes_follow_its_order_and_unseen_has_its_own():
    feature = category(VocabularyEncoding(values=("b", "a")), "string")
    assert codes_of(feature, ["a", "b", "", None]) == [[3], [2], [UNSEEN_CODE], [MISSING_CODE]]


def test_an_empty_vocabulary_makes_everything_unseen():
    assert codes_of(category(VocabularyEncoding(values=())), [1, None]) == [[UNSEEN_CODE], [MISSING_CODE]]


def test_a_default_stands_in_for_what_is_missing():
    assert codes_of(category(VocabularyEncoding(values=(5, 6)), default=6), [None, 5]) == [[3], [2]]
    assert codes_of(number(QuantileEncoding(edges=(1.0, 2.0)), default=1.5), [None]) == [[FIRST_CODE + 1]]


def test_an_absent_column_is_missing_in_every_row_and_counted():
    encoder = PartEncoder([category(HashEncoding(buckets=4))])
    encoded = encoder.encode({}, 3)
    assert encoded.codes_NC.tolist() == [[MISSING_CODE]] * 3
    assert encoded.missing == {"f": 3}


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8, unique=True),
    st.lists(st.floats(-1e7, 1e7), min_size=1, max_size=20),
)
def test_a_bucket_counts_the_edges_at_or_below_the_value(edges, values):
    feature = number(QuantileEncoding(edges=tuple(sorted(edges))))
    assert codes_of(feature, values) == [[FIRST_CODE + sum(edge <= v for edge in edges)] for v in values]


def test_standardised_values_are_scaled_clipped_and_flagged_when_missing():
    feature = number(StandardiseEncoding(mean=10.0, deviation=2.0, clip=3.0))
    assert values_of(feature, [12, 9.0, 100, None]).tolist() == [[1, 0], [-0.5, 0], [3, 0], [0, 1]]


def test_log1p_keeps_the_sign():
    feature = number(StandardiseEncoding(transform="log1p", mean=0.0, deviation=1.0))
    assert np.allclose(values_of(feature, [np.e - 1, 1 - np.e])[:, 0], [1, -1])


def test_logit_gives_log_odds_and_is_finite_at_0_and_1():
    feature = number(StandardiseEncoding(transform="logit", mean=0.0, deviation=1.0, clip=20.0))
    assert np.allclose(values_of(feature, [0.5, 0.75])[:, 0], [0, np.log(3)], atol=1e-6)
    assert np.allclose(values_of(feature, [0, 1])[:, 0], [-np.log(99_999), np.log(99_999)])


def test_a_list_is_cut_at_its_length_and_filled_with_missing():
    feature = CategoricalListFeature(
        name="f", side="item", value_type="integer", max_length=2, encoding=VocabularyEncoding(values=(7, 8, 9))
    )
    encoder = PartEncoder([feature])
    encoded = encoder.encode(encoder.columns_from_python({"f": [[9, 7, 8], [8], [], None]}), 4)
    assert encoded.codes_NC.tolist() == [[4, 2], [3, 0], [0, 0], [0, 0]]
    assert encoded.missing == {"f": 2}


def test_dictionary_columns_encode_as_plain_ones():
    values = np.array(["a", "b", "zz"], dtype=object)
    indices = np.array([2, 0, 0, 1])
    encoder = PartEncoder([category(VocabularyEncoding(values=("b", "a")), "string")])
    by_index = encoder.encode({"f": Column(values, indices=indices)}, 4)
    plain = encoder.encode({"f": Column(values[indices])}, 4)
    assert np.array_equal(by_index.codes_NC, plain.codes_NC)


def test_python_lists_and_arrays_give_the_same_codes():
    features = [
        category(HashEncoding(buckets=50)).model_copy(update={"name": "a"}),
        number(QuantileEncoding(edges=(0.5,))).model_copy(update={"name": "b"}),
        number(StandardiseEncoding(mean=1.0, deviation=2.0)).model_copy(update={"name": "c"}),
        CategoricalListFeature(
            name="d", side="item", value_type="integer", max_length=2, encoding=HashEncoding(buckets=9)
        ),
    ]
    encoder = PartEncoder(features)
    python = encoder.columns_from_python({"a": [1, None], "b": [0.25, 3], "c": [None, 4.5], "d": [[1, 2], None]})
    missing = np.array([False, True])
    arrays = {
        "a": Column(np.array([1, 0]), missing),
        "b": Column(np.array([0.25, 3.0])),
        "c": Column(np.array([0.0, 4.5]), ~missing),
        "d": ListColumn(Column(np.array([1, 2])), np.array([0, 2, 2])),
    }
    one, other = encoder.encode(python, 2), encoder.encode(arrays, 2)
    assert np.array_equal(one.codes_NC, other.codes_NC)
    assert np.array_equal(one.values_NV, other.values_NV)
    assert one.missing == other.missing == {"a": 1, "c": 1, "d": 1}


@settings(max_examples=40)
@given(st.lists(st.one_of(st.none(), st.integers(-50, 50)), min_size=1, max_size=20), st.randoms())
def test_codes_do_not_depend_on_the_order_of_rows(values, random):
    feature = category(VocabularyEncoding(values=tuple(range(20))))
    order = list(range(len(values)))
    random.shuffle(order)
    codes = codes_of(feature, values)
    assert codes_of(feature, [values[i] for i in order]) == [codes[i] for i in order]


def test_request_part_holds_user_then_context_features():
    schema = FeatureSchema(
        features=(
            category(HashEncoding(buckets=2)),
            CategoricalFeature(name="c", side="context", value_type="string", encoding=HashEncoding(buckets=2)),
            CategoricalFeature(name="u", side="user", value_type="string", encoding=HashEncoding(buckets=2)),
        )
    )
    encoder = SchemaEncoder(schema)
    assert [f.name for f in encoder.request.code_features] == ["u", "c"]
    assert [f.name for f in encoder.item.code_features] == ["f"]


@pytest.mark.parametrize(
    ("feature", "values", "error"),
    [
        (category(HashEncoding(buckets=4)), ["a"], WrongType),
        (category(HashEncoding(buckets=4)), [True], WrongType),
        (category(HashEncoding(buckets=4)), [1.0], WrongType),
        (category(HashEncoding(buckets=4)), [2**63], WrongType),
        (category(HashEncoding(buckets=4), "string"), [1], WrongType),
        (number(QuantileEncoding(edges=())), ["1"], WrongType),
        (number(QuantileEncoding(edges=())), [True], WrongType),
        (number(QuantileEncoding(edges=())), [float("nan")], NotFinite),
        (number(StandardiseEncoding(mean=0.0, deviation=1.0)), [float("inf")], NotFinite),
    ],
)
def test_a_value_that_cannot_be_encoded_names_the_feature(feature, values, error):
    with pytest.raises(error, match="'f'"):
        codes_of(feature, values)


def test_a_list_feature_refuses_single_values_and_nulls_inside():
    feature = CategoricalListFeature(name="f", side="item", value_type="string", encoding=HashEncoding(buckets=4))
    with pytest.raises(WrongType, match="row 1"):
        codes_of(feature, [["a"], "a"])
    with pytest.raises(WrongType, match="row 1"):
        codes_of(feature, [["a"], ["b", None]])
    with pytest.raises(WrongType, match="single values"):
        PartEncoder([feature]).encode({"f": Column(np.array(["a"], dtype=object))}, 1)


def test_an_unknown_feature_is_named_with_the_known_ones():
    encoder = PartEncoder([category(HashEncoding(buckets=4))])
    with pytest.raises(UnknownFeature, match=r"'g'.*one of f"):
        encoder.columns_from_python({"g": [1]})
    with pytest.raises(UnknownFeature, match="'g'"):
        encoder.encode({"g": Column(np.array([1]))}, 1)


def test_columns_must_be_of_the_number_of_rows():
    with pytest.raises(WrongLength, match="2 rows.*3 rows"):
        PartEncoder([category(HashEncoding(buckets=4))]).encode({"f": Column(np.array([1, 2]))}, 3)


@pytest.mark.parametrize(
    "feature",
    [
        category(VocabularyEncoding()),
        category(HashEncoding(buckets=4), None),
        number(QuantileEncoding()),
        number(StandardiseEncoding()),
    ],
)
def test_a_schema_that_is_not_fitted_is_refused(feature):
    with pytest.raises(SchemaNotFitted, match="'f'"):
        SchemaEncoder(FeatureSchema(features=(feature,)))


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=2),
    value=st.sampled_from([0.0, -1.0, 3.4e38, -3.4e38, 1e-45, np.nan, -np.nan, np.inf, -np.inf]),
    seed=st.integers(0, 99),
)
def test_the_compiled_check_of_finite_numbers_is_numpys(hash_loops, shape, value, seed):
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=shape).astype(np.float32) for _ in range(3)]
    if arrays[1].size:
        arrays[1].reshape(-1)[random.integers(arrays[1].size)] = value
    assert hash_loops.all_finite(arrays) == all(np.isfinite(array).all() for array in arrays)


def test_the_compiled_check_of_finite_numbers_refuses_other_arrays(hash_loops):
    with pytest.raises(ValueError, match="float32"):
        hash_loops.all_finite([np.zeros(2, dtype=np.int32)])
    with pytest.raises(ValueError, match="contiguous"):
        hash_loops.all_finite([np.zeros((4, 4), dtype=np.float32)[:, ::2]])
