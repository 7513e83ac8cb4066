"""Dashboard *Experiments*: are variants dealt as planned, and which config deals them?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.dashboards.panels import RANK, SELECTED, Query, lines, number, page

RATE = "$__rate_interval"
OWN = f'{SELECTED},forced="false"'
"""Exposures that analyses count; forced ones are testers'."""


def experiments_dashboard() -> dashboard.Dashboard:
    """Return the dashboard for those who run experiments."""
    made = page("dlen-experiments", "DLEN / Experiments", "Exposures by layer, experiment, phase and variant.")
    for add in (_glance, _exposures, _configs):
        add(made)
    return made


def _glance(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("At a glance"))
    made.with_panel(
        number("Experiments", "Experiments and phases with exposures in the last 5 minutes.",
               "count(count by (layer, experiment, phase) (job_variant:dlen_rank_exposures:rate5m > 0)) or vector(0)",
               "short")
    )  # fmt: skip
    made.with_panel(
        number("Exposures", "Each second, over 5 minutes, forced ones left out.",
               "sum(job_variant:dlen_rank_exposures:rate5m) or vector(0)", "reqps")
    )  # fmt: skip
    made.with_panel(
        number("Forced", "Share of exposures that testers forced.",
               'sum(rate(dlen_rank_exposures_total{forced="true"}[5m])) / sum(rate(dlen_rank_exposures_total[5m])) '
               "or vector(0)", "percentunit")
    )  # fmt: skip
    made.with_panel(
        number("Config versions", "More than one for long: rankers disagree.",
               "count(count by (version) (dlen_config_info == 1))", "short", alarm=2)
    )  # fmt: skip
    made.with_panel(
        number("Since the last config", "Time since a config was taken over.",
               'time() - max(dlen_last_reload_timestamp_seconds{kind="config"})', "s")
    )  # fmt: skip
    made.with_panel(
        number("Config refused", "1: the newest config is refused, the last good one serves.",
               '1 - min(dlen_last_reload_successful{kind="config"})', "short", alarm=1)
    )  # fmt: skip


def _exposures(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("Exposures"))
    whole = "layer, experiment, phase"
    exposed = f"rate(dlen_rank_exposures_total{{{OWN}}}[{RATE}])"
    made.with_panel(
        lines("Exposures by variant", "Requests ranked by each variant.",
              [Query(f"sum by ({whole}, variant) ({exposed})", "{{experiment}}/{{phase}}: {{variant}}")], "reqps",
              span=12)
    )  # fmt: skip
    made.with_panel(
        lines("Share of each variant in its experiment", "Must lie flat at its planned share: of requests here, of "
              "users in the analysis.",
              [Query(f"sum by ({whole}, variant) ({exposed}) / on ({whole}) group_left () sum by ({whole}) ({exposed})",
                     "{{experiment}}/{{phase}}: {{variant}}"),
               Query(f"max by ({whole}, variant) (dlen_experiment_planned_share{{{SELECTED}}})",
                     "planned {{experiment}}/{{phase}}: {{variant}}")], "percentunit", span=12, dashed="^planned ")
    )  # fmt: skip
    requests = f'sum(rate(dlen_http_requests_total{{{RANK},status="200"}}[{RATE}]))'
    made.with_panel(
        lines("Ranked requests that are in each experiment", "A ramp is a step up here.",
              [Query(f"sum by ({whole}) ({exposed}) / on () group_left () {requests}", "{{experiment}}/{{phase}}")],
              "percentunit", span=12)
    )  # fmt: skip
    made.with_panel(
        lines("Forced exposures", "Testers' requests; keep them out of analyses.",
              [Query(f'sum by (layer, variant) (rate(dlen_rank_exposures_total{{{SELECTED},forced="true"}}[{RATE}]))',
                     "{{layer}}: {{variant}}")], "reqps", span=12)
    )  # fmt: skip


def _configs(made: dashboard.Dashboard) -> None:
    made.with_row(dashboard.Row("Configs"))
    made.with_panel(
        lines("Config versions over time", "How many rankers serve each version.",
              [Query(f"sum by (short) (label_replace(dlen_config_info{{{SELECTED}}} == 1, "
                     '"short", "$1", "version", "sha256:(.{8}).*"))', "{{short}}")], "short", stacked=True,
              span=12)
    )  # fmt: skip
    made.with_panel(
        lines("Fallback orders", "Exposed to nobody: with many of them, an experiment loses requests.",
              [Query(f"sum by (reason) (rate(dlen_rank_degraded_total{{{SELECTED}}}[{RATE}]))", "{{reason}}")],
              "reqps", stacked=True, span=12)
    )  # fmt: skip
