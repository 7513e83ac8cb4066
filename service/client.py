"""A typed client of the ranking service, blocking and asynchronous; connections are kept and reused.

    with Client("http://127.0.0.1:8080") as client:
        answer = client.rank(["5239", "5240"], {"author_id": [8079479, None]}, user_id="712", top_k=10)
        feed = [item.id for item in answer.items]

Knows the service over HTTP only, and loads neither models nor a web framework.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import msgspec
import orjson

from service.errors import AnswerInvalid, ServerRefused, ServerUnreachable
from service.wire.answer import RankAnswer, RankedItem

RANK_PATH = "/v1/rank"
JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
Wire = Literal["json", "arrow"]
_ANSWER = msgspec.json.Decoder(RankAnswer)


@dataclass(frozen=True)
class Message:
    """A request as it goes over the wire."""

    body: bytes
    headers: Mapping[str, str]


def message(
    ids: Sequence[str],
    features: Mapping[str, Sequence[object]] | None = None,
    *,
    wire: Wire = "json",
    groups: Sequence[str | None] | None = None,
    user_id: str = "",
    user: Mapping[str, object] | None = None,
    context: Mapping[str, object] | None = None,
    model: str | None = None,
    top_k: int | None = None,
    explain: bool = False,
    force_variant: Mapping[str, str] | None = None,
    request_id: str = "",
    deadline_ms: int | None = None,
) -> Message:
    """Return a rank request of candidates given as columns.

    Args:
        ids: the candidates' ids, all different, in the order that breaks ties.
        features: item features by name, one value per candidate, None where it is missing.
        wire: the encoding of request and answer.
        groups: what rerank rules group by, one per candidate.
        user_id: decides the user's variants.
        user: user features by name.
        context: context features by name.
        model: needed where several models serve.
        top_k: how many candidates to return; all where None.
        explain: whether each item shows how its score came to be.
        force_variant: layer → variant, for testers.
        request_id: echoed in the answer.
        deadline_ms: how long the caller waits; later work is dropped.
    """
    head: dict[str, Any] = {
        "request_id": request_id,
        "user": {"id": user_id, "features": user or {}},
        "context": context or {},
        "model": model,
        "top_k": top_k,
        "explain": explain,
        "force_variant": force_variant or {},
    }
    deadline = {} if deadline_ms is None else {"X-Request-Deadline-Ms": str(deadline_ms)}
    if wire == "json":
        candidates = {"id": ids, "features": features or {}, "group": groups}
        body = orjson.dumps({**head, "candidates": candidates}, default=list)
        return Message(body, {"Content-Type": JSON, "Accept": JSON, **deadline})
    return Message(_arrow_body(head, ids, features or {}, groups), {"Content-Type": ARROW, "Accept": ARROW, **deadline})


def answer_of(url: str, response: httpx.Response) -> RankAnswer:
    """Return the answer in a response.

    Raises:
        ServerRefused, AnswerInvalid: why there is none.
    """
    if response.status_code != 200:
        raise ServerRefused(url, found=f"status {response.status_code}: {_detail(response)}", expected="a ranking")
    try:
        if response.headers.get("content-type") == ARROW:
            return _arrow_answer(response.content)
        return _ANSWER.decode(response.content)
    except (ValueError, KeyError, OSError) as exc:
        raise AnswerInvalid(url, found=" ".join(str(exc).split())[:200], expected="a ranking") from exc


class Client:
    """The blocking client; threads may share it."""

    def __init__(self, url: str, *, wire: Wire = "json", key: str | None = None, timeout_seconds: float = 10.0) -> None:
        """Talk to the service at `url`, showing `key`; nothing is sent yet.

        Raises:
            ServerUnreachable: the URL does not read.
        """
        self._url = url.rstrip("/")
        self._wire = wire
        try:
            self._http = httpx.Client(base_url=self._url, timeout=timeout_seconds, headers=_shown(key))
        except httpx.InvalidURL as exc:
            raise ServerUnreachable(url, found=str(exc), expected="a URL") from exc

    def rank(
        self, ids: Sequence[str], features: Mapping[str, Sequence[object]] | None = None, **more: Any
    ) -> RankAnswer:
        """Return the ordered feed; `more` as of `message`.

        Raises:
            ServerUnreachable, ServerRefused, AnswerInvalid: why there is none.
        """
        return self.send(message(ids, features, wire=self._wire, **more))

    def send(self, request: Message) -> RankAnswer:
        """Return the answer to a message; errors as of `rank`."""
        try:
            response = self._http.post(RANK_PATH, content=request.body, headers=dict(request.headers))
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise _unreachable(self._url, exc) from exc
        return answer_of(self._url, response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        """Close the connections."""
        self.close()


class AsyncClient:
    """The asynchronous client; tasks of one event loop may share it."""

    def __init__(self, url: str, *, wire: Wire = "json", key: str | None = None, timeout_seconds: float = 10.0) -> None:
        """Talk to the service at `url`, showing `key`; nothing is sent yet.

        Raises:
            ServerUnreachable: the URL does not read.
        """
        self._url = url.rstrip("/")
        self._wire = wire
        try:
            self._http = httpx.AsyncClient(base_url=self._url, timeout=timeout_seconds, headers=_shown(key))
        except httpx.InvalidURL as exc:
            raise ServerUnreachable(url, found=str(exc), expected="a URL") from exc

    async def rank(
        self, ids: Sequence[str], features: Mapping[str, Sequence[object]] | None = None, **more: Any
    ) -> RankAnswer:
        """Return the ordered feed; `more` as of `message`.

        Raises:
            ServerUnreachable, ServerRefused, AnswerInvalid: why there is none.
        """
        return await self.send(message(ids, features, wire=self._wire, **more))

    async def send(self, request: Message) -> RankAnswer:
        """Return the answer to a message; errors as of `rank`."""
        try:
            response = await self._http.post(RANK_PATH, content=request.body, headers=dict(request.headers))
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise _unreachable(self._url, exc) from exc
        return answer_of(self._url, response)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()


def _shown(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def _unreachable(url: str, exc: Exception) -> ServerUnreachable:
    found = " ".join(str(exc).split()) or type(exc).__name__
    return ServerUnreachable(url, found=found, expected="a ranking service")


def _detail(response: httpx.Response) -> str:
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return "no problem document"
    if not isinstance(document, dict):
        return "no problem document"
    return str(document.get("detail") or document.get("title"))[:1000]


def _arrow_body(
    head: Mapping[str, Any],
    ids: Sequence[str],
    features: Mapping[str, Sequence[object]],
    groups: Sequence[str | None] | None,
) -> bytes:
    import pyarrow as pa  # only those who speak Arrow pay for loading it

    arrays: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    if groups is not None:
        arrays["group"] = pa.array(groups, pa.string())
    for name, values in features.items():
        array = pa.array(values)
        arrays[f"features.{name}"] = array if array.type != pa.null() else pa.nulls(len(array), pa.int64())
    batch = pa.record_batch(arrays).replace_schema_metadata({"dlen": orjson.dumps(head, default=list)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(memoryview(sink.getvalue()))


def _arrow_answer(body: bytes) -> RankAnswer:
    import pyarrow as pa

    with pa.ipc.open_stream(body) as reader:
        table = reader.read_all()
    columns = {name: table[name].to_pylist() for name in table.column_names}
    by_kind: dict[str, dict[str, list[float]]] = {"p": {}, "p_joint": {}}
    for name, values in columns.items():
        kind, dot, task = name.partition(".")
        if dot:
            by_kind[kind][task] = values
    items = []
    for row, candidate in enumerate(columns["id"]):
        p, p_joint = ({task: values[row] for task, values in by_kind[kind].items()} for kind in ("p", "p_joint"))
        explanation = columns["explanation"][row] if "explanation" in columns else None
        items.append(
            RankedItem(
                id=candidate,
                score=columns["score"][row],
                p=p or None,
                p_up=columns["p_up"][row] if "p_up" in columns else None,
                p_joint=p_joint or None,
                explanation=None if explanation is None else json.loads(explanation),
            )
        )
    head = json.loads(table.schema.metadata[b"dlen"])
    return RankAnswer(items=items, **head)
