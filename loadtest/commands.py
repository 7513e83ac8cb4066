"""The load test's part of the command line: `dlen loadtest run`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.run import Load
    from loadtest.traffic import Target

_RUN_EXAMPLE = """example:
  dlen request --data data/kuairand --split test --out request.json
  dlen loadtest run --url http://127.0.0.1:8000 --request request.json --rate 50 --duration 30 --plot run.png

The exit code is 1 when the run is invalid (the generator itself was too slow), 2 for bad input.
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `loadtest` and its sub-commands."""
    parser = commands.add_parser(
        "loadtest",
        help="measure a running ranker under load",
        description="Open-loop load tests: latency counts from the intended send time.",
        epilog=_RUN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(title="kinds", metavar="KIND", required=True)
    _register_run(kinds)


def _register_run(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = kinds.add_parser(
        "run",
        help="one rate for one time",
        description="Send requests at one rate, whatever the server does, and report latency and errors.",
        epilog=_RUN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_traffic(parser)
    parser.add_argument("--rate", type=float, required=True, metavar="R", help="requests per second")
    add_load(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw percentiles and timeline here")
    parser.set_defaults(run=run_run)


def add_traffic(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is sent and where."""
    parser.add_argument("--url", required=True, help="http://HOST:PORT, with or without a path (/v1/rank)")
    parser.add_argument(
        "--request",
        type=Path,
        required=True,
        metavar="FILE",
        help="a JSON body, or one a line, as `dlen request` writes",
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="a further header; repeatable"
    )


def add_load(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how long and with what patience."""
    parser.add_argument("--duration", type=float, default=30.0, metavar="S", help="measured seconds (30)")
    parser.add_argument("--warmup", type=float, default=2.0, metavar="S", help="seconds before, not counted (2)")
    parser.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    parser.add_argument("--connections", type=int, default=256, metavar="N", help="open at once, at most (256)")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="per request (10)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of arrivals and bodies (1)")


def load_of(args: argparse.Namespace, rate_per_s: float) -> Load:
    """Return the load that the options describe, at the given rate."""
    from loadtest.run import Load

    return Load(
        rate_per_s=rate_per_s,
        duration_s=args.duration,
        warmup_s=args.warmup,
        arrivals=args.arrivals,
        connections=args.connections,
        timeout_s=args.timeout,
        seed=args.seed,
    )


def traffic_of(args: argparse.Namespace) -> tuple[Target, list[bytes]]:
    """Return the target and the complete requests that the options describe."""
    from loadtest.traffic import build_requests, content_type, parse_target, read_bodies

    target = parse_target(args.url, args.header)
    return target, build_requests(target, read_bodies(args.request), content_type(args.request))


def run_run(args: argparse.Namespace) -> int:
    """Drive one load and show what it gave."""
    from rich.console import Console

    from loadtest.report import run_document, run_table, write_json
    from loadtest.run import run_load

    target, requests = traffic_of(args)
    load = load_of(args, args.rate)
    measurement = run_load(target, requests, load)
    console = Console()
    console.print(run_table(target, load, measurement))
    if args.json:
        write_json(args.json, run_document(target, load, measurement))
    if args.plot:
        from loadtest.plots import plot_run

        plot_run(target.url, measurement, args.plot)
    if not measurement.valid:
        console.print(f"INVALID: {measurement.why_invalid}", markup=False, highlight=False)
    return 0 if measurement.valid else 1
