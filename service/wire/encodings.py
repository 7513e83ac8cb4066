"""Which encoding a request and its answer have, by their media types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from service.errors import MediaTypeUnsupported
from service.wire import arrow, columnar, json_rows
from service.wire.answer import json_answer
from service.wire.arrow_answer import arrow_answer
from service.wire.document import CandidateColumns, RankBody, decode, request_of
from service.wire.request import RankRequest, RawColumn
from service.wire.typed_json import TypedJson

if TYPE_CHECKING:
    from service.ranker import Ranking

JSON = "application/json"
_DECODER = msgspec.json.Decoder(RankBody)


@dataclass(frozen=True)
class Encoding:
    """One media type.

    Attributes:
        media_type: its name.
        label: its name in metrics.
        parse: (body, most candidates, request id to use, how the only model's rows are decoded, if known) → request.
        answer: ranking → body.
    """

    media_type: str
    label: str
    parse: Callable[[bytes, int, str, TypedJson | None], RankRequest]
    answer: Callable[[Ranking], bytes]


def parse_json(body: bytes, max_candidates: int, request_id: str, typed_json: TypedJson | None = None) -> RankRequest:
    """Return the request in a JSON body, whether its candidates come as rows or as columns.

    With `typed_json` the same, sooner.

    Raises:
        BodyMalformed, TooManyCandidates, DuplicateCandidate: see `service.errors`.
    """
    if typed_json is not None and (request := typed_json.request(body, max_candidates, request_id)) is not None:
        return request
    document = decode(body, _DECODER)
    given = document.candidates
    items: Mapping[str, RawColumn]
    if isinstance(given, CandidateColumns):
        columnar.check_lengths(given)
        items = given.features
    else:
        items = json_rows.items_of(given)
    limits = {"max_candidates": max_candidates}
    if not isinstance(given, list):
        return request_of(document, given.id, items, given.group, given.vector, request_id=request_id, **limits)
    ids, groups = json_rows.ids_of(given), json_rows.groups_of(given)
    vectors = json_rows.vectors_of(given)
    return request_of(document, ids, items, groups, vectors, request_id=request_id, **limits)


ENCODINGS = {
    JSON: Encoding(JSON, "json", parse_json, json_answer),
    arrow.MEDIA_TYPE: Encoding(arrow.MEDIA_TYPE, "arrow", arrow.parse, arrow_answer),
}


@lru_cache(maxsize=64)
def encoding_of_body(content_type: str | None) -> Encoding:
    """Return the encoding that a request says its body has; JSON where it says nothing.

    Raises:
        MediaTypeUnsupported: another one.
    """
    if content_type is None:
        return ENCODINGS[JSON]
    found = ENCODINGS.get(content_type.partition(";")[0].strip().lower())
    if found is None:
        raise MediaTypeUnsupported(
            "Content-Type", found=repr(content_type[:100]), expected=" or ".join(sorted(ENCODINGS))
        )
    return found


@lru_cache(maxsize=64)
def encoding_of_answer(accept: str | None) -> Encoding:
    """Return the encoding of an answer: Arrow where `Accept` names it before JSON, else JSON."""
    for part in (accept or "").split(","):
        media_type, _, parameters = part.partition(";")
        media_type = media_type.strip().lower()
        if media_type in ENCODINGS and "q=0" not in parameters.replace(" ", "").split(";"):
            return ENCODINGS[media_type]
    return ENCODINGS[JSON]
