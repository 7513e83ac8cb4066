"""How each server takes a request and gives its answer: bytes out, bytes in. Knows nothing of processes.

Legend: N candidates, C code columns, T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.peers.kit import Kit

Codes = NDArray[np.int32]
Scores = NDArray[np.float32]
_BOUNDARY = b"loadtest-boundary"


@dataclass(frozen=True)
class Sent:
    """A request: path, headers, body."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Wire:
    """One way to ask one server.

    Attributes:
        name: as tables show it.
        requests: (kit, N) → what is sent, in turns.
        read_p: (kit, the first request's answer, its headers) → P(task) in input order, float32 [N, T].
        check: what is sent to have an answer that `read_p` reads; None: the first request itself.
        tolerance: how far P(task) may lie from the plain export's.
        whole_job: whether a peer does all that this service does: raw features in, the ordered feed out.
    """

    name: str
    requests: Callable[[Kit, int], list[Sent]]
    read_p: Callable[[Kit, int, bytes, dict[str, str]], Scores]
    check: Callable[[Kit, int], Sent] | None = None
    tolerance: float = 1e-4
    whole_job: bool = False


def of_peer(
    name: str, path: str, encode: Callable[[Codes], tuple[dict[str, str], bytes]], read_p: Callable[..., Scores]
) -> Wire:
    """Return a wire that carries encoded rows."""

    def requests(kit: Kit, count: int) -> list[Sent]:
        return [Sent(path, *encode(codes)) for codes in kit.inputs(count)]

    return Wire(name, requests, read_p)


def of_whole_job(name: str, path: str) -> Wire:
    """Return a wire of a peer that takes this service's JSON rows and answers as it does."""
    return Wire(name, _bodies(path, {"Content-Type": "application/json"}, "rows"), _p_of_ranking, whole_job=True)


def json_lists(codes: Codes) -> tuple[dict[str, str], bytes]:
    """Return {"codes": [[…], …]}."""
    return {"Content-Type": "application/json"}, _json({"codes": codes.tolist()})


def raw_bytes(codes: Codes) -> tuple[dict[str, str], bytes]:
    """Return the array's bytes."""
    return {"Content-Type": "application/octet-stream"}, codes.tobytes()


def uploaded(codes: Codes) -> tuple[dict[str, str], bytes]:
    """Return the array's bytes as a file of a form."""
    head = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="codes"\r\n\r\n' % _BOUNDARY
    body = head + codes.tobytes() + b"\r\n--%b--\r\n" % _BOUNDARY
    return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY.decode()}"}, body


def v2_json(codes: Codes) -> tuple[dict[str, str], bytes]:
    """Return an Open Inference Protocol request with JSON numbers."""
    tensor = {"name": "codes", "shape": list(codes.shape), "datatype": "INT32", "data": codes.ravel().tolist()}
    return {"Content-Type": "application/json"}, _json({"inputs": [tensor]})


def v2_binary(codes: Codes) -> tuple[dict[str, str], bytes]:
    """Return an Open Inference Protocol request with binary tensors both ways."""
    data = codes.tobytes()
    size = {"binary_data_size": len(data)}
    tensor = {"name": "codes", "shape": list(codes.shape), "datatype": "INT32", "parameters": size}
    head = _json({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}, head + data


def p_of_lists(kit: Kit, count: int, body: bytes, headers: dict[str, str]) -> Scores:
    """Return `p` of {"p": [[…], …]}."""
    return np.array(json.loads(body)["p"], dtype=np.float32)


def p_of_bytes(kit: Kit, count: int, body: bytes, headers: dict[str, str]) -> Scores:
    """Return the first of the arrays that stand one after the other."""
    return np.frombuffer(body, np.float32)[: count * len(kit.tasks)].reshape(count, -1)


def p_of_v2(kit: Kit, count: int, body: bytes, headers: dict[str, str]) -> Scores:
    """Return the tensor `p` of an Open Inference Protocol answer."""
    length = int(headers.get("inference-header-content-length", len(body)))
    at = length
    for tensor in json.loads(body[:length])["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size", 0)
        if tensor["name"] == "p":
            flat = np.frombuffer(body[at : at + size], np.float32) if size else np.array(tensor["data"], np.float32)
            return flat.reshape(count, -1)
        at += size
    return np.empty((0, 0), np.float32)


def of_service(name: str, kind: str, answer: str, *, tolerance: float) -> Wire:
    """Return a wire of this service: raw features as `rows`, `columns` or `arrow`, or `ids`; `json` or `arrow` back."""
    media_types = {"arrow": "application/vnd.apache.arrow.stream"}
    headers = {
        name: media_types.get(form, "application/json") for name, form in (("Content-Type", kind), ("Accept", answer))
    }

    def check(kit: Kit, count: int) -> Sent:
        return Sent("/v1/rank", headers | {"Accept": "application/json"}, kit.bodies(kind, count)[0])

    return Wire(name, _bodies("/v1/rank", headers, kind), _p_of_ranking, check, tolerance)


def _bodies(path: str, headers: dict[str, str], kind: str) -> Callable[[Kit, int], list[Sent]]:
    """Return how a kit's requests of a kind are sent."""
    return lambda kit, count: [Sent(path, headers, body) for body in kit.bodies(kind, count)]


def _p_of_ranking(kit: Kit, count: int, body: bytes, headers: dict[str, str]) -> Scores:
    items = {item["id"]: item for item in json.loads(body)["items"]}
    ids: Sequence[str] = json.loads(kit.bodies("ids", count)[0])["candidates"]["id"]
    return np.array([[items[name]["p"][task] for task in kit.tasks] for name in ids], np.float32)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
