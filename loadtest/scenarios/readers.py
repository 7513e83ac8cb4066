"""Threads that read what each worker answers: which versions, and whether a version always ranks alike."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from loadtest.scenarios.stack import clients_by_worker

_PAUSE_S = 0.005
_MOST_FAILURES = 100


@dataclass
class Seen:
    """What was answered to one and the same request.

    Attributes:
        answers: how many.
        failures: what was no whole answer, with its status; the first hundred.
        rankings: version → digests of the orders and scores that it gave.
    """

    answers: int = 0
    failures: list[str] = field(default_factory=list)
    rankings: dict[str, set[str]] = field(default_factory=dict)

    @property
    def mixed(self) -> int:
        """How many versions gave more than one ranking, or one that another version gave too."""
        owners: dict[str, int] = {}
        for digests in self.rankings.values():
            for digest in digests:
                owners[digest] = owners.get(digest, 0) + 1
        return sum(
            len(digests) > 1 or any(owners[digest] > 1 for digest in digests) for digests in self.rankings.values()
        )


class Readers:
    """One thread per worker that sends the same request again and again, from the block's start to its end."""

    def __init__(self, url: str, workers: int, body: bytes, version_of: Callable[[dict[str, Any]], str]) -> None:
        """Send nothing yet; `version_of` names the version that an answer says it is of."""
        self.seen = Seen()
        self._version_of = version_of
        self._body = body
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._clients = clients_by_worker(url, workers)
        self._threads = [threading.Thread(target=self._read, args=(client,)) for client in self._clients.values()]

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients.values():
            client.close()

    def _read(self, client: httpx.Client) -> None:
        headers = {"content-type": "application/json"}
        while not self._stop.wait(_PAUSE_S):
            try:
                response = client.post("/v1/rank", content=self._body, headers=headers)
            except httpx.HTTPError as exc:
                self._note_failure(f"{type(exc).__name__} {exc}")
                continue
            if response.status_code != 200:
                self._note_failure(f"{response.status_code} {response.text[:200]}")
                continue
            answer = orjson.loads(response.content)
            if answer["degraded"]:
                self._note_failure(f"degraded: {answer['degraded']}")
                continue
            ranking = orjson.dumps([(item["id"], item["score"]) for item in answer["items"]])
            with self._lock:
                self.seen.answers += 1
                digests = self.seen.rankings.setdefault(self._version_of(answer), set())
                digests.add(hashlib.sha256(ranking).hexdigest())

    def _note_failure(self, what: str) -> None:
        with self._lock:
            self.seen.answers += 1
            if len(self.seen.failures) < _MOST_FAILURES:
                self.seen.failures.append(what)
