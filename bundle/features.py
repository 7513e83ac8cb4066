"""The feature schema: which features there are, on which side, and how each becomes model input.

A schema is *declared* by a person (names, kinds, encodings) and *fitted* by training (vocabulary values,
quantile edges, mean and deviation). The fitted one travels in the bundle as features.json. Knows nothing
of labels, splits or models.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundle.errors import SchemaInvalid, SchemaNotFitted

Side = Literal["user", "item", "context"]
ValueType = Literal["integer", "string"]
Transform = Literal["none", "log1p", "logit"]

MISSING_CODE = 0
"""Code of a value that was not given."""
UNSEEN_CODE = 1
"""Code of a value that the vocabulary does not hold."""
FIRST_CODE = 2
"""Code of the first ordinary value."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HashEncoding(_Model):
    """Values to `buckets` codes by a fixed hash; needs no fitting, and any value has a code."""

    type: Literal["hash"] = "hash"
    buckets: int = Field(ge=2, le=100_000_000)

    @property
    def codes(self) -> int:
        """Number of codes, with the missing and the unseen one."""
        return FIRST_CODE + self.buckets


class VocabularyEncoding(_Model):
    """Values seen at least `min_count` times in training, at most `max_size` of them; the rest is unseen."""

    type: Literal["vocabulary"] = "vocabulary"
    max_size: int = Field(default=100_000, ge=1)
    min_count: int = Field(default=1, ge=1)
    values: tuple[int, ...] | tuple[str, ...] | None = None

    @property
    def codes(self) -> int:
        """Number of codes, with the missing and the unseen one."""
        if self.values is None:
            raise SchemaNotFitted("vocabulary", found="no values", expected="the values counted in training")
        return FIRST_CODE + len(self.values)


class QuantileEncoding(_Model):
    """Numbers to buckets between quantiles of the training rows; bucket i holds edges[i-1] <= x < edges[i]."""

    type: Literal["quantile"] = "quantile"
    buckets: int = Field(default=32, ge=2, le=10_000)
    edges: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _edges_rise(self) -> Self:
        if self.edges is not None and not all(map(math.isfinite, self.edges)):
            raise ValueError("edges must be finite")
        if self.edges is not None and any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must rise strictly")
        return self

    @property
    def codes(self) -> int:
        """Number of codes, with the missing and the (never used) unseen one."""
        if self.edges is None:
            raise SchemaNotFitted("quantile", found="no edges", expected="the edges measured in training")
        return FIRST_CODE + len(self.edges) + 1


class StandardiseEncoding(_Model):
    """Numbers as (t(x) - mean) / deviation, clipped to ±`clip`, with a second input that is 1 where missing.

    The transform t is nothing, `log1p` (sign(x)·log(1 + |x|), for counts) or `logit` (log x/(1 - x), for rates;
    x is first clipped to [1e-5, 1 - 1e-5]).
    """

    type: Literal["standardise"] = "standardise"
    transform: Transform = "none"
    clip: float = Field(default=8.0, gt=0)
    mean: float | None = None
    deviation: float | None = Field(default=None, gt=0)


CategoricalEncoding = Annotated[HashEncoding | VocabularyEncoding, Field(discriminator="type")]
NumericEncoding = Annotated[QuantileEncoding | StandardiseEncoding, Field(discriminator="type")]


class _Feature(_Model):
    name: str = Field(min_length=1, max_length=200)
    side: Side
    embedding_size: int = Field(default=16, ge=1, le=1024)


class CategoricalFeature(_Feature):
    """One integer or string per row."""

    kind: Literal["categorical"] = "categorical"
    value_type: ValueType | None = None
    encoding: CategoricalEncoding
    default: int | str | None = None

    @property
    def columns(self) -> int:
        """Number of code columns."""
        return 1


class CategoricalListFeature(_Feature):
    """At most `max_length` integers or strings per row (the rest is cut); embedded as their mean."""

    kind: Literal["categorical_list"] = "categorical_list"
    value_type: ValueType | None = None
    encoding: CategoricalEncoding
    max_length: int = Field(default=8, ge=1, le=1024)
    separator: str | None = Field(default=None, min_length=1, max_length=8)
    default: None = None

    @property
    def columns(self) -> int:
        """Number of code columns."""
        return self.max_length


class NumericFeature(_Feature):
    """One number per row: an embedded quantile bucket, or a standardised value."""

    kind: Literal["numeric"] = "numeric"
    encoding: NumericEncoding = QuantileEncoding()
    default: float | None = Field(default=None, allow_inf_nan=False)

    @property
    def columns(self) -> int:
        """Number of code columns (a bucketed number) — 0 for a standardised one."""
        return 1 if isinstance(self.encoding, QuantileEncoding) else 0


Feature = Annotated[CategoricalFeature | CategoricalListFeature | NumericFeature, Field(discriminator="kind")]


class FeatureSchema(_Model):
    """All features of a model, in the order that fixes the model's input columns.

    Model input is, per row, `[request part | item part]`: the request part holds user then context features
    (one row per request when serving), the item part the item features (one row per candidate).
    """

    version: Literal[1] = 1
    features: tuple[Feature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [feature.name for feature in self.features]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"feature names must be unique, found twice: {', '.join(twice)}")
        if all(feature.side != "item" for feature in self.features):
            raise ValueError("at least one feature must be of side item, else all candidates are alike")
        return self

    def of_side(self, *sides: Side) -> tuple[Feature, ...]:
        """Return the features of the given sides: sides in the given order, schema order within a side."""
        return tuple(feature for side in sides for feature in self.features if feature.side == side)

    @property
    def request_part(self) -> tuple[Feature, ...]:
        """User, then context features: what is one row per request."""
        return self.of_side("user", "context")

    @property
    def item_part(self) -> tuple[Feature, ...]:
        """Item features: what is one row per candidate."""
        return self.of_side("item")

    def check_fitted(self) -> None:
        """Check that every encoding holds what training stores in it.

        Raises:
            SchemaNotFitted: names the feature and what it lacks.
        """
        for feature in self.features:
            encoding = feature.encoding
            lacks = None
            if isinstance(encoding, VocabularyEncoding) and encoding.values is None:
                lacks = "vocabulary values"
            elif isinstance(encoding, QuantileEncoding) and encoding.edges is None:
                lacks = "quantile edges"
            elif isinstance(encoding, StandardiseEncoding) and None in (encoding.mean, encoding.deviation):
                lacks = "mean and deviation"
            elif not isinstance(feature, NumericFeature) and feature.value_type is None:
                lacks = "value_type"
            if lacks:
                raise SchemaNotFitted(f"feature {feature.name!r}", found=f"no {lacks}", expected="a fitted schema")


def read_schema(path: Path) -> FeatureSchema:
    """Return the fitted schema in a features.json.

    Raises:
        SchemaInvalid: the file is not a fitted feature schema; names the place in it.
    """
    try:
        schema = FeatureSchema.model_validate_json(path.read_bytes())
    except ValidationError as exc:
        raise schema_error(str(path), exc) from None
    except OSError as exc:
        raise SchemaInvalid(str(path), found=exc.strerror, expected="a readable features.json") from exc
    schema.check_fitted()
    return schema


def schema_error(thing: str, exc: ValidationError) -> SchemaInvalid:
    """Return pydantic's first complaint as a SchemaInvalid that names the place."""
    first = exc.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "document"
    found = first["input"]
    shown = repr(found) if isinstance(found, str | int | float | bool | None) else type(found).__name__
    more = f" (and {exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
    return SchemaInvalid(f"{thing}: {place}", found=shown, expected=first["msg"] + more)
