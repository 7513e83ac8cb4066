"""Traffic for a rehearsal: users of both variants, testers, callers that err, and an overload."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Self

import httpx

ARROW = "application/vnd.apache.arrow.stream"
PAUSE_SECONDS = 0.02


class Traffic:
    """Sends rank requests to one service and counts the answers.

    Attributes:
        statuses: answers by HTTP status.
        degraded: JSON answers with the fallback order.
        first_user_feature: name of a feature of the requests' users.
    """

    def __init__(self, url: str, bodies: list[dict[str, Any]], seed: int = 1) -> None:
        """Keep requests to vary."""
        self.statuses: Counter[int] = Counter()
        self.degraded = 0
        self.first_user_feature: str = min(bodies[0]["user"]["features"])
        self._bodies = bodies
        self._lock = Lock()
        self._random = random.Random(seed)
        self._client = httpx.Client(base_url=url, timeout=10)

    def __enter__(self) -> Self:
        """Return itself; the block's end closes its connections."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def steady(self, until: float, *, without: str | None = None) -> None:
        """Send requests one after another until a moment of the monotonic clock, each without one user feature."""
        while time.monotonic() < until:
            self._send(self._body(without), self._headers())
            time.sleep(PAUSE_SECONDS)

    def overload(self, until: float) -> None:
        """Send large requests from 12 callers with short deadlines until a moment of the monotonic clock.

        Goes on for up to 30 s until requests were shed, late and answered with the fallback order.
        """
        large = [self._enlarged(body, 1000) for body in self._bodies[:3]]

        def caller(seed: int) -> None:
            own = random.Random(seed)
            while time.monotonic() < until or (not self._all_seen and time.monotonic() < until + 30):
                body = {**own.choice(large), "user": {**large[0]["user"], "id": f"u{own.randrange(500)}"}}
                self._send(body, {"X-Request-Deadline-Ms": str(own.choice((5, 15, 25, 40, 60, 500)))})
                time.sleep(PAUSE_SECONDS)

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(caller, range(12)))

    @property
    def _all_seen(self) -> bool:
        return bool(self.statuses[503] and self.statuses[504] and self.degraded)

    def _send(self, body: dict[str, Any], headers: dict[str, str]) -> None:
        answer = self._client.post("/v1/rank", json=body, headers=headers)
        with self._lock:
            self.statuses[answer.status_code] += 1
            if answer.status_code == 200 and answer.headers["content-type"] == "application/json":
                self.degraded += answer.json()["degraded"] is not None

    def _headers(self) -> dict[str, str]:
        return {"Accept": ARROW} if self._random.random() < 0.2 else {}

    def _body(self, without: str | None) -> dict[str, Any]:
        body = dict(self._random.choice(self._bodies))
        features = {name: value for name, value in body["user"]["features"].items() if name != without}
        body["user"] = {"id": f"u{self._random.randrange(500)}", "features": features}
        chance = self._random.random()
        if chance < 0.05:
            body["user"]["id"] = "tester"
            body["force_variant"] = {"ranking": "up_on"}
        elif chance < 0.08:
            body["candidates"] = [*body["candidates"], body["candidates"][0]]  # twice: refused
        elif chance < 0.5:  # one author only: no order keeps the caps
            body["candidates"] = [{**candidate, "group": "one"} for candidate in body["candidates"]]
        if self._random.random() < 0.1:
            body["candidates"] = [{**body["candidates"][0], "features": {}}, *body["candidates"][1:]]
        return body

    def _enlarged(self, body: dict[str, Any], candidates: int) -> dict[str, Any]:
        given = body["candidates"]
        made = [{**given[i % len(given)], "id": f"c{i}"} for i in range(candidates)]
        return {**body, "candidates": made}
