"""The shape of a rank request: what JSON bodies are decoded to, and what the OpenAPI document shows.

Unknown keys, NaN and Infinity, numbers that do not fit, wrong types and lone surrogates are refused, with the
JSON path where there is one. Other encodings carry a `RankHead` as JSON beside their columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from service.errors import BodyMalformed
from service.wire.request import RankRequest, RawColumn, check_ids, check_length, vectors_of

Name = Annotated[str, Meta(max_length=256)]
Features = dict[str, Any]
Vector = Annotated[list[float], Meta(min_length=1, max_length=1024)]
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
    features: Annotated[
        Features,
        Meta(description="Item features by name; what is null or absent comes from the item table, if there is one."),
    ] = field(default_factory=dict)
    group: Annotated[Name | None, Meta(description="What rerank rules group by, an author say.")] = None
    vector: Annotated[Vector | None, Meta(description="What diversity rules compare; all candidates or none.")] = None


class CandidateColumns(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """All candidates, one list per property; the lists are of one length."""

    id: Annotated[list[Name], Meta(description="Ids, all different.")]
    features: Annotated[
        dict[str, list[Any]],
        Meta(description="Item features by name, one value per candidate; null or absent as for candidates in rows."),
    ] = field(default_factory=dict)
    group: Annotated[list[Name | None] | None, Meta(description="What rerank rules group by.")] = None
    vector: Annotated[list[Vector] | None, Meta(description="What diversity rules compare.")] = None


class RankHead(Struct, forbid_unknown_fields=True, frozen=True, gc=False, kw_only=True):
    """A rank request but for its candidates."""

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


class RankBody(RankHead, forbid_unknown_fields=True, frozen=True, gc=False, kw_only=True):
    """A rank request: one user, N candidates."""

    candidates: Annotated[
        list[Candidate] | CandidateColumns,
        Meta(description="In the order that breaks ties: a list of candidates, or lists of their properties."),
    ]


def decode(body: bytes | bytearray | memoryview, decoder: msgspec.json.Decoder[T], where: str = "body") -> T:
    """Return the decoded JSON.

    Raises:
        BodyMalformed: names the JSON path, or what breaks the syntax.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        message, _, path = str(exc).partition(" - at `")
        raise BodyMalformed(path.rstrip("`") or "$", found=message, expected="a rank request") from exc
    except UnicodeDecodeError as exc:
        raise BodyMalformed(where, found=f"byte {exc.start} is not UTF-8", expected="UTF-8 JSON") from exc
    except msgspec.DecodeError as exc:
        raise BodyMalformed(where, found=str(exc), expected="a JSON document") from exc
    except RecursionError as exc:
        raise BodyMalformed(where, found="too deep nesting", expected="a rank request") from exc


def request_of(
    head: RankHead,
    ids: Sequence[str],
    items: Mapping[str, RawColumn],
    groups: Sequence[str | None] | None,
    vectors: Sequence[Sequence[float] | None] | None = None,
    *,
    max_candidates: int,
    request_id: str,
) -> RankRequest:
    """Return the request of a head and candidates; `request_id` is used where the head gives none.

    Raises:
        BodyMalformed, TooManyCandidates, DuplicateCandidate: see `service.errors`.
    """
    check_ids(ids, max_candidates)
    for layer, variant in head.force_variant.items():
        check_length("$.force_variant", layer)
        check_length(f"$.force_variant.{layer}", variant)
    return RankRequest(
        request_id=head.request_id or request_id,
        user_id=head.user.id,
        ids=ids,
        user=OneRow(head.user.features),
        context=OneRow(head.context),
        items=items,
        groups=None if groups is None or groups.count(None) == len(groups) else groups,
        vectors_ND=vectors_of(vectors),
        model=head.model,
        top_k=head.top_k,
        explain=head.explain,
        force_variant=head.force_variant,
    )


class OneRow(Mapping[str, Sequence[object]]):
    """Features as columns of one row, made when they are asked for: encoding takes the values as they are.

    Attributes:
        values_by_name: the row's values.
    """

    __slots__ = ("values_by_name",)

    def __init__(self, values_by_name: Mapping[str, object]) -> None:
        """Take a row."""
        self.values_by_name = values_by_name

    def __getitem__(self, name: str) -> Sequence[object]:
        """Return the column of a feature."""
        return (self.values_by_name[name],)

    def __iter__(self) -> Iterator[str]:
        """Yield the features' names."""
        return iter(self.values_by_name)

    def __len__(self) -> int:
        """Return how many features there are."""
        return len(self.values_by_name)
