"""The simulator's part of the command line: `dlen simulate`."""

from __future__ import annotations

import argparse
from pathlib import Path

_EXAMPLE = """example:
  dlen simulate --out data/sim --impressions 300000 --seed 1
  dlen prepare --source simulator --input data/sim --out data/sim-prepared
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `simulate`."""
    parser = commands.add_parser(
        "simulate",
        help="write a feed log with a known latent P(UP)",
        description="Write a simulated feed log: impressions.parquet, truth.parquet, schema.yaml, simulation.json.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--impressions", type=int, required=True, metavar="N", help="rows of the log")
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="0 or more")
    parser.add_argument("--scenario", default="default", metavar="NAME", help="a name or a .yaml file (default)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.set_defaults(run=run_simulate)


def run_simulate(args: argparse.Namespace) -> int:
    """Simulate, write the folder, print its rates beside the oracle's AUC."""
    import json

    from rich.console import Console
    from rich.table import Table

    from bundle.files import write_file
    from simulator.logs import Simulation, write_logs
    from simulator.scenario import read_scenario

    simulation = Simulation(read_scenario(args.scenario), args.impressions, args.seed)
    facts = write_logs(simulation, args.out)
    table = Table(title=f"{args.out}: {facts['impressions']:,} impressions, scenario {simulation.scenario.name}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name in ("users", "items"):
        table.add_row(name, f"{facts[name]:,}")
    table.add_row("mean P(UP)", f"{facts['mean_p_up']:.4f}")
    table.add_row("AUC of the true P(UP) against the state", f"{facts['oracle_auc']:.4f}")
    for name, rate in facts["rates"].items():
        table.add_row(f"rate of {name}", f"{rate:.4%}")
    Console().print(table)
    if args.json:
        write_file(args.json, (json.dumps(facts, indent=2) + "\n").encode())
    return 0
