"""What the fusion commands print: findings of a check, a comparison, versions, a user's variants."""

from __future__ import annotations

import argparse
import getpass
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fusion.against import compare_configs
from fusion.calibration import Calibration
from fusion.diff import Change, Difference, compare_policies, write_plot
from fusion.errors import FusionError, RequestsInvalid
from fusion.experiments import Assigner
from fusion.expression import names_by_term
from fusion.fuse import CompiledPolicy, compile_policy
from fusion.history import History, write_aside
from fusion.live import compile_config
from fusion.policies import Expression, Policy, PowerProduct, RankProduct
from fusion.policy import FusionConfig, load_config
from fusion.recorded import read_requests
from fusion.signals import P_UP
from fusion.variants import Choice, all_policies


def print_check(file: Path, bundle: Path | None, against: Path | None, json_file: Path | None) -> int:
    """Check a config, alone and against a bundle and an older config, and print what was found.

    Raises:
        FusionError: the first fault.
    """
    config = load_config(file)
    fits = None
    uncalibrated: list[str] = []
    if bundle is not None:
        tasks, has_p_up, calibrations = read_model(bundle)
        compile_config(config, tasks, has_p_up, calibrations)
        fits = str(bundle)
        uncalibrated = sorted(set(tasks) - calibrations.keys())
    warnings = find_doubts(config, uncalibrated)
    if bundle is not None and (foreign := sorted(set(config.negative_tasks) - set(tasks))):
        warnings.append(f"negative_tasks that the model does not have: {', '.join(foreign)}")
    moves = None if against is None else compare_configs(load_config(against), config)
    console = Console(highlight=False)
    console.print(f"{file}: good, version {config.version}", soft_wrap=True)
    model = f"fits {fits}" if fits else "not checked against a model (--bundle)"
    console.print(f"  {len(config.policies)} policies, {len(config.layers)} layers; {model}", soft_wrap=True)
    for warning in warnings:
        console.print(f"  note: {warning}", soft_wrap=True)
    for move in moves or ():
        console.print(f"  moves: {move}", soft_wrap=True)
    _write_json(json_file, {"version": config.version, "bundle": fits, "notes": warnings, "moves": moves})
    return 0


def find_doubts(config: FusionConfig, uncalibrated: Sequence[str] = ()) -> list[str]:
    """Return what is allowed in a config (for a model with uncalibrated tasks) but may not be meant, one line each."""
    doubts = []
    for name, policy in _policies_by_label(config).items():
        if policy.signal == "joint" and _multiplies_p_up(policy, config.negative_tasks):
            doubts.append(f"policy {name}: joint probabilities already hold P(UP), and p_up multiplies it in again")
        read = [task for task in uncalibrated if task in getattr(policy, "weights", {task: 1})]
        if policy.calibrate and read:
            doubts.append(f"policy {name}: calibrate: true, but the model has no calibration of {', '.join(read)}")
    used = {config.default}
    for layer in config.layers:
        for experiment in layer.experiments:
            used.update(variant.policy for variant in experiment.variants if variant.policy)
            if not any(variant.policy or variant.patch for variant in experiment.variants):
                doubts.append(f"experiment {experiment.name}: no variant changes anything (an A/A test)")
    if unused := sorted(set(config.policies) - used):
        doubts.append(f"policies in no use: {', '.join(unused)}")
    return doubts


def _policies_by_label(config: FusionConfig) -> dict[str, Policy]:
    """Return every policy by name, and every patched one by name and variants."""
    policies: dict[str, Policy] = dict(config.policies)
    for choice, (name, policy) in all_policies(config).items():
        policies[_label(config, choice, name, policy)] = policy
    return policies


def _label(config: FusionConfig, choice: Choice, name: str, policy: Policy) -> str:
    if policy is config.policies[name]:
        return name
    return f"{name} as patched by {', '.join(variant for variant in choice if variant)}"


def _policy_by_variants(config: FusionConfig, variants: Mapping[str, str]) -> str:
    """Return the label of the policy that a user with these variants (layer → variant) is ranked by."""
    policies = all_policies(config)
    layers = [layer.name for layer in config.layers]
    choice = tuple(
        variants.get(layer) if any(other[place] == variants.get(layer) for other in policies) else None
        for place, layer in enumerate(layers)
    )
    return _label(config, choice, *policies[choice])


def _multiplies_p_up(policy: Policy, negative_tasks: Sequence[str]) -> bool:
    """Return whether P(UP) multiplies what holds it already; as a term of a sum it does not."""
    if not isinstance(policy, Expression):
        return isinstance(policy, PowerProduct | RankProduct) and policy.p_up > 0
    plain = {P_UP, *policy.attributes, *negative_tasks}  # negative tasks enter by P(task)
    return any(P_UP in names and names - plain for names in names_by_term(policy.expression))


def read_model(bundle: Path) -> tuple[list[str], bool, dict[str, Calibration]]:
    """Return task names, whether there is a latent, and calibrations, from a bundle's manifest.

    Raises:
        FusionError: no manifest that names tasks and outputs.
    """
    file = bundle / "manifest.json"
    try:
        manifest = json.loads(file.read_bytes())
        tasks = [task["name"] for task in manifest["tasks"]]
        outputs = {output["name"] for output in manifest["outputs"]}
        calibrations = {
            task["name"]: Calibration(task["calibration"]["temperature"], task["calibration"]["offset"])
            for task in manifest["tasks"]
            if task.get("calibration")
        }
    except OSError as exc:
        raise FusionError(str(file), found=exc.strerror, expected="a bundle's manifest") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise FusionError(str(file), found=f"{type(exc).__name__}: {exc}", expected="a bundle's manifest") from exc
    return tasks, "p_up" in outputs, calibrations


def print_diff(args: argparse.Namespace) -> int:
    """Compare two policies on recorded requests and print the comparison.

    Raises:
        FusionError: a policy, or the requests, cannot be used.
    """
    if args.top < 1:
        raise FusionError("--top", found=args.top, expected="at least 1")
    requests = read_requests(args.requests, args.url)
    tasks, outputs = requests[0].tasks, requests[0].probabilities
    has_p_up = outputs.p_up_N is not None and outputs.p_joint_NT is not None
    calibrations = None if args.bundle is None else read_model(args.bundle)[2]
    control = find_policy(args.control, args.config, tasks, has_p_up, calibrations)
    treatment = find_policy(args.treatment, args.config, tasks, has_p_up, calibrations)
    difference = compare_policies(control, treatment, requests, args.top)
    Console(highlight=False).print(difference_table(difference, args.control, args.treatment))
    if args.plot is not None:
        write_plot(args.plot, difference, args.control, args.treatment)
    _write_json(args.json, {"control": args.control, "treatment": args.treatment, **difference.to_json()})
    return 0


def find_policy(
    name: str,
    config_path: Path,
    tasks: tuple[str, ...],
    has_p_up: bool,
    calibrations: Mapping[str, Calibration] | None = None,
) -> CompiledPolicy:
    """Return the policy NAME of the config at hand, or FILE:NAME, compiled for the tasks.

    Raises:
        FusionError: no such policy, it does not fit the tasks, or it wants calibrations and there are none.
    """
    file, _, short = name.rpartition(":")
    config = load_config(Path(file) if file else config_path)
    if short not in config.policies:
        raise FusionError("policy", found=repr(name), expected=f"one of {', '.join(sorted(config.policies))}")
    policy = config.policies[short]
    if policy.calibrate and calibrations is None:
        raise FusionError(f"policy {name}", found="calibrate: true", expected="--bundle of the model, which has them")
    return compile_policy(policy, tasks, has_p_up, config.negative_tasks, calibrations)


def difference_table(difference: Difference, control: str, treatment: str) -> Table:
    """Return the comparison as a table for a terminal."""
    title = f"{control} → {treatment}: {difference.requests} requests, {difference.candidates} candidates"
    table = Table(title=title, caption="Σ P is what the model expects; what users do needs an experiment")
    table.add_column("figure", no_wrap=True)
    for column in (control, treatment):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("95 % of change", justify="right", no_wrap=True)
    top = difference.top_k
    table.add_row(f"top {top} in both", "", f"{difference.overlap:.3f}", "", "")
    table.add_row(f"same top {top}, same order", "", f"{difference.same_top:.1%}", "", "")
    table.add_row("Kendall τ, whole orders", "", f"{difference.kendall_tau:.3f}", "", "")
    table.add_row("mean move, positions", "", f"{difference.mean_move:.1f}", "", "")
    for task, change in difference.tasks.items():
        table.add_row(f"Σ P({task}), top {top}", *_cells(change))
    if difference.p_up is not None:
        table.add_row(f"mean P(UP), top {top}", *_cells(difference.p_up))
    return table


def _cells(change: Change) -> list[str]:
    lift = "" if change.lift is None else f"{change.lift:+.2%}"
    span = change.lift_interval
    interval = "" if span is None else f"{span[0]:+.2%} … {span[1]:+.2%}"
    return [f"{change.control:.4f}", f"{change.treatment:.4f}", lift, interval]


def print_history(state: Path) -> int:
    """Print the stored versions and which one is pinned."""
    history = History(state)
    pinned = history.pinned()
    table = Table(title=f"Fusion configs that served ({state})")
    for column in ("version", "last began to serve (UTC)", ""):
        table.add_column(column, no_wrap=True)
    for stored in history.versions():
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(stored.last_active))
        table.add_row(stored.version[:23], began, "pinned" if stored.version == pinned else "")
    Console(highlight=False).print(table)
    return 0


def roll_back(state: Path, version: str | None) -> int:
    """Pin the version that starts like this; None lets the config on disk serve again."""
    history = History(state)
    by = f"command:{getpass.getuser()}"
    console = Console(highlight=False)
    if version is None:
        history.unpin(by=by)
        console.print("not pinned: the config on disk serves")
        return 0
    full = history.resolve(version)
    history.pin(full, by=by)
    console.print(f"pinned {full}; `--clear` lets the config on disk serve again", soft_wrap=True)
    return 0


def print_assignment(path: Path, user: str, context_text: str, json_file: Path | None) -> int:
    """Print which variants a user has and why.

    Raises:
        FusionError: a config or context that does not read.
    """
    try:
        context: Any = json.loads(context_text)
    except ValueError as exc:
        raise RequestsInvalid("--context", found=str(exc), expected="a JSON object") from exc
    if not isinstance(context, dict):
        raise RequestsInvalid("--context", found=type(context).__name__, expected="a JSON object")
    config = load_config(path)
    reasons = Assigner(config).explain(user, context)
    policy = _policy_by_variants(config, {reason.layer: reason.variant for reason in reasons if reason.variant})
    table = Table(title=f"Variants of user {user!r}")
    for column in ("layer", "experiment", "variant", "why"):
        table.add_column(column)
    for reason in reasons:
        table.add_row(reason.layer, reason.experiment, reason.variant or "-", reason.why)
    console = Console(highlight=False)
    console.print(table if reasons else "no experiments in this config")
    console.print(f"ranked by policy {policy}", soft_wrap=True)
    answer = [{"layer": r.layer, "experiment": r.experiment, "variant": r.variant, "why": r.why} for r in reasons]
    _write_json(json_file, {"user": user, "policy": policy, "experiments": answer})
    return 0


def _write_json(file: Path | None, data: dict[str, Any]) -> None:
    if file is not None:
        try:
            write_aside(file, (json.dumps(data, indent=2) + "\n").encode())
        except OSError as exc:
            raise FusionError(str(file), found=exc.strerror, expected="a file to write") from exc
