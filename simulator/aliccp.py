"""Writes made-up logs in the official raw layout of Ali-CCP, of any size, and the truth behind them beside it.

Files: sample_skeleton_{train,test}.csv, common_features_{train,test}.csv, truth_{train,test}/*.parquet (sample_id,
p_click, p_buy_given_click), simulation.json. The folder appears whole or not at all, and a killed attempt goes on
where it stood; memory is bounded by the world and one chunk of rows. Knows nothing of who reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bundle.files import resumed_folder, write_file
from simulator.aliccp_world import HISTORY, INTENTS, NONE, USER_FIELDS, Ints, Rows, World
from simulator.errors import OutputExists, OutputFailed, SizeInvalid
from simulator.oracle import auc_of_counts

FILES = ("train", "test")
TEST_SHARE = 0.1
"""Rows of the test file; the real one holds half, which a scale test would spend on rows that train nothing."""
CHUNK_ROWS = 200_000
PART_CHUNKS = 25
"""Chunks in a file of truth, after which it is noted what is written: what is lost at most by a kill."""
MIN_ROWS = 1000
_FORMAT = 1
_MAX_ROWS = 10_000_000_000
_AUC_BINS = 20_000
_BETWEEN, _AFTER_FIELD, _AFTER_ID = "\x01", "\x02", "\x03"

_FIRST_ID = {
    "101": 1, "109_14": 400_001, "110_14": 420_001, "127_14": 520_001, "150_14": 560_001, "121": 580_101,
    "122": 580_301, "124": 580_401, "125": 580_501, "126": 580_601, "127": 580_701, "128": 580_801, "129": 580_901,
    "205": 600_001, "206": 5_000_001, "207": 5_100_001, "210": 5_400_001, "216": 5_500_001, "508": 6_000_001,
    "509": 6_100_001, "702": 6_400_001, "853": 6_500_001, "301": 9_000_001,
}  # fmt: skip
"""Each field has ids of its own, as in the real log."""
_HISTORY_FIELDS = {"109_14": "category", "110_14": "shop", "127_14": "brand", "150_14": "intent"}

_TRUTH = pa.schema({"sample_id": pa.int64(), "p_click": pa.float32(), "p_buy_given_click": pa.float32()})

Progress = Callable[[int, int], None]


def write_aliccp(
    rows: int, seed: int, out: Path, progress: Progress | None = None, population_of: int | None = None
) -> dict[str, Any]:
    """Write `rows` rows, train and test together, to the new folder `out`; return what simulation.json holds.

    There are as many users and items as in a log of `population_of` rows; of `rows` rows where it is None.

    Raises:
        SizeInvalid: too few rows, or a seed below 0.
        OutputExists: `out` is there already and is not an empty folder.
        OutputFailed: the disk is full or not writable; nothing is left behind.
    """
    if not MIN_ROWS <= rows <= _MAX_ROWS:
        raise SizeInvalid("rows", found=rows, expected=f"{MIN_ROWS} to {_MAX_ROWS}")
    population_of = rows if population_of is None else population_of
    if not MIN_ROWS <= population_of <= _MAX_ROWS:
        raise SizeInvalid("population of rows", found=population_of, expected=f"{MIN_ROWS} to {_MAX_ROWS}")
    if seed < 0:
        raise SizeInvalid("seed", found=seed, expected="0 or more")
    world_seed, rows_seed, index_seed = np.random.SeedSequence(seed).spawn(3)
    try:
        with resumed_folder(out, f"aliccp {_FORMAT} {rows} {seed} {population_of}") as folder:
            world = World(population_of, world_seed)
            log = _Log(world, rows, np.random.default_rng(index_seed), progress or (lambda done, of: None))
            facts = {"format": _FORMAT, "layout": "aliccp", "seed": seed, "rows": rows}
            facts |= {"users": len(world.users.effect_U2), "items": len(world.items.effect_I2)}
            sizes = (rows - round(rows * TEST_SHARE), round(rows * TEST_SHARE))
            for name, size, file_seed in zip(FILES, sizes, rows_seed.spawn(2), strict=True):
                facts[name] = log.write(folder, name, size, file_seed)
            (folder / "simulation.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except FileExistsError as exc:
        raise OutputExists(str(out), found="an existing folder", expected="a new one") from exc
    except OSError as exc:
        raise OutputFailed(str(out), found=exc.strerror or str(exc), expected="a writable place with room") from exc
    return facts


class _Log:
    """The texts of a world, written file by file."""

    def __init__(self, world: World, rows: int, rng: np.random.Generator, progress: Progress) -> None:
        self._world, self._rows, self._progress, self._done = world, rows, progress, 0
        self._items, self._item_features = _item_texts(world)
        self._indices = {name: rng.integers(2**64, size=len(world.users.effect_U2), dtype=np.uint64) for name in FILES}

    def write(self, folder: Path, name: str, rows: int, seed: np.random.SeedSequence) -> dict[str, Any]:
        """Write the files of train or test, or what of them is not noted as written; return their figures."""
        note, skeleton = folder / f"{name}.json", folder / f"sample_skeleton_{name}.csv"
        indices = pl.Series([f"{index:016x}" for index in self._indices[name].tolist()])
        chunks = seed.spawn(-(-rows // CHUNK_ROWS))
        parts = [chunks[start : start + PART_CHUNKS] for start in range(0, len(chunks), PART_CHUNKS)]
        first, totals = self._done, _Totals()
        noted: dict[str, Any] = json.loads(note.read_text("utf-8")) if note.exists() else {"parts": 0, "bytes": 0}
        if noted["parts"]:
            totals.restore(noted["totals"])
            self._done += totals.rows
        else:
            self._write_common(folder / f"common_features_{name}.csv", indices)
            (folder / f"truth_{name}").mkdir(exist_ok=True)
        for number, seeds in list(enumerate(parts))[noted["parts"] :]:
            truth = folder / f"truth_{name}" / f"{number:05d}.parquet"
            with skeleton.open("r+b" if number else "wb") as file:
                file.seek(noted["bytes"])
                file.truncate()
                self._write_part(file, truth, seeds, first + rows, indices, totals)
                noted = {"parts": number + 1, "bytes": file.tell()}
            write_file(note, json.dumps(noted | {"totals": totals.state()}).encode())
        note.unlink()
        return totals.facts()

    def _write_common(self, path: Path, indices: pl.Series) -> None:
        with path.open("wb") as file:
            for lines in _common_lines(self._world, indices):
                _append(file, lines)

    def _write_part(
        self,
        skeleton: BinaryIO,
        truth: Path,
        seeds: Sequence[np.random.SeedSequence],
        end: int,
        indices: pl.Series,
        totals: _Totals,
    ) -> None:
        """Write one chunk of rows per seed, up to row `end`."""
        with pq.ParquetWriter(truth, _TRUTH) as writer:
            for seed in seeds:
                rows = min(CHUNK_ROWS, end - self._done)
                drawn = self._world.draw(rows, np.random.default_rng(seed))
                sample_ids = np.arange(self._done + 1, self._done + rows + 1)
                _append(skeleton, self._skeleton_lines(sample_ids, drawn, indices))
                columns = [sample_ids, drawn.p_click_N.astype(np.float32), drawn.p_buy_N.astype(np.float32)]
                writer.write_table(pa.table(columns, schema=_TRUTH))
                totals.add(drawn)
                self._done += rows
                self._progress(self._done, self._rows)

    def _skeleton_lines(self, sample_ids: Ints, rows: Rows, indices: pl.Series) -> pl.Series:
        """Return lines of sample_id, click, buy, common_feature_index, feature_num, features."""
        items = self._world.items
        crossed = [
            _when(rows.matches[kind], _FIRST_ID[field] + values_I[rows.item_N], field)
            for field, kind, values_I in (
                ("508", "category", items.category_I),
                ("509", "shop", items.shop_I),
                ("702", "brand", items.brand_I),
            )
        ]
        for slot in range(INTENTS):
            ids_N = _FIRST_ID["853"] + items.intents_I3[rows.item_N, slot]
            crossed.append(_when(rows.matches["intent"][:, slot], ids_N, "853"))
        matched_N = sum(rows.matches[kind].astype(np.int64) for kind in ("category", "shop", "brand"))
        features_N = self._item_features[rows.item_N] + matched_N + rows.matches["intent"].sum(axis=1) + 1
        return _joined(
            [
                pl.Series(sample_ids).cast(pl.String) + ",",
                pl.Series(rows.click_N.astype(np.int8)).cast(pl.String) + ",",
                pl.Series(rows.buy_N.astype(np.int8)).cast(pl.String) + ",",
                indices.gather(rows.user_N) + ",",
                pl.Series(features_N).cast(pl.String) + ",",
                self._items.gather(rows.item_N),
                *crossed,
                _feature(_FIRST_ID["301"] + rows.position_N, "301"),
            ]
        )


class _Totals:
    """Counts over the rows of a file, enough for its rates and the AUCs of the true probabilities."""

    def __init__(self) -> None:
        self.rows = self.clicks = self.buys = 0
        self.bins = {name: np.zeros((2, _AUC_BINS), np.int64) for name in ("click", "buy_given_click")}

    def add(self, rows: Rows) -> None:
        """Count a chunk; P(buy|click) against buy is counted on clicked rows."""
        self.rows, self.clicks = self.rows + len(rows.click_N), self.clicks + int(rows.click_N.sum())
        self.buys += int(rows.buy_N.sum())
        clicked = rows.click_N
        for name, p_N, label_N in (
            ("click", rows.p_click_N, rows.click_N),
            ("buy_given_click", rows.p_buy_N[clicked], rows.buy_N[clicked]),
        ):
            bin_N = np.minimum((p_N * _AUC_BINS).astype(np.int64), _AUC_BINS - 1)
            for label in (0, 1):
                self.bins[name][label] += np.bincount(bin_N[label_N == label], minlength=_AUC_BINS)

    def state(self) -> dict[str, Any]:
        """Return the counts, for JSON."""
        bins = {name: bins.tolist() for name, bins in self.bins.items()}
        return {"rows": self.rows, "clicks": self.clicks, "buys": self.buys, "bins": bins}

    def restore(self, state: dict[str, Any]) -> None:
        """Take counts that `state` gave."""
        self.rows, self.clicks, self.buys = state["rows"], state["clicks"], state["buys"]
        self.bins = {name: np.array(bins, np.int64) for name, bins in state["bins"].items()}

    def facts(self) -> dict[str, Any]:
        """Return rows, rates and the oracle's AUCs."""
        aucs = {name: auc_of_counts(bins[1], bins[0]) for name, bins in self.bins.items()}
        return {"rows": self.rows, "clicks": self.clicks, "buys": self.buys, "oracle_auc": aucs}


def _item_texts(world: World) -> tuple[pl.Series, Ints]:
    """Return each item's features as text, and how many they are."""
    items = world.items
    numbers_I = np.arange(len(items.effect_I2))
    parts = [_feature(_FIRST_ID["205"] + numbers_I, "205", first=True)]
    for field, values_I in (("206", items.category_I), ("207", items.shop_I), ("216", items.brand_I)):
        parts.append(_feature(_FIRST_ID[field] + values_I, field))
    for slot in range(INTENTS):
        intent_I = items.intents_I3[:, slot]
        parts.append(_when(intent_I != NONE, _FIRST_ID["210"] + intent_I, "210"))
    return _joined(parts), 4 + (items.intents_I3 != NONE).sum(axis=1)


def _common_lines(world: World, indices: pl.Series) -> Iterator[pl.Series]:
    """Yield lines of common_feature_index, feature_num, features."""
    users = world.users
    for start in range(0, len(indices), CHUNK_ROWS):
        some = slice(start, min(start + CHUNK_ROWS, len(indices)))
        numbers = np.arange(some.start, some.stop)
        parts = [_feature(_FIRST_ID["101"] + numbers, "101", first=True)]
        present = np.ones(len(numbers), np.int64)
        for field in USER_FIELDS:
            trait = users.traits[field][some]
            parts.append(_when(trait != NONE, _FIRST_ID[field] + trait, field))
            present += trait != NONE
        for field, kind in _HISTORY_FIELDS.items():
            for slot in range(HISTORY):
                value = users.history[kind][some, slot]
                parts.append(_when(value != NONE, _FIRST_ID[field] + value, field, f"{np.log(slot + 2):.5f}"))
                present += value != NONE
        yield _joined([indices[some] + ",", pl.Series(present).cast(pl.String) + ",", *parts])


def _feature(ids: Ints, field: str, value: str = "1.0", *, first: bool = False) -> pl.Series:
    start = "" if first else _BETWEEN
    frame = pl.DataFrame({"id": ids})
    return frame.select(pl.format(f"{start}{field}{_AFTER_FIELD}{{}}{_AFTER_ID}{value}", "id")).to_series()


def _when(given: NDArray[np.bool_], ids: Ints, field: str, value: str = "1.0") -> pl.Series:
    """Return the feature's text where it is given, else nothing."""
    at = np.flatnonzero(given)
    return pl.repeat("", len(given), eager=True, dtype=pl.String).scatter(at, _feature(ids[at], field, value))


def _joined(parts: Sequence[pl.Series]) -> pl.Series:
    frame = pl.DataFrame([part.alias(str(number)) for number, part in enumerate(parts)])
    return frame.select(pl.concat_str(pl.all())).to_series()


def _append(file: BinaryIO, lines: pl.Series) -> None:
    file.write(lines.str.join("\n").item().encode())
    file.write(b"\n")
