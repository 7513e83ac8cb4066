"""Draws an experiment's figures as PNG pictures; knows nothing of how they came about."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.figures import MEAN, Document


def draw(document: Document) -> dict[str, bytes]:
    """Return the pictures of an experiment by file name."""
    pictures = {"auc.png": _by_task(document, "auc"), "gain.png": _by_task(document, "gain")}
    pictures["reliability.png"] = _reliability(document)
    if any(model["p_up"] for model in document["models"].values()):
        pictures["p_up.png"] = _p_up(document)
    return pictures


def draw_speed(documents: Sequence[Document]) -> bytes:
    """Return a picture of rows per second of CPU time by library, one panel per size."""
    canvas = Figure(figsize=(6 * len(documents), 3), layout="constrained")
    for panel, document in zip(canvas.subplots(1, len(documents), squeeze=False)[0], documents, strict=True):
        libraries = document["libraries"]
        names = list(libraries)[::-1]
        colours = ["C0" if name.startswith("dlen") else "C7" for name in names]
        bars = panel.barh(names, [libraries[name]["rows_per_cpu_s"] for name in names], color=colours)
        panel.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        panel.margins(x=0.25)
        panel.locator_params(axis="x", nbins=5)
        panel.set(title=f"{document['title']}", xlabel="rows per second of CPU, one thread")
        panel.grid(axis="x", alpha=0.3)
    return _png(canvas)


def _by_task(document: Document, figure: str) -> bytes:
    """Return one panel per task: the figure of each model with its interval."""
    tasks = [name for name in (*document["tasks"], MEAN)]
    models = list(document["models"])
    canvas = Figure(figsize=(2.6 * len(tasks), 1.8 + 0.4 * len(models)), layout="constrained")
    for panel, task in zip(canvas.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True):
        if figure == "gain":
            panel.axvline(0, color="black", linewidth=0.8)
        for row, model in enumerate(models):
            found = document["models"][model]["tasks"][task]
            if found[figure] is None:
                continue
            bounds = found[f"{figure}_interval"] or (found[figure], found[figure])
            panel.plot(bounds, (row, row), color=f"C{row}", linewidth=2)
            panel.plot(found[figure], row, "o", color=f"C{row}")
        panel.set(title=task, xlabel="AUC" if figure == "auc" else f"AUC − {document['baseline']}")
        panel.set_yticks(range(len(models)), models)
        panel.set_ylim(len(models) - 0.5, -0.5)
        panel.tick_params(axis="x", rotation=45)
        panel.grid(axis="x", alpha=0.3)
    canvas.suptitle(f"{document['title']}: {'AUC' if figure == 'auc' else 'gain'}, 95 % over users and seeds")
    return _png(canvas)


def _reliability(document: Document) -> bytes:
    tasks = list(document["tasks"])
    canvas = Figure(figsize=(3.2 * len(tasks), 3.6), layout="constrained")
    for panel, task in zip(canvas.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        top = 0.0
        for model, figures in document["models"].items():
            predicted, observed, _ = zip(*figures["tasks"][task]["reliability"], strict=True)
            panel.plot(predicted, observed, marker=".", label=model)
            top = max(top, *predicted, *observed)
        panel.plot((0, top), (0, top), color="black", linewidth=0.8)
        panel.set(title=task, xlabel="predicted", ylabel="observed")
        panel.grid(alpha=0.3)
    canvas.axes[0].legend(fontsize="x-small")
    return _png(canvas)


def _p_up(document: Document) -> bytes:
    canvas = Figure(figsize=(7, 4), layout="constrained")
    panel: Axes = canvas.subplots()
    for model, figures in document["models"].items():
        if figures["p_up"]:
            shares = figures["p_up"]["histogram"]
            edges = [index / len(shares) for index in range(len(shares) + 1)]
            panel.stairs(shares, edges, label=f"{model}, mean {figures['p_up']['mean']:.3f}")
    panel.set(title=f"{document['title']}: P(UP)", xlabel="P(UP)", ylabel="share of test rows")
    panel.legend(fontsize="small")
    panel.grid(alpha=0.3)
    return _png(canvas)


def _png(canvas: Figure) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
