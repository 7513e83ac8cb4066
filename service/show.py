"""`dlen rank`: one request from a file, the ordered feed as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import orjson
from rich.console import Console
from rich.table import Table

from bundle.files import write_file
from fusion.explain import explanation_table, number_text
from service.client import JSON, Client, Message
from service.errors import RequestFileInvalid
from service.keys import read_keys


def print_ranking(
    url: str,
    request_file: Path,
    explain: bool,
    top: int,
    timeout_seconds: float,
    json_file: Path | None,
    key_file: Path | None = None,
) -> int:
    """Send the request in a file and print the answer.

    Raises:
        SettingsInvalid: the key file holds no key.
        ClientError: why there is no answer.
    """
    key = None if key_file is None else read_keys(f"--key-file {key_file}", key_file)[0]
    document = read_request(request_file)
    if explain:
        document["explain"] = True
    with Client(url, key=key, timeout_seconds=timeout_seconds) as client:
        request = Message(orjson.dumps(document), {"Content-Type": JSON})
        answer: dict[str, Any] = msgspec.to_builtins(client.send(request))
    if json_file is not None:
        write_file(json_file, orjson.dumps(answer, option=orjson.OPT_INDENT_2))
    console = Console()
    console.print(ranking_table(answer, top))
    explained = [item for item in answer["items"][:top] if item.get("explanation")]
    if explained:
        console.print(explanation_table([item["id"] for item in explained], [i["explanation"] for i in explained]))
    console.print(summary(answer), highlight=False)
    return 0


def read_request(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        RequestFileInvalid: it does not read.
    """
    try:
        document = orjson.loads(file.read_bytes())
    except OSError as exc:
        raise RequestFileInvalid(str(file), found=exc.strerror, expected="a rank request") from exc
    except orjson.JSONDecodeError as exc:
        raise RequestFileInvalid(str(file), found=str(exc), expected="JSON") from exc
    if not isinstance(document, dict):
        raise RequestFileInvalid(str(file), found=type(document).__name__, expected="an object")
    return document


def ranking_table(answer: dict[str, Any], top: int) -> Table:
    """Return position, id, score, P(UP) and P(task, UP) per task; P(task) where the model has no latent."""
    items = answer["items"][:top]
    latent = bool(items) and items[0].get("p_joint") is not None
    kind = "p_joint" if latent else "p"
    tasks = list(items[0][kind]) if items else []
    table = Table(title=f"{answer['model']} {answer['model_version']}, {len(answer['items'])} candidates")
    for name in ("#", "id", "score", *(["P(UP)"] if latent else []), *tasks):
        table.add_column(name, justify="left" if name == "id" else "right", no_wrap=True, overflow="fold")
    table.caption = "a task's column is P(task, UP)" if latent else "a task's column is P(task)"
    for position, item in enumerate(items, start=1):
        up = [f"{item['p_up']:.4f}"] if latent else []
        values = [f"{item[kind][task]:.4f}" for task in tasks]
        table.add_row(str(position), item["id"], number_text(item["score"], decimals=5), *up, *values)
    return table


def summary(answer: dict[str, Any]) -> str:
    """Return one line on what answered and what was lacking."""
    parts = [f"config {str(answer['config_version'])[:19]}"]
    if answer.get("assignments"):
        parts.append("variants " + ", ".join(f"{k}={v}" for k, v in answer["assignments"].items()))
    if answer.get("missing_features"):
        parts.append(f"{answer['missing_features']} feature values missing (defaults used)")
    if answer.get("degraded"):
        parts.append(f"degraded: {answer['degraded']}")
    return " · ".join(parts)
