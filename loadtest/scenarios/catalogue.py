"""All scenarios, in the order in which `all` runs them."""

from __future__ import annotations

from loadtest.errors import ScenarioUnknown
from loadtest.scenarios import (
    bad_bundles,
    clock_jump,
    config_swaps,
    costs,
    freeze,
    kill_replica,
    memory,
    overload,
    rolling_restart,
    slow_clients,
    soak,
    worker_sigkill,
    worker_sigstop,
)
from loadtest.scenarios.scenario import Scenario
from loadtest.scenarios.stack import command_path

SCENARIOS: tuple[Scenario, ...] = (
    freeze.SCENARIO,
    worker_sigkill.SCENARIO,
    worker_sigstop.SCENARIO,
    config_swaps.SCENARIO,
    bad_bundles.SCENARIO,
    clock_jump.SCENARIO,
    kill_replica.SCENARIO,
    rolling_restart.SCENARIO,
    slow_clients.SCENARIO,
    overload.SCENARIO,
    costs.SCENARIO,
    memory.SCENARIO,
    soak.SCENARIO,
)


def all_scenarios() -> tuple[Scenario, ...]:
    """Return all scenarios."""
    return SCENARIOS


def chosen(names: list[str]) -> list[Scenario]:
    """Return the scenarios of some names, or all of them for `all`.

    Raises:
        ScenarioUnknown: a name that is none.
    """
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    for name in names:
        if name != "all" and name not in by_name:
            raise ScenarioUnknown("scenario", found=repr(name), expected=f"all or one of {', '.join(by_name)}")
    if "all" in names:
        return list(SCENARIOS)
    return [by_name[name] for name in dict.fromkeys(names)]


def why_not(scenario: Scenario) -> str | None:
    """Return what this machine lacks for a scenario, None where it lacks nothing."""
    missing = [name for name in scenario.needs if command_path(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None
