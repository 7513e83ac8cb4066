"""The load test's part of the command line: `dlen loadtest run|sweep|compare|scenario`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.commands_scenario import register_scenario

if TYPE_CHECKING:
    from rich.table import Table

    from loadtest.run import Load
    from loadtest.traffic import Target

_PAUSE_S = 1.0
_COMPARE_DEFAULTS = {"duration": 5.0, "warmup": 2.0, "connections": 256, "rounds": 8}
_PEERS_DEFAULTS = {"duration": 2.0, "warmup": 0.3, "connections": 2, "rounds": 3}
_RUN_EXAMPLE = """example:
  dlen request --data data/kuairand --split test --out request.json
  dlen loadtest run --url http://127.0.0.1:8000 --request request.json --rate 50 --duration 30 --plot run.png

The exit code is 1 when the run is invalid (the generator itself was too slow), 2 for bad input.
"""
_SWEEP_EXAMPLE = """example:
  dlen loadtest sweep --url http://127.0.0.1:8000 --request request.json --p99-ms 50 --start 20 --plot sweep.png

The exit code is 1 when the objective holds at no rate, 2 for bad input.
"""
_COMPARE_EXAMPLE = """examples:
  dlen loadtest compare --url http://new:8000 --against http://old:8000 --request request.json --rate 50
  dlen loadtest compare --url http://127.0.0.1:8000 --request request.json --rate 50 --save baseline.json
  dlen loadtest compare --url http://127.0.0.1:8000 --request request.json --rate 50 --baseline baseline.json
  dlen loadtest compare --peers all --install
  dlen loadtest compare --peers all --kit runs/kit --json peers.json --plot peers.png

The exit code is 1 when the candidate is worse or a wanted peer was skipped, 2 for bad input.
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
    _register_sweep(kinds)
    _register_compare(kinds)
    register_scenario(kinds, _say)


def _register_run(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    description = "Send requests at one rate, whatever the server does, and report latency and errors."
    parser = _kind(kinds, "run", "one rate for one time", description, _RUN_EXAMPLE)
    _add_traffic(parser)
    parser.add_argument("--rate", type=float, required=True, metavar="R", help="requests per second")
    _add_load(parser, duration_s=30)
    _add_outputs(parser)
    parser.set_defaults(run=run_run)


def _register_sweep(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    description = "Find the highest rate at which latency and errors stay within an objective."
    parser = _kind(kinds, "sweep", "the highest rate that holds an objective", description, _SWEEP_EXAMPLE)
    _add_traffic(parser)
    parser.add_argument("--p99-ms", type=float, required=True, metavar="MS", help="the objective: most latency p99")
    parser.add_argument("--max-errors", type=float, default=0.001, metavar="SHARE", help="most not 2xx (0.001)")
    parser.add_argument("--start", type=float, default=10.0, metavar="R", help="first rate (10 requests/s)")
    parser.add_argument("--limit", type=float, default=20_000.0, metavar="R", help="highest rate tried (20000)")
    parser.add_argument("--precision", type=float, default=0.05, metavar="SHARE", help="of the answer (0.05)")
    _add_load(parser, duration_s=10)
    _add_outputs(parser)
    parser.set_defaults(run=run_sweep)


def _register_compare(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    description = (
        "Measure a service in rounds and hold it against another, or against a stored baseline (--url); or start this "
        "service and general model servers in turns on one core and hold them side by side (--peers)."
    )
    parser = _kind(kinds, "compare", "slower or faster than another, or than before", description, _COMPARE_EXAMPLE)
    _add_traffic(parser, required=False)
    reference = parser.add_mutually_exclusive_group()
    reference.add_argument("--against", metavar="URL", help="the reference, measured in turns with --url")
    reference.add_argument("--baseline", type=Path, metavar="FILE", help="the reference, saved earlier")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep this service's rounds as a baseline")
    parser.add_argument("--rate", type=float, metavar="R", help="requests per second")
    parser.add_argument("--rounds", type=int, metavar="N", help="measured pairs (8; with --peers 3)")
    parser.add_argument("--tolerance", type=float, default=0.03, metavar="SHARE", help="change that counts (0.03)")
    _add_load(parser, duration_s=5)
    _add_outputs(parser)
    _add_peers(parser)
    parser.set_defaults(run=run_compare, **dict.fromkeys(_COMPARE_DEFAULTS))


def _kind(
    kinds: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, description: str, example: str
) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    return kinds.add_parser(name, help=text, description=description, epilog=example, formatter_class=formatter)


def _add_peers(parser: argparse.ArgumentParser) -> None:
    given = ", ".join(f"--{name} {value:g}" for name, value in _PEERS_DEFAULTS.items())
    text = f"In a closed loop, each server alone on one core, the client on another. Unless given: {given}."
    peers = parser.add_argument_group("against general model servers", text)
    peers.add_argument("--peers", metavar="NAMES", help="all, none (only this service), or names with commas")
    peers.add_argument("--install", action="store_true", help="only make the peers' environments, .peers/<name>")
    peers.add_argument("--kit", type=Path, metavar="DIR", help="folder made by `dlen benchmark kit`")
    peers.add_argument("--candidates", type=int, nargs="+", metavar="N", help="some of the kit's (all of them)")
    peers.add_argument("--lines", type=Path, metavar="PNG", help="draw CPU time against N here")


def _add_traffic(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--url", required=required, help="http://HOST:PORT, with or without a path (/v1/rank)")
    parser.add_argument(
        "--request",
        type=Path,
        required=required,
        metavar="FILE",
        help="a JSON body, or one a line, as `dlen request` writes",
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="file with the key to show (its first line that is no comment)"
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="a further header; repeatable"
    )


def _add_load(parser: argparse.ArgumentParser, duration_s: float) -> None:
    parser.add_argument(
        "--duration", type=float, default=duration_s, metavar="S", help=f"measured seconds ({duration_s:g})"
    )
    parser.add_argument("--warmup", type=float, default=2.0, metavar="S", help="seconds before, not counted (2)")
    parser.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    parser.add_argument("--connections", type=int, default=256, metavar="N", help="open at once, at most (256)")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="per request (10)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of arrivals and bodies (1)")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write tables and picture as one page here")


def _load_of(args: argparse.Namespace, rate_per_s: float) -> Load:
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


def _traffic_of(args: argparse.Namespace, url: str) -> tuple[Target, list[bytes]]:
    from loadtest.traffic import build_requests, content_type, parse_target, read_bodies, read_key

    shown = [] if args.key_file is None else [f"Authorization: Bearer {read_key(args.key_file)}"]
    target = parse_target(url, [*args.header, *shown])
    return target, build_requests(target, read_bodies(args.request), content_type(args.request))


def run_run(args: argparse.Namespace) -> int:
    """Drive one load and show what it gave."""
    from loadtest.report import run_document, run_table
    from loadtest.run import run_load

    target, requests = _traffic_of(args, args.url)
    load = _load_of(args, args.rate)
    measurement = run_load(target, requests, load)
    _say(run_table(target, load, measurement))
    if not measurement.valid:
        _say(f"INVALID: {measurement.why_invalid}")

    def draw() -> bytes:
        from loadtest.plots import plot_run

        return plot_run(target.url, measurement)

    tables = [run_table(target, load, measurement)]
    _write_outputs(args, "Load test", run_document(target, load, measurement), tables, draw)
    return 0 if measurement.valid else 1


def run_sweep(args: argparse.Namespace) -> int:
    """Search the highest rate and show the way there."""
    import time
    from dataclasses import replace

    from loadtest.measure import Measurement
    from loadtest.report import sweep_document, sweep_table
    from loadtest.run import run_load
    from loadtest.sweep import Slo, sweep

    target, requests = _traffic_of(args, args.url)
    load = _load_of(args, args.start)
    slo = Slo(p99_ms=args.p99_ms, max_error_share=args.max_errors)

    def run(rate_per_s: float) -> Measurement:
        figures = run_load(target, requests, replace(load, rate_per_s=rate_per_s))
        _say(f"{rate_per_s:9.1f} requests/s: p99 {figures.latency_ms['p99']:.2f} ms, {slo.why_not(figures) or 'holds'}")
        time.sleep(_PAUSE_S)
        return figures

    found = sweep(run, slo, args.start, args.limit, args.precision)
    _say(sweep_table(target, slo, found))

    def draw() -> bytes:
        from loadtest.plots import plot_sweep

        return plot_sweep(target.url, found, slo)

    tables = [sweep_table(target, slo, found)]
    _write_outputs(args, "Load sweep", sweep_document(target, load, slo, found), tables, draw)
    return 0 if found.highest_rate_per_s is not None else 1


def run_compare(args: argparse.Namespace) -> int:
    """Compare with peers, or measure rounds, keep them, and give the verdict where there is a reference."""
    for name, value in (_COMPARE_DEFAULTS if args.peers is None else _PEERS_DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.peers is not None:
        from loadtest.peers.command import compare_peers

        return compare_peers(args, _say)
    return _compare_services(args)


def _compare_services(args: argparse.Namespace) -> int:
    from loadtest.baseline import read_baseline, rounds_document
    from loadtest.compare import compare, measure_rounds
    from loadtest.errors import PlanInvalid
    from loadtest.files import write_file
    from loadtest.report import comparison_document, comparison_table, json_bytes
    from loadtest.rounds import round_runner
    from loadtest.traffic import read_bodies

    for name in ("url", "request", "rate"):
        if getattr(args, name) is None:
            raise PlanInvalid(f"--{name}", found="nothing", expected="--url, --request and --rate, or --peers")
    target, requests = _traffic_of(args, args.url)
    load, bodies = _load_of(args, args.rate), read_bodies(args.request)
    stored = read_baseline(args.baseline, load, bodies) if args.baseline else None
    against = round_runner(*_traffic_of(args, args.against), load, _say) if args.against else None
    ours, theirs = measure_rounds(round_runner(target, requests, load, _say), against, args.rounds)
    document = rounds_document(target, load, bodies, ours)
    if args.save:
        write_file(args.save, json_bytes(document))
    if stored is None and against is None:
        _say("no reference given (--against, --baseline): no verdict")
        return 0
    verdict = compare(ours, theirs if stored is None else stored, args.tolerance)
    _say(comparison_table(verdict))

    def draw() -> bytes:
        from loadtest.plots import plot_comparison

        return plot_comparison(verdict)

    document = comparison_document(document, args.against or str(args.baseline), verdict)
    _write_outputs(args, "Load comparison", document, [comparison_table(verdict)], draw)
    return 1 if verdict.regressed else 0


def _write_outputs(
    args: argparse.Namespace,
    title: str,
    document: dict[str, Any],
    tables: list[Table],
    draw: Callable[[], bytes],
) -> None:
    from loadtest.files import write_file
    from loadtest.report import html_page, json_bytes

    if args.json:
        write_file(args.json, json_bytes(document))
    if args.plot or args.html:
        png = draw()
        if args.plot:
            write_file(args.plot, png)
        if args.html:
            write_file(args.html, html_page(f"{title}: {document['url']}", tables, png))


def _say(what: str | Table) -> None:
    from rich.console import Console

    Console().print(what, markup=False, highlight=False, soft_wrap=isinstance(what, str))
