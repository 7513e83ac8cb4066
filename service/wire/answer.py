"""The answer to a rank request, written as JSON without an object per candidate.

`RankAnswer` is what the OpenAPI document shows; `json_answer` writes exactly that. Probabilities are written
with digits that give back the same float32, scores with the fewest that give back the same float64.

Legend: K candidates returned, T tasks, C numeric columns of a candidate, W all of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import orjson
from msgspec import Meta, Struct, field

from service.wire import loops

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from service.engine import Predicted
    from service.ranker import Ranking

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


class RankedItem(Struct, frozen=True, omit_defaults=True):
    """A candidate at its position."""

    id: str
    score: Annotated[float, Meta(description="The fused score.")]
    p: Annotated[dict[str, float] | None, Meta(description="P(task); absent from a fallback order.")] = None
    p_up: Annotated[float | None, Meta(description="P(UP): that the user prefers it; absent without the latent.")] = (
        None
    )
    p_joint: Annotated[dict[str, float] | None, Meta(description="P(task, UP); absent without the latent.")] = None
    explanation: Annotated[
        dict[str, Any] | None, Meta(description="Terms, multipliers and moves that give score and position exactly.")
    ] = None


class RankAnswer(Struct, frozen=True):
    """The ordered feed."""

    request_id: str
    model: str
    model_version: str
    config_version: str
    items: Annotated[list[RankedItem], Meta(description="From the first position on.")]
    assignments: Annotated[dict[str, str], Meta(description="Layer → variant.")] = field(default_factory=dict)
    degraded: Annotated[str | None, Meta(description="Why the order is not the policy's; null when it is.")] = None
    missing_features: Annotated[int, Meta(description="Feature values that neither request nor item table had.")] = 0


def head_of(ranking: Ranking) -> dict[str, object]:
    """Return a `RankAnswer` but for its items."""
    return {
        "request_id": ranking.request.request_id,
        "model": ranking.snapshot.model.name,
        "model_version": str(ranking.snapshot.model.version),
        "config_version": ranking.snapshot.fusion.version,
        "assignments": dict(ranking.decision.assignments),
        "degraded": ranking.degraded,
        "missing_features": ranking.missing_features,
    }


def json_answer(ranking: Ranking) -> bytes:
    """Return the JSON of a `RankAnswer`."""
    before, after = orjson.dumps(head_of(ranking))[:-1] + b',"items":[', b"]}"
    if not len(ranking.ranked.order_K):
        return before + after
    return _with_items(ranking, before, after)


def _with_items(ranking: Ranking, before: bytes, after: bytes) -> bytes:
    order_K, ids = ranking.ranked.order_K, ranking.request.ids
    template = _template(ranking.snapshot.fusion.tasks, *_given(ranking))
    explained = None
    if ranking.explanation is not None:
        template = template[:-1] + b',"explanation":%b}'
        explained = [orjson.dumps(item) for item in ranking.explanation.items(order_K.tolist())]
    if loops.json is not None and ranking.predicted is not None:
        columns_NC = np.concatenate(_parts(ranking.predicted), axis=1, dtype=np.float32)
        scores = orjson.dumps(ranking.ranked.score_N[order_K], option=_NUMPY)[1:-1]
        order_K = np.ascontiguousarray(order_K)
        written = loops.json.write_items(
            list(ids), order_K, scores, columns_NC, _pieces(template), explained, before, after
        )
        if written is not None:
            return written
    columns = probability_columns(ranking)
    width = 2 + columns.shape[1] + (explained is not None)
    texts: list[bytes] = [b""] * (len(order_K) * width)
    # no text holds "," with both quotes bare, so that splitting there gives one text each
    texts[0::width] = orjson.dumps([ids[row] for row in order_K.tolist()])[2:-2].split(b'","')
    texts[1::width] = _numbers(ranking.ranked.score_N[order_K])
    numbers = _numbers(columns.ravel())
    for column in range(columns.shape[1]):
        texts[2 + column :: width] = numbers[column :: columns.shape[1]]
    if explained is not None:
        texts[width - 1 :: width] = explained
    return before + (b",".join([template] * len(order_K)) % tuple(texts)) + after


def probability_columns(ranking: Ranking) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return [p_up, p_joint, p] of the returned candidates by position, float32 [K, C]; only what the model gives."""
    order_K, predicted = ranking.ranked.order_K, ranking.predicted
    if predicted is None:
        return np.empty((len(order_K), 0), dtype=np.float32)
    return np.concatenate(_parts(predicted), axis=1, dtype=np.float32)[order_K]


def _parts(predicted: Predicted) -> list[NDArray[np.float32]]:
    """Return [p_up [N, 1], p_joint [N, T], p [N, T]]; only what the model gives."""
    if predicted.p_up_N is None or predicted.p_joint_NT is None:
        return [predicted.p_NT]
    return [predicted.p_up_N[:, None], predicted.p_joint_NT, predicted.p_NT]


def _given(ranking: Ranking) -> tuple[bool, bool]:
    """Return whether there are probabilities, and whether P(UP) is among them."""
    predicted = ranking.predicted
    return predicted is not None, predicted is not None and predicted.p_up_N is not None


@lru_cache(maxsize=64)
def _template(tasks: tuple[str, ...], predicted: bool, latent: bool) -> bytes:
    """Return one candidate's JSON with a %b for each value; task names hold no percent sign."""
    if not predicted:
        return b'{"id":"%b","score":%b}'
    each = ",".join(f'"{name}":%b' for name in tasks)
    up = f'"p_up":%b,"p_joint":{{{each}}},' if latent else ""
    return f'{{"id":"%b","score":%b,{up}"p":{{{each}}}}}'.encode()


@lru_cache(maxsize=64)
def _pieces(template: bytes) -> tuple[bytes, ...]:
    """Return what stands between a template's values."""
    return tuple(template.split(b"%b"))


def _numbers(values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> list[bytes]:
    """Return the JSON text of each number."""
    return orjson.dumps(np.ascontiguousarray(values), option=_NUMPY)[1:-1].split(b",")
