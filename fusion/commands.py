"""The commands `dlen fusion …` and `dlen ab …`; what they do is imported when they run."""

from __future__ import annotations

import argparse
from pathlib import Path

CHECK_EXAMPLE = """example:
  dlen fusion check configs/fusion.yaml --bundle models/dlen/3 --against configs/fusion.serving.yaml"""
DIFF_EXAMPLE = """example:
  dlen request --data data/kuairand --split test --count 200 --out requests.json
  dlen fusion diff --config configs/fusion.yaml --control feed_without_up --treatment feed \\
      --requests requests.json --url http://127.0.0.1:8080 --plot diff.png --json diff.json

A policy is named as NAME (in --config) or FILE:NAME. The requests file holds one JSON document a line: rank request
bodies (scored by the ranker at --url), or requests with scores (docs/fusion.md gives the form)."""
HISTORY_EXAMPLE = """example:
  dlen fusion history --state .run/fusion"""
ROLLBACK_EXAMPLE = """example:
  dlen fusion rollback --state .run/fusion --to a1e8cf
  dlen fusion rollback --state .run/fusion --clear"""
SCHEMA_EXAMPLE = """example:
  dlen fusion schema --out configs/fusion.schema.json"""
BENCHMARK_EXAMPLE = """example:
  OMP_NUM_THREADS=1 dlen fusion benchmark --json fusion.json"""
ASSIGN_EXAMPLE = """example:
  dlen ab assign --config configs/fusion/experiment.yaml --user 712 --context '{"country": "DE"}'"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `fusion` and `ab` to the command line."""
    fusion = commands.add_parser("fusion", help="check, compare and roll back fusion configs")
    actions = fusion.add_subparsers(title="actions", metavar="ACTION", required=True)
    _register_check(actions)
    _register_diff(actions)
    _register_versions(actions)
    schema = _add(actions, "schema", "write the JSON Schema of the config, for editors", SCHEMA_EXAMPLE)
    schema.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it")
    schema.set_defaults(run=run_schema)
    benchmark = _add(actions, "benchmark", "time formulas, rules and assignment on this machine", BENCHMARK_EXAMPLE)
    benchmark.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    benchmark.set_defaults(run=run_benchmark)
    ab = commands.add_parser("ab", help="look at experiments")
    ab_actions = ab.add_subparsers(title="actions", metavar="ACTION", required=True)
    assign = _add(ab_actions, "assign", "which variants a user has, and why", ASSIGN_EXAMPLE)
    _add_config(assign)
    assign.add_argument("--user", required=True, metavar="ID", help="the user's id")
    assign.add_argument("--context", default="{}", metavar="JSON", help="attributes that conditions read (JSON)")
    assign.add_argument("--json", type=Path, metavar="FILE", help="write the answer as JSON")
    assign.set_defaults(run=run_assign)


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, example: str
) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    return actions.add_parser(name, help=text, description=f"{text}.", epilog=example, formatter_class=form)


def _add_config(parser: argparse.ArgumentParser) -> None:
    default = Path("configs/fusion.yaml")
    text = f"a YAML file or a directory of them (default {default})"
    parser.add_argument("--config", type=Path, default=default, metavar="PATH", help=text)


def _register_check(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = _add(actions, "check", "check a config without serving it (a dry run)", CHECK_EXAMPLE)
    check.add_argument("file", type=Path, metavar="FILE", help="a YAML file or a directory of them")
    check.add_argument("--bundle", type=Path, metavar="DIR", help="also against this model version")
    check.add_argument("--against", type=Path, metavar="OLD", help="also what moves from this config")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    check.set_defaults(run=run_check)


def _register_diff(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    diff = _add(actions, "diff", "compare two policies on recorded requests", DIFF_EXAMPLE)
    _add_config(diff)
    diff.add_argument("--control", required=True, metavar="POLICY", help="policy that is compared with")
    diff.add_argument("--treatment", required=True, metavar="POLICY", help="policy that is compared")
    diff.add_argument("--requests", type=Path, required=True, metavar="FILE", help="recorded requests")
    diff.add_argument("--bundle", type=Path, metavar="DIR", help="the model version, for policies with calibrate: true")
    diff.add_argument("--url", help="a running ranker, to score requests that carry no scores")
    diff.add_argument("--top", type=int, default=10, metavar="K", help="positions that count as the top (default 10)")
    diff.add_argument("--plot", type=Path, metavar="FILE", help="also draw it: .png or .html")
    diff.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    diff.set_defaults(run=run_diff)


def _register_versions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    history = _add(actions, "history", "list the versions that served, the last first", HISTORY_EXAMPLE)
    rollback = _add(actions, "rollback", "serve an earlier version until --clear", ROLLBACK_EXAMPLE)
    for parser in (history, rollback):
        parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the fusion state folder")
    group = rollback.add_mutually_exclusive_group(required=True)
    group.add_argument("--to", metavar="VERSION", help="the version, or as much of its hash as is unique")
    group.add_argument("--clear", action="store_true", help="serve the config on disk again")
    history.set_defaults(run=run_history)
    rollback.set_defaults(run=run_rollback)


def run_check(args: argparse.Namespace) -> int:
    """Check a config; its first fault is the error."""
    from fusion.show import print_check

    return print_check(args.file, args.bundle, args.against, args.json)


def run_diff(args: argparse.Namespace) -> int:
    """Compare two policies."""
    from fusion.show import print_diff

    return print_diff(args)


def run_history(args: argparse.Namespace) -> int:
    """List stored versions."""
    from fusion.show import print_history

    return print_history(args.state)


def run_rollback(args: argparse.Namespace) -> int:
    """Pin an earlier version, or let go of it."""
    from fusion.show import roll_back

    return roll_back(args.state, None if args.clear else args.to)


def run_schema(args: argparse.Namespace) -> int:
    """Write the JSON Schema."""
    from fusion.history import write_aside
    from fusion.policy import json_schema

    write_aside(args.out, json_schema().encode())
    return 0


def run_benchmark(args: argparse.Namespace) -> int:
    """Time fusion."""
    from fusion.benchmark import print_benchmark

    return print_benchmark(args.json)


def run_assign(args: argparse.Namespace) -> int:
    """Say which variants a user has."""
    from fusion.show import print_assignment

    return print_assignment(args.config, args.user, args.context, args.json)
