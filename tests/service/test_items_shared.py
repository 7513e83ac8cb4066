"""Workers map one item table: however many read it, its pages are in memory once."""

from __future__ import annotations

from pathlib import Path

import polars as pl

FUSION = """format: 1
default: feed
negative_tasks: []
policies:
  feed: {formula: weighted_sum, weights: {click: 1.0}}
"""


def mapped_kib(process: int, file: str) -> dict[str, int]:
    """What a process has of a mapped file in memory, by the names of its smaps."""
    found: dict[str, int] = {}
    of_file = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            of_file = line.endswith(file)
        elif of_file and rest[-1] == "kB":
            found[name[:-1]] = found.get(name[:-1], 0) + int(rest[0])
    return found


def test_workers_share_every_page_of_the_item_table(serve, item_models, item_table, tmp_path):
    (tmp_path / "fusion.yaml").write_text(FUSION)
    service = serve("--workers", "2", "--model", "layer1", models=item_models, fusion=tmp_path / "fusion.yaml")
    ids = [str(item) for item in pl.read_parquet(item_table)["id"]]
    assert service.rank({"candidates": {"id": ids}}).json()["missing_features"] > 0  # of the user, not of the items
    tables = [mapped_kib(worker, "items.index.npy") for worker in service.worker_pids()]
    tables = [table for table in tables if table]
    assert len(tables) == 2
    for table in tables:
        assert table["Rss"] == table["Size"] > 0  # each has read all of its index
        assert table["Private_Dirty"] == table["Anonymous"] == 0
    assert sum(table["Pss"] for table in tables) <= tables[0]["Rss"] + 1
