"""`dlen prepare`, `dlen request` and `dlen benchmark lightgbm`: arguments and output; the work is done elsewhere."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from training import commands_peers

if TYPE_CHECKING:
    from rich.console import Console

    from training.dataset import PreparedInfo
    from training.requests import Body


def register(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """Add the sub-commands that make and look at data; return those of `dlen benchmark`, for more."""
    _register_prepare(commands)
    _register_request(commands)
    benchmark = commands.add_parser("benchmark", help="measure against other libraries")
    benchmarks = benchmark.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    _register_lightgbm(benchmarks)
    commands_peers.register(benchmarks)
    _register_scale(benchmarks)
    return benchmarks


def _register_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "prepare",
        help="turn interaction logs into prepared data",
        description="Read logs, split them, fit encodings on the training rows, write encoded columns.",
        epilog="examples:\n"
        "  dlen prepare --source kuairand --input KuaiRand-Pure/data --out data/kuairand\n"
        "  dlen prepare --source aliccp --input aliccp-raw --out data/aliccp\n"
        "  dlen prepare --source table --input rows.parquet --schema schema.yaml --out data/mine\n"
        "  dlen prepare --source simulator --input data/feed --out data/simulated\n"
        "docs/datasets.md describes the schema file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--source",
        required=True,
        choices=("kuairand", "kuairand-exposures", "aliccp", "table", "simulator"),
        help="layout of the logs",
    )
    command.add_argument("--input", type=Path, required=True, metavar="PATH", help="file, folder or glob of the logs")
    command.add_argument("--schema", type=Path, metavar="FILE", help="dataset schema (needed for table)")
    command.add_argument("--split", type=Path, metavar="FILE", help="YAML file whose `split:` replaces the schema's")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the prepared folder")
    command.add_argument("--force", action="store_true", help="replace a folder that was made from something else")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the summary there")
    command.set_defaults(run=_prepare)


def _register_request(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "request",
        help="build a rank request from held-back rows",
        description="Build a POST /v1/rank body from prepared rows: one user and candidates, with their features.",
        epilog="example:\n  dlen request --data data/kuairand --split test --candidates 100 --out request.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by `dlen prepare`")
    command.add_argument("--split", default="test", choices=("validation", "test"), help="default: test")
    command.add_argument("--user", metavar="ID", help="this user (default: those with the most rows)")
    command.add_argument("--candidates", type=_positive, default=50, metavar="N", help="default: 50")
    command.add_argument("--count", type=_positive, default=1, metavar="K", help="more than 1 writes one body per line")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the request goes")
    command.set_defaults(run=_request)


def _register_lightgbm(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = benchmarks.add_parser(
        "lightgbm",
        help="gradient-boosted trees on the same prepared data",
        description="Train one LightGBM model per task on prepared data and measure it on the test split.",
        epilog="example:\n  dlen benchmark lightgbm --data data/kuairand --json lightgbm.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by `dlen prepare`")
    command.add_argument("--seed", type=int, default=1, metavar="S", help="default: 1")
    command.add_argument("--threads", type=_positive, default=1, metavar="N", help="default: 1")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    command.set_defaults(run=_lightgbm)


def _register_scale(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = benchmarks.add_parser(
        "scale",
        help="time and memory against the number of rows",
        description="Generate, prepare and train on made-up Ali-CCP logs of growing size; each command is measured "
        "from outside. What was measured before in the work folder is kept, so a killed benchmark goes on.",
        epilog="example:\n  dlen benchmark scale --rows 1000000 5000000 --work /tmp/scale --json scale.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--rows", type=_positive, nargs="+", required=True, metavar="N", help="sizes, train and test")
    command.add_argument(
        "--population-of", type=_positive, metavar="N", help="users and items as of a log of N rows, at every size"
    )
    command.add_argument("--model", default="mmoe", metavar="NAME", help="default: mmoe")
    command.add_argument("--work", type=Path, required=True, metavar="DIR", help="about 350 bytes per row go there")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    command.add_argument("--plot", type=Path, metavar="FILE", help="also draw them there, a PNG")
    command.set_defaults(run=_scale)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, want at least 1")
    return value


def _prepare(args: argparse.Namespace) -> int:
    import json

    from rich.console import Console
    from rich.progress import Progress

    from bundle.files import write_file
    from training.prepare import prepare
    from training.sources.open import open_source

    console = Console()
    source = open_source(args.source, args.input, args.schema, args.split)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("survey", "encode")}
        prepared, made = prepare(
            source,
            args.out,
            force=args.force,
            progress=lambda stage, done, total: bar.update(tasks[stage], completed=done, total=total),
        )
    if not made:
        console.print(f"{args.out} is up to date: same input, same schema; nothing was done", soft_wrap=True)
    _print_summary(console, prepared.info)
    if args.json is not None:
        summary = prepared.info.model_dump(mode="json", by_alias=True)
        write_file(args.json, json.dumps(summary, indent=2, ensure_ascii=False).encode() + b"\n")
    return 0


def _print_summary(console: Console, info: PreparedInfo) -> None:
    from rich.table import Table

    splits = Table("split", "rows", "from", "to", title=info.schema_file)
    for name, split in info.splits.items():
        splits.add_row(name, f"{split.rows:,}", split.first or "–", split.last or "–")
    console.print(splits)
    tasks = Table("task", "label", "kind", "base rate")
    for task in info.tasks:
        kind = task.kind + (", held out" if task.held_out else "")
        tasks.add_row(task.name, task.label, kind, f"{task.base_rate:.4%}")
    console.print(tasks)
    console.print(f"left out by the split: {info.left_out:,}; rows dropped by the source: {info.dropped:,}")


def _request(args: argparse.Namespace) -> int:
    import json

    from rich.console import Console

    from bundle.files import write_file
    from training.dataset import read_prepared
    from training.requests import RequestChoice, build_requests

    choice = RequestChoice(args.split, args.user, args.candidates, args.count)
    bodies = list(build_requests(read_prepared(args.data), choice))
    if args.count == 1:
        text = json.dumps(bodies[0], indent=1, ensure_ascii=False) + "\n"
    else:
        text = "".join(json.dumps(body, ensure_ascii=False, separators=(",", ":")) + "\n" for body in bodies)
    write_file(args.out, text.encode())
    sizes = [_candidates(body) for body in bodies]
    Console().print(f"{args.out}: {len(bodies)} request(s), {min(sizes)}–{max(sizes)} candidates", highlight=False)
    return 0


def _lightgbm(args: argparse.Namespace) -> int:
    import json

    from rich.console import Console
    from rich.table import Table

    from bundle.files import write_file
    from training.dataset import read_prepared
    from training.lightgbm_baseline import run_lightgbm

    console = Console()
    with console.status("training one model per task") if console.is_terminal else nullcontext():
        document = run_lightgbm(read_prepared(args.data), seed=args.seed, threads=args.threads)
    shown = Table("task", "AUC", "GAUC", "log-loss", "PCOC", "positives", "trees", title="LightGBM, test")
    for name, figures in document["tasks"].items():
        numbers = ["–" if (v := figures[k]) is None else f"{v:.4f}" for k in ("auc", "gauc", "log_loss", "pcoc")]
        shown.add_row(name, *numbers, str(figures["positives"]), str(figures["rounds"]))
    console.print(shown)
    if args.json is not None:
        write_file(args.json, json.dumps(document, indent=2).encode() + b"\n")
    return 0


def _scale(args: argparse.Namespace) -> int:
    import json

    from rich.console import Console

    from bundle.files import write_file
    from training.scale import measure_scale
    from training.scale_results import draw_scale, scale_text

    console = Console(soft_wrap=True, highlight=False)
    document = measure_scale(args.rows, args.model, args.work, console.print, args.population_of)
    console.print(scale_text(document), markup=False)
    if args.json is not None:
        write_file(args.json, json.dumps(document, indent=1).encode() + b"\n")
    if args.plot is not None:
        write_file(args.plot, draw_scale(document))
    return 0


def _candidates(body: Body) -> int:
    candidates = body["candidates"]
    assert isinstance(candidates, list)
    return len(candidates)
