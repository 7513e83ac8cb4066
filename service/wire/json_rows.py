"""JSON with one object per candidate: the readable encoding.

`RankBody` is both what is parsed and what the OpenAPI document shows. Unknown keys, NaN and Infinity, numbers
that do not fit, wrong types and lone surrogates are refused, with the JSON path where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from service.errors import BodyMalformed
from service.wire.request import RankRequest, check_ids, check_length

Name = Annotated[str, Meta(max_length=256)]
Features = dict[str, Any]
T = TypeVar("T")


class User(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """Whom the feed is for."""

    id: Annotated[Name, Meta(description="Decides the user's variants; empty for nobody in particular.")] = ""
    features: Annotated[Features, Meta(description="User features by name; null is missing.")] = field(
        default_factory=dict
    )


class Candidate(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """One thing that may be shown."""

    id: Annotated[Name, Meta(description="Different from every other candidate's.")]
    features: Annotated[Features, Meta(description="Item features by name; null is missing.")] = field(
        default_factory=dict
    )
    group: Annotated[Name | None, Meta(description="What rerank rules group by, an author say.")] = None


class RankBody(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A rank request: one user, N candidates."""

    candidates: Annotated[list[Candidate], Meta(description="In the order that breaks ties.")]
    request_id: Annotated[Name, Meta(description="Echoed in the answer; made up where empty.")] = ""
    user: User = field(default_factory=User)
    context: Annotated[Features, Meta(description="Context features by name; null is missing.")] = field(
        default_factory=dict
    )
    model: Annotated[Name | None, Meta(description="Which model; may be left out where only one is served.")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="How many candidates to return; all where null.")
    ] = None
    explain: Annotated[bool, Meta(description="Whether to show how each score came to be.")] = False
    force_variant: Annotated[dict[str, str], Meta(description="Layer → variant, for testers.")] = field(
        default_factory=dict
    )


_DECODER = msgspec.json.Decoder(RankBody)
_IDS = attrgetter("id")
_FEATURES = attrgetter("features")
_GROUP = attrgetter("group")


def parse(body: bytes, max_candidates: int, request_id: str) -> RankRequest:
    """Return the request in a JSON body; `request_id` is used where it gives none.

    Raises:
        BodyMalformed, TooManyCandidates, DuplicateCandidate: see `service.errors`.
    """
    document = decode(body, _DECODER)
    candidates = document.candidates
    ids = list(map(_IDS, candidates))
    check_ids(ids, max_candidates)
    check_names(document.force_variant)
    groups = list(map(_GROUP, candidates))
    return RankRequest(
        request_id=document.request_id or request_id,
        user_id=document.user.id,
        ids=ids,
        user=one_row(document.user.features),
        context=one_row(document.context),
        items=columns_of(list(map(_FEATURES, candidates))),
        groups=groups if any(group is not None for group in groups) else None,
        model=document.model,
        top_k=document.top_k,
        explain=document.explain,
        force_variant=document.force_variant,
    )


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the decoded body.

    Raises:
        BodyMalformed: names the JSON path, or what breaks the syntax.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        message, _, path = str(exc).partition(" - at `")
        raise BodyMalformed(path.rstrip("`") or "$", found=message, expected="a rank request") from exc
    except UnicodeDecodeError as exc:
        raise BodyMalformed("body", found=f"byte {exc.start} is not UTF-8", expected="UTF-8 JSON") from exc
    except msgspec.DecodeError as exc:
        raise BodyMalformed("body", found=str(exc), expected="a JSON document") from exc
    except RecursionError as exc:
        raise BodyMalformed("body", found="too deep nesting", expected="a rank request") from exc


def one_row(features: Mapping[str, object]) -> dict[str, Sequence[object]]:
    """Return features as columns of one row."""
    return {name: (value,) for name, value in features.items()}


def columns_of(rows: Sequence[Mapping[str, object]]) -> dict[str, Sequence[object]]:
    """Return one column per name found in any row; a row without the name holds None there."""
    if not rows:
        return {}
    names = tuple(rows[0])
    if not names and not any(rows):
        return {}
    try:
        if names and set(map(len, rows)) == {len(names)}:
            return {name: list(map(itemgetter(name), rows)) for name in names}
    except KeyError:
        pass  # rows with as many names, but others
    every = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in every}


def check_names(names: Mapping[str, str]) -> None:
    """Check the forced variants' names.

    Raises:
        BodyMalformed: one is too long.
    """
    for layer, variant in names.items():
        check_length("$.force_variant", layer)
        check_length(f"$.force_variant.{layer}", variant)
