"""`dlen loadtest scenario`: the order of its steps."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.table import Table

from loadtest.errors import PlanInvalid, ServerFailed
from loadtest.files import write_file
from loadtest.processes import ROOT
from loadtest.report import json_bytes
from loadtest.scenarios.catalogue import all_scenarios, chosen, why_not
from loadtest.scenarios.scenario import Check, Scenario, ScenarioResult, Settings
from loadtest.scenarios.show import list_table, plot_result, result_table, scenario_document, verdict_table
from loadtest.traffic import read_bodies

DEMO = Path(".run/demo")
_LOG_LINES = 20


def run_scenarios(args: argparse.Namespace, say: Callable[[str | Table], None]) -> int:
    """Run what is wanted, one after another; return the exit code: 1 where a check failed, or nothing could run."""
    if args.list or args.names == ["list"]:
        say(list_table({scenario: why_not(scenario) for scenario in all_scenarios()}))
        return 0
    if not args.names:
        raise PlanInvalid("scenario", found="no name", expected="all or some of `dlen loadtest scenario list`")
    wanted = chosen(args.names)
    if not 0 < args.rate < 10_000 or args.seed < 0:
        raise PlanInvalid("--rate, --seed", found=(args.rate, args.seed), expected="over 0 a second, 0 or more")
    if args.minutes is not None and not 0.1 <= args.minutes <= 24 * 60:
        raise PlanInvalid("--minutes", found=args.minutes, expected="0.1 to 1440")
    signal.signal(signal.SIGTERM, _interrupt)  # so that what was started is ended on SIGTERM as on Ctrl-C
    if any(why_not(scenario) is None for scenario in wanted):
        models, bodies = _material(args, say)
    results: dict[Scenario, ScenarioResult | str] = {}
    seconds: dict[str, float] = {}
    for scenario in wanted:
        if lacking := why_not(scenario):
            say(f"{scenario.name}: skipped, {lacking}")
            results[scenario] = lacking
            continue
        start = time.monotonic()
        results[scenario] = result = _run_one(scenario, args, models, bodies, say)
        seconds[scenario.name] = time.monotonic() - start
        say(result_table(scenario, result))
        if args.plot and (png := plot_result(scenario, result)) is not None:
            write_file(_picture(args.plot, scenario, len(wanted)), png)
    if len(wanted) > 1:
        say(verdict_table(results))
    if args.json:
        asked = {"seed": args.seed, "rate_per_s": args.rate, "quick": args.quick, "names": args.names}
        asked["minutes"] = args.minutes
        write_file(args.json, json_bytes(scenario_document(results, seconds, asked)))
    ran = [result for result in results.values() if not isinstance(result, str)]
    return 0 if ran and all(result.passed for result in ran) else 1


def _run_one(
    scenario: Scenario,
    args: argparse.Namespace,
    models: Path,
    bodies: tuple[bytes, ...],
    say: Callable[[str | Table], None],
) -> ScenarioResult:
    say(f"{scenario.name}: {scenario.summary}")
    with tempfile.TemporaryDirectory(prefix="scenario-", ignore_cleanup_errors=True) as folder:
        settings = Settings(
            models=models,
            fusion=args.fusion,
            bodies=bodies,
            folder=Path(folder),
            rate_per_s=args.rate,
            seed=args.seed,
            quick=args.quick,
            minutes=args.minutes,
            say=lambda line: say("  " + line),
        )
        try:
            result = scenario.run(settings)
        except ServerFailed as exc:
            result = ScenarioResult((Check("what was started answers", "yes", str(exc), passed=False),))
        if not result.passed:
            _show_logs(settings.folder, say)
        return result


def _material(args: argparse.Namespace, say: Callable[[str | Table], None]) -> tuple[Path, tuple[bytes, ...]]:
    """Return models and requests: the ones given, else those of the demo, which are made once."""
    for option, path in (("--models", args.models), ("--fusion", args.fusion)):
        if path is not None and not path.exists():
            raise PlanInvalid(f"{option} {path}", found="nothing there", expected="what a ranker can serve")
    if args.request is not None:
        return args.models or Path("models"), tuple(read_bodies(args.request))
    if args.models is not None:
        raise PlanInvalid("--request", found="nothing", expected="rank requests that fit --models (`dlen request`)")
    if not (DEMO / "request.json").exists():
        say(f"no --models and --request given: made from a simulated feed in {DEMO}, once")
    words = [sys.executable, "-m", "cli", "demo", "--make-only", "--folder", str(DEMO.absolute())]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFailed("dlen demo --make-only", found=done.stderr[-300:], expected="a bundle and a request")
    return DEMO / "models", tuple(read_bodies(DEMO / "request.json"))


def _show_logs(folder: Path, say: Callable[[str | Table], None]) -> None:
    """Show the end of what the servers wrote, where a scenario did not go well."""
    for log in sorted(folder.rglob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        say(f"--- {log.name}" + "".join("\n" + line[:500] for line in lines))


def _picture(path: Path, scenario: Scenario, wanted: int) -> Path:
    """Return where a scenario's picture goes: the given file, or one beside it per scenario."""
    return path if wanted == 1 else path.with_name(f"{path.stem}-{scenario.name}{path.suffix or '.png'}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
