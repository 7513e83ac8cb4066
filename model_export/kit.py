"""What a comparison with other servers needs: one network as a plain export and as bundles, and equal requests.

The folder (`dlen benchmark kit --out DIR`), which `dlen loadtest compare --peers` reads:

kit.json              candidates per request, requests of each, tasks, widths
plain.onnx            torch's own export, experts unrolled (what ONNX Runtime runs fastest): codes [N, C] → p, …
data/, run/           a made-up log, prepared, and the network trained on it
fp32/, int8/          models folders of the service: <precision>/dlen/1
items/, packed/       the int8 bundle with a table of the items' rows: first layers' halves, and packed ones
items.parquet         item id → raw item features
fusion.yaml           weighted sum with P(UP)
inputs-<N>.npz        codes int32 [requests, N, C] as peers get them, and the plain export's p of the first request
rows-<N>.jsonl, columns-<N>.jsonl, ids-<N>.jsonl, arrow-<N>-<k>.arrow    the same requests for this service, raw
every-item.jsonl      requests of 2,000 ids each that together name every item of the table
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from bundle import operators
from bundle.encode import SchemaEncoder
from bundle.features import FeatureSchema
from bundle.files import new_folder
from model_export.errors import ExportError
from model_export.item_graphs import Rows
from model_export.items import ItemsWanted
from model_export.parity import open_session
from model_export.plain_export import CODES, VALUES, unrolled, write_plain_export
from model_export.write import export_run
from training.config import RunConfig, TrainingConfig
from training.dataset import Prepared
from training.describe import describe_run
from training.prepare import prepare
from training.run import Run, create_run
from training.sources.table import open_table
from training.train import Trainer

ITEMS, USERS, ROWS = 20_000, 2_000, 160_000
DISTINCT = {"user": 50, "item": 100}
FEATURES = {"user": 14, "item": 10}
REQUESTS = 8
MOST_IDS = 2000
TASKS = {"click": 0.0, "like": -1.0, "follow": -2.0, "comment": -2.5, "hate": -3.0}
"""Task → its logit where nothing else speaks."""
ID = "id"
FUSION = """format: 1
default: feed
negative_tasks: [hate]
policies:
  feed:
    formula: weighted_sum
    signal: joint
    weights: {click: 1.0, like: 3.0, follow: 5.0, comment: 4.0, hate: -20.0}
    p_up: 0.5
"""


@dataclass(frozen=True)
class World:
    """Made-up users and items.

    Attributes:
        raw: side → raw feature values, int64 [rows, features of the side].
        taste: side → what draws users to items, float64 [rows, 8].
    """

    raw: dict[str, NDArray[np.int64]]
    taste: dict[str, NDArray[np.float64]]

    def names(self, side: str) -> list[str]:
        """Return the names of a side's features."""
        return [f"{side}_{index}" for index in range(FEATURES[side])]


def write_kit(
    out: Path,
    candidates: Sequence[int],
    *,
    table_items: int = ITEMS,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the kit into the new folder `out`; the same requests whenever it is written.

    The item table holds `table_items` items, 20,000 at least: beyond these, others with the features of some of them.

    Raises:
        ExportError, TrainingError: see `model_export.errors` and `training.errors`.
    """
    world, random = make_world(), np.random.default_rng(1)
    with new_folder(out) as folder:
        run = _train(folder, world, say)
        say("writing bundles and torch's own export")
        ids = [str(1_000_000 + row) for row in range(max(ITEMS, table_items))]
        rows = np.r_[np.arange(ITEMS), np.random.default_rng(3).integers(ITEMS, size=len(ids) - ITEMS)]
        columns = {name: world.raw["item"][rows, k] for k, name in enumerate(world.names("item"))}
        pl.DataFrame({ID: ids, **columns}).write_parquet(folder / "items.parquet")
        export_run(run.folder, folder / "fp32" / "dlen" / "1", "fp32")
        export_run(run.folder, folder / "int8" / "dlen" / "1", "int8")
        kinds: dict[str, Rows] = {"items": "layer1", "packed": "packed"}
        for models, kept in kinds.items():
            wanted = ItemsWanted(folder / "items.parquet", ID, kept)
            export_run(run.folder, folder / models / "dlen" / "1", "int8", wanted)
        codes = sum(FEATURES.values())
        _write_plain(run, folder / "plain.onnx", codes)
        (folder / "fusion.yaml").write_text(FUSION)
        for count in candidates:
            picks = [(int(random.integers(USERS)), random.permutation(ITEMS)[:count]) for _ in range(REQUESTS)]
            _write_requests(folder, count, [_body(world, ids, k, *pick) for k, pick in enumerate(picks)])
            _write_inputs(folder, run.schema, count, world, picks)
        pages = [ids[at : at + MOST_IDS] for at in range(0, len(ids), MOST_IDS)]
        heads = [_head(world, f"all-{number}", number % USERS) for number in range(len(pages))]
        of_all = [head | {"candidates": {"id": page}} for head, page in zip(heads, pages, strict=True)]
        (folder / "every-item.jsonl").write_text("".join(_json(body) + "\n" for body in of_all))
        kit = {"version": 1, "candidates": list(candidates), "requests": REQUESTS, "tasks": list(TASKS)}
        kit |= {"codes": codes, "request_codes": FEATURES["user"]}
        kit |= {"operators": operators.library() if operators.usable() else None}
        fusion = yaml.safe_load(FUSION)
        policy = fusion["policies"]["feed"]
        kit |= {"weights": policy["weights"], "p_up": policy["p_up"], "negative_tasks": fusion["negative_tasks"]}
        (folder / "kit.json").write_text(json.dumps(kit, indent=1))


def make_world() -> World:
    """Return users and items whose features say what they like."""
    random = np.random.default_rng(0)
    raw, taste = {}, {}
    for side, rows in (("user", USERS), ("item", ITEMS)):
        values = random.integers(0, DISTINCT[side], size=(rows, FEATURES[side]))
        speaks = random.normal(size=(FEATURES[side], DISTINCT[side], 8)) / np.sqrt(FEATURES[side])
        raw[side], taste[side] = (values + 1) * 104_729, speaks[np.arange(FEATURES[side]), values].sum(axis=1)
    return World(raw, taste)


def _train(folder: Path, world: World, say: Callable[[str], None]) -> Run:
    """Return the network of `dlen benchmark graph`'s size, trained for one epoch on a made-up log."""
    say(f"training on {ROWS:,} made-up impressions")
    (folder / "data").mkdir()
    _write_log(folder / "data" / "log.parquet", world)
    features = [
        {"name": name, "side": side, "kind": "categorical", "value_type": "integer", "embedding_size": 16,
         "encoding": {"type": "hash", "buckets": 20_000}}
        for side in FEATURES for name in world.names(side)
    ]  # fmt: skip
    tasks = [{"name": name, "label": name} | ({"kind": "negative"} if name == "hate" else {}) for name in TASKS]
    schema: dict[str, Any] = {"version": 1, "columns": {"user": "user", "item": "item"}, "tasks": tasks}
    schema |= {"split": {"by": "random", "validation": 0.1, "test": 0.05, "seed": 1}, "features": features}
    (folder / "data" / "schema.yaml").write_text(yaml.safe_dump(schema))
    data: Prepared
    data, _ = prepare(open_table(folder / "data" / "log.parquet", folder / "data" / "schema.yaml"), folder / "prepared")
    config = RunConfig(training=TrainingConfig(epochs=1, evaluations_per_epoch=1, learning_rate=2e-3))
    run = create_run(folder / "run", describe_run(config, data), data.schema)
    Trainer(run, data, say, lambda *_: None).fit()
    return run


def _write_log(path: Path, world: World) -> None:
    random = np.random.default_rng(2)
    users, items = random.integers(USERS, size=ROWS), random.integers(ITEMS, size=ROWS)
    liking = (world.taste["user"][users] * world.taste["item"][items]).sum(axis=1)
    liking += world.taste["item"][items, 0] + world.taste["user"][users, 1]
    columns: dict[str, Any] = {"user": users, "item": items}
    for side, rows in (("user", users), ("item", items)):
        columns |= {name: world.raw[side][rows, k] for k, name in enumerate(world.names(side))}
    for number, (task, base) in enumerate(TASKS.items()):
        turn = -0.7 if task == "hate" else 0.7
        logit = base + turn * liking + 0.5 * world.taste["item"][items, 2 + number]
        columns[task] = (random.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    pl.DataFrame(columns).write_parquet(path)


def _write_plain(run: Run, path: Path, codes: int) -> None:
    """Write torch's own export, without the input that no feature of ours fills."""
    write_plain_export(unrolled(run.trained_network()), path, codes=codes, values=0)
    model = onnx.load(path)
    unused = [given for given in model.graph.input if given.name == VALUES]
    for given in unused:
        if any(VALUES in node.input for node in model.graph.node):
            raise ExportError(str(path), found="a graph that reads values", expected="codes only")
        model.graph.input.remove(given)
    onnx.save(model, path)


def _body(world: World, ids: list[str], number: int, user: int, items: NDArray[np.int64]) -> dict[str, Any]:
    """Return a rank request with its candidates as rows."""
    rows = world.raw["item"][items].tolist()
    candidates = [
        {"id": ids[item], "features": dict(zip(world.names("item"), row, strict=True))}
        for item, row in zip(items.tolist(), rows, strict=True)
    ]
    return _head(world, f"kit-{number}", user) | {"candidates": candidates}


def _head(world: World, request_id: str, user: int) -> dict[str, Any]:
    """Return a rank request but for its candidates."""
    of_user = dict(zip(world.names("user"), world.raw["user"][user].tolist(), strict=True))
    return {"request_id": request_id, "user": {"id": str(user), "features": of_user}}


def _write_requests(folder: Path, count: int, bodies: list[dict[str, Any]]) -> None:
    """Write the bodies in every encoding of this service."""
    lines: dict[str, list[str]] = {"rows": [], "columns": [], "ids": []}
    for number, body in enumerate(bodies):
        ids = [candidate["id"] for candidate in body["candidates"]]
        features = {
            name: [candidate["features"][name] for candidate in body["candidates"]]
            for name in body["candidates"][0]["features"]
        }
        head = {key: value for key, value in body.items() if key != "candidates"}
        lines["rows"].append(_json(body))
        lines["columns"].append(_json(head | {"candidates": {"id": ids, "features": features}}))
        lines["ids"].append(_json(head | {"candidates": {"id": ids}}))
        arrays = {"id": pa.array(ids, pa.string())}
        arrays |= {f"features.{name}": pa.array(values, pa.int64()) for name, values in features.items()}
        batch = pa.record_batch(arrays).replace_schema_metadata({b"dlen": _json(head).encode()})
        with pa.ipc.new_stream(folder / f"arrow-{count}-{number}.arrow", batch.schema) as writer:
            writer.write_batch(batch)
    for kind, texts in lines.items():
        (folder / f"{kind}-{count}.jsonl").write_text("".join(text + "\n" for text in texts))


def _write_inputs(
    folder: Path, schema: FeatureSchema, count: int, world: World, picks: list[tuple[int, NDArray[np.int64]]]
) -> None:
    """Write the requests encoded, whole rows, as the plain export takes them, and what it gives for the first."""
    encoder = SchemaEncoder(schema)
    codes = np.empty((len(picks), count, sum(FEATURES.values())), dtype=np.int32)
    for number, (user, items) in enumerate(picks):
        parts = []
        for side, part, rows in (("user", encoder.request, [user]), ("item", encoder.item, items)):
            values = {name: world.raw[side][rows, k].tolist() for k, name in enumerate(world.names(side))}
            parts.append(part.encode(part.columns_from_python(values), len(rows)).codes_NC)
        codes[number] = np.concatenate([np.broadcast_to(parts[0], (count, parts[0].shape[1])), parts[1]], axis=1)
    p_NT = open_session(folder / "plain.onnx").run(None, {CODES: codes[0]})[0]
    np.savez_compressed(folder / f"inputs-{count}.npz", codes=codes, p=p_NT)


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))
