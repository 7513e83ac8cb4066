"""The simulator's part of the command line: `dlen simulate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_EXAMPLE = """example:
  dlen simulate --out data/sim --impressions 300000 --seed 1
  dlen prepare --source simulator --input data/sim --out data/sim-prepared
  dlen simulate --layout aliccp --rows 1000000 --seed 1 --out data/aliccp-raw
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `simulate`."""
    parser = commands.add_parser(
        "simulate",
        help="write a feed log with a known latent P(UP), or made-up logs in Ali-CCP's layout",
        description="Write a simulated feed log: impressions.parquet, truth.parquet, schema.yaml, simulation.json. "
        "With --layout aliccp: the four raw files of Ali-CCP with planted signal, the truth, simulation.json.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--impressions", "--rows", type=int, required=True, metavar="N", help="rows of the log")
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="0 or more")
    parser.add_argument("--scenario", metavar="NAME", help="of a feed: a name or a .yaml file (default: default)")
    parser.add_argument("--layout", choices=("feed", "aliccp"), default="feed", help="default: feed")
    parser.add_argument(
        "--population-of", type=int, metavar="N", help="aliccp: users and items as of a log of N rows (default: --rows)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.set_defaults(run=run_simulate)


def run_simulate(args: argparse.Namespace) -> int:
    """Simulate, write the folder, print its rates beside the oracle's AUC."""
    import json

    from rich.console import Console

    from bundle.files import write_file

    facts = (_aliccp if args.layout == "aliccp" else _feed)(args, Console())
    if args.json:
        write_file(args.json, (json.dumps(facts, indent=2) + "\n").encode())
    return 0


def _feed(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    from rich.table import Table

    from simulator.errors import SizeInvalid
    from simulator.logs import Simulation, write_logs
    from simulator.scenario import read_scenario

    if args.population_of is not None:
        raise SizeInvalid("--population-of", found=args.population_of, expected="none, without --layout aliccp")
    simulation = Simulation(read_scenario(args.scenario or "default"), args.impressions, args.seed)
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
    console.print(table)
    return facts


def _aliccp(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    from rich.progress import Progress
    from rich.table import Table

    from simulator.aliccp import FILES, write_aliccp
    from simulator.errors import ScenarioUnknown

    if args.scenario is not None:
        raise ScenarioUnknown("--scenario", found=args.scenario, expected="none, with --layout aliccp")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rows", total=None)
        facts = write_aliccp(
            args.impressions,
            args.seed,
            args.out,
            lambda done, of: bar.update(task, completed=done, total=of),
            args.population_of,
        )
    table = Table("figure", *FILES, title=f"{args.out}: {facts['users']:,} users, {facts['items']:,} items")
    for name in ("rows", "clicks", "buys"):
        table.add_row(name, *(f"{facts[file][name]:,}" for file in FILES))
    for name, shown in (("click", "P(click)"), ("buy_given_click", "P(buy|click), clicked rows")):
        table.add_row(f"AUC of the true {shown}", *(f"{facts[file]['oracle_auc'][name]:.4f}" for file in FILES))
    console.print(table)
    return facts
