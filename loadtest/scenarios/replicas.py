"""Two replicas behind nginx under a steady load, and what nginx noted of requests that it asked of both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from loadtest.scenarios.scenario import Settings
from loadtest.scenarios.stack import Ranker, nginx_in_front

BEHIND_NGINX: Mapping[str, str] = MappingProxyType({"DLEN_DEADLINE_MS": "400"})
"""As in docker-compose.yml: below nginx's proxy_read_timeout."""


@dataclass(frozen=True)
class Pair:
    """Two rankers and the proxy's address before them."""

    url: str
    replicas: Sequence[Ranker]
    access_log: Path

    def asked_twice(self) -> list[dict[str, object]]:
        """Return nginx's lines about requests that more than one replica was asked for."""
        lines = [json.loads(line) for line in self.access_log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if "," in str(line["upstream"])]


@contextmanager
def behind_nginx(settings: Settings, environment: Mapping[str, str] = BEHIND_NGINX) -> Iterator[Pair]:
    """Run two rankers of one worker each behind nginx until the block ends."""
    with ExitStack() as stack:
        made = [Ranker(settings, f"ranker-{number}", environment=environment) for number in (1, 2)]
        first, second = [stack.enter_context(ranker) for ranker in made]
        url = stack.enter_context(nginx_in_front(settings.folder, (first.port, second.port)))
        yield Pair(url, made, settings.folder / "access.log")
