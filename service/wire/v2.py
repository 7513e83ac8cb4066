"""Open Inference Protocol v2, so that clients of general model servers can ask for a ranking.

Inputs are named by their place in the JSON request: `candidates.id` and `candidates.group` (BYTES [N]),
`candidates.features.<name>` ([N]), `user.features.<name>` and `context.<name>` ([1]). A list feature comes as its
items one after another, with `<input>.lengths` (INT64, one per row). `parameters` may hold user_id, top_k, explain
and the variants to force as `force_variant.<layer>`. Outputs are id, score, p_up, p_joint and p. Tensors may be JSON
or binary (`Inference-Header-Content-Length`, parameters binary_data_size, binary_data, binary_data_output).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import orjson
from msgspec import Meta, Struct, field
from numpy.typing import NDArray

from bundle.columns import Column, ListColumn
from service.errors import BodyMalformed
from service.wire.answer import head_of
from service.wire.document import RankHead, User, decode, request_of
from service.wire.request import RankRequest, check_length
from service.wire.tensors import InferInput, Size, read_tensors

if TYPE_CHECKING:
    from service.ranker import Ranking

HEADER_LENGTH = "Inference-Header-Content-Length"
IDS, GROUPS, LENGTHS = "candidates.id", "candidates.group", ".lengths"
ITEM, USER, CONTEXT = "candidates.features.", "user.features.", "context."


class InferOutput(Struct, forbid_unknown_fields=True, frozen=True):
    """One output wanted."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


class InferParameters(Struct, forbid_unknown_fields=False, frozen=True):
    """What a rank request holds besides tensors."""

    user_id: Annotated[str, Meta(max_length=256)] = ""
    top_k: Size | None = None
    explain: bool = False
    binary_data_output: bool = False


class InferBody(Struct, forbid_unknown_fields=True, frozen=True):
    """An inference request."""

    inputs: list[InferInput]
    id: Annotated[str, Meta(max_length=256)] = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: list[InferOutput] | None = None


_DECODER = msgspec.json.Decoder(InferBody)


class Exchange:
    """One v2 request and its answer, which is binary where the request asks."""

    media_type = "application/json"
    label = "v2"

    def __init__(self, model: str, header_bytes: int | None) -> None:
        """Expect a request to a model; `header_bytes` is the length of the JSON before binary tensors."""
        self._model = model
        self._header_bytes = header_bytes
        self._body: InferBody
        self._binary_output = False
        self.answer_header_bytes: int | None = None

    def parse(self, body: bytes, max_candidates: int, request_id: str, typed_json: object = None) -> RankRequest:
        """Return the rank request of an inference request; `typed_json` is for JSON rows.

        Raises:
            BodyMalformed, TooManyCandidates, DuplicateCandidate: see `service.errors`.
        """
        split = len(body) if self._header_bytes is None else self._header_bytes
        if split > len(body):
            raise BodyMalformed(f"header {HEADER_LENGTH}", found=split, expected=f"at most {len(body)}")
        self._body = decode(memoryview(body)[:split], _DECODER)
        tensors = read_tensors(self._body.inputs, memoryview(body)[split:])
        head, self._binary_output = _head(self._body, self._model, tensors)
        if IDS not in tensors:
            raise BodyMalformed(f"input {IDS!r}", found="nothing", expected="the candidates' ids")
        ids = _texts(IDS, tensors.pop(IDS))
        groups = tensors.pop(GROUPS, None)
        items = columns_of(ITEM, tensors)
        request = request_of(
            head,
            ids,
            items,
            None if groups is None else _texts(GROUPS, groups),
            max_candidates=max_candidates,
            request_id=request_id,
        )
        user, context = columns_of(USER, tensors), columns_of(CONTEXT, tensors)
        if tensors:
            known = f"{IDS}, {GROUPS}, {ITEM}<name>, {USER}<name> or {CONTEXT}<name>"
            raise BodyMalformed(f"input {min(tensors)[:100]!r}", found="an unknown name", expected=known)
        for name, column in (*user.items(), *context.items()):
            if len(column) != 1:
                raise BodyMalformed(f"input of {name!r}", found=f"{len(column)} rows", expected="one row")
        return msgspec.structs.replace(request, user=user, context=context)

    def answer(self, ranking: Ranking) -> bytes:
        """Return the inference response; JSON first, then the binary tensors."""
        tensors = output_tensors(ranking)
        wanted = self._body.outputs
        if wanted is not None:
            for output in wanted:
                if output.name not in tensors:
                    known = ", ".join(tensors)
                    raise BodyMalformed(f"output {output.name[:100]!r}", found="no such output", expected=known)
            binary = {o.name: bool(o.parameters.get("binary_data", self._binary_output)) for o in wanted}
        else:
            binary = dict.fromkeys(tensors, self._binary_output)
        blobs: list[bytes] = []
        outputs = [_output(name, tensors[name], blobs if in_binary else None) for name, in_binary in binary.items()]
        head = head_of(ranking)
        document = {
            "model_name": head["model"],
            "model_version": head["model_version"],
            "id": head["request_id"],
            "parameters": {
                "config_version": head["config_version"],
                "missing_features": head["missing_features"],
                **({"degraded": head["degraded"]} if head["degraded"] else {}),
                **{f"variant.{layer}": variant for layer, variant in ranking.decision.assignments.items()},
            },
            "outputs": outputs,
        }
        text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        self.answer_header_bytes = len(text) if blobs else None
        return text + b"".join(blobs)


def columns_of(prefix: str, tensors: dict[str, Column]) -> dict[str, Column | ListColumn]:
    """Take the columns of a prefix out of the tensors; those with lengths become lists.

    Raises:
        BodyMalformed: lengths that do not fit.
    """
    found: dict[str, Column | ListColumn] = {}
    for name in [name for name in tensors if name.startswith(prefix)]:
        if name.endswith(LENGTHS) and name[: -len(LENGTHS)] in tensors:
            continue
        values, lengths = tensors[name], tensors.get(name + LENGTHS)
        if lengths is None:
            found[name[len(prefix) :]] = values
            continue
        counts = lengths.values
        if counts.dtype.kind != "i" or (counts < 0).any() or int(counts.sum()) != len(values):  # type: ignore[operator]
            raise BodyMalformed(
                f"input {name + LENGTHS!r}", found="other lengths", expected=f"counts that sum to {len(values)}"
            )
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        found[name[len(prefix) :]] = ListColumn(values, offsets)
    for name in [name for name in tensors if name.startswith(prefix)]:
        del tensors[name]
    return found


def output_tensors(ranking: Ranking) -> dict[str, NDArray[Any] | list[str]]:
    """Return the outputs by name, candidates from the first position on."""
    order_K, predicted = ranking.ranked.order_K, ranking.predicted
    tensors: dict[str, NDArray[Any] | list[str]] = {
        "id": [ranking.request.ids[row] for row in order_K.tolist()],
        "score": ranking.ranked.score_N[order_K],
    }
    if predicted is not None:
        if predicted.p_up_N is not None and predicted.p_joint_NT is not None:
            tensors["p_up"] = predicted.p_up_N[order_K]
            tensors["p_joint"] = predicted.p_joint_NT[order_K]
        tensors["p"] = predicted.p_NT[order_K]
    if ranking.explanation is not None:
        tensors["explanation"] = [orjson.dumps(item).decode() for item in ranking.explanation.items(order_K.tolist())]
    return tensors


def _head(body: InferBody, model: str, tensors: Mapping[str, Column]) -> tuple[RankHead, bool]:
    prefix = "force_variant."
    force = {n[len(prefix) :]: v for n, v in body.parameters.items() if n.startswith(prefix)}
    try:
        parameters = msgspec.convert(body.parameters, InferParameters)
        force = msgspec.convert(force, dict[str, str])
    except msgspec.ValidationError as exc:
        raise BodyMalformed("$.parameters", found=str(exc), expected="user_id, top_k, explain") from exc
    head = RankHead(
        request_id=body.id,
        user=User(id=parameters.user_id),
        model=model,
        top_k=parameters.top_k,
        explain=parameters.explain,
        force_variant=force,
    )
    return head, parameters.binary_data_output


def _texts(name: str, column: Column) -> list[str]:
    if column.values.dtype.kind != "O":
        raise BodyMalformed(f"input {name!r}", found="numbers", expected="BYTES")
    texts: list[str] = column.values.tolist()
    for text in texts:
        check_length(f"input {name!r}", text)
    return texts


def _output(name: str, values: NDArray[Any] | list[str], blobs: list[bytes] | None) -> dict[str, object]:
    texts = isinstance(values, list)
    shape = [len(values)] if isinstance(values, list) else list(values.shape)
    datatype = "BYTES" if texts else {"f8": "FP64", "f4": "FP32"}[values.dtype.str[1:]]  # type: ignore[union-attr]
    output: dict[str, object] = {"name": name, "datatype": datatype, "shape": shape}
    if blobs is None:
        return output | {"data": values if isinstance(values, list) else np.ascontiguousarray(values).ravel()}
    if isinstance(values, list):
        encoded = [text.encode() for text in values]
        blob = b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    else:
        blob = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    blobs.append(blob)
    return output | {"parameters": {"binary_data_size": len(blob)}}
