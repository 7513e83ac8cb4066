"""Figures of a comparison as tables, a JSON document and pictures; knows nothing of how they were measured."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullFormatter, ScalarFormatter
from rich.table import Table

from loadtest.environment import describe_environment
from loadtest.peers.catalogue import PEERS
from loadtest.peers.rounds import Figure, Key, Results, Settings

FORMAT = 1
_LOOPS = {peer.name for peer in PEERS if peer.graphs}
_RUNTIME = "ONNX Runtime, no server"
"""The loop of the runtime that the service has."""
_SERVERS = {peer.name for peer in PEERS} - _LOOPS
_WHOLE_JOBS = {(peer.name, wire.name) for peer in PEERS for wire in peer.wires if wire.whole_job}
_GRAPHS_OF = {"dlen fp32": ("fp32 graph",), "dlen int8": ("fused graph", "int8 graph")}
"""Which graph a service runs: the first of these that the bare loop ran."""


def medians(results: Results) -> dict[Key, Figure]:
    """Return the median over rounds of every figure."""
    return {
        key: Figure(
            float(np.median([figure.requests_per_s for figure in rounds])),
            float(np.median([figure.cpu_ms for figure in rounds])),
        )
        for key, rounds in results.figures.items()
    }


def best_peer(results: Results, candidates: int, *, whole_job: bool = False) -> Key | None:
    """Return the peer and wire with the most requests per second at N; the bare loop is no server.

    With `whole_job`, of those that do all that this service does; else of those that get encoded rows and give
    probabilities.
    """
    found = {key: figure for key, figure in medians(results).items() if key.candidates == candidates}
    rates = {
        key: figure.requests_per_s
        for key, figure in found.items()
        if key.server in _SERVERS and ((key.server, key.wire) in _WHOLE_JOBS) == whole_job
    }
    return max(rates, key=lambda key: rates[key]) if rates else None


def ratios(results: Results, candidates: int, *, whole_job: bool = False) -> dict[str, dict[str, Any]]:
    """Return server and wire → how often the best peer's figures fit into this service's, round by round.

    `requests_per_s` is the ratio of measured rates; `cpu` that of CPU times per request, which a busy machine
    changes less. `whole_job`: see `best_peer`.
    """
    best = best_peer(results, candidates, whole_job=whole_job)
    if best is None:
        return {}
    given: dict[str, dict[str, Any]] = {}
    for key, rounds in results.figures.items():
        if key.candidates != candidates or key.server in _SERVERS | _LOOPS:
            continue
        pairs = list(zip(rounds, results.figures[best], strict=False))
        rates = [ours.requests_per_s / theirs.requests_per_s for ours, theirs in pairs]
        times = [theirs.cpu_ms / ours.cpu_ms for ours, theirs in pairs]
        given[f"{key.server}, {key.wire}"] = {
            "best_peer": f"{best.server}, {best.wire}",
            "requests_per_s": float(np.median(rates)),
            "requests_per_s_by_round": rates,
            "cpu": float(np.median(times)),
            "cpu_by_round": times,
        }
    return given


def outside_runtime_ms(results: Results) -> dict[Key, float]:
    """Return this service's CPU ms per request beyond what its graph takes in the bare loop of the same rounds."""
    middle = medians(results)
    outside = {}
    for key, figure in middle.items():
        keys = (Key(_RUNTIME, graph, key.candidates) for graph in _GRAPHS_OF.get(key.server, ()))
        loop = next((middle[graph] for graph in keys if graph in middle), None)
        if loop is not None:
            outside[key] = figure.cpu_ms - loop.cpu_ms
    return outside


def line_of(results: Results, server: str, wire: str) -> dict[str, float] | None:
    """Return the least-squares line CPU ms = fixed + slope · N through a wire's medians from N = 20 on, and its R²."""
    points = {key.candidates: figure.cpu_ms for key, figure in medians(results).items()
              if (key.server, key.wire) == (server, wire) and key.candidates >= 20}  # fmt: skip
    if len(points) < 3:
        return None
    x, y = np.array(list(points), dtype=float), np.array(list(points.values()))
    slope, fixed = np.polyfit(x, y, 1)
    left, spread = ((y - (fixed + slope * x)) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return {
        "fixed_ms": float(fixed),
        "ms_per_1000": float(1000 * slope),
        "r2": float(1 - left / spread) if spread else 1.0,
    }


def wires_of(results: Results) -> list[tuple[str, str]]:
    """Return what was measured, servers and wires in order of measuring."""
    return list(dict.fromkeys((key.server, key.wire) for key in results.figures))


def comparison_document(results: Results, candidates: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Return everything as a JSON document."""
    middle, outside = medians(results), outside_runtime_ms(results)
    return {
        "format": FORMAT,
        "kind": "peers",
        "settings": asdict(settings),
        "environment": describe_environment(),
        "skipped": results.skipped,
        "largest_error": results.largest_error,
        "figures": [
            asdict(key) | asdict(middle[key])
            | {"outside_onnxruntime_ms": outside.get(key), "rounds": [asdict(figure) for figure in rounds]}
            for key, rounds in results.figures.items()
        ],
        "against_best_peer": {str(count): ratios(results, count) for count in candidates},
        "against_whole_job": {str(count): ratios(results, count, whole_job=True) for count in candidates},
        "lines": {f"{server}, {wire}": line_of(results, server, wire) for server, wire in wires_of(results)},
    }  # fmt: skip


def comparison_tables(results: Results, candidates: Sequence[int]) -> list[Table]:
    """Return requests per second with CPU ms, then the ratios to the best peer, as tables to print."""
    middle, outside = medians(results), outside_runtime_ms(results)
    rates = Table("server", "wire", *(f"N = {count}" for count in candidates))
    rates.title = "requests/s (CPU ms a request; of it outside ONNX Runtime), medians"
    for server, wire in wires_of(results):
        cells = []
        for count in candidates:
            key = Key(server, wire, count)
            beyond = f"; {outside[key]:.2f}" if key in outside else ""
            figure = middle.get(key)
            cells.append(f"{figure.requests_per_s:.4g} ({figure.cpu_ms:.3g}{beyond})" if figure else "–")
        rates.add_row(server, wire, *cells)
    for name, reason in results.skipped.items():
        rates.add_row(name, f"skipped: {reason}")
    against = [
        _against(
            "times the best peer's requests/s, which gets encoded rows and gives probabilities",
            results,
            candidates,
            False,
        ),
        _against(
            "times the requests/s of the best peer that does the whole job: raw rows in, the feed out",
            results,
            candidates,
            True,
        ),
    ]
    return [rates, *(table for table in against if table.row_count)]


def _against(title: str, results: Results, candidates: Sequence[int], whole_job: bool) -> Table:
    against = Table("this service", "wire", *(f"N = {count}" for count in candidates))
    against.title = f"{title}; lowest – highest round (times less CPU)"
    by_count = {count: ratios(results, count, whole_job=whole_job) for count in candidates}
    for server, wire in wires_of(results):
        cells = []
        for count in candidates:
            found = by_count[count].get(f"{server}, {wire}")
            if found is not None:
                low, high = min(found["requests_per_s_by_round"]), max(found["requests_per_s_by_round"])
                cells.append(f"{found['requests_per_s']:.2f}, {low:.2f} – {high:.2f} ({found['cpu']:.2f})")
        if cells:
            against.add_row(server, wire, *cells)
    return against


def plot_peers(results: Results, candidates: Sequence[int]) -> bytes:
    """Return requests per second by N, both on log scales, as a PNG picture."""
    picture = Picture(figsize=(10, 6.5), layout="constrained")
    axes, middle = picture.subplots(), medians(results)
    drawn: dict[str, int] = {}
    for number, (server, wire) in enumerate(wires_of(results)):
        rates = [middle[Key(server, wire, count)].requests_per_s for count in candidates]
        peer, loop = server in _SERVERS, server in _LOOPS
        style = ":" if loop else "--" if peer else "-"
        color = f"C{number % 10}" if not (peer or loop) else None
        if peer or loop:
            color = _shade(server)
        marker = _MARKERS[drawn.get(server, 0) % len(_MARKERS)] if peer or loop else "o"
        drawn[server] = drawn.get(server, 0) + 1
        width = 1.2 if peer or loop else 2.2
        axes.plot(candidates, rates, style, color=color, marker=marker, linewidth=width, label=f"{server}, {wire}")
    axes.set(xscale="log", yscale="log", xlabel="candidates of a request", ylabel="requests/s, one core")
    axes.set_xticks(list(candidates), [str(count) for count in candidates])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.grid(which="both", alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return _png(picture)


def plot_lines(results: Results) -> bytes:
    """Return this service's CPU ms per request against N with the fitted lines, as a PNG picture."""
    picture = Picture(figsize=(9, 5.5), layout="constrained")
    axes, middle = picture.subplots(), medians(results)
    for number, (server, wire) in enumerate(w for w in wires_of(results) if w[0] not in _SERVERS | _LOOPS):
        points = sorted((k.candidates, f.cpu_ms) for k, f in middle.items() if (k.server, k.wire) == (server, wire))
        line, color = line_of(results, server, wire), f"C{number}"
        label = f"{server}, {wire}"
        if line is not None:
            label += f": {line['fixed_ms']:.2f} + {line['ms_per_1000']:.2f} N/1000, R² {line['r2']:.4f}"
            ends = np.array([0, points[-1][0]])
            axes.plot(ends, line["fixed_ms"] + line["ms_per_1000"] * ends / 1000, color=color, linewidth=1)
        axes.plot(*zip(*points, strict=True), "o", color=color, label=label)
    axes.set(xlabel="candidates of a request, N", ylabel="CPU ms a request, server")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(picture)


_MARKERS = "^svDX"
"""Of a peer's wires, or a loop's graphs, one after another: they share its colour."""


def _shade(server: str) -> str:
    """Return the colour of a peer: greys and browns, so that this service's lines stand out."""
    shades = ("#555555", "#8c6d31", "#9c9ede", "#bd9e39", "#7b4173", "#999999", "#1f3f3f")
    return shades[[peer.name for peer in PEERS].index(server) % len(shades)]


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
