"""`dlen export`, `dlen evaluate`, `dlen benchmark graph|kit`: arguments and printing; the work is done elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bundle.manifest import ItemTableEntry, PrecisionGate


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-commands of this folder."""
    export = commands.add_parser(
        "export",
        help="write a trained run as a bundle that the service loads",
        description="Write a trained run as a bundle: ONNX graph, manifest, features, golden request.",
        epilog="examples:\n  dlen export --run runs/k1 --out models/kuairand/1\n"
        "  dlen export --run runs/k1 --out models/kuairand/2 --precision auto\n"
        "  dlen export --run runs/k1 --out models/kuairand/3 --items items.parquet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("--run", type=Path, required=True, dest="run_folder", help="folder made by `dlen train`")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="models/NAME/VERSION, new")
    export.add_argument(
        "--precision",
        choices=("fp32", "int8", "auto"),
        default="fp32",
        help="int8 is written only if it ranks as fp32 does; auto falls back to fp32 (default: fp32)",
    )
    export.add_argument(
        "--items",
        type=Path,
        metavar="TABLE",
        help="Parquet, CSV or folder of Parquet with an id and raw item features per row: requests may then name items "
        "by id only",
    )
    export.add_argument("--item-id", default="id", metavar="COLUMN", help="the table's id column (default: id)")
    export.add_argument(
        "--item-rows",
        choices=("layer1", "packed"),
        default="layer1",
        help="what is kept of an item: its part of the first layers (fastest) or its embeddings (smallest)",
    )
    export.add_argument(
        "--sign-key", type=Path, metavar="FILE", help="sign the bundle with this Ed25519 private key (PEM)"
    )
    export.add_argument("--json", type=Path, metavar="FILE", help="also write parity and precision figures there")
    export.set_defaults(run=_export)

    _register_items(commands)
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a run or a bundle on prepared data",
        description="Measure a trained run, or a bundle as it is served, on one split of prepared data.",
        epilog="example:\n  dlen evaluate --run runs/k1 --data data/kuairand --split test --json k1.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, dest="run_folder", metavar="RUN", help="folder made by `dlen train`")
    what.add_argument("--bundle", type=Path, metavar="DIR", help="folder made by `dlen export`")
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by `dlen prepare`")
    evaluate.add_argument("--split", choices=("train", "validation", "test"), default="test")
    evaluate.add_argument(
        "--truth", type=Path, metavar="DIR", help="folder of `dlen simulate`: also measure how well P(UP) is recovered"
    )
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    evaluate.set_defaults(run=_evaluate)
    benchmarks = _benchmarks(commands)
    _register_benchmark(benchmarks)
    _register_kit(benchmarks)


def _register_items(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "items",
        help="write the items of prepared data as a table for `dlen export --items`",
        description="Write one row per item of the held-back splits: its id and its features as last seen.",
        epilog="example:\n  dlen items --data data/kuairand --out items.parquet\n"
        "  dlen export --run runs/k1 --out models/kuairand/2 --items items.parquet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder made by `dlen prepare`")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="a Parquet file")
    command.set_defaults(run=_items)


def _benchmarks(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """Return the sub-parsers of `dlen benchmark`, which another folder may have begun."""
    benchmark = commands.choices.get("benchmark")
    if benchmark is None:
        benchmark = commands.add_parser("benchmark", help="measure against other libraries")
    for action in benchmark._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action
    return benchmark.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)


def _register_benchmark(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = benchmarks.add_parser(
        "graph",
        help="serving graphs against torch's own export, on one core",
        description="Measure the fp32 and int8 serving graphs against torch.onnx.export of the same network: CPU time "
        "of one thread, graphs in turns, medians. Without --run: random weights, 24 features of 16 numbers (14 of them "
        "the request's), five tasks.",
        epilog="example:\n  dlen benchmark graph --candidates 100 500 --profile 500 --json graph.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--run", type=Path, dest="run_folder", metavar="RUN", help="folder made by `dlen train`")
    what.add_argument("--model", default="dlen-mmoe", metavar="NAME", help="default: dlen-mmoe")
    command.add_argument("--candidates", type=int, nargs="+", default=[20, 100, 500, 2000], metavar="N")
    command.add_argument("--rounds", type=int, default=20, metavar="K", help="measured rounds (default: 20)")
    command.add_argument(
        "--items", type=int, default=100_000, metavar="M", help="items in the tables of rows (default: 100,000)"
    )
    command.add_argument("--profile", type=int, metavar="N", help="also show each graph's operators at N candidates")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    command.set_defaults(run=_benchmark_graph)


def _register_kit(benchmarks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = benchmarks.add_parser(
        "kit",
        help="what `dlen loadtest compare --peers` needs: bundles, a plain export, equal requests",
        description="Write one network (random weights, the size of `dlen benchmark graph`) as bundles and as torch's "
        "own export, and the same requests raw for this service and encoded for general model servers.",
        epilog="example:\n  dlen benchmark kit --out runs/kit\n"
        "  dlen loadtest compare --peers all --kit runs/kit --rounds 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument("--candidates", type=int, nargs="+", default=[1, 20, 100, 500, 2000], metavar="N")
    command.add_argument(
        "--table-items", type=int, default=20_000, metavar="M", help="items in the item table (default: 20,000)"
    )
    command.set_defaults(run=_benchmark_kit)


def _export(args: argparse.Namespace) -> int:
    import json

    from rich.console import Console

    from bundle.files import write_file
    from bundle.signature import read_signing_key
    from model_export.items import ItemsWanted
    from model_export.write import export_fastest, export_run

    console = Console(soft_wrap=True, highlight=False)
    items = None if args.items is None else ItemsWanted(args.items, args.item_id, args.item_rows)
    sign_key = None if args.sign_key is None else read_signing_key(args.sign_key)
    if args.precision == "auto":
        bundle, refused = export_fastest(args.run_folder, args.out, items, sign_key)
        if refused is not None:
            console.print(f"written as fp32, not int8: {refused}")
    else:
        bundle = export_run(args.run_folder, args.out, args.precision, items, sign_key)
    manifest = bundle.manifest
    parity, gate = manifest.parity, manifest.precision_gate
    size_mb = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
    console.print(
        f"{args.out}: {manifest.architecture}, {manifest.precision}, {size_mb:.1f} MB; largest difference from "
        f"{'the trained network' if gate is None else 'its integer arithmetic'} {parity.max_abs_error:.2g} over "
        f"{parity.rows:,} candidates (allowed {parity.tolerance:g})"
    )
    if gate is not None:
        console.print(_gate_table(gate))
        fused = "a fused graph lies beside the stock one" if manifest.fused else _why_not_fused()
        console.print(f"{fused} (docs/serving.md#fused-graphs)")
    if manifest.items is not None:
        console.print(_item_lines(manifest.items))
        if manifest.items.precision_gate is not None:
            console.print(_gate_table(manifest.items.precision_gate, "int8 by item rows"))
    if args.json:
        document = parity.model_dump() | {"precision": manifest.precision}
        document |= {"precision_gate": None if gate is None else gate.model_dump()}
        document |= {
            "fused": manifest.fused,
            "items": None if manifest.items is None else manifest.items.model_dump(),
        }
        write_file(args.json, json.dumps(document, indent=1).encode())
    return 0


def _why_not_fused() -> str:
    from bundle import operators

    built = "networks are too deep for our operators" if operators.library() else "our operators are not built here"
    return f"without a fused graph: {built}"


def _items(args: argparse.Namespace) -> int:
    from rich.console import Console

    from model_export.item_table import write_item_table
    from training.dataset import read_prepared

    items = write_item_table(read_prepared(args.data), args.out)
    Console(soft_wrap=True, highlight=False).print(f"{args.out}: {items:,} items")
    return 0


def _item_lines(entry: ItemTableEntry) -> str:
    bytes_each = int(entry.row.shape[1]) * (4 if entry.row.dtype == "float32" else 1)
    lacking = ", ".join(f"{name} {1 - share:.1%}" for name, share in entry.given.items() if share < 1)
    return (
        f"{entry.count:,} items, {entry.rows} rows of {bytes_each:,} bytes; scores by row differ by at most "
        f"{entry.parity.max_abs_error:.2g}; items without a value: {lacking or 'none'}"
    )


def _gate_table(gate: PrecisionGate, what: str = "int8") -> Table:
    from rich.table import Table

    shown = Table("score", "AUC fp32", "AUC int8", "mean |Δp|", "max |Δp|", "top-10 overlap")
    shown.title = f"{what} against fp32 on {gate.rows:,} validation rows"
    for name, change in gate.scores.items():
        aucs = ["–" if auc is None else f"{auc:.5f}" for auc in (change.auc_before, change.auc_after)]
        changes = [f"{change.mean_abs_change:.2g}", f"{change.max_abs_change:.2g}", f"{change.top10_overlap:.3f}"]
        shown.add_row(name, *aucs, *changes)
    return shown


def _evaluate(args: argparse.Namespace) -> int:
    import json

    from rich.console import Console

    from bundle.files import write_file
    from model_export.evaluate import evaluate_bundle, evaluate_run
    from training.dataset import read_prepared
    from training.evaluate import table

    data = read_prepared(args.data)
    if args.run_folder is not None:
        document, name = evaluate_run(args.run_folder, data, args.split, args.truth), args.run_folder
    else:
        document, name = evaluate_bundle(args.bundle, data, args.split, args.truth), args.bundle
    console = Console(soft_wrap=True, highlight=False)
    console.print(table(document, f"{name} on {args.split} of {args.data}, {document['rows']:,} rows"))
    if document["p_up"]:
        auc_any = document["p_up"]["auc_any"]
        shown = "–" if auc_any is None else f"{auc_any:.4f}"
        console.print(f"P(UP): mean {document['p_up']['mean']:.4f}, AUC against any interaction {shown}")
    for task, figures in document["held_out"].items():
        value = figures["auc_of_not_up"]
        shown = "–" if value is None else f"{value:.4f}"
        console.print(f"held out {task}: AUC of 1 − P(UP) {shown}, {figures['positives']} positives")
    if dwell := document.get("dwell"):
        console.print(
            f"dwell: log-likelihood {dwell['log_likelihood']:.4f} a row ({dwell['of_one_normal']:.4f} of one Normal), "
            f"geometric mean {dwell['seconds_up']:.1f} s given UP, {dwell['seconds_not_up']:.1f} s given ¬UP, "
            f"{dwell['rows']:,} rows"
        )
    if truth := document.get("recovery"):
        console.print(
            f"recovery of P(UP): mean {truth['mean_p_up']:.4f} (true {truth['mean_u']:.4f}), ECE {truth['ece']:.4f}, "
            f"AUC against the true state {truth['auc']:.4f} (oracle {truth['oracle_auc']:.4f}, "
            f"{truth['auc'] / truth['oracle_auc']:.1%} of it), correlation with the truth {truth['correlation']:.3f}, "
            f"with habits {truth['habit_correlation']:.3f} (true {truth['oracle_habit_correlation']:.3f})"
        )
    if args.json:
        write_file(args.json, json.dumps(document, indent=1).encode())
    return 0


def _benchmark_graph(args: argparse.Namespace) -> int:
    import json

    from rich.console import Console

    from bundle.files import write_file
    from model_export.benchmark import benchmark_graphs, reference_subject, run_subject

    console = Console(soft_wrap=True, highlight=False)
    subject = reference_subject(args.model) if args.run_folder is None else run_subject(args.run_folder)
    document = benchmark_graphs(
        subject,
        args.candidates,
        rounds=args.rounds,
        items=args.items,
        profile_at=args.profile,
        say=lambda news: console.print(news),
    )
    _print_benchmark(console, document)
    if args.json:
        write_file(args.json, json.dumps(document, indent=1).encode())
    return 0


def _benchmark_kit(args: argparse.Namespace) -> int:
    from rich.console import Console

    from model_export.kit import write_kit

    console = Console(soft_wrap=True, highlight=False)
    write_kit(args.out, args.candidates, table_items=args.table_items, say=lambda news: console.print(news))
    return 0


def _print_benchmark(console: Console, document: dict[str, Any]) -> None:
    from rich.table import Table

    shown = Table("N", "graph", "ms", "speed", "max |Δp|", title=f"{document['model']}, one thread")
    for point in document["candidates"]:
        for name, figures in point["graphs"].items():
            numbers = (f"{figures['ms']:.3f}", f"{figures['speedup']:.2f}×", f"{figures['max_abs_change']:.1g}")
            shown.add_row(str(point["n"]), name, *numbers)
    console.print(shown)
    ceilings = ", ".join(f"{name} {value:.0f} GOP/s" for name, value in document["ceilings"].items())
    console.print(f"this core in products alone: {ceilings}")
    for name, operators in document["profiles"].items():
        table = Table("operator", "output", "nodes", "µs", "GOP/s", title=f"{name}, by operator")
        for row in operators[:16]:
            rate = row["operations"] / row["microseconds"] / 1e3 if row["operations"] else None
            shape = "×".join(map(str, row["shape"]))
            table.add_row(
                row["operator"], shape, str(row["nodes"]), f"{row['microseconds']:.0f}", f"{rate:.0f}" if rate else ""
            )
        console.print(table)
