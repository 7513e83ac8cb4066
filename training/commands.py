"""`dlen train` and the data commands: reading arguments, showing progress; the work is done elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from training import commands_data

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-commands of this folder."""
    benchmarks = commands_data.register(commands)
    train = commands.add_parser(
        "train",
        help="train a model on prepared data",
        description="Train a model on prepared data; run again after a kill, it goes on where it stood. Under torchrun "
        "each process takes its share of every batch.",
        epilog="examples:\n  dlen train --data data/kuairand --model dlen-mmoe --out runs/k1 --set epochs=2\n"
        "  torchrun --nproc-per-node 2 -m cli train --data data/kuairand --model dlen-mmoe --out runs/k1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by `dlen prepare`")
    train.add_argument(
        "--model", metavar="NAME", help="shared-bottom, mmoe, ple, dlen-mmoe, dlen-ple or esmm (default: the config's)"
    )
    train.add_argument("--config", type=Path, metavar="FILE", help="YAML with sections model and training")
    train.add_argument("--loss", choices=("marginal", "joint", "mixed"), help="default: the config's, else joint")
    train.add_argument("--seed", type=int, metavar="S", help="default: the config's, else 1")
    train.add_argument(
        "--start-from", metavar="RUN", help="a finished run whose weights this one starts from, where they fit"
    )
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; may be repeated"
    )
    train.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    train.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    train.set_defaults(run=_train)
    _register_compare(commands)
    _register_benchmark(benchmarks)


def _register_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare models over seeds, with intervals",
        description="Carry out experiments: tune and train every model, measure gains over a baseline with paired "
        "intervals, write text, JSON and pictures. Run again after a kill, finished runs are not repeated.",
        epilog="example:\n  dlen compare --config configs/experiments/*.yaml --out results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("--config", type=Path, nargs="+", required=True, metavar="FILE", help="experiments (YAML)")
    compare.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="one folder per experiment (default: results)"
    )
    compare.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    compare.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there, by experiment")
    compare.add_argument(
        "--page", type=Path, metavar="FILE", help="also write one page there of every experiment that --out holds"
    )
    compare.set_defaults(run=_compare)


def _register_benchmark(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    benchmark = benchmarks.add_parser(
        "train",
        help="rows a second of the training loop, and where its time goes",
        description="Train on made-up rows (16 categorical features of 16 numbers, five tasks) and measure the loop in "
        "CPU time; 3 experts [64, 32] and batches of 2048 unless --set says otherwise.",
        epilog="examples:\n  dlen benchmark train --json speed.json\n"
        "  dlen benchmark train --model dlen-mmoe --set experts=5 --set expert_hidden=[256,128,64]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmark.add_argument("--model", default="mmoe", metavar="NAME", help="default: mmoe")
    benchmark.add_argument("--rows", type=int, default=150_000, metavar="N", help="training rows (default: 150000)")
    benchmark.add_argument("--codes", type=int, default=1000, metavar="K", help="values of a feature (default: 1000)")
    benchmark.add_argument("--rounds", type=int, default=3, metavar="R", help="epochs measured, best kept (default: 3)")
    benchmark.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    benchmark.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; may be repeated"
    )
    benchmark.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    benchmark.set_defaults(run=_benchmark)


def _train(args: argparse.Namespace) -> int:
    import functools
    import json

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from bundle.files import write_file
    from training.config import parse_overrides, read_config
    from training.dataset import read_prepared
    from training.describe import describe_run
    from training.ranks import joined
    from training.run import create_run
    from training.train import Trainer

    overrides = parse_overrides(args.set)
    if args.loss is not None:
        overrides["training.loss"] = args.loss
    if args.seed is not None:
        overrides["training.seed"] = args.seed
    if args.start_from is not None:
        overrides["training.start_from"] = args.start_from
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = read_config(args.config, args.model, overrides)
    data = read_prepared(args.data)
    with joined(args.device) as ranks:
        console = Console(soft_wrap=True, highlight=False, quiet=not ranks.is_first)
        if not ranks.is_first:
            ranks.wait()
        run = create_run(args.out, describe_run(config, data), data.schema)
        was_finished = run.is_finished
        if ranks.is_first:
            ranks.wait()
        if was_finished:
            console.print(f"{args.out}: already trained, {run.result()['steps']} steps")
        else:
            rows = round(config.training.rows_share * data.info.splits["train"].rows)
            console.print(
                f"training {config.model.name} ({config.training.loss} loss, seed {config.training.seed}) on "
                f"{rows:,} rows, tasks {', '.join(run.description.task_names)}"
                + (f", {ranks.count} processes" if ranks.count > 1 else "")
            )
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task("steps", total=None)
                Trainer(run, data, console.print, functools.partial(_advance, bar, task), ranks).fit()
        result = run.result()
        best = result["best"]
        console.print(f"best validation loss {best['loss']:.5f} at step {best['step']} → {args.out}")
        if args.json and ranks.is_first:
            write_file(args.json, json.dumps(result, indent=1).encode())
    return 0


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _compare(args: argparse.Namespace) -> int:
    import functools
    import json

    import torch
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.progress import Progress

    from bundle.files import write_file
    from training.compare import Comparison
    from training.experiment import read_experiment
    from training.figures import experiment_figures
    from training.page import write_page
    from training.results import TEXT_FILE, write_results

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    experiments = {path.stem: read_experiment(path) for path in args.config}
    console = Console(soft_wrap=True, highlight=False)
    documents = {}
    for name, experiment in experiments.items():
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            advance = functools.partial(_advance, bar, bar.add_task(name, total=None))
            comparison = Comparison(experiment, args.out / name, console.print, advance)
            console.print(f"{name}: {comparison.runs} runs on {len(comparison.test_rows.labels):,} test rows")
            outcomes = comparison.outcomes()
        console.print(f"{name}: intervals from {experiment.redraws:,} redraws")
        documents[name] = experiment_figures(experiment, comparison.test_rows, outcomes)
        folder = write_results(documents[name], args.out / name)
        text = (folder / TEXT_FILE).read_text("utf-8")
        console.print(Markdown(text) if console.is_terminal else text, markup=False)
        console.print(f"{name} → {folder}")
    if args.json:
        write_file(args.json, json.dumps(documents, indent=1).encode())
    if args.page:
        console.print(f"{', '.join(write_page(args.out, args.page))} → {args.page}")
    return 0


def _benchmark(args: argparse.Namespace) -> int:
    import json

    import torch
    from rich.console import Console
    from rich.table import Table

    from bundle.files import write_file
    from training.config import parse_overrides, read_config
    from training.speed import MEASURED, measure

    torch.set_num_threads(args.threads)
    console = Console(soft_wrap=True, highlight=False)
    config = read_config(None, args.model, MEASURED | parse_overrides(args.set))
    document = measure(config, args.rows, args.codes, args.rounds, console.print)
    shown = Table("operator", "share of CPU time", "calls per step", title=f"{args.model}, {args.threads} thread(s)")
    for operator in document["operators"]:
        shown.add_row(operator["operator"], f"{operator['share']:.1%}", f"{operator['calls']:g}")
    console.print(shown)
    aucs = " ".join(f"{auc:.4f}" for auc in document["auc"].values())
    console.print(f"{document['rows_per_cpu_s']:,.0f} rows per second of CPU; validation AUC {aucs}")
    if args.json:
        write_file(args.json, json.dumps(document, indent=1).encode())
    return 0
