"""JSON bodies, decoded by what the model's schema says of candidates' features: no dictionary per candidate.

Compiled loops (`compiled_json.pyx`) take what is common straight to arrays, in a fifth of the time of `json_rows` and
`columnar`; what they leave (lists, vectors, escaped characters), or all where they were not built, is decoded to one
structure per candidate, in half the time. `json_rows` and `columnar` stay for bodies that do not fit, to say what is
wrong with them, and for services of several models, where the body itself names the schema. All give the same requests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from operator import attrgetter
from typing import Any, get_type_hints

import msgspec
from msgspec import UNSET

from bundle.columns import Column, packed
from bundle.encode import value_type_of
from bundle.features import CategoricalListFeature, Feature
from service.wire import json_rows, loops
from service.wire.document import Candidate, CandidateColumns, RankBody, RankHead, request_of
from service.wire.request import RankRequest, RawColumn

_TYPES: dict[str, Any] = {"integer": int, "number": float, "string": str}
_LISTS: dict[str, Any] = {"integer": list[int], "number": list[float], "string": list[str]}
_FEATURES = attrgetter("features")


class TypedJson:
    """Decodes the rank requests of one schema."""

    def __init__(self, item_features: Iterable[Feature]) -> None:
        """Take the features that a candidate may bring."""
        features = tuple(item_features)
        self._names = tuple(feature.name for feature in features)
        self._value_types = tuple(value_type_of(feature) for feature in features)
        self._is_list = tuple(isinstance(feature, CategoricalListFeature) for feature in features)
        kinds = ["list" if many else kind for kind, many in zip(self._value_types, self._is_list, strict=True)]
        self._reader = None if loops.json is None else loops.json.CandidateReader(self._names, kinds)
        self._decoder, self._nothing = _decoder(self._names, self._value_types, self._is_list)

    def request(self, body: bytes, max_candidates: int, request_id: str) -> RankRequest | None:
        """Return the request in a body; None where it does not fit, and `document.decode` must say why.

        Raises:
            BodyMalformed, TooManyCandidates, DuplicateCandidate: see `service.errors`.
        """
        limits: dict[str, Any] = {"max_candidates": max_candidates, "request_id": request_id}
        try:
            if self._reader is not None and (read := self._reader.read(body, max_candidates)) is not None:
                head, ids, groups, items = read
                return request_of(_HEAD.decode(head), ids, items, groups, **limits)
            decoded = self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        given: Any = decoded.candidates
        if isinstance(given, list):
            ids, groups, vectors = json_rows.ids_of(given), json_rows.groups_of(given), json_rows.vectors_of(given)
            return request_of(decoded, ids, self._of_rows(given), groups, vectors, **limits)
        if not _even(given):
            return None
        columns = () if given.features is UNSET else msgspec.structs.astuple(given.features)
        return request_of(decoded, given.id, self._items(columns), given.group, given.vector, **limits)

    def _of_rows(self, candidates: list[Any]) -> dict[str, RawColumn]:
        """Return one column per feature that any candidate brings."""
        features = list(map(_FEATURES, candidates))
        without = features.count(UNSET)
        if without == len(features):
            return {}
        if without:
            features = [self._nothing if given is UNSET else given for given in features]
        return self._items(zip(*map(msgspec.structs.astuple, features), strict=True))

    def _items(self, columns: Iterable[Any]) -> dict[str, RawColumn]:
        items: dict[str, RawColumn] = {}
        for name, value_type, is_list, values in zip(
            self._names, self._value_types, self._is_list, columns, strict=False
        ):
            if values is UNSET:
                continue
            if not is_list and value_type != "string":
                try:
                    items[name] = Column(packed(values, value_type))
                    continue
                except struct.error:
                    pass  # a null among them, or an integer beyond 64 bits
            if values.count(None) < len(values):
                items[name] = values
        return items


class _Headed(RankHead, forbid_unknown_fields=True, frozen=True, gc=False, kw_only=True):
    """A request whose candidates are read already."""

    candidates: list[Any]


_HEAD = msgspec.json.Decoder(_Headed)


def _even(candidates: Any) -> bool:
    """Return whether columns are as long as the ids."""
    features = () if candidates.features is UNSET else msgspec.structs.astuple(candidates.features)
    columns = (*features, candidates.group, candidates.vector)
    return all(column is UNSET or column is None or len(column) == len(candidates.id) for column in columns)


@lru_cache(maxsize=16)
def _decoder(
    names: tuple[str, ...], value_types: tuple[str, ...], is_list: tuple[bool, ...]
) -> tuple[msgspec.json.Decoder[RankBody], object]:
    """Return the decoder of a schema, and the features of a candidate that brings none."""
    types = [_LISTS[name] if many else _TYPES[name] for name, many in zip(value_types, is_list, strict=True)]
    rules: dict[str, Any] = {"forbid_unknown_fields": True, "frozen": True, "gc": False}
    given = msgspec.defstruct(
        "Features",
        [(f"f{at}", kind | None, msgspec.field(name=names[at], default=None)) for at, kind in enumerate(types)],
        **rules,
    )
    in_columns = msgspec.defstruct(
        "FeatureColumns",
        [
            (f"f{at}", list[kind | None] | msgspec.UnsetType, msgspec.field(name=names[at], default=UNSET))  # type: ignore[valid-type]
            for at, kind in enumerate(types)
        ],
        **rules,
    )
    candidate, columns = _with_features(Candidate, given, rules), _with_features(CandidateColumns, in_columns, rules)
    body = msgspec.defstruct(
        "RankBody",
        [("candidates", list[candidate] | columns)],  # type: ignore[valid-type]
        bases=(RankHead,),
        kw_only=True,
        **rules,
    )
    return msgspec.json.Decoder(body), given()


def _with_features(document: type[msgspec.Struct], features: Any, rules: dict[str, Any]) -> Any:
    """Return a document's struct with other features, unset where there are none."""
    hints = get_type_hints(document, include_extras=True)
    fields: list[Any] = []
    for field in msgspec.structs.fields(document):
        if field.name == "features":
            fields.append((field.name, features | msgspec.UnsetType, UNSET))
        else:
            fields.append((field.name, hints[field.name], *([] if field.required else [field.default])))
    return msgspec.defstruct(document.__name__, fields, **rules)
