"""One row by itself encodes as it does in columns, and is refused alike."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import encode_row
from bundle.encode import PartEncoder
from bundle.errors import ValueInvalid
from bundle.features import (
    CategoricalFeature,
    CategoricalListFeature,
    HashEncoding,
    NumericFeature,
    QuantileEncoding,
    StandardiseEncoding,
    VocabularyEncoding,
)


def number(name, encoding, default=None):
    return NumericFeature(name=name, side="user", encoding=encoding, default=default)


def category(name, value_type, encoding, default=None):
    return CategoricalFeature(name=name, side="user", value_type=value_type, encoding=encoding, default=default)


def listed(name, value_type, encoding):
    return CategoricalListFeature(name=name, side="user", value_type=value_type, encoding=encoding, max_length=2)


FEATURES = [
    category("hashed", "integer", HashEncoding(buckets=1000)),
    category("hashed_text", "string", HashEncoding(buckets=7), default="x"),
    category("known", "integer", VocabularyEncoding(values=(3, -2, 10**12))),
    category("known_text", "string", VocabularyEncoding(values=("a", "b")), default="b"),
    number("bucket", QuantileEncoding(edges=(-1.5, 0.0, 2.0)), default=0.1),
    number("plain", StandardiseEncoding(mean=0.3, deviation=1.7, clip=3.0)),
    number("log", StandardiseEncoding(mean=0.3, deviation=1.7, transform="log1p")),
    number("rate", StandardiseEncoding(mean=0.3, deviation=1.7, transform="logit"), default=0.01),
    listed("tags", "string", HashEncoding(buckets=9)),
    listed("numbers", "integer", VocabularyEncoding(values=(1, 2, 3))),
]
VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.sampled_from(["a", "x", "", "\ud800"]),
    st.lists(st.sampled_from(["a", "b", None, 1, 2, 2**63]), max_size=4),
)
FITTING = {
    "integer": st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 12),
    "string": st.text(max_size=3),
    "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9),
}


def fitting(feature):
    kind = FITTING[getattr(feature, "value_type", "number")]
    return st.none() | (st.lists(kind, max_size=4) if isinstance(feature, CategoricalListFeature) else kind)


GOOD = st.fixed_dictionaries({}, optional={feature.name: fitting(feature) for feature in FEATURES})
ANY = st.dictionaries(st.sampled_from([*(feature.name for feature in FEATURES), "other"]), VALUE, max_size=4)


def shown(encoded):
    return encoded.codes_NC.tobytes(), encoded.values_NV.tobytes(), encoded.codes_NC.shape, encoded.missing


def in_columns(encoder, row):
    """What columns of one row encode to; None where they are refused."""
    try:
        columns = encoder.columns_from_python({name: (value,) for name, value in row.items()})
        return encoder.encode(columns, 1)
    except ValueInvalid:
        return None


def check(encoder, row):
    wanted, found = in_columns(encoder, row), encoder.encode_row(row)
    if wanted is None:
        assert found is None
    else:
        assert found is not None and shown(found) == shown(wanted)


ENCODER = PartEncoder(FEATURES)


@settings(max_examples=150)
@given(GOOD)
def test_a_row_encodes_as_columns_of_one_row_do(row):
    check(ENCODER, row)


@settings(max_examples=150)
@given(ANY)
def test_a_row_that_cannot_be_encoded_is_refused_as_columns_are(row):
    check(ENCODER, row)


def test_a_large_vocabulary_is_looked_up_in_the_parts_own_table(monkeypatch):
    monkeypatch.setattr(encode_row, "_MOST_KNOWN", 2)
    encoder = PartEncoder(FEATURES)
    for value in (3, -2, 10**12, 4, 2**63 - 1, None):
        check(encoder, {"known": value})


def test_parts_without_codes_or_values_encode_too():
    for features in (FEATURES[:1], FEATURES[5:6], []):
        check(PartEncoder(features), {feature.name: 1 for feature in features})
