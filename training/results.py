"""An experiment's figures as a page to read, and the folder they are written to, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bundle.files import new_folder
from training.figures import MEAN, Document
from training.paper import PAPER_TABLES
from training.plots import draw

RESULTS_FOLDER = "results"
TEXT_FILE = "results.md"
FIGURES_FILE = "results.json"


def write_results(document: Document, out: Path) -> Path:
    """Write text, figures and pictures to the folder `results` in `out`, replacing what was there; return it."""
    folder = out / RESULTS_FOLDER
    pictures = draw(document)
    with new_folder(folder, replace=True) as aside:
        (aside / FIGURES_FILE).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        (aside / TEXT_FILE).write_text(results_text(document), "utf-8")
        for name, picture in pictures.items():
            (aside / name).write_bytes(picture)
    return folder


def results_text(document: Document) -> str:
    """Return the page: AUC, gains, calibration, P(UP), held-out tasks, the paper's figures, how it was measured."""
    parts = [
        f"# {document['title']}",
        _basis(document),
        *_given(document),
        "## AUC",
        _auc_table(document),
        "![AUC](auc.png)",
    ]
    parts += [f"## Gain in AUC over {document['baseline']}", _gain_table(document), "![gain](gain.png)"]
    parts += ["## Other metrics, mean over seeds", _metrics_table(document), "![reliability](reliability.png)"]
    if any(model["p_up"] for model in document["models"].values()):
        parts += ["## P(UP)", _p_up_table(document), "![P(UP)](p_up.png)"]
    if any(model.get("recovery") for model in document["models"].values()):
        parts += ["## Recovery of P(UP), where it is known", _recovery_table(document)]
    held_out = next(iter(document["models"].values()))["held_out"]
    for task in held_out:
        parts += [f"## AUC against {task}, which no model was trained on", _held_out_table(document, task)]
    parts += ["## Learning rates", _tuning_table(document)]
    if document["paper"]:
        parts += _paper(document)
    return "\n\n".join(parts) + "\n"


def _basis(document: Document) -> str:
    positives = ", ".join(f"{count:,} {task}" for task, count in document["tasks"].items())
    return (
        f"{document['rows']:,} test rows of {document['users']:,} users from {', '.join(document['data'])} "
        f"({positives}); seeds {', '.join(map(str, document['seeds']))}. Figures are means over seeds. Intervals are "
        f"95 % over {document['redraws']:,} redraws of users and seeds, the same for every model, so that gains are "
        "paired; a gain in bold has an interval without 0."
    )


def _given(document: Document) -> list[str]:
    """Return what each conditional measure means."""
    return [
        f"`{name}` is measured over the {found['rows']:,} test rows with {found['parent']} = 1 and orders them by "
        f"P({found['task']}) / P({found['parent']}). The mean is that of the other columns."
        for name, found in document.get("given", {}).items()
    ]


def _auc_table(document: Document) -> str:
    tasks = [*document["tasks"], MEAN]
    rows = []
    for model, figures in document["models"].items():
        cells = [figures["tasks"][task] for task in tasks]
        rows.append([model, *(_with_interval(cell["auc"], cell["auc_interval"], "{:.4f}") for cell in cells)])
    return _table(["model", *tasks], rows)


def _gain_table(document: Document) -> str:
    tasks = [*document["tasks"], MEAN]
    rows = []
    for model, figures in document["models"].items():
        if model == document["baseline"]:
            continue
        cells = []
        for task in tasks:
            found = figures["tasks"][task]
            text = _with_interval(found["gain"], found["gain_interval"], "{:+.4f}")
            bounds = found["gain_interval"]
            cells.append(f"**{text}**" if bounds and bounds[0] * bounds[1] > 0 else text)
        rows.append([model, *cells])
    return _table(["model", *tasks], rows)


def _metrics_table(document: Document) -> str:
    names = {"gauc": "GAUC", "log_loss": "log-loss", "ne": "NE", "pcoc": "PCOC", "ece": "ECE"}
    rows = []
    for model, figures in document["models"].items():
        for task in document["tasks"]:
            found = figures["tasks"][task]
            spread = max(found["auc_by_seed"]) - min(found["auc_by_seed"]) if found["auc"] is not None else None
            rows.append([model, task, *(_shown(found[name]) for name in names), _shown(spread)])
    return _table(["model", "task", *names.values(), "AUC, largest − smallest seed"], rows)


def _p_up_table(document: Document) -> str:
    rows = []
    for model, figures in document["models"].items():
        if not (found := figures["p_up"]):
            continue
        by_seed = ", ".join(f"{mean:.3f}" for mean in found["mean_by_seed"])
        leaning = f"{found['correlation']:.3f} ({found['correlation_with']})"
        rows.append([model, f"{found['mean']:.4f}", by_seed, _shown(found["auc_any"]), leaning])
    columns = ["model", "mean", "by seed", "AUC against any interaction", "correlation with P(densest task)"]
    return _table(columns, rows)


def _recovery_table(document: Document) -> str:
    names = ("mean_p_up", "mean_u", "ece", "brier", "auc", "oracle_auc", "correlation", "habit_correlation")
    head = ("mean", "true mean", "ECE", "Brier", "AUC of the state", "ceiling", "correlation", "with habit (true u's)")
    rows = []
    for model, figures in document["models"].items():
        if recovered := figures.get("recovery"):
            cells = [_shown(recovered[name]) for name in names]
            rows.append([model, *cells[:-1], f"{cells[-1]} ({_shown(recovered['oracle_habit_correlation'])})"])
    return _table(["model", *head], rows)


def _held_out_table(document: Document, task: str) -> str:
    models = {model: figures["held_out"][task] for model, figures in document["models"].items()}
    scores = list(dict.fromkeys(score for found in models.values() for score in found["auc"]))
    rows = [[model, *(_shown(found["auc"].get(score)) for score in scores)] for model, found in models.items()]
    positives = next(iter(models.values()))["positives"]
    return f"{positives:,} positives.\n\n" + _table(["model", *scores], rows)


def _tuning_table(document: Document) -> str:
    if document["tuning"] is None:
        rates = ", ".join(f"{model} {found['learning_rate']:g}" for model, found in document["models"].items())
        return f"Not tuned: {rates}."
    tried = [f"{rate:g}" for rate in document["tuning"]["learning_rates"]]
    rows = []
    for model, found in document["models"].items():
        chosen = f"{found['learning_rate']:g}" + (" (edge of the grid)" if found["learning_rate_at_edge"] else "")
        rows.append([model, *(f"{found['tuning_losses'][rate]:.5f}" for rate in tried), chosen])
    note = (
        f"Each model had the same budget, one run per rate with seed {document['tuning']['seed']} on "
        f"{document['data'][0]}; kept is the lowest validation loss."
    )
    return note + "\n\n" + _table(["model", *tried, "kept"], rows)


def _paper(document: Document) -> list[str]:
    printed = PAPER_TABLES[document["paper"]]
    rows = [[model, *(f"{value:.4f}" for value in values)] for model, values in printed.aucs.items()]
    note = (
        f"AUC as printed, on {printed.data}. The data differ from ours, so levels cannot be compared, only the signs "
        "and sizes of the gains; the paper gives neither seeds nor intervals."
    )
    return [f"## The paper's {printed.name}", note, _table(["model", *printed.tasks], rows)]


def _with_interval(value: float | None, bounds: Sequence[float] | None, form: str) -> str:
    if value is None:
        return "–"
    shown = "" if bounds is None else f" [{form.format(bounds[0])}, {form.format(bounds[1])}]"
    return form.format(value) + shown


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines: list[Sequence[str]] = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
