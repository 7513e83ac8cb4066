"""`dlen benchmark train-peers`: arguments and output; the work is done in `against`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def register(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    command = benchmarks.add_parser(
        "train-peers",
        help="rows a second and AUC against torch-rechub, DeepCTR-Torch and FuxiCTR",
        description="Train one epoch of the same MMOE on the same made-up rows with each library, one thread, in "
        "interleaved rounds, at two sizes: 3 experts [64, 32] and the paper's 5 experts [256, 128, 64].",
        epilog="examples:\n  dlen benchmark train-peers --install --json peers.json --plot peers.png\n"
        "  dlen benchmark train-peers --rows 60000 20000 --rounds 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--rows", type=int, nargs=2, default=(600_000, 100_000), metavar="N", help="of the two sizes (600000 100000)"
    )
    command.add_argument("--codes", type=int, default=1000, metavar="K", help="values of a feature (default: 1000)")
    command.add_argument("--rounds", type=int, default=4, metavar="R", help="epochs of each library (default: 4)")
    command.add_argument("--install", action="store_true", help="install the other libraries first, where missing")
    command.add_argument(
        "--environments", type=Path, default=Path(".peers"), metavar="DIR", help="where they live (default: .peers)"
    )
    command.add_argument("--lock", type=Path, metavar="FILE", help="hold this file locked during each round")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    command.add_argument("--plot", type=Path, metavar="FILE", help="also draw rows per second there, as PNG")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from rich.console import Console

    from bundle.files import write_file
    from training.against import PAPER, SMALL, install_peers, measure_peers
    from training.errors import ConfigInvalid
    from training.plots import draw_speed

    console = Console(soft_wrap=True, highlight=False)
    if min(args.rows) < 1000 or args.codes < 1 or args.rounds < 1:
        found = f"{min(args.rows)} rows, {args.codes} codes, {args.rounds} rounds"
        raise ConfigInvalid("benchmark", found=found, expected="at least 1000, 1 and 1")
    environments = args.environments.absolute()
    if args.install:
        install_peers(environments, console.print)
    documents = []
    for sizes, rows in zip((SMALL, PAPER), args.rows, strict=True):
        sizes = dataclasses.replace(sizes, rows=rows)
        documents.append(measure_peers(sizes, args.codes, args.rounds, environments, console.print, args.lock))
        console.print(_speeds(documents[-1]))
        console.print(_aucs(documents[-1]))
        console.print(_verdict(documents[-1]))
        if args.json:
            write_file(args.json, json.dumps(documents, indent=1).encode())
        if args.plot:
            write_file(args.plot, draw_speed(documents))
    return 0


def _speeds(document: dict[str, Any]) -> Table:
    from rich.table import Table

    shown = Table("library", "rows/s of CPU", "lowest–highest", "rows/s of wall")
    shown.title = f"{document['title']}, {document['rows']:,} rows, {document['rounds']} rounds"
    for name, figures in document["libraries"].items():
        low, high = figures["rows_per_cpu_s_range"]
        speeds = (f"{figures['rows_per_cpu_s']:,.0f}", f"{low:,.0f}–{high:,.0f}", f"{figures['rows_per_wall_s']:,.0f}")
        version = "" if name.startswith("dlen") else " " + figures["versions"].get(name, "")
        shown.add_row(name + version, *speeds)
    return shown


def _aucs(document: dict[str, Any]) -> Table:
    from rich.table import Table

    tasks = len(next(iter(document["libraries"].values()))["auc"])
    shown = Table("test AUC", "rate", *(f"task {t + 1}" for t in range(tasks)), "mean")
    for name, figures in document["libraries"].items():
        aucs = (f"{auc:.4f}" for auc in (*figures["auc"], figures["mean_auc"]))
        shown.add_row(name, f"{figures['learning_rate']:g}", *aucs)
    return shown


def _verdict(document: dict[str, Any]) -> str:
    costs = document["cost_of_p_up"], document["cost_of_p_up_bfloat16"]
    parts = ["P(UP) costs {:+.1%} of the time, in bfloat16 {:+.1%}".format(*costs)]
    if document["fastest_peer"]:
        times, bfloat16 = document["against_fastest"], document["bfloat16_against_fastest"]
        shown = "{:.2f}× {} by CPU time, {:.2f}× by wall time; in bfloat16 {:.2f}× and {:.2f}×"
        fastest = document["fastest_peer"]
        parts.insert(0, shown.format(times["cpu_s"], fastest, times["wall_s"], *bfloat16.values()))
    parts += [f"skipped: {', '.join(document['skipped'])} (not installed)"] if document["skipped"] else []
    return "; ".join(parts)
