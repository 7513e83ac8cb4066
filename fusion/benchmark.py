"""How much CPU time fusion takes here: every formula, all rules, an assignment. Made-up probabilities, one thread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fusion.experiments import Assigner
from fusion.fuse import compile_policy
from fusion.history import write_aside
from fusion.policies import POLICY
from fusion.policy import FusionConfig
from fusion.signals import Candidates, Probabilities

TASKS = ("click", "like", "follow", "comment", "forward")
_WEIGHTS = dict(zip(TASKS, (1.0, 3.0, 6.0, 5.0, 5.0), strict=True))
_EXPRESSION = "(click + 3*like + 6*follow) * p_up**0.5 + log(comment + 0.01) + max(comment, forward)"
FORMULAS: dict[str, dict[str, Any]] = {
    "weighted_sum": {"weights": _WEIGHTS, "p_up": 0.5},
    "power_product": {"weights": _WEIGHTS, "p_up": 0.5},
    "rank_sum": {"weights": _WEIGHTS, "p_up": 0.5},
    "rank_product": {"weights": _WEIGHTS, "p_up": 0.5},
    "expression": {"expression": _EXPRESSION},
}
RULES: list[dict[str, Any]] = [
    {"type": "decay"},
    {"type": "mmr"},
    {"type": "window_cap"},
    {"type": "first_cap", "key": "category", "max": 3},
    {"type": "explore", "positions": [5, 15]},
    {"type": "pin", "id": "i77", "position": 3},
]


def print_benchmark(json_file: Path | None) -> int:
    """Print a table of times in µs, and write them as JSON where a file is given."""
    figures = measure()
    table = Table(title="Fusion on this machine, µs of CPU")
    for column in ("what", "candidates", "median", "p95"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for figure in figures:
        times = [f"{figure[key]:.0f}" for key in ("median_us", "p95_us")]
        table.add_row(figure["what"], str(figure["candidates"]), *times)
    Console(highlight=False).print(table)
    if json_file is not None:
        write_aside(json_file, (json.dumps(figures, indent=2) + "\n").encode())
    return 0


def measure(repeats: int = 400) -> list[dict[str, Any]]:
    """Return the times of every formula at 500 candidates, all rules at 2,000, and one assignment."""
    figures = []
    outputs, candidates = _request(500)
    for name, spec in FORMULAS.items():
        ranker = compile_policy(POLICY.validate_python({"formula": name, **spec}), TASKS, True)
        figures.append(_time(f"{name} and order", 500, partial(ranker.rank, outputs, 50), repeats))
    for diversity in ("mmr", "dpp"):
        rules: list[dict[str, Any]] = [{**rule, "type": diversity} if rule["type"] == "mmr" else rule for rule in RULES]
        whole = {"formula": "weighted_sum", **FORMULAS["weighted_sum"], "gate": {"min_p_up": 0.2}, "rules": rules}
        ranker = compile_policy(POLICY.validate_python(whole), TASKS, True)
        for size in (500, 2000):
            outputs, candidates = _request(size)
            what = f"weighted_sum, gate, all rules ({diversity})"
            figures.append(_time(what, size, partial(ranker.rank, outputs, 50, candidates), repeats))
    for layers in (1, 3, 5):
        assigner = Assigner(_experiments(layers))
        what = f"assignment, {layers} layers of 4 experiments"
        figures.append(_time(what, 0, partial(_assign_next, assigner, count(1)), 10 * repeats))
    return figures


def _assign_next(assigner: Assigner, numbers: Iterator[int]) -> None:
    assigner.assign(f"user-{next(numbers)}", {"country": "DE"})


def _time(what: str, candidates: int, run: Callable[[], object], repeats: int) -> dict[str, Any]:
    for _ in range(20):
        run()
    times = np.empty(repeats)
    for index in range(repeats):
        begin = time.thread_time()
        run()
        times[index] = time.thread_time() - begin
    median, p95 = (1e6 * np.percentile(times, (50, 95))).tolist()
    return {"what": what, "candidates": candidates, "median_us": median, "p95_us": p95}


def _request(size: int) -> tuple[Probabilities, Candidates]:
    random = np.random.default_rng(0)
    p_NT = random.random((size, len(TASKS)), dtype=np.float32)
    p_up_N = random.random(size, dtype=np.float32)
    candidates = Candidates(
        ids=[f"i{number}" for number in range(size)],
        keys={
            "group": [f"a{number % (size // 4)}" for number in range(size)],
            "category": [f"c{number % 5}" for number in range(size)],
        },
        vectors_ND=random.normal(size=(size, 32)).astype(np.float32),
        seed="benchmark",
    )
    return Probabilities(p_NT, p_NT * p_up_N[:, None], p_up_N), candidates


def _experiments(layers: int) -> FusionConfig:
    def experiment(layer: int, number: int) -> dict[str, Any]:
        arms = [{"name": f"{number}{arm}", "weight": 0.5} for arm in "ab"]
        place = (number / 4, (number + 1) / 4)
        condition = {"country": {"$in": ["DE", "FR"]}}
        return {"name": f"e{layer}_{number}", "slice": place, "traffic": 0.5, "when": condition, "variants": arms}

    feed = {"formula": "weighted_sum", **FORMULAS["weighted_sum"]}
    spec = [{"name": f"l{layer}", "experiments": [experiment(layer, n) for n in range(4)]} for layer in range(layers)]
    return FusionConfig.model_validate(
        {"default": "feed", "policies": {"feed": feed}, "layers": spec, "holdout": {"share": 0.02}}
    )
