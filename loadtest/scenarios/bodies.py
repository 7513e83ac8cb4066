"""Rank requests made wider, so that a ranker has something in hand when it is struck."""

from __future__ import annotations

import json
from dataclasses import replace

from loadtest.scenarios.scenario import Settings


def widened(settings: Settings, candidates: int) -> Settings:
    """Return the settings with so many candidates in each body: copies with ids of their own.

    A body that gives its candidates otherwise than as a list of objects stays as it is.
    """
    return replace(settings, bodies=tuple(_widened(body, candidates) for body in settings.bodies))


def _widened(body: bytes, wanted: int) -> bytes:
    document = json.loads(body)
    candidates = document.get("candidates")
    if not isinstance(candidates, list) or not candidates or not all(isinstance(one, dict) for one in candidates):
        return body
    known = {str(one.get("id")) for one in candidates}
    copies = range(1 + wanted // len(candidates))
    made = [
        {**one, "id": f"{one.get('id')}~{copy}" if copy else one.get("id")} for copy in copies for one in candidates
    ]
    kept = [one for number, one in enumerate(made) if number < len(candidates) or str(one["id"]) not in known]
    return json.dumps({**document, "candidates": kept[: max(wanted, 1)]}).encode()
