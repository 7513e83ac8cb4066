"""Recorded requests with a model's scores: read from a file, or scored by a running ranker.

A file holds one JSON document per line (or one alone). A *scored* request is

    {"request_id": "r-1", "tasks": ["click", "like"], "p": [[.1, .2], …], "p_joint": [[…]], "p_up": […],
     "ids": ["5239", …], "keys": {"group": […]}, "attributes": {"age_hours": […]}}

with one row per candidate; p_joint, p_up, ids, keys and attributes may be absent. A document with `candidates` is a
body for POST /v1/rank, as `dlen request` writes it, and needs the address of a ranker to score it. Knows nothing of
policies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion.errors import RequestsInvalid
from fusion.signals import Candidates, Probabilities

MAX_REQUESTS = 100_000
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Recorded:
    """One request's candidates as the model scored them."""

    name: str
    tasks: tuple[str, ...]
    probabilities: Probabilities
    candidates: Candidates


def read_requests(file: Path, url: str | None = None) -> list[Recorded]:
    """Return the recorded requests, in file order; those without scores are scored by the ranker at `url`.

    Raises:
        RequestsInvalid: names the file, the line, what was found and expected.
    """
    found: list[Recorded] = []
    for place, document in _documents(file):
        if len(found) == MAX_REQUESTS:
            raise RequestsInvalid(place, found="more requests", expected=f"at most {MAX_REQUESTS}")
        if "candidates" in document:
            if url is None:
                expected = "scores ('tasks', 'p', …), or --url of a ranker to score them"
                raise RequestsInvalid(place, found="a rank request without scores", expected=expected)
            document = _scored(place, document, url)
        found.append(_recorded(place, document))
    if not found:
        raise RequestsInvalid(str(file), found="no request", expected="at least one")
    different = next((one for one in found if one.tasks != found[0].tasks), None)
    if different:
        expected = f"those of the first request, {list(found[0].tasks)}"
        raise RequestsInvalid(different.name, found=f"tasks {list(different.tasks)}", expected=expected)
    return found


def _documents(file: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        text = file.read_text()
    except OSError as exc:
        raise RequestsInvalid(str(file), found=exc.strerror, expected="a readable file") from exc
    except UnicodeDecodeError as exc:
        raise RequestsInvalid(str(file), found=f"byte {exc.start}", expected="UTF-8") from exc
    try:
        whole = json.loads(text)
        documents = [(str(file), whole)] if isinstance(whole, dict) else [(str(file), item) for item in whole]
    except ValueError:
        documents = [_line(file, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    except TypeError as exc:
        raise RequestsInvalid(str(file), found="a JSON value", expected="objects") from exc
    for place, document in documents:
        if not isinstance(document, dict):
            raise RequestsInvalid(place, found=type(document).__name__, expected="an object")
    return documents


def _line(file: Path, number: int, line: str) -> tuple[str, dict[str, Any]]:
    try:
        return f"{file}:{number}", json.loads(line)
    except ValueError as exc:
        raise RequestsInvalid(f"{file}:{number}", found=str(exc), expected="a JSON object") from exc


def _recorded(place: str, document: dict[str, Any]) -> Recorded:
    tasks = document.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks) or not tasks:
        raise RequestsInvalid(f"{place}: tasks", found=repr(tasks)[:60], expected="a list of task names")
    p_NT = _array(place, document, "p", (None, len(tasks)))
    count = len(p_NT)
    joint = _array(place, document, "p_joint", (count, len(tasks))) if document.get("p_joint") is not None else None
    p_up = _array(place, document, "p_up", (count,)) if document.get("p_up") is not None else None
    name = str(document.get("request_id", place))
    ids = document.get("ids")
    keys, attributes = document.get("keys") or {}, document.get("attributes") or {}
    for what, values in [*keys.items(), *([("ids", ids)] if ids is not None else [])]:
        if not isinstance(values, list) or len(values) != count:
            raise RequestsInvalid(f"{place}: {what}", found=repr(values)[:60], expected=f"a list of {count}")
    numbers = {key: _array(place, attributes, key, (count,), bounded=False) for key in attributes}
    return Recorded(name, tuple(tasks), Probabilities(p_NT, joint, p_up), Candidates(ids, keys, numbers, seed=name))


def _array(
    place: str, document: dict[str, Any], key: str, shape: tuple[int | None, ...], *, bounded: bool = True
) -> Any:
    try:
        values = np.array(document.get(key), dtype=np.float64)
    except (TypeError, ValueError) as exc:
        raise RequestsInvalid(f"{place}: {key}", found=str(exc), expected="numbers") from exc
    wanted = "[" + ", ".join("N" if size is None else str(size) for size in shape) + "]"
    fits = values.ndim == len(shape) and all(
        size in (None, have) for size, have in zip(shape, values.shape, strict=True)
    )
    if not fits:
        raise RequestsInvalid(f"{place}: {key}", found=f"shape {list(values.shape)}", expected=wanted)
    if bounded and not ((values >= 0) & (values <= 1)).all():
        raise RequestsInvalid(f"{place}: {key}", found="values outside [0, 1]", expected="probabilities")
    return values


def _scored(place: str, body: dict[str, Any], url: str) -> dict[str, Any]:
    """Return the body's candidates with the scores that a running ranker gives them."""
    import httpx

    rows = body["candidates"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
        raise RequestsInvalid(f"{place}: candidates", found=type(rows).__name__, expected="rows, each with an id")
    asked = {key: value for key, value in body.items() if key not in ("top_k", "explain", "force_variant")}
    try:
        response = httpx.post(f"{url.rstrip('/')}/v1/rank", json=asked, timeout=_TIMEOUT_SECONDS)
        answer = response.json()
    except (httpx.HTTPError, ValueError) as exc:
        raise RequestsInvalid(f"{place}: {url}", found=str(exc), expected="a running ranker") from exc
    if response.status_code != 200:
        found = f"status {response.status_code}: {answer.get('detail', '') if isinstance(answer, dict) else ''}"
        raise RequestsInvalid(f"{place}: {url}", found=found, expected="status 200")
    items = {item["id"]: item for item in answer["items"]}
    rows = [row for row in rows if row["id"] in items]
    if not rows:
        raise RequestsInvalid(f"{place}: {url}", found="no item in the answer", expected="every candidate")
    ordered = [items[row["id"]] for row in rows]
    tasks = list(ordered[0]["p"])
    latent = ordered[0].get("p_joint") is not None
    return {
        "request_id": body.get("request_id", place),
        "tasks": tasks,
        "p": [[item["p"][task] for task in tasks] for item in ordered],
        "p_joint": [[item["p_joint"][task] for task in tasks] for item in ordered] if latent else None,
        "p_up": [item["p_up"] for item in ordered] if latent else None,
        "ids": [row["id"] for row in rows],
        **_features(rows),
    }


def _features(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows' group and features, numbers also as attributes."""
    names = {name for row in rows for name in row.get("features", {})}
    columns = {name: [row.get("features", {}).get(name) for row in rows] for name in sorted(names)}
    plain = {
        name: values for name, values in columns.items() if not any(isinstance(value, list | dict) for value in values)
    }
    numeric = {
        name: [np.nan if value is None else float(value) for value in values]
        for name, values in plain.items()
        if all(value is None or isinstance(value, int | float) for value in values)
    }
    keys = dict(plain)
    if any(row.get("group") is not None for row in rows):
        keys["group"] = [row.get("group") for row in rows]
    return {"keys": keys, "attributes": numeric}
