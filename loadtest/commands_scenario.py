"""`dlen loadtest scenario`: arguments; the work is done in `loadtest.scenarios`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_EXAMPLE = """examples:
  dlen loadtest scenario list
  dlen loadtest scenario worker-sigkill --plot timeline.png
  dlen loadtest scenario soak --minutes 30 --rate 100 --plot soak.png
  dlen loadtest scenario all --json scenarios.json --models models --request requests.jsonl

The exit code is 1 when a check fails or nothing could be run, 2 for bad input.
"""


def register_scenario(
    kinds: argparse._SubParsersAction[argparse.ArgumentParser], say: Callable[[str | Table], None]
) -> None:
    """Add `scenario`; what it shows goes to `say`."""
    description = (
        "Start rankers on loopback, do something bad to them under load, and say whether what is promised held. "
        "Without --models and --request a small model of a simulated feed is made once, in .run/demo."
    )
    parser = kinds.add_parser(
        "scenario",
        help="promises of reliability, each put to the test",
        description=description,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios, `all`, or `list`")
    parser.add_argument("--list", action="store_true", help="show all names")
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder of bundles (models, with --request)")
    parser.add_argument("--fusion", type=Path, default=Path("configs/fusion.yaml"), help="config that fits them")
    parser.add_argument("--request", "--requests", type=Path, metavar="FILE", help="JSON bodies that fit, one a line")
    parser.add_argument("--rate", type=float, default=50.0, metavar="R", help="steady requests per second (50)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of arrivals, bodies and victims (1)")
    parser.add_argument("--minutes", type=float, metavar="M", help="length of the soak (30)")
    parser.add_argument("--quick", action="store_true", help="little of each, as the tests do")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write checks and figures here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the timeline; several: FILE-NAME.png")
    parser.set_defaults(run=lambda args: _run(args, say))


def _run(args: argparse.Namespace, say: Callable[[str | Table], None]) -> int:
    from loadtest.scenarios.command import run_scenarios

    return run_scenarios(args, say)
