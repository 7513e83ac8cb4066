"""`dlen train` and the data commands: reading arguments, showing progress; the work is done elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from training import commands_data


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-commands of this folder."""
    commands_data.register(commands)
    train = commands.add_parser(
        "train",
        help="train a model on prepared data",
        description="Train a model on prepared data; run again after a kill, it goes on where it stood.",
        epilog="example:\n  dlen train --data data/kuairand --model dlen-mmoe --out runs/k1 --set epochs=2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by `dlen prepare`")
    train.add_argument(
        "--model", metavar="NAME", help="shared-bottom, mmoe, ple, dlen-mmoe or dlen-ple (default: the config's)"
    )
    train.add_argument("--config", type=Path, metavar="FILE", help="YAML with sections model and training")
    train.add_argument("--loss", choices=("marginal", "joint", "mixed"), help="default: the config's, else joint")
    train.add_argument("--seed", type=int, metavar="S", help="default: the config's, else 1")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; may be repeated"
    )
    train.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    train.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    import json

    import torch
    from rich.console import Console
    from rich.progress import Progress

    from bundle.files import write_file
    from training.config import parse_overrides, read_config
    from training.dataset import read_prepared
    from training.describe import describe_run
    from training.run import create_run
    from training.train import Trainer

    overrides = parse_overrides(args.set)
    if args.loss is not None:
        overrides["training.loss"] = args.loss
    if args.seed is not None:
        overrides["training.seed"] = args.seed
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = read_config(args.config, args.model, overrides)
    data = read_prepared(args.data)
    run = create_run(args.out, describe_run(config, data), data.schema)
    console = Console(soft_wrap=True, highlight=False)
    if run.is_finished:
        console.print(f"{args.out}: already trained, {run.result()['steps']} steps")
    else:
        console.print(
            f"training {config.model.name} ({config.training.loss} loss, seed {config.training.seed}) on "
            f"{data.info.splits['train'].rows:,} rows, tasks {', '.join(run.description.task_names)}"
        )
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("steps", total=None)
            trainer = Trainer(run, data, console.print, lambda n, of: bar.update(task, completed=n, total=of))
            trainer.fit()
    result = run.result()
    console.print(f"best validation loss {result['best']['loss']:.5f} at step {result['best']['step']} → {args.out}")
    if args.json:
        write_file(args.json, json.dumps(result, indent=1).encode())
    return 0
